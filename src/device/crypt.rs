//! Formats, seals and opens LUKS2 volumes: libcryptsetup on in-memory files, our own device-mapper tables.
//!
//! libcryptsetup repairs and re-reads headers behind its caller's back, so it never sees a backing: it formats and
//! seals in a memory file, and unlocks from a frozen one. The volume key goes from it to the kernel through the keyring
//! of one thread and is in no table, no file and no message. Refused: a header that our own parser does not accept,
//! also when libcryptsetup itself wrote it.

mod line;
mod mapped;
mod superblock;
mod table;
mod version;

pub use version::version;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use libcryptsetup_rs::consts::flags::{CryptActivate, CryptPbkdf, CryptVolumeKey};
use libcryptsetup_rs::consts::vals::{CryptKdf, EncryptionFormat, KeyslotInfo, KeyslotsSize, MetadataSize};
use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks2, CryptParamsLuks2Ref, CryptPbkdfType, Either, LibcryptErr, TokenInput,
};
use linux_keyutils::KeyError;
use linux_keyutils::KeyRing;
use linux_keyutils::KeyRingIdentifier;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::Value;
use serde_json::json;

use super::Mapper;
use super::Shape;
use super::backing::Attached;
use super::header::Frozen;
use super::header::Image;
use super::header::luks2;
use super::header::seal as token;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::Profile;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_512;
use crate::volume::SECTOR_BYTES;
use crate::volume::SecretBytes;
use crate::volume::VolumeId;

/// Two AES-256 keys: XTS with 512 bits.
const XTS_KEY_BYTES: usize = 64;
/// The fewest that libcryptsetup accepts. The passphrase is a derived key of 256 bits and gains nothing from more.
const PBKDF2_ITERATIONS: u32 = 1000;
/// Size of the keyslots area.
const KEYSLOTS_BYTES: u64 = 1 << 20;
/// The keyslot of a new volume.
const FIRST: u32 = 0;
/// The keyslots and the tokens that a header may have: the second ones are there during a rotation.
const SLOTS: [u32; 2] = [FIRST, 1];

/// Makes a new header with a random volume key, unlocked by `passphrase`, in memory. It has no seal yet.
///
/// # Errors
/// `Internal` if libcryptsetup fails, or writes what the profile does not know.
pub fn format(shape: &Shape, passphrase: &SecretBytes) -> Result<Image> {
    let scratch = Scratch::new()?;
    let mut device = scratch.device()?;
    let parameters = CryptParamsLuks2 {
        pbkdf: None,
        integrity: None,
        integrity_params: None,
        data_alignment: 0,
        data_device: None,
        sector_size: u32::try_from(SECTOR_BYTES).expect("a sector is small"),
        label: None,
        subsystem: None,
    };
    let mut steps = || -> Result<(), LibcryptErr> {
        let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
        device.settings_handle().set_pbkdf_type(&pbkdf2())?;
        device.settings_handle().set_metadata_size(MetadataSize::Kb16, KeyslotsSize::try_from(KEYSLOTS_BYTES)?)?;
        device.set_data_offset(DATA_OFFSET_BYTES / SECTOR_512)?;
        device.context_handle().format(
            EncryptionFormat::Luks2,
            ("aes", "xts-plain64"),
            Some(shape.luks_uuid),
            Either::Right(XTS_KEY_BYTES),
            Some(&mut parameters),
        )?;
        // Asked for a volume with tags, libcryptsetup would make the tags too, which needs the backing: so it makes only
        // the keyslot with the larger key, which it calls unbound.
        let (key, flags) = if shape.profile.has_tags() {
            (Some(Either::Right(shape.profile.volume_key_bytes())), CryptVolumeKey::NO_SEGMENT)
        } else {
            (None, CryptVolumeKey::empty())
        };
        device.keyslot_handle().add_by_key(Some(FIRST), key, passphrase.expose(), flags)?;
        Ok(())
    };
    steps().map_err(|error| failed("make a LUKS2 header", error))?;
    drop(device);
    let mut image = scratch.image()?;
    if shape.profile.has_tags() {
        image.edit(|document| bind_first_keyslot(document, shape.profile))?;
    }
    image.frozen(shape)?;
    Ok(image)
}

/// Lets the one keyslot, which is bound to nothing yet, unlock the segment of `profile` instead of the key that the header
/// was formatted with, which nobody keeps.
fn bind_first_keyslot(document: &mut Value, profile: Profile) {
    let mut digest = document["digests"]["1"].take();
    digest["segments"] = json!(["0"]);
    document["digests"] = json!({ "0": digest });
    document["segments"] = luks2::segments(profile);
}

/// Makes the backing of a new volume ready for its tags: the kernel makes those of a blank superblock anew. Nothing is to
/// be done for a profile without tags.
///
/// # Errors
/// `DeviceUnreadable` if the device refuses to be written.
pub fn clear_tags(shape: &Shape, attached: &Attached) -> Result<()> {
    if !shape.profile.has_tags() {
        return Ok(());
    }
    superblock::clear(&attached.device).map_err(|cause| {
        Error::new(Reason::DeviceUnreadable, format!("{} refuses to be written", attached.path.display()))
            .caused_by(cause)
    })
}

/// Whether the superblock of the tags on the backing is the one that the volume must have, as far as its profile has
/// tags. That of a volume that `is_new` may be blank.
///
/// # Errors
/// `HeaderMissing` if it is blank, `HeaderTampered` if it is another one, `DeviceUnreadable` if it cannot be read.
pub fn check_tags(shape: &Shape, attached: &Attached, is_new: bool) -> Result<()> {
    if shape.profile.has_tags() { superblock::check(shape, attached, is_new) } else { Ok(()) }
}

/// The superblock that the kernel makes on a blank backing of `shape`.
#[cfg(any(test, feature = "dev"))]
#[must_use]
pub fn superblock_of(shape: &Shape) -> Vec<u8> {
    superblock::of(shape)
}

fn pbkdf2() -> CryptPbkdfType {
    CryptPbkdfType {
        type_: CryptKdf::Pbkdf2,
        hash: Some("sha256".to_owned()),
        time_ms: 0,
        iterations: PBKDF2_ITERATIONS,
        max_memory_kb: 0,
        parallel_threads: 0,
        flags: CryptPbkdf::NO_BENCHMARK,
    }
}

/// Gives a header of our own making one seal for each of `keys`, one or two, and no other; returns it with the digest of
/// what the seals authenticate.
///
/// # Errors
/// `Internal` if libcryptsetup fails, or the result does not pass the opening rule.
pub fn seal(image: &Image, shape: &Shape, keys: &[&SecretBytes]) -> Result<(Image, [u8; 32])> {
    let scratch = Scratch::holding(image)?;
    // The authenticated text holds the tokens without their MACs, as libcryptsetup spells them: so they are written twice.
    scratch.set_tokens(&vec![[0; 32]; keys.len()])?;
    let text = scratch.image()?.text_to_seal(shape)?;
    scratch.set_tokens(&keys.iter().map(|key| token::mac(key, &text)).collect::<Vec<_>>())?;
    let sealed = scratch.image()?;
    let mut digest = [0; 32];
    for key in keys {
        let verified = sealed.verify(shape, key).map_err(|error| {
            Error::new(Reason::Internal, "a header that was just sealed does not verify; nothing was written")
                .caused_by(error)
        })?;
        digest = verified.digest;
    }
    Ok((sealed, digest))
}

/// A copy of `header` in which `new` opens the volume key too, by a keyslot of its own. Its seal is no longer valid.
///
/// # Errors
/// `WrongKey` if `passphrase` does not open `header`; `Internal` if there is no free keyslot, or libcryptsetup fails.
pub fn add_keyslot(shape: &Shape, header: &Frozen, passphrase: &SecretBytes, new: &SecretBytes) -> Result<Image> {
    changed(shape, header, |device| {
        check(device, passphrase)?;
        let mut add = || {
            device.settings_handle().set_pbkdf_type(&pbkdf2())?;
            let mut keyslots = device.keyslot_handle();
            let free = SLOTS.into_iter().find(|slot| matches!(keyslots.status(*slot), Ok(KeyslotInfo::Inactive)));
            keyslots.add_by_passphrase(free, passphrase.expose(), new.expose())
        };
        add().map(drop).map_err(|error| failed("add a keyslot", error))
    })
}

/// A copy of `header` in which only `passphrase` opens the volume key. Its seal is no longer valid.
///
/// # Errors
/// `WrongKey` if `passphrase` does not open `header`; `Internal` if libcryptsetup fails.
pub fn keep_keyslot(shape: &Shape, header: &Frozen, passphrase: &SecretBytes) -> Result<Image> {
    changed(shape, header, |device| {
        let kept = check(device, passphrase)?;
        let mut keyslots = device.keyslot_handle();
        let mut others = SLOTS.into_iter().filter(|slot| *slot != kept);
        others.try_for_each(|slot| match keyslots.status(slot) {
            Ok(KeyslotInfo::Inactive) => Ok(()),
            _ => keyslots.destroy(slot).map_err(|error| failed("remove a keyslot", error)),
        })
    })
}

/// What `change` makes of a copy of `header`, if the profile knows it.
fn changed(shape: &Shape, header: &Frozen, change: impl FnOnce(&mut CryptDevice) -> Result<()>) -> Result<Image> {
    let scratch = Scratch::holding(&header.image()?)?;
    let mut device = load(&scratch.path())?;
    change(&mut device)?;
    drop(device);
    let image = scratch.image()?;
    image.frozen(shape)?;
    Ok(image)
}

/// The keyslot that `passphrase` opens. No key is put into a keyring.
fn check(device: &mut CryptDevice, passphrase: &SecretBytes) -> Result<u32> {
    device
        .activate_handle()
        .activate_by_passphrase(None, None, passphrase.expose(), CryptActivate::empty())
        .map_err(|error| Error::new(Reason::WrongKey, "no keyslot of the header opens with this key").caused_by(error))
}

/// Unlocks `header` with `passphrase`, loads the table over `attached`, reads it back, and removes it again if it is
/// not what the shape demands.
///
/// On the way the volume key is in the keyring of the calling thread, which is empty afterwards. A thread's end would not
/// do: every file that the kernel opened for this thread, such as a mount's device, keeps its keyring alive.
///
/// # Errors
/// `WrongKey` if the keyslot does not open; `HeaderMissing`, `HeaderTampered` or `DeviceUnreadable` as [`check_tags`];
/// `ForeignDevice` if a name is taken or the kernel shows another table; `Internal` if the kernel refuses key or table.
pub fn open(shape: &Shape, attached: &Attached, header: &Frozen, passphrase: &SecretBytes) -> Result<()> {
    let opened = unlock(shape, header, passphrase).and_then(|()| table::load(shape, attached, header.is_new));
    empty_keyring();
    opened
}

/// Removes the device under the volume's name, complete or not. Absent is fine.
///
/// # Errors
/// `ForeignDevice` if it was not made by this driver; `Internal` if it stays in use.
pub fn close(id: &VolumeId) -> Result<()> {
    table::remove(id)
}

/// What stands under the volume's name. `backings` are the device numbers (major, minor) of the loop devices on the
/// volume's image; a live table over any other device is foreign. Without a shape, a live device whose device-mapper
/// UUID has our form counts as ours.
///
/// # Errors
/// `Internal` if device-mapper cannot be asked.
pub fn look(id: &VolumeId, shape: Option<&Shape>, backings: impl IntoIterator<Item = (u32, u32)>) -> Result<Mapper> {
    let backings: Vec<_> = backings.into_iter().collect();
    table::look(id, shape.map(|shape| (shape, backings.as_slice())))
}

/// The open volume's device node, `/dev/dm-N`. Names under `/dev/mapper` are udev's, which may be late or absent.
///
/// # Errors
/// `Internal` if the volume is not open, or `/dev` is not the kernel's.
pub fn device_node(id: &VolumeId) -> Result<PathBuf> {
    table::node(id)
}

fn unlock(shape: &Shape, header: &Frozen, passphrase: &SecretBytes) -> Result<()> {
    let mut device = load(&header.path())?;
    let mut activate = |flags| device.activate_handle().activate_by_passphrase(None, None, passphrase.expose(), flags);
    let Err(error) = activate(CryptActivate::KEYRING_KEY) else { return Ok(()) };
    // libcryptsetup reports a blocked keyring and a wrong passphrase alike. Without the flag it only tries the latter.
    let id = &shape.id;
    Err(match activate(CryptActivate::empty()) {
        Ok(_keyslot) => Error::new(
            Reason::Internal,
            format!(
                "the kernel refused to keep the key of {id}: allow this process the system calls add_key and keyctl"
            ),
        ),
        Err(_) => Error::new(
            Reason::WrongKey,
            format!(
                "the secret at the KBS does not open the keyslot of {id}, although the header is the one that was made"
            ),
        ),
    }
    .caused_by(error))
}

fn empty_keyring() {
    let emptied = KeyRing::from_special_id(KeyRingIdentifier::Thread, false).and_then(|keyring| keyring.clear());
    match emptied {
        Ok(()) | Err(KeyError::KeyDoesNotExist) => {}
        Err(error) => tracing::warn!(%error, "the volume key stays in a keyring of the kernel"),
    }
}

fn load(path: &Path) -> Result<CryptDevice> {
    let mut device = device_at(path)?;
    device
        .context_handle()
        .load::<()>(Some(EncryptionFormat::Luks2), None)
        .map_err(|error| failed("read a LUKS2 header that we verified", error))?;
    Ok(device)
}

fn device_at(path: &Path) -> Result<CryptDevice> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| libcryptsetup_rs::set_log_callback::<()>(Some(log), None));
    CryptInit::init(path).map_err(|error| failed("start", error))
}

fn failed(what: &str, error: LibcryptErr) -> Error {
    Error::new(Reason::Internal, format!("libcryptsetup cannot {what}")).caused_by(error)
}

/// Without a callback libcryptsetup prints to standard output. Its messages name devices and system calls, no keys;
/// the debug level that dumps headers is never turned on.
unsafe extern "C" fn log(_level: c_int, message: *const c_char, _data: *mut c_void) {
    // SAFETY: libcryptsetup passes a string that ends with NUL and lives until this function returns.
    let message = unsafe { CStr::from_ptr(message) };
    let message = message.to_string_lossy();
    version::notice(&message);
    tracing::debug!(message = %message.trim_end(), "libcryptsetup");
}

/// A file in memory that libcryptsetup takes for a small disk.
struct Scratch(File);

impl Scratch {
    fn new() -> Result<Self> {
        let make = || -> std::io::Result<File> {
            let file = File::from(memfd_create("coffer-format", MemfdFlags::CLOEXEC)?);
            // A payload must follow the header, or libcryptsetup finds the disk too small. It stays a hole.
            ftruncate(&file, 2 * DATA_OFFSET_BYTES)?;
            Ok(file)
        };
        make().map(Self).map_err(scratch_failed)
    }

    fn holding(image: &Image) -> Result<Self> {
        let scratch = Self::new()?;
        scratch.0.write_all_at(image.bytes(), 0).map_err(scratch_failed)?;
        Ok(scratch)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn device(&self) -> Result<CryptDevice> {
        device_at(&self.path())
    }

    /// Leaves one seal for each of `macs`.
    fn set_tokens(&self, macs: &[[u8; 32]]) -> Result<()> {
        let mut device = load(&self.path())?;
        let mut macs = macs.iter();
        for slot in SLOTS {
            let token = macs.next().map(token::token);
            let input =
                token.as_ref().map_or(TokenInput::RemoveToken(slot), |token| TokenInput::ReplaceToken(slot, token));
            device.token_handle().json_set(input).map_err(|error| failed("set the seals", error))?;
        }
        Ok(())
    }

    fn image(&self) -> Result<Image> {
        Image::from_file(&self.0).map_err(scratch_failed)
    }
}

fn scratch_failed(error: std::io::Error) -> Error {
    Error::new(Reason::Internal, "no memory file to make a header in").caused_by(error)
}

#[cfg(test)]
mod tests;
