//! The cluster's half of Coffer against a real API server: the rules of the resources, the provisioner that asks nodes
//! for volumes, and the nodes that answer. The nodes' machines live in memory; their pools are real directories.
//!
//! `make api` starts etcd, the API server and the controller manager, and sets KUBECONFIG.

mod events;
mod privilege;
mod provisioning;
mod rotation;
mod rules;
mod scene;
mod witness;
