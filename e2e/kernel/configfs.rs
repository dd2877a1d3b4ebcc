//! A stand-in for the kernel's configfs-tsm: a file system in user space that does what `drivers/virt/coco/guest/report.c`
//! does, with a recorded report in the place of a TEE, and whatever a test wants to go wrong.
//!
//! As there, a request's directory is born with its attributes, a binary attribute is taken when its file is closed, each
//! write is counted, and a report is made when it is first read after a write.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use fuser::BackgroundSession;
use fuser::Config;
use fuser::Errno;
use fuser::FileAttr;
use fuser::FileHandle;
use fuser::FileType;
use fuser::Filesystem;
use fuser::FopenFlags;
use fuser::Generation;
use fuser::INodeNo;
use fuser::LockOwner;
use fuser::OpenFlags;
use fuser::ReplyAttr;
use fuser::ReplyData;
use fuser::ReplyEmpty;
use fuser::ReplyEntry;
use fuser::ReplyOpen;
use fuser::ReplyWrite;
use fuser::Request;
use fuser::WriteFlags;
use tempfile::TempDir;

const ATTRIBUTES: [&str; 5] = ["provider", "generation", "inblob", "outblob", "auxblob"];
/// Numbers of inodes between one request and the next.
const STRIDE: u64 = 16;
/// Nothing is remembered by the kernel above us.
const TTL: Duration = Duration::ZERO;
/// What somebody else wants a report about.
const SOMEBODY_ELSE: [u8; 64] = [0xee; 64];

/// What the machine of a test is, and what goes wrong in it.
pub(crate) struct Machine {
    /// The driver of the TEE; `None` if there is none.
    pub(crate) provider: Option<&'static str>,
    /// A report of the TEE, and where in it the data goes that it is bound to.
    pub(crate) report: Vec<u8>,
    pub(crate) report_data: usize,
    /// Whether reports are bound to what was asked for.
    pub(crate) binds: bool,
    /// What the host adds; `None` if the driver has no such attribute.
    pub(crate) auxblob: Option<Vec<u8>>,
    /// What the next reads of a report answer instead.
    pub(crate) errors: VecDeque<Errno>,
    /// Answers all of them.
    pub(crate) always: Option<Errno>,
    /// How many of the next reports somebody else asks for in our place.
    pub(crate) intruders: usize,
    /// How many reports were made.
    pub(crate) reports: usize,
    requests: BTreeMap<String, Pending>,
    born: u64,
}

/// A directory under `report`.
#[derive(Default)]
struct Pending {
    inode: u64,
    unflushed: Vec<u8>,
    inblob: Vec<u8>,
    outblob: Vec<u8>,
    written: u64,
    read: u64,
}

impl Machine {
    /// A machine where nothing goes wrong.
    pub(crate) fn new(provider: &'static str, report: Vec<u8>, report_data: usize) -> Self {
        Self {
            provider: Some(provider),
            report,
            report_data,
            binds: true,
            auxblob: None,
            errors: VecDeque::new(),
            always: None,
            intruders: 0,
            reports: 0,
            requests: BTreeMap::new(),
            born: 0,
        }
    }

    /// The directories that are there.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.keys().cloned().collect()
    }

    /// The request that `inode` is or belongs to, and the attribute that it is.
    fn find(&mut self, inode: INodeNo) -> Option<(&mut Pending, Option<&'static str>)> {
        let at = usize::try_from(u64::from(inode) % STRIDE).ok()?;
        let directory = u64::from(inode) - u64::from(inode) % STRIDE;
        let request = self.requests.values_mut().find(|request| request.inode == directory)?;
        Some((request, at.checked_sub(1).and_then(|at| ATTRIBUTES.get(at).copied())))
    }

    fn content(&mut self, inode: INodeNo, is_first: bool) -> Result<Vec<u8>, Errno> {
        let provider = self.provider.ok_or(Errno::ENXIO)?;
        let (_, attribute) = self.find(inode).ok_or(Errno::ENOENT)?;
        match attribute {
            Some("provider") => Ok(format!("{provider}\n").into_bytes()),
            Some("generation") => {
                self.find(inode).map(|(it, _)| format!("{}\n", it.written).into()).ok_or(Errno::ENOENT)
            }
            Some("outblob") if is_first => self.make(inode),
            Some("outblob") => self.find(inode).map(|(request, _)| request.outblob.clone()).ok_or(Errno::ENOENT),
            Some("auxblob") => self.auxblob.clone().ok_or(Errno::ENOENT),
            _ => Err(Errno::EACCES),
        }
    }

    /// The report, made anew unless it is of the last write.
    fn make(&mut self, inode: INodeNo) -> Result<Vec<u8>, Errno> {
        if let Some(error) = self.always.or_else(|| self.errors.pop_front()) {
            return Err(error);
        }
        let intrudes = self.intruders > 0;
        self.intruders = self.intruders.saturating_sub(1);
        let (mut report, at, binds) = (self.report.clone(), self.report_data, self.binds);
        let (request, _) = self.find(inode).ok_or(Errno::ENOENT)?;
        if intrudes {
            request.inblob = SOMEBODY_ELSE.to_vec();
            request.written += 1;
        }
        if request.inblob.is_empty() {
            return Err(Errno::EINVAL);
        }
        if request.read != request.written {
            if binds {
                report[at..at + request.inblob.len()].copy_from_slice(&request.inblob);
            }
            request.outblob = report;
            request.read = request.written;
        }
        let outblob = request.outblob.clone();
        self.reports += 1;
        Ok(outblob)
    }
}

/// The file system, mounted until this is dropped.
pub(crate) struct Configfs {
    _session: BackgroundSession,
    directory: TempDir,
    machine: Arc<Mutex<Machine>>,
}

impl Configfs {
    pub(crate) fn mount(machine: Machine) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let machine = Arc::new(Mutex::new(machine));
        let files = Files(Arc::clone(&machine));
        let session = fuser::spawn_mount(files, directory.path(), &Config::default()).expect("the kernel has FUSE");
        Self { _session: session, directory, machine }
    }

    /// What `/sys/kernel/config/tsm/report` is elsewhere.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The machine as it is now. No file can be used while this is held.
    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("no holder of this lock panics")
    }
}

struct Files(Arc<Mutex<Machine>>);

impl Files {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

fn attributes(inode: u64) -> FileAttr {
    let is_directory = inode == u64::from(INodeNo::ROOT) || inode.is_multiple_of(STRIDE);
    let (kind, perm) = if is_directory { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o600) };
    let (size, blocks, nlink, uid, gid, rdev, blksize, flags) = (0, 0, 1, 0, 0, 0, 4096, 0);
    let (atime, mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
    let ino = INodeNo(inode);
    FileAttr { ino, size, blocks, atime, mtime, ctime, crtime, kind, perm, nlink, uid, gid, rdev, blksize, flags }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut machine = self.machine();
        let name = name.to_string_lossy();
        let found = if parent == INodeNo::ROOT {
            machine.requests.get(&*name).map(|request| request.inode)
        } else {
            let is_absent = name == "auxblob" && machine.auxblob.is_none();
            let at = (1..).zip(ATTRIBUTES).find(|(_, attribute)| *attribute == name && !is_absent);
            machine.find(parent).zip(at).map(|((request, _), (at, _))| request.inode + at)
        };
        match found {
            Some(inode) => reply.entry(&TTL, &attributes(inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if inode == INodeNo::ROOT || self.machine().find(inode).is_some() {
            reply.attr(&TTL, &attributes(inode.into()));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn mkdir(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut machine = self.machine();
        if machine.provider.is_none() {
            return reply.error(Errno::ENXIO);
        }
        machine.born += 1;
        let inode = machine.born * STRIDE;
        machine.requests.insert(name.to_string_lossy().into_owned(), Pending { inode, ..Pending::default() });
        reply.entry(&TTL, &attributes(inode), Generation(0));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.machine().requests.remove(&*name.to_string_lossy()) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = self.machine().content(inode, offset == 0);
        match content {
            Ok(content) => {
                let start = usize::try_from(offset).expect("a small file").min(content.len());
                let end = content.len().min(start + usize::try_from(size).expect("a small piece"));
                reply.data(&content[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.machine().find(inode) {
            Some((request, Some("inblob"))) if data.len() <= 64 => {
                request.unflushed = data.to_vec();
                reply.written(u32::try_from(data.len()).expect("at most 64"));
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    /// Each close comes here, and waits for the answer.
    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        if let Some((request, _)) = self.machine().find(inode)
            && !request.unflushed.is_empty()
        {
            request.inblob = std::mem::take(&mut request.unflushed);
            request.written += 1;
        }
        reply.ok();
    }
}
