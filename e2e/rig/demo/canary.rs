//! Chapter 8: the keys themselves are searched for, in what Kubernetes stores and in what anybody has logged.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::Result;
use coffer::key::VolumeKeys;
use coffer::volume::VolumeId;

use super::Story;
use super::Volume;
use super::needles::Needles;
use crate::install::KEY_URI;
use crate::traces::POOL;

/// What the containers of a node have printed, those before a restart too.
const POD_LOGS: &str = "find /var/log/pods -type f -exec cat {} +";

impl Story {
    pub(super) fn hunt(&mut self, volume: &Volume) -> Result<()> {
        let keys = self.keys(volume)?;
        let known = Needles::default().and("the volume's id", volume.id.as_bytes());
        // Every object is there as it was each time that it was written, Events among them.
        let stored = contents_below(&self.cluster.run.join("control-plane").join("etcd"))?;
        let mut logged = Vec::new();
        for node in &self.cluster.nodes {
            logged.extend(node.guest.run(POD_LOGS)?.stdout);
        }
        for (what, bytes) in [("etcd, Events included", stored), ("the containers' logs of both nodes", logged)] {
            let sees = known.found_in(&bytes).next().is_some();
            self.check(&format!("in {} KiB of {what}: the volume's id", bytes.len() >> 10), sees);
            let found: Vec<_> = keys.found_in(&bytes).map(|(what, _)| what).collect();
            self.check(&format!("and no secret, derived key or volume key{}", found.join(", ")), found.is_empty());
        }
        Ok(())
    }

    fn keys(&self, volume: &Volume) -> Result<Needles> {
        let secret = self.kbs.secret(KEY_URI)?;
        let id = VolumeId::parse(&volume.id).context("the volume's handle is no id")?;
        let keys = VolumeKeys::derive(&secret, &id)?;
        // In the guest's memory only, and not for long.
        let dump = format!(
            "cd /run && cryptsetup luksDump --batch-mode --dump-volume-key --volume-key-file canary --key-file - \
             {POOL}/{}/backing >/dev/null && cat canary && rm canary",
            volume.id
        );
        let volume_key = self.home().guest.run_with(&dump, keys.passphrase.expose())?;
        anyhow::ensure!(volume_key.status == 0, "{}", String::from_utf8_lossy(&volume_key.stderr));
        Ok(Needles::of_volume(secret.expose(), &keys, &volume_key.stdout))
    }
}

/// All files below `directory`, one after the other.
fn contents_below(directory: &Path) -> Result<Vec<u8>> {
    let (mut contents, mut directories) = (Vec::new(), vec![PathBuf::from(directory)]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("{} is not there", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { contents.extend(fs::read(path)?) }
        }
    }
    Ok(contents)
}
