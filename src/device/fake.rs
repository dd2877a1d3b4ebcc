//! A computer for tests: the promises of [`Machine`] kept in memory, over real image files.
//!
//! Headers are read, written and unlocked for real. Mappers and mounts are a table behind a mutex that outlives the
//! driver: dropping the lifecycle and making another over the same machine is a crash, [`FakeMachine::reboot`] a
//! reboot. It refuses what a kernel refuses: opening with a wrong passphrase, closing what is mounted, mounting what
//! was never made.

use std::collections::BTreeMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use libcryptsetup_rs::CryptInit;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use sha2::Digest;
use sha2::Sha256;

use super::Kernel;
use super::Machine;
use super::Mapper;
use super::Mount;
use super::MountKind;
use super::MountOptions;
use super::Progress;
use super::Shape;
use super::Usage;
use super::backing::Attached;
use super::crypt;
use super::header::Frozen;
use super::integrity::BadSector;
use super::integrity::Moment;
use super::integrity::Opening;
use super::mount;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::Init;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;
use crate::volume::VolumeId;

/// The longest volume key of any profile.
const VOLUME_KEY_BYTES: usize = 96;

/// Where the filesystem's mark lies: behind the header and, where there is one, the superblock of the tags.
const FILESYSTEM_BYTES: u64 = DATA_OFFSET_BYTES + 4096;

/// The verbs of [`Machine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Verb {
    Look,
    Attach,
    Detach,
    Open,
    Opening,
    Close,
    Initialise,
    MakeFilesystem,
    CheckFilesystem,
    Mount,
    Publish,
    Unmount,
    Usage,
    CheckMemory,
    Features,
}

/// When an injected fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing has been done yet.
    Before,
    /// Everything has been done; only the answer is lost.
    After,
}

/// The machine. Clones are the same machine.
#[derive(Clone, Debug, Default)]
pub struct FakeMachine(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    mappers: BTreeMap<VolumeId, FakeMapper>,
    mounts: Vec<(VolumeId, Mount)>,
    /// Loop devices that nothing stands on.
    stray_loops: BTreeMap<PathBuf, u64>,
    /// How, and from where on, new volumes got their tags.
    initialised: Vec<(Init, u64)>,
    faults: Vec<(Verb, When, Reason)>,
    calls: BTreeMap<Verb, usize>,
    /// How many devices were ever opened.
    disks: u64,
    /// How many lines the kernel log has.
    lines: u64,
}

#[derive(Debug)]
struct FakeMapper {
    shape: Shape,
    state: Mapper,
    inode: u64,
    marker: String,
    disk: u64,
}

impl FakeMachine {
    /// The next call of `verb` fails once with `reason`.
    pub fn fail_at(&self, verb: Verb, when: When, reason: Reason) {
        self.state().faults.push((verb, when, reason));
    }

    /// How often `verb` has been called.
    #[must_use]
    pub fn calls(&self, verb: Verb) -> usize {
        self.state().calls.get(&verb).copied().unwrap_or_default()
    }

    /// How, and from which byte on, new volumes got their tags.
    #[must_use]
    pub fn initialised(&self) -> Vec<(Init, u64)> {
        self.state().initialised.clone()
    }

    /// Loses everything that a kernel forgets when the power goes.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.mappers.clear();
        state.mounts.clear();
        state.stray_loops.clear();
    }

    /// Puts a device under the volume's name: what a killed call left, or somebody else's.
    pub fn put_mapper(&self, shape: &Shape, state: Mapper) {
        let inode = std::fs::metadata(&shape.backing).map_or(0, |found| found.ino());
        let mapper = FakeMapper { shape: shape.clone(), state, inode, marker: String::new(), disk: 0 };
        self.state().mappers.insert(shape.id.clone(), mapper);
    }

    /// Leaves a loop device on the volume's image that nothing uses.
    pub fn put_loop(&self, shape: &Shape) {
        let inode = std::fs::metadata(&shape.backing).map_or(0, |found| found.ino());
        let mut state = self.state();
        let path = PathBuf::from(format!("/dev/loop{}", 100 + state.stray_loops.len()));
        state.stray_loops.insert(path, inode);
    }

    /// The kernel tells that `sector` of the open volume does not hold what was written there.
    ///
    /// # Panics
    /// If the volume is not open.
    #[must_use]
    pub fn bad_sector(&self, id: &VolumeId, sector: u64) -> BadSector {
        let mut state = self.state();
        state.lines += 1;
        let (when, disk) = (Moment::Line(state.lines), state.mappers[id].disk.to_string());
        BadSector { id: id.clone(), sector, disk, when }
    }

    /// The mount table: what is there of every volume.
    #[must_use]
    pub fn mounts(&self) -> Vec<(VolumeId, Mount)> {
        self.state().mounts.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and lets the injected fault strike before or after `work`.
    fn call<T>(&self, verb: Verb, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        *state.calls.entry(verb).or_default() += 1;
        let fault = state.faults.iter().position(|(at, _, _)| *at == verb).map(|at| state.faults.remove(at));
        let injected = |reason| Error::new(reason, format!("injected at {verb:?}"));
        match fault {
            Some((_, When::Before, reason)) => Err(injected(reason)),
            Some((_, When::After, reason)) => work(&mut state).and_then(|_| Err(injected(reason))),
            None => work(&mut state),
        }
    }
}

impl State {
    fn live(&self, id: &VolumeId) -> Result<&FakeMapper> {
        let mapper = self.mappers.get(id).filter(|mapper| mapper.state == Mapper::Live);
        mapper.ok_or_else(|| Error::new(Reason::Internal, format!("{id} is not open")))
    }

    fn mounts_of(&self, id: &VolumeId) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |(of, _)| of == id).map(|(_, mount)| mount)
    }

    fn add_mount(&mut self, id: &VolumeId, path: &Path, kind: MountKind, read_only: bool, flags: &[String]) {
        let first = if read_only { "ro" } else { "rw" }.to_owned();
        let options = [first].into_iter().chain(flags.iter().cloned()).collect();
        self.mounts.push((id.clone(), Mount { path: path.to_owned(), kind, read_only, options }));
    }
}

impl FakeMapper {
    fn seen_as(&self, demanded: Option<&Shape>) -> Mapper {
        let Some(shape) = demanded.filter(|_| self.state == Mapper::Live) else { return self.state.clone() };
        let image = std::fs::metadata(&shape.backing).map(|found| found.ino());
        if *shape != self.shape {
            Mapper::Foreign("its table is not the one that the record demands".into())
        } else if image.is_ok_and(|inode| inode != self.inode) {
            Mapper::Foreign("it stands on another image".into())
        } else {
            Mapper::Live
        }
    }

    /// What a filesystem of this type, under this volume key, leaves at the beginning of the payload.
    fn filesystem(&self, fs: FsType) -> Vec<u8> {
        format!("{} under {}", fs.as_str(), self.marker).into_bytes()
    }
}

impl Machine for FakeMachine {
    fn look(&self, id: &VolumeId, shape: Option<&Shape>) -> Result<Kernel> {
        self.call(Verb::Look, |state| {
            let mapper = state.mappers.get(id);
            let inode = shape.and_then(|shape| std::fs::metadata(&shape.backing).ok()).map(|found| found.ino());
            let stray = state.stray_loops.iter().filter(|(_, on)| Some(**on) == inode).map(|(path, _)| path.clone());
            let held = mapper.filter(|mapper| Some(mapper.inode) == inode).map(|_| PathBuf::from("/dev/loop0"));
            Ok(Kernel {
                loops: held.into_iter().chain(stray).collect(),
                mapper: mapper.map_or(Mapper::Absent, |mapper| mapper.seen_as(shape)),
                mounts: state.mounts_of(id).cloned().collect(),
            })
        })
    }

    fn attach(&self, shape: &Shape) -> Result<Attached> {
        self.call(Verb::Attach, |_| {
            let path = shape.backing.clone();
            let device = OpenOptions::new().read(true).write(true).open(&path);
            let device = device.map_err(|cause| failed(Reason::DeviceMissing, "the image is gone", cause))?;
            let length_bytes = device.metadata().map_err(internal)?.len();
            if length_bytes < shape.profile.backing_bytes(shape.payload_bytes) {
                return Err(Error::new(Reason::DeviceTruncated, format!("the image has {length_bytes} bytes")));
            }
            Ok(Attached { device, path })
        })
    }

    fn detach(&self, loops: &[PathBuf]) -> Result<()> {
        self.call(Verb::Detach, |state| {
            state.stray_loops.retain(|path, _| !loops.contains(path));
            Ok(())
        })
    }

    fn open(&self, shape: &Shape, attached: &Attached, header: &Frozen, passphrase: &SecretBytes) -> Result<()> {
        self.call(Verb::Open, |state| {
            if state.mappers.contains_key(&shape.id) {
                return Err(Error::new(Reason::Internal, "a device of this name exists"));
            }
            let marker = unlock(header, passphrase)?;
            crypt::check_tags(shape, attached, header.is_new)?;
            if shape.profile.has_tags() {
                let superblock = crypt::superblock_of(shape);
                attached.device.write_all_at(&superblock, DATA_OFFSET_BYTES).map_err(internal)?;
            }
            let inode = attached.device.metadata().map_err(internal)?.ino();
            state.disks += 1;
            let mapper = FakeMapper { shape: shape.clone(), state: Mapper::Live, inode, marker, disk: state.disks };
            state.mappers.insert(shape.id.clone(), mapper);
            Ok(())
        })
    }

    fn opening(&self, id: &VolumeId) -> Result<Opening> {
        self.call(Verb::Opening, |state| {
            Ok(Opening { disk: state.live(id)?.disk.to_string(), line: state.lines, milliseconds: 0 })
        })
    }

    fn close(&self, id: &VolumeId) -> Result<()> {
        self.call(Verb::Close, |state| {
            if state.mounts_of(id).any(|mount| mount.kind == MountKind::Filesystem) {
                return Err(Error::new(Reason::Internal, format!("{id} is in use")));
            }
            state.mappers.remove(id);
            Ok(())
        })
    }

    fn initialise(&self, shape: &Shape, init: Init, from_bytes: u64, progress: &mut Progress<'_>) -> Result<()> {
        self.call(Verb::Initialise, |state| {
            state.live(&shape.id)?;
            state.initialised.push((init, from_bytes));
            if init == Init::Full {
                for done_bytes in [shape.payload_bytes / 2, shape.payload_bytes] {
                    progress(done_bytes)?;
                }
            }
            Ok(())
        })
    }

    fn make_filesystem(&self, shape: &Shape, fs: FsType) -> Result<()> {
        self.call(Verb::MakeFilesystem, |state| {
            let mapper = state.live(&shape.id)?;
            let image = OpenOptions::new().write(true).open(&mapper.shape.backing).map_err(internal)?;
            image.write_all_at(&mapper.filesystem(fs), FILESYSTEM_BYTES).map_err(internal)
        })
    }

    fn check_filesystem(&self, shape: &Shape, fs: FsType) -> Result<()> {
        self.call(Verb::CheckFilesystem, |state| {
            if state.mounts_of(&shape.id).any(|mount| mount.kind == MountKind::Filesystem) {
                return Err(Error::new(Reason::Internal, "a mounted filesystem was to be checked"));
            }
            expect_filesystem(state.live(&shape.id)?, fs)
        })
    }

    fn mount(&self, id: &VolumeId, fs: FsType, target: &Path, options: &MountOptions) -> Result<()> {
        self.call(Verb::Mount, |state| {
            mount::check_flags(&options.flags)?;
            expect_filesystem(state.live(id)?, fs)?;
            if !target.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                return Err(Error::new(Reason::StagingMissing, format!("{} is no directory", target.display())));
            }
            state.add_mount(id, target, MountKind::Filesystem, options.is_read_only(), &options.flags);
            Ok(())
        })
    }

    fn publish(&self, id: &VolumeId, staged: Option<&Path>, target: &Path, read_only: bool) -> Result<()> {
        self.call(Verb::Publish, |state| {
            state.live(id)?;
            let (kind, created) = match staged {
                Some(staged) if state.mounts_of(id).any(|mount| mount.path == staged) => {
                    (MountKind::Filesystem, std::fs::create_dir(target))
                }
                Some(_) => return Err(Error::new(Reason::StagingMissing, "nothing is staged there")),
                None => (MountKind::DeviceNode, File::create_new(target).map(drop)),
            };
            match created {
                Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(internal(cause)),
                _ => state.add_mount(id, target, kind, read_only, &[]),
            }
            Ok(())
        })
    }

    fn unmount(&self, target: &Path) -> Result<()> {
        self.call(Verb::Unmount, |state| {
            state.mounts.retain(|(_, mount)| mount.path != target);
            Ok(())
        })
    }

    fn usage(&self, path: &Path) -> Result<Usage> {
        self.call(Verb::Usage, |state| {
            let shown = state.mounts.iter().find(|(_, mount)| mount.path == path);
            let (id, mount) = shown.ok_or_else(|| Error::new(Reason::VolumeNotFound, "nothing is mounted there"))?;
            let total_bytes = state.live(id)?.shape.payload_bytes;
            Ok(match mount.kind {
                MountKind::DeviceNode => Usage::Block { total_bytes },
                MountKind::Filesystem => {
                    Usage::Filesystem { bytes: [total_bytes, total_bytes, 0], inodes: [1024, 1013, 11] }
                }
            })
        })
    }

    fn check_memory(&self) -> Result<()> {
        self.call(Verb::CheckMemory, |_| Ok(()))
    }

    fn features(&self) -> Result<Vec<String>> {
        self.call(Verb::Features, |_| Ok(vec!["fake".to_owned()]))
    }
}

/// A name for the volume key of `header`, if `passphrase` opens it; nothing is put into a keyring.
fn unlock(header: &Frozen, passphrase: &SecretBytes) -> Result<String> {
    let wrong = |cause| Error::new(Reason::WrongKey, "the keyslot does not open with this key").caused_by(cause);
    let mut device = CryptInit::init(&header.path()).map_err(wrong)?;
    device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None).map_err(wrong)?;
    let mut key = [0; VOLUME_KEY_BYTES];
    device.volume_key_handle().get(None, &mut key, Some(passphrase.expose())).map_err(wrong)?;
    Ok(hex::encode(Sha256::digest(key)))
}

fn expect_filesystem(mapper: &FakeMapper, fs: FsType) -> Result<()> {
    let expected = mapper.filesystem(fs);
    let mut found = vec![0; expected.len()];
    let image = File::open(&mapper.shape.backing).map_err(internal)?;
    image.read_exact_at(&mut found, FILESYSTEM_BYTES).map_err(internal)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::new(Reason::FilesystemDamaged, format!("there is no {} filesystem under this key", fs.as_str())))
}

fn internal(cause: io::Error) -> Error {
    failed(Reason::Internal, "the fake machine could not read or write", cause)
}

fn failed(reason: Reason, what: &str, cause: io::Error) -> Error {
    Error::new(reason, what).caused_by(cause)
}
