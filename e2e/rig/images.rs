//! Container images without a registry: one static busybox, as an OCI layout in a tar file.
//!
//! The same image serves as the pod sandbox's and as the workload's. `ctr image import` takes it; nothing is pulled.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;
use sha2::Digest as _;
use sha2::Sha256;

/// The sandbox's image, named in containerd's configuration.
pub(crate) const PAUSE: &str = "localhost/pause:1";
/// The workload's image, named in `examples/`.
pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// A descriptor of the OCI image specification: what a blob is, its digest and size.
fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    let digest = format!("sha256:{}", digest(blob));
    json!({ "mediaType": media_type, "digest": digest, "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    hex::encode(Sha256::digest(blob))
}

/// Writes both images to `to`, made of the static `busybox`.
pub(crate) fn write(busybox: &Path, to: &Path) -> Result<()> {
    let layer = layer(busybox)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let named = |name: &str| {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        // containerd's importer takes the full name from this annotation.
        entry["annotations"] = json!({ "io.containerd.image.name": name });
        entry
    };
    let index = json!({ "schemaVersion": 2, "manifests": [named(PAUSE), named(BUSYBOX)] });

    let mut tar = tar::Builder::new(fs::File::create(to)?);
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut tar, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
    for blob in [&layer, &config, &manifest] {
        append(&mut tar, &format!("blobs/sha256/{}", digest(blob)), blob, 0o644)?;
    }
    tar.finish().context("write the images")
}

/// busybox with a link for each of its programs, and the directories that a shell expects.
fn layer(busybox: &Path) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["bin/", "etc/", "root/", "tmp/"] {
        let mut header = header(0, 0o755);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, dir, std::io::empty())?;
    }
    append(&mut tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
    append(&mut tar, "bin/busybox", &fs::read(busybox)?, 0o755)?;
    let list = Command::new(busybox).arg("--list").output().context("ask busybox for its programs")?;
    for name in String::from_utf8(list.stdout)?.lines().filter(|name| *name != "busybox") {
        let mut header = header(0, 0o755);
        header.set_entry_type(tar::EntryType::Link);
        tar.append_link(&mut header, format!("bin/{name}"), "bin/busybox")?;
    }
    Ok(tar.into_inner()?)
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = header(u64::try_from(content.len())?, mode);
    tar.append_data(&mut header, path, content).with_context(|| format!("add {path}"))
}

fn header(size_bytes: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size_bytes);
    header.set_mode(mode);
    // The same busybox gives the same image, whenever it is made.
    header.set_mtime(0);
    header
}
