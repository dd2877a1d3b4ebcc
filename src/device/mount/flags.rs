//! Mount options: which ones a StorageClass may name, and what they become for `mount(2)`.
//!
//! Refuses everything that is not on the list, so that no option can weaken a volume (`suid`, `dev`, `discard`), make
//! the kernel look elsewhere (`logdev`, `journal_path`) or be smuggled in behind a comma.

use rustix::mount::MountFlags;

use super::super::MountOptions;
use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::Result;

/// Options that are a bit of `mount(2)`; those without a bit are the kernel's or our default.
const PLAIN: [(&str, MountFlags); 12] = [
    ("rw", MountFlags::empty()),
    ("ro", MountFlags::RDONLY),
    ("noatime", MountFlags::NOATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("noexec", MountFlags::NOEXEC),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
];

/// SELinux labels, which the kubelet adds for the pod (CSIDriver `seLinuxMount`).
const LABELS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// Refuses the first option that is not on the list; the error names it and the accepted ones.
///
/// # Errors
/// `InvalidArgument` is what it refuses with.
pub fn check_flags(flags: &[String]) -> Result<()> {
    match flags.iter().find(|flag| !is_plain(flag) && !is_label(flag)) {
        None => Ok(()),
        Some(flag) => {
            let plain: Vec<&str> = PLAIN.iter().map(|(name, _)| *name).collect();
            let accepted = format!("{}, and {}=LABEL", plain.join(", "), LABELS.join("=LABEL, "));
            Err(Error::invalid("mount_flags", format_args!("{flag:?} is not accepted; accepted are {accepted}")))
        }
    }
}

fn is_plain(flag: &str) -> bool {
    PLAIN.iter().any(|(name, _)| *name == flag)
}

/// A label holds no comma unless it is quoted, and no quote inside: the kernel would read on after it.
fn is_label(flag: &str) -> bool {
    let Some((name, value)) = flag.split_once('=') else { return false };
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_:.-".contains(&byte);
    let label = quoted.unwrap_or(value);
    LABELS.contains(&name)
        && !label.is_empty()
        && label.bytes().all(|byte| is_part(byte) || (quoted.is_some() && byte == b','))
}

/// The bits and the data string for `mount(2)` of options that passed [`check_flags`].
pub(super) fn translate(fs: FsType, options: &MountOptions) -> (MountFlags, String) {
    let named = options.flags.iter().filter_map(|flag| PLAIN.iter().find(|(name, _)| name == flag));
    let mut flags = named.fold(MountFlags::NOSUID | MountFlags::NODEV, |flags, (_, bit)| flags | *bit);
    if !flags.intersects(MountFlags::RELATIME | MountFlags::STRICTATIME) {
        flags |= MountFlags::NOATIME;
    }
    let ours = match fs {
        // An error must stop writes at once, whatever the superblock says.
        FsType::Ext4 => "errors=remount-ro",
        // A copy of a volume has the same UUID, and XFS would refuse the second one.
        FsType::Xfs => "nouuid",
    };
    let labels = options.flags.iter().map(String::as_str).filter(|flag| is_label(flag));
    (flags, std::iter::once(ours).chain(labels).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(flags: &[&str]) -> MountOptions {
        MountOptions { flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
    }

    #[test]
    fn what_weakens_a_volume_is_refused_by_name() {
        let long = "x".repeat(2000);
        for flag in [
            "suid",
            "dev",
            "discard",
            "exec,suid",
            "",
            "data=writeback",
            "journal_path=/dev/sda",
            "context=",
            "context=a,suid",
            "context=\"a\",suid=\"",
            "context=a\0b",
            &long,
        ] {
            let error = check_flags(&options(&["ro", flag]).flags).expect_err(flag);
            assert!(error.explanation().contains(&format!("{flag:?}")), "{error}");
            assert!(error.explanation().contains("noatime"), "{error}");
        }
    }

    #[test]
    fn a_label_reaches_the_filesystem_as_the_kubelet_wrote_it() {
        let label = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let options = options(&["noexec", label]);
        check_flags(&options.flags).expect("accepted");
        let (flags, data) = translate(FsType::Ext4, &options);
        assert_eq!(data, format!("errors=remount-ro,{label}"));
        assert_eq!(flags, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME | MountFlags::NOEXEC);
    }

    #[test]
    fn noatime_is_the_default_that_relatime_takes_back() {
        let (flags, data) = translate(FsType::Xfs, &options(&["relatime"]));
        assert!(!flags.contains(MountFlags::NOATIME) && flags.contains(MountFlags::RELATIME));
        assert_eq!(data, "nouuid");
    }
}
