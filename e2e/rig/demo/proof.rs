//! Chapter 3: what is on the disks, what is in the kernel, what the KBS wrote down.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;

use super::Story;
use super::Volume;
use crate::install::KEY_URI;
use crate::search;
use crate::search::Found;
use crate::search::Reading;
use crate::traces::POOL;

impl Story {
    pub(super) fn prove(&mut self, volume: &Volume) -> Result<()> {
        self.prove_table(volume)?;
        // What still waits in the guest's memory is searched, too.
        self.home().guest.check("sync")?;
        let (pool, system) = (self.home().machine.pool_disk(), self.home().machine.system_disk());
        self.search_outside("the pool disk's image", &pool, volume)?;
        self.search_outside("the system disk's image", &system, volume)?;
        let images = self.home().machine.images_disk();
        self.search_outside("the image of the containers' disk", &images, volume)?;
        let backing = self.search_inside("", &format!("{POOL}/{}/backing", volume.id), volume)?;
        self.check(&format!("on the node: 0 hits in {} of the backing", mib(backing)), backing.hits == 0);
        let mapper = self.search_inside("--direct", &format!("/dev/mapper/coffer-{}", volume.id), volume)?;
        let found = format!("on the node: {} in {} of the mapper, read with O_DIRECT", hits(mapper), mib(mapper));
        self.check(&found, mapper.hits >= 1);
        self.prove_release()
    }

    fn prove_table(&mut self, volume: &Volume) -> Result<()> {
        let table = self.home().guest.check(&format!("dmsetup table coffer-{}", volume.id))?;
        println!("           {}", table.trim());
        let wanted = [" crypt ", " aes-xts-plain64 ", ":64:logon:", "sector_size:4096"];
        self.check("the mapper: aes-xts-plain64, 4096-byte sectors, 512-bit key in the kernel keyring", {
            wanted.iter().all(|word| table.contains(word))
        });
        Ok(())
    }

    /// Searches every byte of a disk's image on the host, while the machine runs. That the search sees the volume at
    /// all is shown by the LUKS2 header, which it must find on the pool's disk.
    fn search_outside(&mut self, what: &str, image: &Path, volume: &Volume) -> Result<()> {
        let begun = Instant::now();
        let found = search::file(image, &volume.needle, Reading::Cached)?;
        let seconds = begun.elapsed().as_secs_f64();
        let said = format!("outside, while it runs: {} in {} of {what} ({seconds:.1} s)", hits(found), mib(found));
        self.check(&said, found.hits == 0);
        if image == self.home().machine.pool_disk() {
            let read = format!("head -c 4096 {POOL}/{}/backing", volume.id);
            let header = self.home().guest.run(&read)?.stdout;
            let found = search::file(image, &header, Reading::Cached)?;
            self.check("the same search finds the volume's LUKS2 header there", found.hits >= 1);
        }
        Ok(())
    }

    fn search_inside(&self, flag: &str, path: &str, volume: &Volume) -> Result<Found> {
        let output = self.home().guest.run_with(&format!("coffer-rig search {flag} {path}"), &volume.needle)?;
        let text = String::from_utf8(output.stdout)?;
        let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
        let mut next = || {
            let why = || format!("the search said {text:?}, {}", String::from_utf8_lossy(&output.stderr));
            numbers.next().with_context(why)
        };
        Ok(Found { hits: next()?, bytes: next()? })
    }

    fn prove_release(&mut self) -> Result<()> {
        let releases = self.kbs.releases()?;
        let last = releases.last().context("the KBS has released nothing")?;
        println!("           {last}");
        let resource = KEY_URI.trim_start_matches("kbs:///");
        self.check("the KBS's release log names tee, attestation key, PCRs and resource", {
            last.contains("tpm") && last.contains(resource)
        });
        Ok(())
    }
}

fn hits(found: Found) -> String {
    format!("{} {}", found.hits, if found.hits == 1 { "hit" } else { "hits" })
}

fn mib(found: Found) -> String {
    format!("{} MiB", found.bytes >> 20)
}
