//! The nodes' container images, unpacked: a disk with containerd's store in it, made on this machine. An emulated node
//! takes minutes to unpack what takes seconds here.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache;
use crate::images;
use crate::images::Sources;
use crate::kubernetes;
use crate::process::Daemon;
use crate::process::Fate;
use crate::process::read;
use crate::process::succeed;
use crate::product_image;
use crate::wait;

/// Sparse; containers write to it, too.
const DISK_BYTES: u64 = 4 << 30;
/// Nothing that runs containers, and no snapshotter but overlayfs.
const CONFIGURATION: &str = r#"version = 3
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]
"#;

/// An ext4 disk to mount at `/var/lib/containerd`, with the driver's image and those that pods of the rig run.
pub(crate) fn disk() -> Result<PathBuf> {
    let product = product_image::archive()?;
    let sources = Sources {
        busybox: kubernetes::debian_programs()?.join("busybox"),
        kubernetes: kubernetes::programs()?,
        dd: kubernetes::dd()?,
    };
    let inputs = [&product, &sources.busybox, &sources.kubernetes, &sources.dd];
    let inputs = inputs.map(|path| path.to_string_lossy().into_owned());
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).chain([CONFIGURATION, images::RECIPE]).collect();
    let made = cache::newest_artefact("images", &inputs, |path| {
        fs::create_dir(path)?;
        let others = path.join("others.tar");
        images::write(&sources, &others)?;
        let root = path.join("root");
        unpack(&sources.kubernetes, path, &root, &[&others, &product])?;
        let disk = path.join("disk.img");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        succeed(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-d"]).arg(&root).arg(&disk))?;
        fs::remove_file(others)?;
        Ok(fs::remove_dir_all(root)?)
    })?;
    Ok(made.join("disk.img"))
}

/// Has containerd import `archives` into `root`.
fn unpack(kubernetes: &Path, work: &Path, root: &Path, archives: &[&Path]) -> Result<()> {
    let (socket, state) = (work.join("containerd.sock"), work.join("state"));
    let configuration = work.join("containerd.toml");
    fs::write(&configuration, CONFIGURATION)?;
    let arguments =
        [("--config", &configuration), ("--root", &root.to_owned()), ("--state", &state), ("--address", &socket)];
    let arguments: Vec<_> =
        arguments.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()]).collect();
    let log = work.join("containerd.log");
    let mut containerd =
        Daemon::start(&kubernetes.join("containerd").to_string_lossy(), &arguments, &log, Fate::WithRig)?;
    let ctr = || {
        let mut command = Command::new(kubernetes.join("ctr"));
        command.arg("--address").arg(&socket).args(["--namespace", "k8s.io"]);
        command
    };
    wait::until(wait::seconds(30), "containerd", || {
        containerd.must_run()?;
        Ok(ctr().arg("version").output()?.status.success().then_some(()))
    })?;
    for archive in archives {
        read(ctr().args(["images", "import", "--local"]).arg(archive))?;
    }
    containerd.kill()
}
