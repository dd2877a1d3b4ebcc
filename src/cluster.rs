//! What Coffer reads from and writes to Kubernetes: the resources that show every volume and pool of a cluster, the
//! controller that makes volumes through them, and the witness that a volume was once Ready.
//!
//! The controller writes a volume's `spec` and its finalizer, the volume's node its `status`, and neither the other's.
//! No resource ever carries a key, and none of this is needed to open a volume that is Ready.

mod cleaner;
pub mod condition;
mod controller;
mod error;
mod event;
mod pool;
mod quantity;
mod retained;
mod volume;
mod witness;

pub use cleaner::clean;
pub use controller::ClusterPools;
pub use error::complain;
pub use event::Events;
pub use event::News;
pub use pool::Disagreement;
pub use pool::EncryptedPool;
pub use pool::EncryptedPoolSpec;
pub use pool::EncryptedPoolStatus;
pub use quantity::Quantity;
pub use volume::EncryptedVolume;
pub use volume::EncryptedVolumeSpec;
pub use volume::EncryptedVolumeStatus;
pub use volume::Phase;
pub use witness::Witness;

/// Keeps the resource of a deleted volume until its node has erased it.
pub const FINALIZER: &str = "coffer.dev/erase";
/// Must carry the volume's id when a person deletes the resource by hand.
pub const CONFIRM_DELETE: &str = "coffer.dev/confirm-delete";
