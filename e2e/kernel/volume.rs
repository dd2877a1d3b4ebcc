//! A volume as the tests see it from outside: its files in the pool, its devices in the kernel, its bytes.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use sha2::Digest;
use sha2::Sha256;

use crate::driver::Kind;
use crate::driver::remove_staging;
use crate::driver::staging_path;
use crate::scene::Scene;
use crate::scene::shell;

/// Payload of most volumes here.
pub(crate) const SMALL_BYTES: i64 = 32 << 20;
/// The smallest XFS.
pub(crate) const XFS_BYTES: i64 = 300 << 20;

/// A volume that was created in a scene.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    /// Its id.
    pub(crate) id: String,
    /// What it was asked for as.
    pub(crate) kind: Kind,
    directory: PathBuf,
}

impl Volume {
    /// Creates the volume `name` at the smallest comfortable size.
    #[track_caller]
    pub(crate) fn create(scene: &Scene, name: &str, kind: Kind) -> Self {
        Self::create_in(scene, &[], name, kind)
    }

    /// Creates it in a class with these `parameters`.
    #[track_caller]
    pub(crate) fn create_in(scene: &Scene, parameters: &[(&str, &str)], name: &str, kind: Kind) -> Self {
        let bytes = if kind == Kind::Xfs { XFS_BYTES } else { SMALL_BYTES };
        let answer = scene.driver().create_in(parameters, name, bytes, kind).expect("created");
        assert_eq!(answer.capacity_bytes, bytes);
        Self::existing(scene, &answer.volume_id, kind)
    }

    /// The volume of this id, which an earlier boot created.
    pub(crate) fn existing(scene: &Scene, id: &str, kind: Kind) -> Self {
        Self { id: id.to_owned(), kind, directory: scene.pool().join(id) }
    }

    /// Creates the volume and stages it for the first time.
    #[track_caller]
    pub(crate) fn create_staged(scene: &Scene, name: &str, kind: Kind) -> Self {
        let volume = Self::create(scene, name, kind);
        volume.stage(scene);
        volume
    }

    #[track_caller]
    pub(crate) fn stage(&self, scene: &Scene) {
        scene.driver().stage(&self.id, self.kind).expect("staged");
    }

    #[track_caller]
    pub(crate) fn unstage(&self, scene: &Scene) {
        scene.driver().unstage(&self.id).expect("unstaged");
    }

    #[track_caller]
    pub(crate) fn delete(&self, scene: &Scene) {
        scene.driver().delete(&self.id).expect("deleted");
    }

    /// Stages and expects a refusal whose message begins with `reason`, and that nothing was attached or changed.
    #[track_caller]
    pub(crate) fn stage_is_refused(&self, scene: &Scene, reason: &str) -> tonic::Status {
        let before = self.fingerprint();
        let status = scene.driver().stage(&self.id, self.kind).expect_err("refused");
        assert!(status.message().starts_with(&format!("{reason}: ")), "{reason} expected: {status:?}");
        assert!(status.details().is_empty(), "{status:?}");
        assert_eq!(before, self.fingerprint(), "the refusal changed the volume");
        self.stage_leaves_nothing();
        status
    }

    /// After a refused stage: nothing is attached, and the kubelet can remove its directory.
    #[track_caller]
    pub(crate) fn stage_leaves_nothing(&self) {
        assert_eq!(self.in_kernel(), "", "the refusal left something attached");
        remove_staging(&self.id);
    }

    /// The image file.
    pub(crate) fn backing(&self) -> PathBuf {
        self.directory.join("backing")
    }

    /// The record.
    pub(crate) fn record(&self) -> PathBuf {
        self.directory.join("volume.json")
    }

    /// What the last refusal left beside it, for display.
    pub(crate) fn refusal(&self) -> PathBuf {
        self.directory.join("refusal.json")
    }

    /// The opened device.
    pub(crate) fn mapper(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.mapper_name())
    }

    /// The device-mapper name.
    pub(crate) fn mapper_name(&self) -> String {
        format!("coffer-{}", self.id)
    }

    /// A file in the staged file system.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        staging_path(&self.id).join(name)
    }

    /// The `state` in the record.
    pub(crate) fn state(&self) -> String {
        self.recorded("state")
    }

    /// Whether the volume is there and complete.
    pub(crate) fn is_ready(&self) -> bool {
        self.record().exists() && self.state() == "Ready"
    }

    /// What the header on the disk says of the volume key: another key has another digest.
    pub(crate) fn key_digest(&self) -> String {
        let mut area = vec![0; 12288];
        File::open(self.backing()).and_then(|file| file.read_exact_at(&mut area, 4096)).expect("a header");
        let text = area.split(|byte| *byte == 0).next().expect("there is always a first part");
        let header: serde_json::Value = serde_json::from_slice(text).expect("the header is JSON");
        header["digests"]["0"]["digest"].as_str().expect("a header has a digest").to_owned()
    }

    /// The text of a field of the record.
    pub(crate) fn recorded(&self, field: &str) -> String {
        let record = fs::read(self.record()).expect("the record is there");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("the record is JSON");
        record[field].as_str().expect("the record has this field").to_owned()
    }

    /// The record, and everything in front of the payload.
    pub(crate) fn metadata(&self) -> (Vec<u8>, Vec<u8>) {
        let mut header = vec![0; 2 << 20];
        let image = File::open(self.backing()).expect("the image is there");
        image.read_exact_at(&mut header, 0).expect("the image is long enough");
        (fs::read(self.record()).expect("the record is there"), header)
    }

    /// Loops on the image, the mapper, and mounts that name the volume; empty if the kernel holds nothing.
    pub(crate) fn in_kernel(&self) -> String {
        shell(&format!(
            "grep -l '/{id}/backing' /sys/block/loop*/loop/backing_file || true
             dmsetup ls | grep '{id}' || true
             grep '{id}' /proc/1/mountinfo || true",
            id = self.id
        ))
    }

    /// SHA-256 of record and image.
    pub(crate) fn fingerprint(&self) -> (String, String) {
        let digest = |path: PathBuf| fs::read(path).map_or_else(|_| "absent".into(), |data| hex(&Sha256::digest(data)));
        (digest(self.record()), digest(self.backing()))
    }
}

/// What the Ready `record` was before that, when it said `state`.
pub(crate) fn unfinished(record: &[u8], state: &str) -> Vec<u8> {
    let mut record: serde_json::Value = serde_json::from_slice(record).expect("the record is JSON");
    let members = record.as_object_mut().expect("an object");
    for name in ["header_digest", "key_check", "mac"] {
        members.remove(name).expect("a Ready record has it");
    }
    members.insert("state".into(), state.into());
    record.to_string().into_bytes()
}

/// Lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// 64 random bytes.
pub(crate) fn needle() -> Vec<u8> {
    let mut needle = vec![0; 64];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").expect("random bytes"), &mut needle)
        .expect("random bytes");
    needle
}

/// How often `needle` occurs in a file or device.
pub(crate) fn occurrences(path: &Path, needle: &[u8]) -> usize {
    // The page cache of a block device may hold what the disk does not.
    shell("sync; echo 3 >/proc/sys/vm/drop_caches");
    let data = fs::read(path).expect("readable");
    count(&data, needle)
}

/// How often `needle` occurs in `data`.
pub(crate) fn count(data: &[u8], needle: &[u8]) -> usize {
    memchr::memmem::find_iter(data, needle).count()
}
