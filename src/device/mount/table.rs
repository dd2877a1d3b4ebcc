//! `/proc/self/mountinfo` as text: a pure parser (proc_pid_mountinfo(5)).
//!
//! Refuses a table with a line it does not understand: a mount that cannot be read must not pass for none.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Major and minor number of the mounted filesystem (`st_dev` of its files).
    pub device: (u32, u32),
    /// What of the filesystem is mounted: `/`, or for a bind mount the path inside it.
    pub root: PathBuf,
    /// Where it is mounted, seen from this process.
    pub mount_point: PathBuf,
    /// Options of this mount point alone.
    pub options: Vec<String>,
    /// Type of the filesystem.
    pub fs_type: String,
    /// What was named as the source when it was mounted.
    pub source: String,
    /// Options of the filesystem, shared by all its mounts.
    pub super_options: Vec<String>,
}

impl Line {
    /// Whether this mount point was made read-only. (A filesystem that turned itself read-only after an error shows
    /// `ro` among the super options alone.)
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// The device node that is bound here from the kernel's own /dev, as it is called there: `dm-3`, or
    /// `dm-3//deleted` after its device was removed.
    #[must_use]
    pub fn bound_node(&self) -> Option<&str> {
        (self.fs_type == "devtmpfs").then(|| self.root.to_str()?.strip_prefix('/')).flatten()
    }
}

/// Every mount of the table `text`, in its order: later ones lie over earlier ones.
///
/// # Errors
/// `Internal` with the first line that is not understood.
pub fn parse(text: &[u8]) -> Result<Vec<Line>> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Result<Line> {
    fields(line).ok_or_else(|| {
        let shown = String::from_utf8_lossy(line);
        Error::new(Reason::Internal, format!("the mount table has a line that is not understood: {shown:?}"))
    })
}

fn fields(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (_mount_id, _parent_id) = (number(fields.next()?)?, number(fields.next()?)?);
    let device = fields.next()?;
    let colon = device.iter().position(|&byte| byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let root = path(fields.next()?)?;
    let mount_point = path(fields.next()?)?;
    let options = options(fields.next()?)?;
    // Zero or more optional fields (shared:, master:, …) end with a single hyphen.
    fields.by_ref().find(|&field| field == b"-")?;
    let fs_type = text(fields.next()?)?;
    let source = text(fields.next()?)?;
    let super_options = self::options(fields.next()?)?;
    fields.next().is_none().then_some(Line { device, root, mount_point, options, fs_type, source, super_options })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> Option<PathBuf> {
    Some(PathBuf::from(OsString::from_vec(unescape(field)?)))
}

fn text(field: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(&unescape(field)?).into_owned())
}

fn options(field: &[u8]) -> Option<Vec<String>> {
    Some(text(field)?.split(',').map(str::to_owned).collect())
}

/// Undoes `mangle_path` of the kernel (fs/seq_file.c): a backslash stands before three octal digits.
fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(3)?;
        let value = digits.iter().try_fold(0_u32, |value, &digit| {
            (b'0'..=b'7').contains(&digit).then(|| value * 8 + u32::from(digit - b'0'))
        })?;
        bytes.push(u8::try_from(value).ok()?);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    const TABLE: &str = "\
25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
61 30 253:3 / /var/lib/kubelet/plugins/a\\040b rw,nosuid,nodev,noatime shared:1 master:2 propagate_from:3 - ext4 /dev/dm-3 rw,errors=remount-ro
62 30 253:3 / /var/lib/kubelet/pods/x ro,nosuid,nodev,noatime - ext4 /dev/dm-3 rw,errors=remount-ro
63 30 0:6 /dm-3 /var/lib/kubelet/pods/y rw,nosuid master:1 - devtmpfs udev rw,mode=755
64 30 0:6 /dm-3//deleted /var/lib/kubelet/pods/z rw - devtmpfs udev rw
65 30 0:6 /dm-31 /var/lib/kubelet/pods/v rw - devtmpfs udev rw
";

    #[test]
    fn a_table_is_read_with_and_without_optional_fields() {
        let lines = parse(TABLE.as_bytes()).expect("well-formed");
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[1].device, (253, 3));
        assert_eq!(lines[1].mount_point, PathBuf::from("/var/lib/kubelet/plugins/a b"));
        assert_eq!(lines[1].fs_type, "ext4");
        assert_eq!(lines[1].super_options, ["rw", "errors=remount-ro"]);
        assert!(!lines[1].is_read_only() && lines[2].is_read_only());
    }

    #[test]
    fn the_mounts_of_a_device_are_its_filesystem_and_its_node_and_no_other() {
        use crate::device::MountKind;
        let lines = parse(TABLE.as_bytes()).expect("well-formed");
        let mounts = crate::device::mount::of_device(&lines, (253, 3), "dm-3");
        let kinds: Vec<_> = mounts.iter().map(|mount| (mount.kind, mount.read_only)).collect();
        use MountKind::{DeviceNode, Filesystem};
        assert_eq!(kinds, [(Filesystem, false), (Filesystem, true), (DeviceNode, false)]);
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error_and_not_an_empty_table() {
        for line in [
            "x",
            "1 2 3 / / rw - a b c",
            "1 2 0:1 / / rw a b c",
            "1 2 0:1 /\\04 / rw - a b c",
            "1 2 0:1 /\\777 / rw - a b c",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    /// As the kernel writes it: fs/proc_namespace.c escapes space, tab, newline, backslash and, in sources, hash.
    fn mangle(bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![byte],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_path_comes_back_as_it_went_in(root in "/[^\0]{0,40}", at in prop::collection::vec(1_u8.., 1..60), optional in prop::collection::vec("[a-z]{1,8}:[0-9]{1,4}", 0..4)) {
            let mut line = b"36 35 253:7 ".to_vec();
            line.extend(mangle(root.as_bytes()));
            line.push(b' ');
            line.extend(mangle(&at));
            line.extend(format!(" rw,noatime {}{}- ext4 /dev/x rw\n", optional.join(" "), if optional.is_empty() { "" } else { " " }).bytes());
            let lines = parse(&line).expect("as the kernel writes it");
            prop_assert_eq!(lines.len(), 1);
            prop_assert_eq!(lines[0].root.as_os_str().as_bytes(), root.as_bytes());
            prop_assert_eq!(lines[0].mount_point.as_os_str().as_bytes(), &at[..]);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }
}
