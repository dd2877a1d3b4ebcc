//! The leak check: full listings of what a volume could leave behind, compared before and after.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::driver::KUBELET;

/// Everything that is there, as lines that name it, with how often it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing(BTreeMap<String, u32>);

impl Listing {
    /// Lists loops with a backing file, dm devices, mounts of process 1, the pool, the kubelet's plugin and pod
    /// directories, and the open descriptors of the process `driver`.
    pub(crate) fn take(pool: &Path, driver: Option<u32>) -> Self {
        let mut lines = Self(BTreeMap::new());
        lines.loops();
        for line in output("dmsetup", &["info", "-c", "--noheadings", "-o", "name,uuid"]).lines() {
            if line != "No devices found" {
                lines.add(format!("dm {line}"));
            }
        }
        for line in fs::read_to_string("/proc/1/mountinfo").expect("process 1 has mounts").lines() {
            // Mount and parent ids are counted up for ever.
            lines.add(format!("mount {}", line.splitn(3, ' ').nth(2).expect("mountinfo has more than ids")));
        }
        lines.tree("pool", pool);
        lines.tree("kubelet", &Path::new(KUBELET).join("plugins"));
        lines.tree("kubelet", &Path::new(KUBELET).join("pods"));
        if let Some(pid) = driver {
            lines.descriptors(pid);
        }
        lines
    }

    /// The same for any volume: `name` belongs to this one alone. Lines with one of the `ignored` words are left out.
    pub(crate) fn of_any(self, name: &str, ignored: &[&str]) -> Self {
        let lines = self.0.into_iter().filter(|(line, _)| !ignored.iter().any(|word| line.contains(word)));
        Self(lines.map(|(line, count)| (line.replace(name, "*"), count)).collect())
    }

    /// What is there now and was not there `before`, and what was there and no longer is; one line each.
    pub(crate) fn changes(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (line, count) in &self.0 {
            let was = before.0.get(line).copied().unwrap_or(0);
            if *count > was {
                changes.push(format!("+ {line} ({count} instead of {was})"));
            }
        }
        for (line, was) in &before.0 {
            let count = self.0.get(line).copied().unwrap_or(0);
            if count < *was {
                changes.push(format!("- {line} ({count} instead of {was})"));
            }
        }
        changes
    }

    fn add(&mut self, line: String) {
        *self.0.entry(line).or_default() += 1;
    }

    fn loops(&mut self) {
        for entry in fs::read_dir("/sys/block").expect("sysfs is mounted") {
            let path = entry.expect("sysfs can be read").path();
            if let Ok(file) = fs::read_to_string(path.join("loop/backing_file")) {
                self.add(format!("loop on {}", file.trim()));
            }
        }
    }

    fn tree(&mut self, name: &str, path: &Path) {
        let Ok(entries) = fs::read_dir(path) else { return };
        for entry in entries {
            let entry = entry.expect("a directory can be read").path();
            // What is mounted here is in the list of mounts, and belongs to the volume, not to the node.
            let is_mount = fs::symlink_metadata(&entry).ok().map(|found| found.dev())
                != fs::symlink_metadata(path).ok().map(|found| found.dev());
            self.add(format!("{name} {}", entry.display()));
            if entry.is_dir() && !entry.is_symlink() && !is_mount {
                self.tree(name, &entry);
            }
        }
    }

    fn descriptors(&mut self, pid: u32) {
        // libcryptsetup opens its two sources of random numbers once and keeps them.
        let mut once = vec!["/dev/random", "/dev/urandom"];
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("the driver runs") {
            // A descriptor may be closed while we look.
            if let Ok(target) = fs::read_link(entry.expect("proc can be read").path()) {
                let target = target.to_string_lossy().into_owned();
                if let Some(at) = once.iter().position(|known| *known == target) {
                    once.remove(at);
                    continue;
                }
                let kind = if target.starts_with("socket:") { "socket" } else { &target };
                self.add(format!("descriptor {kind}"));
            }
        }
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
