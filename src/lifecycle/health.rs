//! What is wrong with a volume, told from this machine alone: no KBS, no key, no Kubernetes.

use std::fs::File;
use std::path::Path;

use super::Host;
use crate::device::backing;
use crate::device::backing::Attached;
use crate::device::crypt;
use crate::device::header::Image;
use crate::provision::BadSectors;
use crate::provision::Refusal;
use crate::record::Record;
use crate::record::State;
use crate::volume::HealthEntry;
use crate::volume::HealthStatus;
use crate::volume::Reason;
use crate::volume::Result;

impl Host {
    /// What is wrong with the volume of `record`, which has the sectors `bad`, and whose last stage was refused as `refusal`
    /// says unless it is open.
    pub(super) fn health(
        &self,
        record: &Record,
        refusal: Option<&Refusal>,
        bad: Option<&BadSectors>,
    ) -> Vec<HealthEntry> {
        let refused = refusal.map(|refusal| HealthEntry {
            status: HealthStatus::Inaccessible,
            reason: refusal.reason.clone(),
            message: refusal.message.clone(),
        });
        let lost = self.header_loss(record).inspect(|(reason, _)| self.metrics.found(*reason));
        let lost = lost.map(|(reason, message)| HealthEntry {
            status: HealthStatus::DataLoss,
            reason: reason.to_string(),
            message,
        });
        let bad = bad.map(|bad| HealthEntry {
            status: HealthStatus::DataLoss,
            reason: Reason::IntegrityError.to_string(),
            message: bad.to_string(),
        });
        lost.into_iter().chain(bad).chain(refused).collect()
    }

    /// A Ready volume whose backing holds no intact copy of its header will not open again.
    fn header_loss(&self, record: &Record) -> Option<(Reason, String)> {
        if record.state != State::Ready {
            return None;
        }
        let shape = self.shape(record);
        let expected_bytes = shape.profile.backing_bytes(shape.payload_bytes);
        match read_header(&shape.backing) {
            Ok((length, ..)) if length < expected_bytes => {
                Some((Reason::DeviceTruncated, format!("the backing has {length} bytes of {expected_bytes}")))
            }
            Ok((_, backing, image)) if record.header_digests().any(|digest| image.has_digest(&shape, &digest)) => {
                let error = crypt::check_tags(&shape, &backing, false).err()?;
                Some((error.reason(), error.explanation()))
            }
            // A rotation may have replaced both between the two reads.
            Ok(_)
                if let Ok(now) = self.pools.get(&record.id)
                    && now != *record =>
            {
                self.header_loss(&now)
            }
            Ok(_) => {
                let text = "no copy of the header on the backing is the one that was sealed";
                Some((Reason::HeaderTampered, text.to_owned()))
            }
            Err(error) => Some((error.reason(), error.explanation())),
        }
    }
}

fn read_header(backing: &Path) -> Result<(u64, Attached, Image)> {
    let (device, found) = backing::open(backing, File::options().read(true))?;
    let backing = Attached { device, path: backing.to_owned() };
    let image = Image::read(&backing)?;
    Ok((found.len(), backing, image))
}
