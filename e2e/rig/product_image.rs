//! Coffer's own image, made by buildah from the tree's Dockerfile.
//!
//! Two of its stages are stood in for: `build` by the program that cargo made on this machine, and the base image by a
//! Debian tree of the same suite, because no registry of images is asked.

use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context as _;
use anyhow::Result;
use sha2::Digest as _;
use sha2::Sha256;

use crate::cache;
use crate::process::succeed;

/// What the chart is told to run.
pub(crate) const REPOSITORY: &str = "localhost/coffer";
/// Its version.
pub(crate) const TAG: &str = env!("CARGO_PKG_VERSION");

/// The image that the Dockerfile starts from.
const BASE: &str = "docker.io/library/debian:trixie-slim";
/// Counted up when the same packages have to be fetched anew.
const GENERATION: &str = "1";
/// What the slim images of Debian leave out.
const LEFT_OUT: [&str; 4] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
const DOCKERFILE: &str = include_str!("../../Dockerfile");

/// The image as an OCI archive. Needs Debian's mirror if the cache does not have it.
pub(crate) fn archive() -> Result<PathBuf> {
    let program = program()?;
    let content =
        std::fs::read(&program).with_context(|| format!("{} is not there; run make build", program.display()))?;
    let digest = hex::encode(Sha256::digest(content));
    cache::newest_artefact("image", &[GENERATION, DOCKERFILE, &digest], |path| build(&program, path))
}

/// What is shipped: the program without the feature `dev`.
fn program() -> Result<PathBuf> {
    let rig = std::env::current_exe()?;
    let profile = rig.parent().context("a program is in a directory")?;
    Ok(profile.with_file_name("shipped").join("coffer"))
}

fn build(program: &Path, archive: &Path) -> Result<()> {
    let storage = Storage::open()?;
    let stage = archive.with_extension("stage");
    std::fs::create_dir_all(stage.join("out"))?;
    std::fs::copy(program, stage.join("out/coffer"))?;
    let name = format!("{REPOSITORY}:{TAG}");
    let finished = format!("build={}", stage.display());
    let tree = env!("CARGO_MANIFEST_DIR");
    let arguments =
        ["--layers", "--pull=never", "--isolation=chroot", "--build-context", &finished, "--tag", &name, tree];
    succeed(storage.buildah("build").args(["--quiet"]).args(arguments))?;
    succeed(storage.buildah("push").args(["--quiet", &name]).arg(format!("oci-archive:{}:{name}", archive.display())))?;
    // What an earlier program's image was made of; layers that this one shares stay.
    succeed(storage.buildah("rmi").arg("--prune"))?;
    std::fs::remove_dir_all(&stage)?;
    Ok(())
}

/// Where buildah keeps its layers: in the cache, so that packages are fetched once.
struct Storage {
    directory: PathBuf,
}

impl Storage {
    /// Finds the base image there, or makes it.
    fn open() -> Result<Self> {
        let storage = Self { directory: cache::directory()?.join("containers") };
        let known = storage.buildah("inspect").args(["--type=image", BASE]).output()?;
        if !known.status.success() {
            storage.make_base()?;
        }
        Ok(storage)
    }

    fn buildah(&self, verb: &str) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.directory.join("root")).arg("--runroot").arg(self.directory.join("run"));
        command.args(["--storage-driver=vfs", verb]);
        command
    }

    fn make_base(&self) -> Result<()> {
        let tree = cache::artefact("debian-slim.tar", &[GENERATION, BASE], |path| {
            let without = LEFT_OUT.map(|files| format!("--dpkgopt=path-exclude={files}"));
            succeed(
                Command::new("mmdebstrap")
                    .args(["--variant=minbase", "--format=tar"])
                    .args(without)
                    .arg("trixie")
                    .arg(path),
            )
        })?;
        let directory = tree.parent().context("the cache is a directory")?;
        let file = tree.file_name().context("an artefact has a name")?.to_string_lossy();
        let mut command = self.buildah("build");
        command.args(["--quiet", "--tag", BASE, "--file=-"]).arg(directory).stdin(Stdio::piped());
        let mut child = command.spawn()?;
        let input = format!("FROM scratch\nADD {file} /\n");
        child.stdin.take().context("standard input is a pipe")?.write_all(input.as_bytes())?;
        anyhow::ensure!(child.wait()?.success(), "buildah did not make {BASE}");
        Ok(())
    }
}
