//! Moves a volume to another secret, open or not. The volume key and the data stay: what changes is who can unwrap it.
//!
//! ```text
//! secret in the record   header on the disk     may be there too        next step
//! S0                     H0: slot a, seal 0     –                       admit    writes the record, then H1
//! S0, and S1 admitted    H1: slots a, b, both   H0: H1 was not written  promote  writes the record
//! S1, and S0 still there H1                     H2: H1 was replaced     settle   writes H2, noise over a, the record
//! S1                     H2: slot b, seal 1     –
//! ```
//! A cut may leave one header in one place and another in the other. Of these two the one that is gone on from is mended
//! first, into both places: whoever replaces a header needs two copies of it.
//!
//! Each step is one replacement of the record, which names every header that may be on the disk then, and is
//! authenticated under the secret that it names first. So wherever a rotation is cut, a stage opens the volume with the
//! record's secret, and the next rotation goes on from what record and disk say:
//! - H1 is promoted only after it was read back from the disk, its seal holds under both secrets, and S1 opened it.
//! - What S1 does not open (H1 was never written, or S1 is another one by now) is settled for S0, and begun anew. So is
//!   a rotation to elsewhere that this one finds, and to rotate back to S0 is to settle.
//! - H2 does not depend on slot a, which is overwritten only when both copies are H2.
//!
//! Headers are made in memory from a frozen, verified copy, and written through a loop device of their own. The mapper of
//! an open volume is not touched, so its I/O never waits. Where both URIs hold one secret only the record changes.
//!
//! Refused: a volume in the middle of its format, a secret that the KBS does not release or that is too short, a header
//! that the record does not know. Nothing has changed then. A copy of the old header stays a way in for whoever has that
//! copy and the old secret: the data was not encrypted anew.

use tokio::runtime::Handle;

use super::Host;
use crate::cluster::Witness;
use crate::device::Shape;
use crate::device::backing::Attached;
use crate::device::crypt;
use crate::device::header::Image;
use crate::device::header::Verified;
use crate::key::VolumeKeys;
use crate::record;
use crate::record::Digest32;
use crate::record::Record;
use crate::record::State;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;
use crate::volume::wiping_the_stack;

/// A rotation on its way.
struct Rotation<'a> {
    host: &'a Host,
    shape: Shape,
    attached: Attached,
    record: Record,
    to: &'a KeyUri,
    /// From the secret at the record's URI.
    current: VolumeKeys,
    /// From the secret at `to`, until the record names it.
    next: Option<VolumeKeys>,
}

/// What takes a rotation further; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Mend,
    Admit,
    Promote,
    Settle,
}

/// The step of a volume that has one header in both places, whose record names the wanted secret (`is_there`), a second one
/// (`is_rotating`), and whose header the wanted secret `opens`.
fn next_step(is_there: bool, is_rotating: bool, opens: bool) -> Option<Step> {
    match (is_there, is_rotating, opens) {
        (true, false, _) => None,
        (false, false, _) => Some(Step::Admit),
        (false, true, true) => Some(Step::Promote),
        (false, true, false) | (true, true, _) => Some(Step::Settle),
    }
}

impl Host {
    pub(super) fn rotate(&self, id: &VolumeId, to: &KeyUri) -> Result<()> {
        let record = self.pools.get(id)?;
        if record.key_uri == *to && record.rotation.is_none() {
            return Ok(());
        }
        let from = record.key_uri.clone();
        match record.state {
            // No header depends on the secret yet.
            State::Declared => record.keyed(to.clone(), None).write(&self.pools.of(id).directory(id))?,
            State::Formatting if self.may_begin_anew(&record, to) => {
                record.formatting().keyed(to.clone(), None).write(&self.pools.of(id).directory(id))?;
            }
            State::Formatting => {
                let message =
                    format!("volume {id} is being formatted; its key can be moved once its first stage is through");
                return Err(Error::new(Reason::OperationPending, message));
            }
            State::Ready => {
                wiping_the_stack(|| Rotation::new(self, record, to)?.run())?;
                self.pools.of(id).note_release(id, self.keys.attester());
            }
        }
        tracing::info!(volume = %id, %from, %to, "rotated");
        Ok(())
    }
}

impl Host {
    /// Whether the cluster knows that a volume in the middle of its format was never Ready, and wants its secret at `to`. Its
    /// first stage waits for that then, and begins anew.
    fn may_begin_anew(&self, record: &Record, to: &KeyUri) -> bool {
        let moved = VolumeSpec { key_uri: to.clone(), ..self.pools.spec(record) };
        let permit = |witness: &Witness| Handle::current().block_on(witness.permit(&record.id, &moved));
        self.witness.as_ref().is_some_and(|witness| permit(witness).is_ok())
    }
}

impl<'a> Rotation<'a> {
    /// Fetches the secrets before anything is attached.
    fn new(host: &'a Host, record: Record, to: &'a KeyUri) -> Result<Self> {
        let current = host.volume_keys(&record.key_uri, &record.id)?;
        record.authenticate(&current.check, &current.record)?;
        let next = if record.key_uri == *to { None } else { Some(host.volume_keys(to, &record.id)?) };
        let shape = host.shape(&record);
        let attached = host.machine.attach(&shape)?;
        Ok(Self { host, shape, attached, record, to, current, next })
    }

    fn run(mut self) -> Result<()> {
        let mut last = None;
        while let Some(step) = self.step()? {
            if matches!((last, step), (Some(Step::Mend), Step::Mend) | (Some(Step::Admit), Step::Settle)) {
                let message =
                    format!("{} does not show the header that was written to it", self.attached.path.display());
                return Err(Error::new(Reason::DeviceUnreadable, message));
            }
            last = Some(step);
        }
        Ok(())
    }

    /// Looks at the disk and takes the next step, unless there is none.
    fn step(&mut self) -> Result<Option<Step>> {
        let image = Image::read(&self.attached)?;
        let header = image.verify(&self.shape, &self.current.seal)?;
        header.is_one_of(self.record.header_digests())?;
        let is_shared = |rotation: &record::Rotation| rotation.header_digest.0 == header.digest;
        let opens =
            |next: &VolumeKeys| image.verify(&self.shape, &next.seal).is_ok_and(|it| it.digest == header.digest);
        let opens = self.record.rotation.as_ref().is_some_and(is_shared) && self.next.as_ref().is_some_and(opens);
        let step = if header.is_twofold {
            next_step(self.record.key_uri == *self.to, self.record.rotation.is_some(), opens)
        } else {
            Some(Step::Mend)
        };
        match step {
            Some(Step::Mend) => header.frozen.image()?.write_copies(&self.attached)?,
            Some(Step::Admit) => self.admit(&header)?,
            Some(Step::Promote) => self.promote(&header)?,
            Some(Step::Settle) => self.settle(&header)?,
            None => {}
        }
        Ok(step)
    }

    /// Lets the next secret open the volume too.
    fn admit(&mut self, header: &Verified) -> Result<()> {
        let next = self.take_next();
        let from = self.record.key_uri.clone();
        if next.check == self.current.check {
            tracing::warn!(%from, to = %self.to, "both hold the same secret: only its URI has changed");
            return self.store(self.to.clone(), header.digest, None);
        }
        let image = crypt::add_keyslot(&self.shape, &header.frozen, &self.current.passphrase, &next.passphrase)?;
        let (image, digest) = crypt::seal(&image, &self.shape, &[&self.current.seal, &next.seal])?;
        let both = record::Rotation { key_uri: self.to.clone(), header_digest: Digest32(digest) };
        self.store(from, header.digest, Some(both))?;
        image.replace(&self.attached, &self.shape, &header.frozen)?;
        self.next = Some(next);
        Ok(())
    }

    /// Makes the next secret the volume's own. It opens what is on the disk.
    fn promote(&mut self, header: &Verified) -> Result<()> {
        let next = self.take_next();
        let (_, digest) = self.alone(header, &next)?;
        let key_uri = self.record.key_uri.clone();
        let both = record::Rotation { key_uri, header_digest: Digest32(header.digest) };
        self.current = next;
        self.store(self.to.clone(), digest, Some(both))
    }

    fn take_next(&mut self) -> VolumeKeys {
        self.next.take().expect("the next secret is here until the record names it")
    }

    /// Leaves the volume to the record's secret alone.
    fn settle(&mut self, header: &Verified) -> Result<()> {
        let (image, digest) = self.alone(header, &self.current)?;
        if self.record.header_digest != Some(Digest32(digest)) {
            let message =
                "libcryptsetup makes another header now than the record announces; the volume opens as before";
            return Err(Error::new(Reason::Internal, message));
        }
        image.replace(&self.attached, &self.shape, &header.frozen)?;
        image.overwrite_unused(&self.attached, &self.shape)?;
        self.store(self.record.key_uri.clone(), digest, None)
    }

    /// What `header` becomes when only one secret opens it, and its digest.
    fn alone(&self, header: &Verified, keys: &VolumeKeys) -> Result<(Image, [u8; 32])> {
        crypt::seal(&crypt::keep_keyslot(&self.shape, &header.frozen, &keys.passphrase)?, &self.shape, &[&keys.seal])
    }

    /// Replaces the record by one under the current secret, which is at `key_uri`.
    fn store(&mut self, key_uri: KeyUri, header_digest: [u8; 32], both: Option<record::Rotation>) -> Result<()> {
        let record = self.record.clone().keyed(key_uri, both);
        let record = record.ready(header_digest, self.current.check, &self.current.record);
        record.write(&self.host.pools.of(&record.id).directory(&record.id))?;
        self.record = record;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
