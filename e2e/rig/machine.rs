//! One node: QEMU without KVM, its disks, and swtpm as its TPM.
//!
//! Everything of a node lies in its directory and outlives the process: killing QEMU and booting again is a node
//! crash, and the TPM's state is the node's identity.

use std::fs;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::guest::Guest;
use crate::image::Image;
use crate::process::Daemon;
use crate::process::Fate;
use crate::process::succeed;

/// Under TCG a boot takes 11 to 20 seconds; twice that with a busy machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// This machine as a guest on QEMU's user network sees it.
pub(crate) const HOST_IN_GUEST: &str = "10.0.2.2";
/// Port of the agent in the guest.
pub(crate) const AGENT_PORT: u16 = 7000;
/// Port of the shell in the guest.
const SHELL_PORT: u16 = 7100;

/// A port of the guest that the host can reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forward {
    /// Loopback address on the host's side.
    pub(crate) host: Ipv4Addr,
    /// Port, the same on both sides.
    pub(crate) port: u16,
}

/// What a node is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Host name, and name of the node's directory in the run directory.
    pub(crate) name: String,
    /// Which node of its rig it is, from 1. Each has a user network of its own, so all of them see the host's loopback
    /// under the same address, [`HOST_IN_GUEST`].
    pub(crate) number: u8,
    /// Memory.
    pub(crate) memory_mib: u32,
    /// Size of the second disk, `/dev/vdb`, which is empty at first.
    pub(crate) pool_bytes: u64,
    /// What the third disk, `/dev/vdc`, is a copy of, if there is one.
    pub(crate) images: Option<PathBuf>,
    /// Ports beside those of agent and shell.
    pub(crate) forwards: Vec<Forward>,
    /// What happens to the node when the rig ends.
    pub(crate) fate: Fate,
}

/// A node, running or not.
pub(crate) struct Machine {
    spec: Spec,
    image: Image,
    directory: PathBuf,
    share: PathBuf,
    running: Option<(Daemon, Daemon)>,
}

impl Machine {
    /// Makes the node's disks in `<run>/<name>/`, or finds them there. `<run>/share` is what every node sees,
    /// read-only, as `/share`.
    pub(crate) fn create(run: &Path, image: Image, spec: Spec) -> Result<Self> {
        let run = fs::canonicalize(run)?;
        let directory = run.join(&spec.name);
        fs::create_dir_all(directory.join("tpm"))?;
        fs::create_dir_all(directory.join("log"))?;
        let machine = Self { spec, image, directory, share: run.join("share"), running: None };
        copy_disk(&machine.image.disk(), &machine.system_disk())?;
        if let Some(images) = &machine.spec.images {
            copy_disk(images, &machine.images_disk())?;
        }
        if !machine.pool_disk().exists() {
            File::create(machine.pool_disk())?.set_len(machine.spec.pool_bytes)?;
        }
        Ok(machine)
    }

    /// The image file of the system disk.
    pub(crate) fn system_disk(&self) -> PathBuf {
        self.directory.join("system.img")
    }

    /// The image file behind `/dev/vdb`.
    pub(crate) fn pool_disk(&self) -> PathBuf {
        self.directory.join("pool.img")
    }

    /// The image file behind `/dev/vdc`, if the node has one.
    pub(crate) fn images_disk(&self) -> PathBuf {
        self.directory.join("images.img")
    }

    /// What the node's programs wrote; `/log` in the guest.
    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Everything that the kernel printed, over all boots.
    pub(crate) fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// Powers the node on and waits until its agent answers.
    pub(crate) fn boot(&mut self) -> Result<Guest> {
        self.power_on()?;
        self.wait_for_agent()
    }

    /// Starts TPM and QEMU.
    pub(crate) fn power_on(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("{} is running already", self.spec.name);
        }
        let tpm = Daemon::start("swtpm", &self.tpm_arguments(), &self.directory.join("swtpm.log"), self.spec.fate)?;
        wait_for(&self.tpm_socket())?;
        let qemu =
            Daemon::start("qemu-system-x86_64", &self.arguments(), &self.directory.join("qemu.log"), self.spec.fate)?;
        self.running = Some((qemu, tpm));
        Ok(())
    }

    /// Returns when the agent of a node that was powered on answers.
    pub(crate) fn wait_for_agent(&mut self) -> Result<Guest> {
        let (qemu, _) = self.running.as_mut().context("the node is not running")?;
        let guest = agent(self.spec.number);
        let start = Instant::now();
        while !guest.answers() {
            qemu.must_run().with_context(|| format!("see {}", self.directory.join("qemu.log").display()))?;
            if start.elapsed() > BOOT_DEADLINE {
                bail!("{} did not boot in {BOOT_DEADLINE:?}; see {}", self.spec.name, self.console().display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(guest)
    }

    /// The node crashes: QEMU is killed, then the TPM ends. What the guest had submitted to its disks is there.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let (mut qemu, mut tpm) = self.running.take().context("the node is not running")?;
        qemu.kill()?;
        tpm.kill()?;
        Ok(())
    }

    fn tpm_socket(&self) -> PathBuf {
        self.directory.join("tpm.sock")
    }

    fn tpm_arguments(&self) -> Vec<String> {
        let state = self.directory.join("tpm");
        // A socket that an earlier boot left is not the one to wait for.
        let _ = fs::remove_file(self.tpm_socket());
        vec![
            "socket".into(),
            "--tpm2".into(),
            "--tpmstate".into(),
            format!("dir={}", state.display()),
            "--ctrl".into(),
            format!("type=unixio,path={}", self.tpm_socket().display()),
        ]
    }

    fn arguments(&self) -> Vec<String> {
        let Spec { name, number, memory_mib, .. } = &self.spec;
        let address = address(*number);
        let memory = memory_mib.to_string();
        let append = format!(
            "root=/dev/vda rw console=ttyS0 quiet mitigations=off cryptomgr.notests=1 net.ifnames=0 panic=-1 \
             init=/init coffer_node={name} coffer_number={number} coffer_address={address}"
        );
        let mut network = format!("user,id=net,net=10.0.2.0/24,host={HOST_IN_GUEST}");
        let ports = [AGENT_PORT, SHELL_PORT].map(|port| (Ipv4Addr::LOCALHOST, port + u16::from(*number), port));
        let forwards = self.spec.forwards.iter().map(|Forward { host, port }| (*host, *port, *port));
        for (host, outside, inside) in ports.into_iter().chain(forwards) {
            network += &format!(",hostfwd=tcp:{host}:{outside}-{address}:{inside}");
        }
        let disk = |path: PathBuf| format!("file={},if=virtio,format=raw,cache=unsafe,discard=unmap", path.display());
        let share = |path: &Path, tag: &str, mode: &str| {
            format!("local,path={},mount_tag={tag},security_model=none,multidevs=remap{mode}", path.display())
        };
        // Without QEMU's default devices there are no drivers to load for them.
        let mut arguments = vec!["-nodefaults".to_owned()];
        // Several running CPUs crash the guest when the kernel patches its own code (`Oops: int3`). With a single possible one
        // QEMU before 8.1 leaves out the guest's memory barriers, and a notification of a virtio disk may be lost.
        for (flag, value) in [
            ("-machine", "q35"),
            ("-accel", "tcg,thread=multi,tb-size=1024"),
            ("-smp", "1,maxcpus=2"),
            ("-cpu", "max"),
            ("-m", &memory),
            ("-display", "none"),
            ("-kernel", &self.image.kernel().to_string_lossy()),
            ("-initrd", &self.image.initrd().to_string_lossy()),
            ("-append", &append),
            ("-chardev", &format!("file,id=console,append=on,path={}", self.console().display())),
            ("-serial", "chardev:console"),
            ("-drive", &disk(self.system_disk())),
            ("-drive", &disk(self.pool_disk())),
            ("-virtfs", &share(&self.share, "share", ",readonly=on")),
            ("-virtfs", &share(&self.logs(), "log", "")),
            ("-chardev", &format!("socket,id=tpm,path={}", self.tpm_socket().display())),
            ("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
            ("-device", "tpm-tis,tpmdev=tpm0"),
            ("-device", "virtio-rng-pci"),
            ("-netdev", &network),
            ("-device", "virtio-net-pci,netdev=net"),
        ] {
            arguments.extend([flag.to_owned(), value.to_owned()]);
        }
        if self.spec.images.is_some() {
            arguments.extend(["-drive".to_owned(), disk(self.images_disk())]);
        }
        // A reboot ends QEMU, so that whoever holds the machine decides when it boots again.
        arguments.push("-no-reboot".into());
        arguments
    }
}

/// Makes the disk `to` a copy of `from`, unless it is there.
fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let unfinished = to.with_extension("unfinished");
    succeed(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(&unfinished))?;
    fs::rename(unfinished, to).with_context(|| format!("cannot make {}", to.display()))
}

/// The address of a node's guest. Kubernetes wants a different one for each.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 14 + number)
}

/// The agent of the node `number`.
pub(crate) fn agent(number: u8) -> Guest {
    Guest::at(Ipv4Addr::LOCALHOST, AGENT_PORT + u16::from(number))
}

/// Where the shell of the node `number` listens on the host's loopback.
pub(crate) fn shell_port(number: u8) -> u16 {
    SHELL_PORT + u16::from(number)
}

fn wait_for(path: &Path) -> Result<()> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("{} did not appear", path.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
