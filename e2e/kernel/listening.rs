//! What the kernel itself tells of bad sectors, and who hears it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use coffer::device::integrity::Listener;
use coffer::volume::VolumeId;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::net::AddressFamily;
use rustix::net::SendFlags;
use rustix::net::SocketType;
use rustix::net::netlink;
use rustix::thread::UnshareFlags;

use crate::scene::shell;
use crate::scene::wait_until;

/// Size of a sector of every profile.
pub(crate) const SECTOR_BYTES: usize = 4096;
/// `AUDIT_SET`, `NLM_F_REQUEST` and `AUDIT_STATUS_ENABLED` of `linux/audit.h` and `linux/netlink.h`.
const AUDIT_SET: u16 = 1001;
const REQUEST: u16 = 1;
const ENABLED: u32 = 1;
/// How long is waited for what may not come.
const A_LITTLE: Duration = Duration::from_millis(200);

/// Auditing, on as long as this lives.
pub(crate) struct Auditing;

impl Auditing {
    pub(crate) fn on() -> Self {
        set_auditing(1);
        Self
    }
}

impl Drop for Auditing {
    fn drop(&mut self) {
        set_auditing(0);
    }
}

/// What `auditctl -e` does.
fn set_auditing(enabled: u32) {
    let status = [ENABLED, enabled].map(u32::to_ne_bytes).concat();
    let length = u32::try_from(16 + status.len()).expect("short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([AUDIT_SET, REQUEST].map(u16::to_ne_bytes).concat());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend(status);
    let socket =
        rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::AUDIT)).expect("a netlink socket");
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &kernel).expect("the kernel takes it");
}

/// The error of a sector with a wrong tag, for a reader past the page cache.
pub(crate) const EILSEQ: i32 = 84;

/// Reads a sector of a device, or of a file, past the page cache.
pub(crate) fn read_sector(device: &Path, number: u64) -> io::Result<Vec<u8>> {
    let device = rustix::fs::open(device, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?;
    let mut memory = vec![0; 2 * SECTOR_BYTES];
    let start = memory.as_ptr().align_offset(SECTOR_BYTES);
    let sector = &mut memory[start..start + SECTOR_BYTES];
    File::from(device).read_exact_at(sector, number * SECTOR_BYTES as u64)?;
    Ok(sector.to_vec())
}

/// What cryptsetup makes with tags, under a volume's name. No sector was ever written: reading any is an error.
struct Unwritten {
    id: VolumeId,
    backing: PathBuf,
}

impl Unwritten {
    fn new(name: &str) -> Self {
        let volume = Self { id: VolumeId::for_name(name), backing: format!("/tmp/{name}").into() };
        let backing = volume.backing.display();
        shell(&format!(
            "truncate -s 64M {backing}; echo secret >{backing}.key
             cryptsetup luksFormat -q --type luks2 --key-file {backing}.key --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
                 --cipher aes-xts-plain64 --integrity hmac-sha256 --integrity-no-wipe --sector-size 4096 {backing}
             cryptsetup open --key-file {backing}.key {backing} {}",
            volume.id.mapper_name()
        ));
        volume
    }

    /// Reads these sectors, each of which must be an error.
    fn read(&self, sectors: &BTreeSet<u64>) {
        let device = Path::new("/dev/mapper").join(self.id.mapper_name());
        for number in sectors {
            let error = read_sector(&device, *number).expect_err("it has no tag");
            assert_eq!(error.raw_os_error(), Some(EILSEQ), "{error}");
        }
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        let (name, backing) = (self.id.mapper_name(), self.backing.display());
        shell(&format!("cryptsetup close {name}; rm -f {backing} {backing}.key"));
    }
}

/// A listener and the runtime that it lives in.
struct Ear {
    runtime: tokio::runtime::Runtime,
    listener: Listener,
    /// The sectors of the volume that were told.
    heard: BTreeSet<u64>,
}

impl Ear {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(async { Listener::start() });
        Self { runtime, listener, heard: BTreeSet::new() }
    }

    /// Takes what was told since the last time, and waits a little for it.
    fn hear(&mut self, id: &VolumeId) {
        let told = async { tokio::time::timeout(A_LITTLE, self.listener.next()).await };
        let told = self.runtime.block_on(told).unwrap_or_default();
        self.heard.extend(told.into_iter().filter(|bad| bad.id == *id).map(|bad| bad.sector));
    }
}

#[test]
fn the_kernel_log_tells_of_a_bad_sector_also_to_who_was_not_there() {
    let volume = Unwritten::new("unwritten-log");
    let sectors = BTreeSet::from([1000, 1007, 2047]);
    // Of more than ten errors in five seconds, whoever has them, the log does not tell.
    wait_until("a line for each", || {
        volume.read(&sectors);
        let log = shell("dmesg");
        sectors.iter().all(|sector| log.contains(&format!("INTEGRITY AEAD ERROR, sector {}\n", sector * 8)))
    });
    let mut late = Ear::new();
    wait_until("the news", || {
        late.hear(&volume.id);
        late.heard.is_superset(&sectors)
    });
}

#[test]
fn where_auditing_is_on_each_error_is_told_in_the_nodes_own_network_namespace() {
    let volume = Unwritten::new("unwritten-audit");
    let sectors: BTreeSet<u64> = (1000..1040).collect();
    let _auditing = Auditing::on();
    let mut on_the_node = Ear::new();
    let mut in_a_pod = thread::spawn(|| {
        // SAFETY: descriptors are not among what is no longer shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("a namespace of its own");
        Ear::new()
    })
    .join()
    .expect("it ends");

    volume.read(&sectors);
    wait_until("a record for each", || {
        on_the_node.hear(&volume.id);
        on_the_node.heard.is_superset(&sectors)
    });
    wait_until("a line", || {
        volume.read(&BTreeSet::from([1000]));
        in_a_pod.hear(&volume.id);
        !in_a_pod.heard.is_empty()
    });
    in_a_pod.hear(&volume.id);
    let told = in_a_pod.heard.intersection(&sectors).count();
    assert!(told < sectors.len(), "the audit records reach a pod");
    println!("of {} bad sectors the kernel log tells of {told}", sectors.len());
}
