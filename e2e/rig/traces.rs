//! What one volume shows on a node: its files in the pool and their digests, loops, mappers, mounts, directories.

use anyhow::Context as _;
use anyhow::Result;

use crate::guest::Guest;

/// The pool's directory on the node; a disk of its own is mounted one level above.
pub(crate) const POOL: &str = "/var/lib/coffer/pool";

/// Digests of everything that a refused stage must leave as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digests {
    /// SHA-256 of `volume.json`.
    pub(crate) record: String,
    /// SHA-256 of the 2 MiB before the payload: both LUKS2 headers and the keyslots.
    pub(crate) header: String,
    /// SHA-256 of the whole backing.
    pub(crate) backing: String,
}

/// Where [`copy`] puts its copy: memory, not the searched disks.
const COPY: &str = "/tmp/volume-copy";

/// Copies record and backing as they are now. That takes a moment, because holes are not read; hashing takes longer.
pub(crate) fn copy(guest: &Guest, id: &str) -> Result<()> {
    guest.check(&format!("rm -rf {COPY}; cp -r --sparse=always {POOL}/{id} {COPY}")).map(drop)
}

/// The digests of the volume `id` as it is now.
pub(crate) fn digests(guest: &Guest, id: &str) -> Result<Digests> {
    digests_in(guest, &format!("{POOL}/{id}"))
}

/// The digests of what was copied.
pub(crate) fn digests_of_copy(guest: &Guest) -> Result<Digests> {
    digests_in(guest, COPY)
}

fn digests_in(guest: &Guest, directory: &str) -> Result<Digests> {
    let script = format!(
        "set -e; cd {directory}; sha256sum <volume.json; head -c 2097152 backing | sha256sum; sha256sum <backing"
    );
    let text = guest.check(&script)?;
    let mut words = text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned());
    let mut next = || words.next().context("three digests");
    Ok(Digests { record: next()?, header: next()?, backing: next()? })
}

/// Prints the mounts of mappers, as filesystem and as device node: the mount table names neither volume nor mapper.
const MOUNTS: &str = "grep /proc/1/mountinfo -e ' /dev/dm-' -e ' /dm-'";

/// Each thing that the kernel holds for the volume `id`, one line each: loop devices by their backing file, mappers, and,
/// as it is the only volume on its node, every mount of a mapper.
pub(crate) fn in_kernel(guest: &Guest, id: &str) -> Result<Vec<String>> {
    let loops = format!("grep -H {id} /sys/block/loop*/loop/backing_file 2>/dev/null");
    let mappers = format!("dmsetup ls | grep {id}");
    lines(guest, &format!("{loops}; {mappers}; {MOUNTS}; true"))
}

/// Every mount of a mapper, whichever volume's.
pub(crate) fn mounts(guest: &Guest) -> Result<Vec<String>> {
    lines(guest, &format!("{MOUNTS}; true"))
}

/// Everything that the driver could leave on a node: files in its pools beside their marks, loops over them, mappers,
/// what the kubelet keeps for `driver`, and mounts of mappers, on its socket's directory or with one of `names` in
/// their lines.
pub(crate) fn of_driver(guest: &Guest, driver: &str, names: &[&str]) -> Result<Vec<String>> {
    let pools = "/var/lib/coffer";
    let patterns: String = names.iter().map(|name| format!(" -e {name}")).collect();
    let script = format!(
        "find {pools} -mindepth 2 ! -name pool.json ! -path '*/lost+found*'
         grep -H {pools} /sys/block/loop*/loop/backing_file 2>/dev/null
         dmsetup ls | grep ^coffer-
         find /var/lib/kubelet/plugins/kubernetes.io/csi/{driver} -mindepth 1 2>/dev/null
         {MOUNTS} -e 'plugins/{driver} '{patterns}
         true"
    );
    lines(guest, &script)
}

fn lines(guest: &Guest, script: &str) -> Result<Vec<String>> {
    Ok(guest.check(script)?.lines().map(|line| line.trim().to_owned()).collect())
}
