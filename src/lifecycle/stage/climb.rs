//! One stage on its way up. The secret is fetched before anything is attached, and dies with the climb.
//!
//! The format permit: a read of the device may veto a format, never permit one. Only the record permits, and a record
//! that says Ready never does. In a cluster the volume's resource must agree: it is told that a volume is Ready before
//! the record is, so that an old copy of the record permits nothing.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;

use super::StageRequest;
use super::mounted_at;
use super::rung::Rung;
use super::rung::Step;
use super::rung::next_step;
use crate::device::Mapper;
use crate::device::Shape;
use crate::device::backing;
use crate::device::backing::Attached;
use crate::device::crypt;
use crate::device::header::Frozen;
use crate::device::header::Image;
use crate::key::VolumeKeys;
use crate::lifecycle::Host;
use crate::record::Record;
use crate::record::State;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeSpec;

/// A stage on its way up.
pub(super) struct Climb<'a> {
    host: &'a Host,
    record: Record,
    shape: &'a Shape,
    request: &'a StageRequest,
    keys: Option<VolumeKeys>,
    attached: Option<Attached>,
    header: Option<Header>,
}

/// The header that a climb goes on with.
enum Header {
    /// It was there, and its seal is valid.
    Verified(Frozen),
    /// This climb has written it; the seal comes last.
    Fresh(Image),
}

impl<'a> Climb<'a> {
    pub(super) fn new(host: &'a Host, record: Record, shape: &'a Shape, request: &'a StageRequest) -> Self {
        Self { host, record, shape, request, keys: None, attached: None, header: None }
    }

    /// Climbs to the top. A step that does not move the volume is an error, never a loop.
    pub(super) fn run(mut self) -> Result<()> {
        let start = Instant::now();
        let from = self.rung()?;
        if from < Rung::Open {
            self.keys = Some(self.fetch_keys()?);
        }
        let mut rung = from;
        while let Some(step) = next_step(rung) {
            let began = Instant::now();
            self.take(step)?;
            tracing::debug!(?step, milliseconds = began.elapsed().as_millis(), "climbed");
            let now = self.rung()?;
            if now <= rung {
                return Err(Error::new(Reason::Internal, format!("{step:?} left the volume at {now:?}")));
            }
            rung = now;
        }
        if self.keys.is_some() {
            self.host.pools.of(&self.shape.id).note_release(&self.shape.id, self.host.keys.attester());
        }
        tracing::info!(volume = %self.shape.id, ?from, to = ?rung, milliseconds = start.elapsed().as_millis(), "staged");
        Ok(())
    }

    /// Where the volume stands: asked of the kernel, and of this climb for what no kernel call can tell.
    fn rung(&self) -> Result<Rung> {
        let kernel = self.host.look(&self.shape.id, Some(self.shape))?;
        Ok(match (&kernel.mapper, &self.header, &self.attached) {
            (Mapper::Live, ..) if mounted_at(&kernel, &self.request.staging_path).is_some() => Rung::Mounted,
            (Mapper::Live, ..) if self.is_complete_block() => Rung::Mounted,
            (Mapper::Live, ..) => Rung::Open,
            (_, Some(_), _) => Rung::Prepared,
            (_, None, Some(_)) => Rung::Attached,
            (_, None, None) => Rung::Absent,
        })
    }

    fn is_complete_block(&self) -> bool {
        self.record.content == Content::Block && self.record.state == State::Ready
    }

    fn fetch_keys(&self) -> Result<VolumeKeys> {
        let keys = self.host.volume_keys(&self.record.key_uri, &self.shape.id)?;
        if self.record.state == State::Ready {
            self.record.authenticate(&keys.check, &keys.record)?;
        }
        Ok(keys)
    }

    fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Attach => {
                self.attached = Some(self.host.machine.attach(self.shape)?);
                Ok(())
            }
            Step::Prepare => self.prepare(),
            Step::Open => {
                self.open()?;
                if self.record.state == State::Ready {
                    self.host.note_opening(self.shape);
                }
                Ok(())
            }
            Step::Finish => self.finish(),
        }
    }

    fn prepare(&mut self) -> Result<()> {
        let image = Image::read(self.attached())?;
        match image.verify(self.shape, &self.keys().seal) {
            Ok(verified) if self.record.state == State::Ready => {
                verified.is_one_of(self.record.header_digests())?;
                self.header = Some(Header::Verified(verified.frozen));
            }
            Ok(verified) => {
                // The stage that has sealed it may have ended between the two copies.
                if !verified.is_twofold {
                    verified.frozen.image()?.write_copies(self.attached())?;
                }
                self.promote(verified.digest)?;
                self.header = Some(Header::Verified(verified.frozen));
            }
            Err(error) if self.record.state == State::Ready => return Err(error),
            Err(_) => {
                self.check_permit(&image)?;
                match self.begun(&image)? {
                    Some(header) => self.header = Some(Header::Fresh(header)),
                    None => self.format()?,
                }
            }
        }
        Ok(())
    }

    /// The header of an earlier stage whose tags are not complete yet, if the record proves that it is this one.
    fn begun(&self, image: &Image) -> Result<Option<Image>> {
        let keys = self.keys();
        match (self.record.initialised_bytes, self.record.header_digest) {
            (Some(_), Some(digest)) if self.record.authenticate(&keys.check, &keys.record).is_ok() => {
                image.unsealed(self.shape, &digest.0)
            }
            _ => Ok(None),
        }
    }

    /// Vetoes a format where the backing holds what this volume's own first stage cannot have written.
    fn check_permit(&self, image: &Image) -> Result<()> {
        let blank = match self.record.state {
            State::Declared => !backing::holds_data(&self.shape.backing)?,
            State::Formatting => image.may_be_overwritten(&self.shape.luks_uuid),
            State::Ready => false,
        };
        if blank {
            return match &self.host.witness {
                Some(witness) => Handle::current().block_on(witness.permit(&self.shape.id, &self.spec())),
                None => Ok(()),
            };
        }
        Err(Error::new(
            Reason::NotBlank,
            format!(
                "volume {} was never formatted, yet its backing holds data that is not its own; nothing was written",
                self.shape.id
            ),
        ))
    }

    fn format(&mut self) -> Result<()> {
        self.write(self.record.clone().formatting())?;
        let image = crypt::format(self.shape, &self.keys().passphrase)?;
        crypt::clear_tags(self.shape, self.attached())?;
        image.write(self.attached())?;
        self.header = Some(Header::Fresh(image));
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let machine = &self.host.machine;
        let passphrase = &self.keys().passphrase;
        match self.header.as_ref().expect("a volume is prepared before it is opened") {
            Header::Verified(frozen) => machine.open(self.shape, self.attached(), frozen, passphrase),
            Header::Fresh(image) => machine.open(self.shape, self.attached(), &image.frozen(self.shape)?, passphrase),
        }
    }

    fn finish(&mut self) -> Result<()> {
        let (machine, id) = (Arc::clone(&self.host.machine), &self.shape.id);
        match (self.header.take(), self.record.content) {
            (Some(Header::Fresh(image)), content) => {
                self.initialise(&image)?;
                if let Content::Filesystem(fs) = content {
                    machine.make_filesystem(self.shape, fs)?;
                }
                self.seal(image)?;
            }
            (_, Content::Filesystem(fs)) if machine.look(id, Some(self.shape))?.mounts.is_empty() => {
                machine.check_filesystem(self.shape, fs)?;
            }
            _ => {}
        }
        match self.record.content {
            Content::Filesystem(fs) => machine.mount(id, fs, &self.request.staging_path, &self.request.options),
            Content::Block => Ok(()),
        }
    }

    /// Gives the new volume its tags. What takes long is noted in the record, so that a driver that is restarted in the middle
    /// goes on from there.
    fn initialise(&mut self, image: &Image) -> Result<()> {
        if !self.record.profile.has_tags() {
            return Ok(());
        }
        let machine = Arc::clone(&self.host.machine);
        let digest = image.digest(self.shape)?;
        let from_bytes = self.record.initialised_bytes.unwrap_or_default();
        machine.initialise(self.shape, self.record.init, from_bytes, &mut |bytes| {
            let keys = self.keys();
            let record = self.record.clone().initialised(bytes, digest, keys.check, &keys.record);
            self.write(record)
        })
    }

    /// The seal is the last thing that a format writes: a valid one means that everything before it is complete.
    fn seal(&mut self, image: Image) -> Result<()> {
        let (image, digest) = crypt::seal(&image, self.shape, &[&self.keys().seal])?;
        image.write(self.attached())?;
        self.promote(digest)?;
        self.host.note_opening(self.shape);
        Ok(())
    }

    fn promote(&mut self, digest: [u8; 32]) -> Result<()> {
        if let Some(witness) = &self.host.witness {
            Handle::current().block_on(witness.confirm(&self.shape.id, &self.spec()))?;
        }
        let keys = self.keys();
        let record = self.record.clone().ready(digest, keys.check, &keys.record);
        self.write(record)
    }

    fn write(&mut self, record: Record) -> Result<()> {
        record.write(&self.host.pools.of(&self.shape.id).directory(&self.shape.id))?;
        self.record = record;
        Ok(())
    }

    fn spec(&self) -> VolumeSpec {
        self.host.pools.spec(&self.record)
    }

    fn keys(&self) -> &VolumeKeys {
        self.keys.as_ref().expect("the secret is fetched before anything is attached")
    }

    fn attached(&self) -> &Attached {
        self.attached.as_ref().expect("the image is attached before it is read")
    }
}
