//! What cargo has to build before a node can be started. Runs outside the sandbox: inside there is no registry.

use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::process::read;

/// Programs that are shared with the guest, by the name they have there.
#[derive(Clone)]
pub(crate) struct Programs {
    programs: Vec<(String, PathBuf)>,
    /// What is shared as it is on this machine, because the node's is newer.
    older: Vec<PathBuf>,
}

impl Programs {
    /// `coffer` with every feature, and this program, which is the agent in the guest.
    pub(crate) fn product() -> Result<Self> {
        let rig = env::current_exe()?;
        let coffer = rig.with_file_name("coffer");
        if !coffer.exists() {
            bail!("{} is not there; run make build", coffer.display());
        }
        Ok(Self { programs: vec![("coffer".into(), coffer), ("coffer-rig".into(), rig)], older: Vec::new() })
    }

    /// The file that the guest will see as `name`.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        let found = self.programs.iter().find(|(known, _)| known == name);
        found.map(|(_, path)| path.clone()).with_context(|| format!("{name} is not among the programs"))
    }

    /// Adds the test binary that cargo calls `target`, building it if need be.
    pub(crate) fn with_test(mut self, target: &str) -> Result<Self> {
        let output = Command::new("cargo")
            .args(["test", "--profile=rig", "--all-features", "--no-run", "--message-format=json-render-diagnostics"])
            .args(["--test", target])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!("cargo could not build the tests {target:?}");
        }
        let executable = String::from_utf8(output.stdout)?
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["target"]["name"] == target)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo did not say where the tests {target:?} are"))?;
        self.programs.push((format!("test-{target}"), executable));
        Ok(self)
    }

    /// Adds a file that was made elsewhere, under its own name.
    pub(crate) fn with(mut self, program: &Path) -> Result<Self> {
        let name = program.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        self.programs.push((name, program.to_owned()));
        Ok(self)
    }

    /// Adds this machine's cryptsetup and the libcryptsetup that the product was linked to: Debian 12's, older than the
    /// node's.
    pub(crate) fn with_older_cryptsetup(mut self) -> Result<Self> {
        let libraries = read(Command::new("ldd").arg(self.path("coffer")?))?;
        // The newer one does without the library for Argon2, so that the node has none.
        for wanted in ["libcryptsetup.so.", "libargon2.so."] {
            let library = libraries.lines().find_map(|line| {
                line.trim().split_once(" => ")?.1.split(' ').next().filter(|path| path.contains(wanted))
            });
            self.older.push(library.with_context(|| format!("coffer is not linked to {wanted}*"))?.into());
        }
        self.older.push("/usr/sbin/cryptsetup".into());
        Ok(self)
    }

    /// Copies them to `<share>/bin` and `<share>/older`, together with the start of the guest.
    pub(crate) fn share(&self, share: &Path) -> Result<()> {
        let bin = share.join("bin");
        fs::create_dir_all(&bin)?;
        for (name, program) in &self.programs {
            let unfinished = bin.join("unfinished");
            fs::copy(program, &unfinished).with_context(|| format!("cannot share {}", program.display()))?;
            fs::rename(unfinished, bin.join(name))?;
        }
        let older = share.join("older");
        fs::create_dir_all(&older)?;
        for file in &self.older {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(file, older.join(name)).with_context(|| format!("cannot share {}", file.display()))?;
        }
        write_executable(&share.join("init"), include_str!("guest/init"))
    }
}

/// Writes a script that may be run.
pub(crate) fn write_executable(path: &Path, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
