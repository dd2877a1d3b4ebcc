//! Container images without a registry, as an OCI layout in a tar file: one static busybox, alone and with what
//! Kubernetes' own test suite wants beside it, and csi-provisioner.
//!
//! The busybox serves as the pod sandbox's image and as every workload's. `ctr image import` takes them; nothing is
//! pulled.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;
use sha2::Digest as _;
use sha2::Sha256;

use crate::kubernetes::DD;
use crate::kubernetes::PROVISIONER_IMAGE;

/// This file: other code makes other images.
pub(crate) const RECIPE: &str = include_str!("images.rs");
/// The sandbox's image, named in containerd's configuration.
pub(crate) const PAUSE: &str = "localhost/pause:1";
/// The workload's image, named in `examples/`.
pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// What Kubernetes' own suite calls the image of nearly all its pods, that of the one case which executes a file from a
/// volume (any shell will do), and the sandbox's.
const SUITE_BUSYBOX: [&str; 3] = [
    "registry.k8s.io/e2e-test-images/busybox:1.37.0-2",
    "registry.k8s.io/e2e-test-images/nginx:1.27.0-2",
    "registry.k8s.io/pause:3.10.2",
];
/// The suite's program of many uses; it is built together with Kubernetes.
const SUITE_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
/// The suite's image where it wants a `dd` that busybox has not (`oflag=nocache`).
const SUITE_DD: &str = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.1.1";

/// A descriptor of the OCI image specification: what a blob is, its digest and size.
fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    let digest = format!("sha256:{}", digest(blob));
    json!({ "mediaType": media_type, "digest": digest, "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    hex::encode(Sha256::digest(blob))
}

/// What the images are made of.
pub(crate) struct Sources {
    /// A static busybox.
    pub(crate) busybox: PathBuf,
    /// Kubernetes' programs, agnhost and csi-provisioner among them.
    pub(crate) kubernetes: PathBuf,
    /// The directory with [`DD`].
    pub(crate) dd: PathBuf,
}

/// Writes every image that pods of the rig run, but the driver's, to `to`.
pub(crate) fn write(sources: &Sources, to: &Path) -> Result<()> {
    let busybox = busybox_layer(&sources.busybox)?;
    let shell = json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "infinity"] });
    let mut archive = Archive::create(to)?;
    archive.add(&[PAUSE, BUSYBOX], &[&busybox], &shell)?;
    archive.add(&SUITE_BUSYBOX, &[&busybox], &shell)?;

    let provisioner = layer_of(&[("csi-provisioner", &sources.kubernetes.join("csi-provisioner"))])?;
    archive.add(&[PROVISIONER_IMAGE], &[&provisioner], &json!({ "Entrypoint": ["/csi-provisioner"] }))?;

    let [program, interpreter, loader, library] = DD.map(|file| sources.dd.join(file));
    let dd = layer_of(&[
        ("bin/dd", &program),
        ("bin/sh", &interpreter),
        ("lib64/ld-linux-x86-64.so.2", &loader),
        ("lib/x86_64-linux-gnu/libc.so.6", &library),
    ])?;
    archive.add(&[SUITE_DD], &[&busybox, &dd], &shell)?;
    let agnhost = layer_of(&[("agnhost", &sources.kubernetes.join("agnhost"))])?;
    let config = json!({ "Env": ["PATH=/bin"], "Entrypoint": ["/agnhost"], "Cmd": ["pause"] });
    archive.add(&[SUITE_AGNHOST], &[&busybox, &agnhost], &config)?;
    archive.finish()
}

/// An OCI layout with several images.
struct Archive {
    tar: tar::Builder<fs::File>,
    manifests: Vec<Value>,
    blobs: BTreeSet<String>,
}

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        let mut tar = tar::Builder::new(fs::File::create(path)?);
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        Ok(Self { tar, manifests: Vec::new(), blobs: BTreeSet::new() })
    }

    /// Adds one image under each of `names`.
    fn add(&mut self, names: &[&str], layers: &[&[u8]], config: &Value) -> Result<()> {
        let differences: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": differences },
        }))?;
        let described: Vec<_> =
            layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": described,
        }))?;
        for blob in layers.iter().copied().chain([config.as_slice(), &manifest]) {
            let path = format!("blobs/sha256/{}", digest(blob));
            if self.blobs.insert(path.clone()) {
                append(&mut self.tar, &path, blob, 0o644)?;
            }
        }
        for name in names {
            let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
            // containerd's importer takes the full name from this annotation.
            entry["annotations"] = json!({ "io.containerd.image.name": name });
            self.manifests.push(entry);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        append(&mut self.tar, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
        self.tar.finish().context("write the images")
    }
}

/// Programs and libraries by their path in the image.
fn layer_of(files: &[(&str, &Path)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, file) in files {
        append(&mut tar, path, &fs::read(file)?, 0o755)?;
    }
    Ok(tar.into_inner()?)
}

/// busybox with a link for each of its programs, and the directories that a shell expects.
fn busybox_layer(busybox: &Path) -> Result<Vec<u8>> {
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
