//! The LUKS2 header as hostile input: parsed by our own code, compared with the profile, authenticated by the seal.
//!
//! A power cut may legally leave two different copies, so each is judged alone; the copy that passes everything wins,
//! and of two the one with the higher sequence number. libcryptsetup only ever sees a [`Frozen`] file with the winner
//! in both places: what was checked is what is opened. Refused: whatever is not exactly what this driver writes.

pub(super) mod luks2;
pub(super) mod seal;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Shape;
use super::aligned::Aligned;
use super::backing::Attached;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;
use luks2::{COPY_BYTES, HeaderCopy, Place};

/// Size of an [`Image`].
const IMAGE_BYTES: usize = DATA_OFFSET_BYTES as usize;
/// Where the keyslot areas lie, used or not (libcryptsetup fills them with random bytes at format).
const KEYSLOTS: Range<usize> = 32_768..1_081_344;

/// Everything on a backing before the payload: [`DATA_OFFSET_BYTES`] bytes, read once or made here. Nothing in it is
/// secret: keys are wrapped.
#[derive(Clone)]
pub struct Image(Aligned);

/// A sealed in-memory file that holds one header in both places, and the key areas that it uses. Nothing can change it
/// any more.
#[derive(Debug)]
pub struct Frozen {
    file: OwnedFd,
    /// Whether the volume behind this header was never complete: then what else belongs to it may still be to be made.
    pub(super) is_new: bool,
}

/// A header that passed every check.
#[derive(Debug)]
pub struct Verified {
    /// What libcryptsetup may read.
    pub frozen: Frozen,
    /// SHA-256 of the text that the seal authenticates.
    pub digest: [u8; 32],
    /// Whether it is in both places: a cut may have left another header, or none, in one of them.
    pub is_twofold: bool,
}

/// One copy that has a valid checksum and is what the profile demands.
struct Candidate {
    place: Place,
    seqid: u64,
    document: Value,
    keyslots: Vec<(&'static str, Range<usize>)>,
}

/// Why a copy is not a candidate, or a candidate not the volume's header.
enum Defect {
    /// No LUKS2 magic.
    Absent,
    /// Intact, with the UUID of another volume.
    OtherVolume,
    /// Something is wrong; the text continues "the primary copy: ".
    Wrong(String),
}

impl Image {
    /// Reads the image with one read of the device.
    ///
    /// # Errors
    /// `DeviceUnreadable` if the device gives an error, or ends before the payload begins.
    pub fn read(attached: &Attached) -> Result<Self> {
        Self::from_file(&attached.device).map_err(|error| {
            let path = attached.path.display();
            Error::new(Reason::DeviceUnreadable, format!("the first {IMAGE_BYTES} bytes of {path} cannot be read"))
                .caused_by(error)
        })
    }

    /// Writes the image: key areas, then the secondary copy, then the primary one, each on stable storage before the
    /// next. A cut at any point leaves a copy that can be opened, or none that could be mistaken for one.
    ///
    /// # Errors
    /// `NoSpace` if the pool is full, `DeviceUnreadable` for any other refusal of the device.
    pub fn write(&self, attached: &Attached) -> Result<()> {
        self.write_ranges(attached, [KEYSLOTS])?;
        self.write_copies(attached)
    }

    /// Puts this header in the place of `before`, from which it was made and whose volume may be open: key areas that
    /// `before` does not have, then the copies. `before` must be in both places: then at any cut one of the two can be opened.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn replace(&self, attached: &Attached, shape: &Shape, before: &Frozen) -> Result<()> {
        let before = before.image()?;
        let is_new = |area: &Range<usize>| self.bytes()[area.clone()] != before.bytes()[area.clone()];
        self.write_ranges(attached, self.used_areas(shape)?.into_iter().filter(is_new))?;
        self.write_copies(attached)
    }

    /// Overwrites on the device each key area that this header does not use with random bytes.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn overwrite_unused(&self, attached: &Attached, shape: &Shape) -> Result<()> {
        let used = self.used_areas(shape)?;
        let mut noise = Self::blank();
        getrandom::fill(&mut noise.bytes_mut()[KEYSLOTS])
            .map_err(|error| Error::new(Reason::Internal, "the kernel gives no random bytes").caused_by(error))?;
        noise.write_ranges(attached, luks2::areas(shape.profile).filter(|area| !used.contains(area)))
    }

    fn used_areas(&self, shape: &Shape) -> Result<Vec<Range<usize>>> {
        Ok(self.newest(shape)?.keyslots.into_iter().map(|(_, area)| area).collect())
    }

    /// Writes the header, and no key areas: the secondary copy, then the primary one. A header that is in one place already
    /// is never only half there.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_copies(&self, attached: &Attached) -> Result<()> {
        self.write_ranges(attached, [Place::Secondary.range(), Place::Primary.range()])
    }

    /// Each on stable storage before the next.
    fn write_ranges(&self, attached: &Attached, ranges: impl IntoIterator<Item = Range<usize>>) -> Result<()> {
        for range in ranges {
            let offset = range.start as u64;
            attached
                .device
                .write_all_at(&self.bytes()[range], offset)
                .and_then(|()| attached.device.sync_all())
                .map_err(|error| write_error(attached, error))?;
        }
        Ok(())
    }

    /// Whether an interrupted format may start again: each binary header is all zero, or has magic and this UUID.
    #[must_use]
    pub fn may_be_overwritten(&self, uuid: &Uuid) -> bool {
        let ours = |copy: HeaderCopy<'_>| copy.is_blank() || (copy.has_magic() && copy.names(uuid));
        Place::ALL.into_iter().map(|place| self.copy(place)).all(ours)
    }

    /// The whole opening rule: both copies parsed alone, profile, seal, higher sequence number.
    ///
    /// # Errors
    /// `HeaderMissing` without any LUKS2 magic, `WrongVolume` for another volume's header, `HeaderTampered` otherwise.
    /// With a wrong `seal` key every header is `HeaderTampered`: exclude `WrongKey` by the key check value first.
    pub fn verify(&self, shape: &Shape, seal: &SecretBytes) -> Result<Verified> {
        let judged = Place::ALL.map(|place| self.sealed_candidate(place, shape, seal));
        match judged {
            [Err(primary), Err(secondary)] => Err(self.refusal(shape, [primary, secondary])),
            judged => {
                let is_twofold = matches!(&judged, [Ok((_, primary)), Ok((_, secondary))] if primary == secondary);
                let (winner, text) = judged
                    .into_iter()
                    .flatten()
                    .max_by_key(|(candidate, _)| candidate.seqid)
                    .expect("the other arm took the case without one");
                let frozen = self.freeze(&winner, false)?;
                Ok(Verified { frozen, digest: Sha256::digest(&text).into(), is_twofold })
            }
        }
    }

    /// Whether some copy is intact and is the header that the record knows. Needs no key and proves nothing against
    /// somebody who can also write the record.
    #[must_use]
    pub fn has_digest(&self, shape: &Shape, digest: &[u8; 32]) -> bool {
        self.with_digest(shape, digest).is_some()
    }

    /// The header whose digest an authenticated record holds, although it has no seal yet, and nothing else of the image;
    /// `None` if no copy of it is there.
    ///
    /// # Errors
    /// `Internal` if there is no memory file to hold it.
    pub fn unsealed(&self, shape: &Shape, digest: &[u8; 32]) -> Result<Option<Self>> {
        let Some(candidate) = self.with_digest(shape, digest) else { return Ok(None) };
        self.freeze(&candidate, true)?.image().map(Some)
    }

    /// A frozen copy of a header of our own making that has no seal yet.
    ///
    /// # Errors
    /// `Internal` if the image is not a header of the profile. Never call it with bytes that were read from a device.
    pub fn frozen(&self, shape: &Shape) -> Result<Frozen> {
        self.freeze(&self.newest(shape)?, true)
    }

    /// SHA-256 of the text that the seal of a header of our own making authenticates, or will.
    ///
    /// # Errors
    /// As [`Self::frozen`].
    pub fn digest(&self, shape: &Shape) -> Result<[u8; 32]> {
        Ok(Sha256::digest(self.text_to_seal(shape)?).into())
    }

    /// The text that the seal of a header of our own making has to authenticate.
    pub(super) fn text_to_seal(&self, shape: &Shape) -> Result<Vec<u8>> {
        Ok(self.text(shape, &self.newest(shape)?))
    }

    /// Lets `change` edit the metadata of a header of our own making, in both copies.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let refused = |why: String| Error::new(Reason::Internal, format!("libcryptsetup wrote a LUKS2 header: {why}"));
        let mut document = self.copy(Place::Primary).json().and_then(luks2::parse_json).map_err(refused)?;
        change(&mut document);
        let primary = self.copy(Place::Primary).with_json(document.to_string().as_bytes()).map_err(refused)?;
        for place in Place::ALL {
            let copy = HeaderCopy::new(Place::Primary, &primary).moved_to(place);
            self.bytes_mut()[place.range()].copy_from_slice(&copy[..]);
        }
        Ok(())
    }

    fn with_digest(&self, shape: &Shape, digest: &[u8; 32]) -> Option<Candidate> {
        let mut candidates = Place::ALL.into_iter().filter_map(|place| self.candidate(place, shape).ok());
        candidates.find(|candidate| Sha256::digest(self.text(shape, candidate)) == *digest)
    }

    /// The first [`IMAGE_BYTES`] of `file`.
    pub(super) fn from_file(file: &File) -> io::Result<Self> {
        let mut image = Self::blank();
        file.read_exact_at(&mut image.0, 0)?;
        Ok(image)
    }

    /// The bytes, at an address that O_DIRECT accepts.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn blank() -> Self {
        Self(Aligned::zeroed(IMAGE_BYTES))
    }

    fn copy(&self, place: Place) -> HeaderCopy<'_> {
        let bytes: &[u8; COPY_BYTES] = self.bytes()[place.range()].try_into().expect("a place is one copy long");
        HeaderCopy::new(place, bytes)
    }

    fn candidate(&self, place: Place, shape: &Shape) -> Result<Candidate, Defect> {
        let copy = self.copy(place);
        if !copy.has_magic() {
            return Err(Defect::Absent);
        }
        if copy.is_intact() && !copy.names(&shape.luks_uuid) {
            return Err(Defect::OtherVolume);
        }
        let document = copy.json().and_then(luks2::parse_json).map_err(Defect::Wrong)?;
        let keyslots = luks2::keyslots(&document, shape.profile).map_err(Defect::Wrong)?;
        Ok(Candidate { place, seqid: copy.seqid(), document, keyslots })
    }

    fn sealed_candidate(&self, place: Place, shape: &Shape, key: &SecretBytes) -> Result<(Candidate, Vec<u8>), Defect> {
        let candidate = self.candidate(place, shape)?;
        let text = self.text(shape, &candidate);
        if seal::holds(&candidate.document, key, &text) {
            Ok((candidate, text))
        } else {
            Err(Defect::Wrong("it has no valid seal".to_owned()))
        }
    }

    fn newest(&self, shape: &Shape) -> Result<Candidate> {
        let candidates = Place::ALL.into_iter().filter_map(|place| self.candidate(place, shape).ok());
        candidates.max_by_key(|candidate| candidate.seqid).ok_or_else(|| {
            let profile = shape.profile.as_str();
            let text = format!(
                "libcryptsetup wrote a LUKS2 header that profile {profile} does not know; its version is not supported"
            );
            Error::new(Reason::Internal, text)
        })
    }

    fn text(&self, shape: &Shape, candidate: &Candidate) -> Vec<u8> {
        seal::text(shape, &candidate.document, &candidate.keyslots, |range| &self.bytes()[range.clone()])
    }

    /// Only what was checked goes in: the rest of the image stays out of libcryptsetup's sight.
    fn freeze(&self, winner: &Candidate, is_new: bool) -> Result<Frozen> {
        let fail = |error: io::Error| Error::new(Reason::Internal, "no memory file for the header").caused_by(error);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("coffer-header", flags).map_err(|errno| fail(errno.into()))?);
        let fill = || -> io::Result<()> {
            ftruncate(&file, DATA_OFFSET_BYTES)?;
            for place in Place::ALL {
                let bytes = self.copy(winner.place).moved_to(place);
                file.write_all_at(&bytes[..], place.range().start as u64)?;
            }
            for (_, area) in &winner.keyslots {
                file.write_all_at(&self.bytes()[area.clone()], area.start as u64)?;
            }
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
            Ok(())
        };
        fill().map_err(fail)?;
        Ok(Frozen { file: file.into(), is_new })
    }

    fn refusal(&self, shape: &Shape, defects: [Defect; 2]) -> Error {
        let id = &shape.id;
        let advice = "nothing was changed; put the volume's own backing back, or delete the volume";
        if matches!(defects, [Defect::Absent, Defect::Absent]) {
            let found = self.describe();
            return Error::new(Reason::HeaderMissing, format!("{id} has no LUKS2 header, but {found}: {advice}"));
        }
        let found =
            std::iter::zip(Place::ALL, &defects).map(|(place, defect)| format!("the {} copy: {defect}", place.name()));
        let found = found.collect::<Vec<_>>().join(", ");
        if defects.iter().any(|defect| matches!(defect, Defect::Wrong(_))) {
            return Error::new(
                Reason::HeaderTampered,
                format!("{id} has a header that was not sealed by this driver ({found}): {advice}"),
            );
        }
        Error::new(Reason::WrongVolume, format!("the backing of {id} holds another volume ({found}): {advice}"))
    }

    fn describe(&self) -> &'static str {
        /// Offset and value of the magic of an ext2, ext3 or ext4 superblock (`fs/ext4/ext4.h`).
        const EXT4_MAGIC: (usize, [u8; 2]) = (1080, [0x53, 0xef]);
        let bytes = self.bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            "zeros"
        } else if bytes[EXT4_MAGIC.0..][..2] == EXT4_MAGIC.1 {
            "an ext4 filesystem"
        } else if bytes.starts_with(b"XFSB") {
            "an XFS filesystem"
        } else {
            "unknown bytes"
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({})", self.describe())
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is none"),
            Self::OtherVolume => f.write_str("it has the UUID of another volume"),
            Self::Wrong(text) => f.write_str(text),
        }
    }
}

impl Verified {
    /// Refuses a sealed header that is none of those with `digests`.
    ///
    /// # Errors
    /// `HeaderTampered`.
    pub fn is_one_of(&self, mut digests: impl Iterator<Item = [u8; 32]>) -> Result<()> {
        if digests.any(|digest| digest == self.digest) {
            return Ok(());
        }
        let message = "the header is sealed, but it is not the one in the record: an older copy was put back";
        Err(Error::new(Reason::HeaderTampered, message))
    }
}

impl Frozen {
    /// The path under which this process can open the file while this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// What is in the file.
    ///
    /// # Errors
    /// `Internal` if it cannot be read.
    pub fn image(&self) -> Result<Image> {
        let failed =
            |error| Error::new(Reason::Internal, "the memory file of a header cannot be read").caused_by(error);
        File::open(self.path()).and_then(|file| Image::from_file(&file)).map_err(failed)
    }
}

fn write_error(attached: &Attached, error: io::Error) -> Error {
    let path = attached.path.display();
    let (reason, text) = match Reason::of_write(&error) {
        reason @ Reason::NoSpace => {
            (reason, format!("the pool has no room for the header of {path}; free some, the call will be repeated"))
        }
        _ => (Reason::DeviceUnreadable, format!("{path} refuses to be written")),
    };
    Error::new(reason, text).caused_by(error)
}
