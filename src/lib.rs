//! Coffer: a Kubernetes CSI driver whose volumes open only on nodes that have proved what they are.

pub mod key;
pub mod device;
pub mod record;
pub mod volume;
