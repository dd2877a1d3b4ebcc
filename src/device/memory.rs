//! How what is in memory could get to a disk: core dumps of this process, swap and hibernation of this machine.
//!
//! Keys are locked in memory, but hibernation saves that too, and swap takes what others make of plaintext. So both are
//! refused where a disk would get them as they are. Encrypted is what dm-crypt writes, and zram is memory itself.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::major;
use rustix::fs::minor;
use rustix::process::DumpableBehavior;
use rustix::process::Resource;
use rustix::process::Rlimit;

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// How device-mapper UUIDs begin of what libcryptsetup opens for encryption. Those of dm-integrity and dm-verity, which
/// do not encrypt, begin otherwise.
const ENCRYPTED: [&str; 3] = ["CRYPT-LUKS1-", "CRYPT-LUKS2-", "CRYPT-PLAIN-"];

/// Ways of memory to a disk that an operator has allowed by name. At first none is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Swap that is not encrypted.
    pub unencrypted_swap: bool,
    /// Hibernation to a device that is not encrypted.
    pub hibernation: bool,
}

/// Keys are in this process's memory: no core dumps, and no tracing by processes without privileges.
///
/// # Errors
/// `Internal` if the kernel refuses.
pub fn forbid_core_dumps() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .and_then(|()| rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }))
        .map_err(|error| Error::new(Reason::Internal, "core dumps cannot be forbidden").caused_by(error))
}

/// glibc gives each thread a heap of its own and, once a large buffer was freed, takes the next ones from those heaps,
/// which never shrink: the buffers of 2 MiB that headers are read into would add up with the threads that staged.
pub fn keep_no_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets two parameters of malloc; there is no other thread yet. It fails only for unknown ones.
    unsafe {
        // Larger buffers go back to the kernel when they are freed. Naming a threshold keeps it from rising.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Refuses a machine on which memory may get to a disk as it is, except by ways in `allowed`.
///
/// # Errors
/// `MemoryUnprotected` that names the device and the flag.
pub(super) fn check(allowed: Exposure) -> Result<()> {
    if !allowed.unencrypted_swap {
        let table = read("/proc/swaps")?;
        if let Some(swap) = swaps(&table).find(|swap| !swap_keeps_secrets(swap)) {
            return Err(refused(&format!(
                "swap on {} is not encrypted: put it on dm-crypt or turn it off, or allow it with \
                 --allow-unencrypted-swap",
                swap.path
            )));
        }
    }
    if !allowed.hibernation
        && let Some(device) = hibernates_to(&read("/sys/power/disk")?, &read("/sys/power/resume")?)
        && !keeps_secrets(&number_in_sysfs(&device))
    {
        return Err(refused(&format!(
            "this machine hibernates to block device {device}, which is not encrypted: boot with nohibernate or clear \
             /sys/power/resume, or allow it with --allow-hibernation"
        )));
    }
    Ok(())
}

fn refused(why: &str) -> Error {
    Error::new(Reason::MemoryUnprotected, format!("what is in memory could get to a disk: {why}"))
}

/// A file of the kernel's; empty if the kernel was built without what it tells of.
fn read(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|error| refused(&format!("{path} cannot be read")).caused_by(error)),
    }
}

/// One line of `/proc/swaps`.
#[derive(Debug, PartialEq, Eq)]
struct Swap<'a> {
    path: &'a str,
    is_device: bool,
}

fn swaps(table: &str) -> impl Iterator<Item = Swap<'_>> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(Swap { path: words.next()?, is_device: words.next() == Some("partition") })
    })
}

/// A file is refused whatever it lies on: its path is the host's and need not be the same one here.
fn swap_keeps_secrets(swap: &Swap<'_>) -> bool {
    let node = fs::metadata(swap.path).ok().filter(|node| swap.is_device && node.file_type().is_block_device());
    node.is_some_and(|node| {
        let number = node.rdev();
        keeps_secrets(&number_in_sysfs(&format!("{}:{}", major(number), minor(number))))
    })
}

/// The device that an image of the memory would be read from at the next boot, as `major:minor`.
fn hibernates_to(disk: &str, resume: &str) -> Option<String> {
    let device = resume.trim();
    let possible = !disk.is_empty() && !disk.contains("[disabled]");
    (possible && !matches!(device, "" | "0:0")).then(|| device.to_owned())
}

fn number_in_sysfs(number: &str) -> PathBuf {
    Path::new("/sys/dev/block").join(number)
}

/// Whether what is written to a block device stays in memory or is encrypted on its way. `device` is its directory in
/// sysfs. What stands on others is as good as the worst of them.
fn keeps_secrets(device: &Path) -> bool {
    let Ok(device) = fs::canonicalize(device) else { return false };
    let text = |name: &str| fs::read_to_string(device.join(name)).unwrap_or_default();
    let uuid = text("dm/uuid");
    if ENCRYPTED.iter().any(|form| uuid.starts_with(form)) {
        return true;
    }
    if device.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"zram")) {
        // It may write back to a disk what it finds idle.
        return matches!(text("backing_dev").trim(), "" | "none");
    }
    if device.join("partition").exists() {
        return device.parent().is_some_and(keeps_secrets);
    }
    let Ok(below) = fs::read_dir(device.join("slaves")) else { return false };
    let mut below = below.peekable();
    below.peek().is_some() && below.all(|entry| entry.is_ok_and(|entry| keeps_secrets(&entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_after_the_first_is_a_swap() {
        let table = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                     /dev/dm-1                               partition\t1048572\t\t0\t\t-2\n\
                     /swap\\040file                           file\t\t1048572\t\t0\t\t-3\n";
        let found: Vec<_> = swaps(table).collect();
        let device = Swap { path: "/dev/dm-1", is_device: true };
        assert_eq!(found, [device, Swap { path: "/swap\\040file", is_device: false }]);
        assert_eq!(swaps("Filename Type Size Used Priority\n").count(), 0);
        assert_eq!(swaps("").count(), 0);
    }

    #[test]
    fn a_machine_hibernates_where_it_can_and_knows_where_to() {
        for (disk, resume, device) in [
            ("[platform] shutdown reboot suspend test_resume \n", "254:1\n", Some("254:1")),
            ("platform [shutdown] reboot\n", "259:3\n", Some("259:3")),
            ("[platform] shutdown\n", "0:0\n", None),
            ("[disabled]\n", "254:1\n", None),
            ("", "", None),
        ] {
            assert_eq!(hibernates_to(disk, resume).as_deref(), device, "{disk} {resume}");
        }
    }

    /// A directory of sysfs with these files and, in `slaves`, links to these devices.
    fn device(root: &Path, name: &str, files: &[(&str, &str)], below: &[&str]) -> PathBuf {
        let directory = root.join(name);
        fs::create_dir_all(directory.join("slaves")).expect("made");
        for (file, text) in files {
            let file = directory.join(file);
            fs::create_dir_all(file.parent().expect("a directory")).expect("made");
            fs::write(file, text).expect("written");
        }
        for lower in below {
            std::os::unix::fs::symlink(root.join(lower), directory.join("slaves").join(lower)).expect("linked");
        }
        directory
    }

    #[test]
    fn a_device_keeps_secrets_if_all_that_it_writes_to_do() {
        let root = tempfile::tempdir().expect("a directory");
        let uuid = |uuid| [("dm/uuid", uuid)];
        for (name, files, below, keeps) in [
            ("sda", &[][..], &[][..], false),
            ("sda/sda2", &[("partition", "2\n")], &[], false),
            ("dm-0", &uuid("CRYPT-LUKS2-0123-swap\n"), &["sda"], true),
            ("dm-1", &uuid("CRYPT-PLAIN-swap\n"), &["sda"], true),
            ("dm-2", &uuid("CRYPT-INTEGRITY-0123-swap\n"), &["sda"], false),
            ("dm-3", &uuid("CRYPT-VERITY-0123-swap\n"), &["sda"], false),
            ("dm-4", &uuid("LVM-0123\n"), &["dm-0"], true),
            ("dm-5", &uuid("LVM-0123\n"), &["dm-0", "sda"], false),
            ("dm-6", &uuid("\n"), &[], false),
            ("dm-0/dm-0p1", &[("partition", "1\n")], &[], true),
            ("zram0", &[], &[], true),
            ("zram1", &[("backing_dev", "none\n")], &[], true),
            ("zram2", &[("backing_dev", "/dev/sda3\n")], &[], false),
            ("loop0", &[("loop/backing_file", "/swap\n")], &[], false),
        ] {
            assert_eq!(keeps_secrets(&device(root.path(), name, files, below)), keeps, "{name}");
        }
        assert!(!keeps_secrets(&root.path().join("absent")));
    }
}
