//! The node's disk: a Debian tree with the kernel under test and everything a node needs, except Coffer and the
//! programs that the rig shares at boot.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::cache;
use crate::process::succeed;

/// Debian 13: Linux 6.12, cryptsetup 2.7.
const SUITE: &str = "trixie";
/// Counted up when the same list of packages has to be fetched anew.
const GENERATION: &str = "1";
const PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "cryptsetup-bin",
    "e2fsprogs",
    "xfsprogs",
    "kmod",
    "udev",
    "iproute2",
    "iptables",
    "nftables",
    "conntrack",
    "tpm2-tools",
    "fio",
    "procps",
    "crun",
    "containernetworking-plugins",
    "etcd-server",
    "dmsetup",
    "ca-certificates",
    "socat",
    "ethtool",
    "jq",
    "strace",
    "libcryptsetup12",
    "busybox-static",
    "libtss2-esys-3.0.2-0t64",
    "libtss2-tcti-device0t64",
];
/// An initial RAM disk with what finds the root file system boots faster than Debian's, which suits any machine.
const INITRD: &str = r#"cd "$1/etc/initramfs-tools" && echo MODULES=list >conf.d/rig &&
    printf '%s\n' virtio_pci virtio_blk ext4 >>modules && chroot "$1" update-initramfs -u"#;
/// Size of the node's disk; it is sparse.
const DISK_BYTES: &str = "4G";
const STUB_INIT: &str = include_str!("guest/stub-init");

/// What QEMU needs to boot a node.
#[derive(Clone)]
pub(crate) struct Image {
    directory: PathBuf,
}

impl Image {
    /// Finds the image in the cache, or makes it (two minutes, and 200 MB from the Debian mirror).
    pub(crate) fn get() -> Result<Self> {
        let packages = PACKAGES.join(",");
        let tree = tree()?;
        let directory =
            cache::artefact("node", &[GENERATION, SUITE, &packages, INITRD, DISK_BYTES, STUB_INIT], |path| {
                make(&tree, path)
            })?;
        Ok(Self { directory })
    }

    /// The system disk, an ext4 file system without a partition table. Never booted itself: every node gets a copy.
    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("disk.img")
    }

    /// The kernel under test.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// Its initial RAM disk.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }
}

/// The Debian tree as a tar archive. The control plane takes etcd out of it.
pub(crate) fn tree() -> Result<PathBuf> {
    let packages = PACKAGES.join(",");
    cache::artefact("root.tar", &[GENERATION, SUITE, &packages, INITRD], |path| {
        let path = path.to_str().context("the cache has a name that is not text")?;
        succeed(
            Command::new("mmdebstrap")
                .args(["--variant=minbase", "--format=tar", &format!("--include={packages}")])
                .arg(format!("--customize-hook={INITRD}"))
                .args([SUITE, path]),
        )
    })
}

fn make(tree: &Path, path: &Path) -> Result<()> {
    let root = path.join("root");
    fs::create_dir_all(&root)?;
    succeed(Command::new("tar").arg("-C").arg(&root).arg("-xf").arg(tree))?;
    let boot = root.join("boot");
    copy_only(&boot, "vmlinuz-", &path.join("vmlinuz"))?;
    copy_only(&boot, "initrd.img-", &path.join("initrd"))?;
    fs::write(root.join("init"), STUB_INIT)?;
    succeed(Command::new("chmod").arg("0755").arg(root.join("init")))?;
    succeed(
        Command::new("mkfs.ext4").args(["-q", "-m", "0", "-d"]).arg(&root).arg(path.join("disk.img")).arg(DISK_BYTES),
    )?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn copy_only(directory: &Path, prefix: &str, target: &Path) -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    let [file] = found.as_slice() else {
        anyhow::bail!("{} holds {} files {prefix}*, not one", directory.display(), found.len());
    };
    fs::copy(file, target)?;
    Ok(())
}
