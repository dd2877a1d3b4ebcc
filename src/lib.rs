//! Coffer: a Kubernetes CSI driver whose volumes open only on nodes that have proved what they are.

#[cfg(feature = "dev")]
pub mod dev_kbs;
pub mod device;
pub mod key;
pub mod record;
pub mod volume;
