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

/// Programs that are shared with the guest, by the name they have there.
#[derive(Clone)]
pub(crate) struct Programs {
    programs: Vec<(String, PathBuf)>,
}

impl Programs {
    /// `coffer` with every feature, and this program, which is the agent in the guest.
    pub(crate) fn product() -> Result<Self> {
        let rig = env::current_exe()?;
        let coffer = rig.with_file_name("coffer");
        if !coffer.exists() {
            bail!("{} is not there; run make build", coffer.display());
        }
        Ok(Self { programs: vec![("coffer".into(), coffer), ("coffer-rig".into(), rig)] })
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

    /// Adds a program that was built elsewhere, under its own file name.
    pub(crate) fn with(mut self, program: &Path) -> Result<Self> {
        let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        self.programs.push((name, program.to_owned()));
        Ok(self)
    }

    /// Copies them to `<share>/bin`, together with the start of the guest.
    pub(crate) fn share(&self, share: &Path) -> Result<()> {
        let bin = share.join("bin");
        fs::create_dir_all(&bin)?;
        for (name, program) in &self.programs {
            let unfinished = bin.join("unfinished");
            fs::copy(program, &unfinished).with_context(|| format!("cannot share {}", program.display()))?;
            fs::rename(unfinished, bin.join(name))?;
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
