//! Making and checking filesystems. The only file of the program that starts other programs.
//!
//! They get a device node and literals as arguments, an environment of two variables, no shell and no input. They do not
//! outlive the driver, whose successor could not close a volume that is still written to. Refuses to repeat what a check
//! prints about the contents: messages end up in Events, and the names of a pod's files are its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::getpid;
use rustix::process::getppid;
use rustix::process::set_parent_process_death_signal;

use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::Profile;
use crate::volume::Reason;
use crate::volume::Result;

/// How much of a failed program's last words an error repeats.
const LAST_WORDS_BYTES: usize = 1024;
/// e2fsck(8): nothing was wrong, or what was wrong is repaired.
const E2FSCK_FINE: [i32; 2] = [0, 1];
/// e2fsck(8): errors are left, which only a person may decide about (a bit, joined by others).
const E2FSCK_LEFT: i32 = 4;

/// Makes a filesystem on `node`, over whatever is there.
///
/// ext4 leaves inode tables and journal to be written later: under a fresh volume key the old bytes of the image decrypt
/// to noise, in which no journal block passes for a real one. Where sectors have tags it leaves nothing: a recovery after
/// a power cut would find journal blocks that cannot be read. Neither program discards: the image is sparse already, or
/// its tags would be lost.
///
/// # Errors
/// `Internal` with the last words of the program.
pub fn make(node: &Path, fs: FsType, profile: Profile) -> Result<()> {
    let (program, arguments): (_, &[&str]) = match fs {
        FsType::Ext4 => {
            let later = if profile.has_tags() {
                "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
            } else {
                "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
            };
            ("mkfs.ext4", &["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", later])
        }
        // -f: the noise of a fresh key may look like anything.
        FsType::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
    };
    let ended = run(program, arguments, node)?;
    if ended.status.success() {
        return Ok(());
    }
    Err(Error::new(Reason::Internal, format!("{program} failed ({}): {}", ended.status, last_words(&ended.stderr))))
}

/// Checks the filesystem on `node`, which must not be mounted, and repairs what is safe to repair unattended.
///
/// XFS is checked by the kernel: mounting replays the log, verifies every checksum on the way and refuses what does not
/// fit, which [`super::mount::stage`] reports as damage. `xfs_repair -n` reads the whole volume and mistakes a log that
/// is still to be replayed for damage, so only the superblock's magic is looked at before.
///
/// # Errors
/// `FilesystemDamaged` if a person must decide, `DeviceUnreadable` if a sector cannot be read, `Internal` if the check
/// could not be made.
pub fn check(node: &Path, fs: FsType) -> Result<()> {
    match fs {
        FsType::Ext4 => judge_e2fsck(&run("e2fsck", &["-p"], node)?),
        FsType::Xfs => check_xfs_magic(node),
    }
}

fn judge_e2fsck(ended: &Output) -> Result<()> {
    let damaged = |found: &str| {
        let advice = "repair it by hand on this node, or restore it";
        Err(Error::new(Reason::FilesystemDamaged, format!("the ext4 filesystem {found}; {advice}")))
    };
    match ended.status.code() {
        Some(code) if E2FSCK_FINE.contains(&code) => Ok(()),
        Some(code) if code & E2FSCK_LEFT != 0 => damaged("has errors that are not safe to repair unattended"),
        // In the C locale the texts of operational errors do not vary. One is that of a sector whose tag is wrong.
        _ if String::from_utf8_lossy(&ended.stderr).contains("Input/output error") => Err(Error::new(
            Reason::DeviceUnreadable,
            "the ext4 filesystem cannot be read: the storage below fails, or has changed it; restore it",
        )),
        // Another is that there is no usable superblock.
        _ if String::from_utf8_lossy(&ended.stderr).to_lowercase().contains("super") => {
            damaged("has no valid superblock")
        }
        _ => {
            let words = last_words(&ended.stderr);
            Err(Error::new(Reason::Internal, format!("e2fsck could not check the volume ({}): {words}", ended.status)))
        }
    }
}

fn check_xfs_magic(node: &Path) -> Result<()> {
    let mut magic = [0; 4];
    let read = File::open(node).and_then(|device| device.read_exact_at(&mut magic, 0));
    read.map_err(|cause| Error::new(Reason::DeviceUnreadable, "the volume cannot be read").caused_by(cause))?;
    if &magic == b"XFSB" {
        return Ok(());
    }
    Err(Error::new(
        Reason::FilesystemDamaged,
        "there is no XFS superblock; repair it by hand on this node, or restore it",
    ))
}

#[expect(clippy::disallowed_methods, reason = "this is the file that starts programs")]
fn run(program: &str, arguments: &[&str], node: &Path) -> Result<Output> {
    let mut command = Command::new(program);
    let driver = getpid();
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || end_with(driver)) };
    command
        .args(arguments)
        .arg(node)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|cause| {
            Error::new(Reason::Internal, format!("{program} cannot be started; install it beside the driver"))
                .caused_by(cause)
        })
}

/// Lets the calling process end with its parent, which is `driver` unless that has ended already.
fn end_with(driver: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(driver) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

fn last_words(stderr: &[u8]) -> String {
    let from = stderr.len().saturating_sub(LAST_WORDS_BYTES);
    String::from_utf8_lossy(&stderr[from..]).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn made(fs: FsType) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("volume");
        File::create(&path).and_then(|file| file.set_len(320 << 20)).expect("a sparse file");
        make(&path, fs, Profile::Xts1).expect("mkfs");
        (directory, path)
    }

    fn overwrite(path: &Path, bytes: &[u8], offset: u64) {
        let file = OpenOptions::new().write(true).open(path).expect("opens");
        file.write_all_at(bytes, offset).expect("written");
    }

    #[test]
    fn what_was_made_is_fine_and_can_be_made_again_over_itself() {
        for fs in [FsType::Ext4, FsType::Xfs] {
            let (_directory, path) = made(fs);
            check(&path, fs).expect("fine");
            make(&path, fs, Profile::Aead1).expect("again");
            check(&path, fs).expect("still fine");
        }
    }

    #[test]
    fn an_unlucky_superblock_is_damage_and_not_an_operational_error() {
        for (fs, offset) in [(FsType::Ext4, 0x438), (FsType::Ext4, 1050), (FsType::Xfs, 0)] {
            let (_directory, path) = made(fs);
            overwrite(&path, b"\xAA\x55\xAA\x55", offset);
            let error = check(&path, fs).expect_err("damaged");
            assert_eq!(error.reason(), Reason::FilesystemDamaged, "{error}");
        }
    }

    #[test]
    fn errors_that_need_a_person_are_damage() {
        let (_directory, path) = made(FsType::Ext4);
        overwrite(&path, &[0xA5; 80 << 10], 4096);
        assert_eq!(check(&path, FsType::Ext4).expect_err("damaged").reason(), Reason::FilesystemDamaged);
    }

    #[test]
    fn a_device_that_is_not_there_is_not_called_damaged() {
        let error = check(Path::new("/nonexistent/dm-7"), FsType::Ext4).expect_err("nothing to check");
        assert_eq!(error.reason(), Reason::Internal, "{error}");
        assert!(error.explanation().contains("No such file"), "{error}");
    }
}
