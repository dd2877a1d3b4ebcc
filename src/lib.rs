//! Coffer: a Kubernetes CSI driver whose volumes open only on nodes that have proved what they are.

#[cfg(feature = "dev")]
pub mod dev_kbs;
pub mod grpc;
pub mod inspect;
pub mod lifecycle;
pub mod provision;
pub mod key;
pub mod device;
pub mod record;
pub mod volume;
