//! The second witness of what a volume shall be, and that it was ever formatted. The node's own record is the first; it
//! carries no MAC until the volume is Ready, and whoever holds the disk can change it, or put an old one back.

use std::time::Duration;

use kube::Api;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::Patch;
use kube::api::PatchParams;
use serde_json::json;

use super::EncryptedVolume;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks and tells the API server whether volumes were ever Ready. Nothing is remembered: each answer is live.
#[derive(Clone)]
pub struct Witness(Api<EncryptedVolume>);

impl Witness {
    /// A witness at the cluster of `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(Api::all(client))
    }

    /// Permits the format of a volume that was never Ready and is what its record says, `recorded`.
    ///
    /// # Errors
    /// `PermitRevoked` if it was Ready, or if the cluster does not know it; `RecordTampered` if it shall be something else;
    /// `OperationPending` if its secret shall be elsewhere; `WitnessUnreachable` if that cannot be told now.
    pub async fn permit(&self, id: &VolumeId, recorded: &VolumeSpec) -> Result<()> {
        let volume = in_time(self.0.get_opt(id.as_str())).await?;
        let revoked = |why: &str| Err(Error::new(Reason::PermitRevoked, format!("{why}; nothing was written")));
        match volume {
            Some(volume) if !volume.was_ever_ready() => {
                agree(&volume, recorded)?;
                if volume.spec.key_uri == recorded.key_uri {
                    return Ok(());
                }
                let (asked, found) = (&volume.spec.key_uri, &recorded.key_uri);
                let message =
                    format!("its encvol names the secret at {asked}, its record {found}; it is moved there first");
                Err(Error::new(Reason::OperationPending, message))
            }
            Some(_) => revoked(&format!(
                "the cluster has seen volume {id} Ready, but its record says that it was never formatted: an old copy of \
                 the pool was put back; restore a newer one"
            )),
            None => revoked(&format!("the cluster has no encvol {id}, so nothing says that it was never formatted")),
        }
    }

    /// Makes known that the volume is Ready, as its record says, `recorded`. From then on no node formats it.
    ///
    /// # Errors
    /// `PermitRevoked` if the cluster does not know the volume; `RecordTampered` if it shall be something else;
    /// `WitnessUnreachable` if it cannot be told now.
    pub async fn confirm(&self, id: &VolumeId, recorded: &VolumeSpec) -> Result<()> {
        let patch = Patch::Merge(json!({"status": {"everReady": true}}));
        let parameters = PatchParams::default();
        match in_time(self.0.patch_status(id.as_str(), &parameters, &patch)).await {
            Err(error) if error.reason() == Reason::VolumeNotFound => {
                Err(Error::new(Reason::PermitRevoked, format!("the cluster has no encvol {id} to make Ready")))
            }
            outcome => agree(&outcome?, recorded),
        }
    }
}

/// Refuses a record that says anything else of a volume than its resource, but for where it is and who claims it, which
/// change nothing about it, and for where its secret is, which may be about to move.
fn agree(volume: &EncryptedVolume, recorded: &VolumeSpec) -> Result<()> {
    let asked = volume.volume()?.spec;
    if asked.is_same_as(&VolumeSpec { pool: asked.pool.clone(), ..recorded.clone() }) {
        return Ok(());
    }
    let message = format!(
        "the record of {} was changed: its encvol says {}, the record {}; restore it from a copy",
        volume.name_any(),
        asked.outline(),
        recorded.outline()
    );
    Err(Error::new(Reason::RecordTampered, message))
}

async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    let unreachable =
        || Error::new(Reason::WitnessUnreachable, "the API server could not be asked; nothing was written");
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {
            Err(Error::new(Reason::VolumeNotFound, status.message.clone()).caused_by(status))
        }
        Ok(Err(error)) => Err(unreachable().caused_by(error)),
        Err(elapsed) => Err(unreachable().caused_by(elapsed)),
    }
}
