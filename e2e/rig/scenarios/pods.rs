//! What pods do with volumes while nothing goes wrong.

use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::scene::Scene;
use crate::objects::DEVICE;
use crate::objects::claim;
use crate::objects::device_pod;
use crate::objects::of_class;
use crate::objects::pod;
use crate::objects::raw;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "generic_ephemeral", run: ephemeral, warnings: &["FailedScheduling"] },
    Scenario { name: "fs_group_read_only_and_sub_path", run: views, warnings: &[] },
    Scenario { name: "a_pod_moves_on_its_node", run: moves, warnings: &[] },
    Scenario { name: "raw_block", run: raw_block, warnings: &[] },
    Scenario { name: "xfs", run: xfs, warnings: &[] },
    Scenario { name: "mount_options", run: mount_options, warnings: &["ProvisioningFailed"] },
    Scenario { name: "read_write_once_pod", run: once, warnings: &["FailedScheduling"] },
];

fn moves(scene: &mut Scene) -> Result<()> {
    scene.apply(&[claim("data", "64Mi"), pod("first", &["data"])])?;
    scene.ready("first")?;
    let digest = scene.write("first", "/data/file")?;
    scene.delete("pod", "first")?;
    scene.apply(&[pod("second", &["data"])])?;
    scene.ready("second")?;
    scene.check("second", "/data/file", &digest)
}

fn raw_block(scene: &mut Scene) -> Result<()> {
    scene.apply(&[raw(claim("device", "64Mi")), device_pod("first", "device")])?;
    scene.ready("first")?;
    let digest = format!("head -c 4194304 {DEVICE} | sha256sum");
    let write = format!("dd if=/dev/urandom of={DEVICE} bs=1M count=4 conv=fsync 2>/dev/null");
    let written = scene.exec("first", &format!("{write}; {digest}"))?;
    let bytes = scene.exec("first", &format!("blockdev --getsize64 {DEVICE}"))?;
    anyhow::ensure!(bytes == (64 << 20).to_string(), "a claim of 64Mi is a device of {bytes} bytes");
    scene.delete("pod", "first")?;
    scene.apply(&[device_pod("second", "device")])?;
    scene.ready("second")?;
    let found = scene.exec("second", &digest)?;
    anyhow::ensure!(found == written, "another pod reads other bytes");
    Ok(())
}

fn xfs(scene: &mut Scene) -> Result<()> {
    scene.apply(&[of_class("xfs", claim("data", "400Mi")), pod("writer", &["data"])])?;
    scene.ready("writer")?;
    let kind = scene.exec("writer", "awk '$2 == \"/data\" { print $3 }' /proc/mounts")?;
    anyhow::ensure!(kind == "xfs", "the class says xfs, and the pod sees {kind}");
    let digest = scene.write("writer", "/data/file")?;
    scene.check("writer", "/data/file", &digest)
}

/// One volume, seen by three pods one after the other.
fn views(scene: &mut Scene) -> Result<()> {
    let mut grouped = pod("grouped", &["data"]);
    grouped["spec"]["securityContext"] = json!({ "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000 });
    scene.apply(&[claim("data", "64Mi"), grouped])?;
    scene.ready("grouped")?;
    let digest =
        scene.exec("grouped", "mkdir /data/inner; echo secret >/data/inner/file; sha256sum </data/inner/file")?;
    let group = scene.exec("grouped", "stat -c %g /data/inner/file")?;
    anyhow::ensure!(group == "2000", "fsGroup is 2000, and a new file has group {group}");
    scene.delete("pod", "grouped")?;

    let mut reader = pod("reader", &["data"]);
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    scene.apply(&[reader])?;
    scene.ready("reader")?;
    scene.check("reader", "/data/inner/file", &digest)?;
    let refused = scene.exec("reader", "touch /data/new 2>&1 || true")?;
    anyhow::ensure!(refused.contains("Read-only file system"), "a read-only volume took a file: {refused:?}");
    scene.delete("pod", "reader")?;

    let mut inner = pod("inner", &["data"]);
    inner["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = json!("inner");
    scene.apply(&[inner])?;
    scene.ready("inner")?;
    scene.check("inner", "/data/file", &digest)
}

fn mount_options(scene: &mut Scene) -> Result<()> {
    scene.apply(&[of_class("noatime", claim("allowed", "64Mi")), pod("reader", &["allowed"])])?;
    scene.ready("reader")?;
    // In the pod itself the container runtime decides about suid and dev, by flags of its own.
    let volume = scene.volume("allowed")?;
    let script = format!("awk '$5 ~ /{}\\/mount$/ {{ print $6 }}' /proc/1/mountinfo", volume.pv);
    let options = scene.home(&volume).guest.check(&script)?;
    let all =
        ["noatime", "nosuid", "nodev"].iter().all(|option| options.trim().split(',').any(|found| found == *option));
    anyhow::ensure!(all, "noatime of the class, nosuid and nodev of the driver are missing in {options:?}");

    scene.apply(&[of_class("suid", claim("refused", "64Mi")), pod("never", &["refused"])])?;
    scene.event("ProvisioningFailed", "InvalidArgument: ")
}

fn once(scene: &mut Scene) -> Result<()> {
    let mut data = claim("data", "64Mi");
    data["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    scene.apply(&[data, pod("first", &["data"])])?;
    scene.ready("first")?;
    let digest = scene.write("first", "/data/file")?;
    scene.apply(&[pod("second", &["data"])])?;
    scene.event("FailedScheduling", "ReadWriteOncePod")?;
    scene.delete("pod", "first")?;
    scene.ready("second")?;
    scene.check("second", "/data/file", &digest)
}

fn ephemeral(scene: &mut Scene) -> Result<()> {
    let mut user = pod("user", &["data"]);
    let spec = claim("data", "64Mi")["spec"].clone();
    user["spec"]["volumes"][0] = json!({ "name": "data", "ephemeral": { "volumeClaimTemplate": { "spec": spec } } });
    scene.apply(&[user])?;
    scene.ready("user")?;
    let digest = scene.write("user", "/data/file")?;
    scene.check("user", "/data/file", &digest)?;
    let volume = scene.volume("user-data")?;
    scene.delete("pod", "user")?;
    scene.gone("pvc", "user-data")?;
    scene.gone("encvol", &volume.id)
}
