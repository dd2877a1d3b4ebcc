//! `volume.json`, the record of one volume, and `pool.json`, the mark of a pool.
//!
//! Records are replaced atomically, never hold a secret, and once Ready carry a MAC over all of their contents. A
//! record that is damaged, of a newer schema or for another volume is refused and left as it was.

mod file;
mod pool;

pub use file::{FileError, read, replace};
pub use pool::{POOL_FILE, PoolFile};

use std::path::Path;

use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::Uuid;

use crate::volume::Claim;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Init;
use crate::volume::KeyUri;
use crate::volume::Place;
use crate::volume::PoolName;
use crate::volume::Profile;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_BYTES;
use crate::volume::SecretBytes;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;

/// File name of a record in its volume's directory.
pub const RECORD_FILE: &str = "volume.json";

/// The schema that this version writes, and the newest that it reads. Schema 2 knows profiles with tags, and rotations;
/// schema 3 the node.
const SCHEMA: u32 = 3;

/// The largest payload that is believed before the MAC was verified: sums of it and of what the profile adds fit into 64
/// bits.
const PAYLOAD_LIMIT_BYTES: u64 = 1 << 60;

/// What the MAC is computed over begins with this line, so that it can never be taken for another MAC.
const MAC_CONTEXT: &[u8] = b"coffer/record/1\n";

/// How far the first stage of a volume has come. Only a `Ready` volume has data, and a `Ready` volume is never
/// formatted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Created; nothing was ever written to the backing.
    Declared,
    /// A first stage has begun to write.
    Formatting,
    /// Header, filesystem and seal are complete.
    Ready,
}

/// One entry of the size history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Size of the mapped device from then on.
    pub payload_bytes: u64,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
}

/// 32 public bytes, written as lower-case hexadecimal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest32(pub [u8; 32]);

impl TryFrom<String> for Digest32 {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map(|()| Self(bytes))
    }
}

impl From<Digest32> for String {
    fn from(digest: Digest32) -> Self {
        hex::encode(digest.0)
    }
}

/// The second secret that opens a volume until its rotation is finished, and the header that both open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Where that secret is: the next one, or the one before.
    pub key_uri: KeyUri,
    /// Digest of the header that has a keyslot and a seal for each.
    pub header_digest: Digest32,
}

/// What this node knows about a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    schema: u32,
    /// The volume; also the name of its directory.
    pub id: VolumeId,
    /// The name in `CreateVolume`.
    pub name: String,
    /// Size of the mapped device.
    pub payload_bytes: u64,
    /// Every size that the volume has had, oldest first.
    pub sizes: Vec<Size>,
    /// Filesystem or raw block.
    pub content: Content,
    /// Cryptographic parameters.
    pub profile: Profile,
    /// Which sectors get their tags before the volume is used.
    #[serde(default, skip_serializing_if = "Init::is_default")]
    pub init: Init,
    /// While all sectors get their tags: how many bytes at the beginning of the payload have theirs on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialised_bytes: Option<u64>,
    /// Where the secret is.
    pub key_uri: KeyUri,
    /// The claim that the volume was made for, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// The node that made the volume, if that node's name is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Place>,
    /// UUID of the LUKS2 header, chosen before anything is written.
    pub luks_uuid: Uuid,
    /// When the volume was created, RFC 3339 in UTC.
    pub created: String,
    /// How far the first stage has come.
    pub state: State,
    /// Digest of the sealed header, to tell a changed header without any key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_digest: Option<Digest32>,
    /// What a rotation has begun and not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Derived from the secret, to tell a wrong secret from a changed header.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_check: Option<Digest32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Digest32>,
}

impl Record {
    /// The record of a volume that `node` was just asked for, at the time `now` (RFC 3339).
    #[must_use]
    pub fn declare(spec: &VolumeSpec, node: Option<Place>, now: String) -> Self {
        Self {
            schema: SCHEMA,
            id: spec.id(),
            name: spec.name.clone(),
            payload_bytes: spec.payload_bytes,
            sizes: vec![Size { payload_bytes: spec.payload_bytes, since: now.clone() }],
            content: spec.content,
            profile: spec.profile,
            init: spec.init,
            initialised_bytes: None,
            key_uri: spec.key_uri.clone(),
            claim: spec.claim.clone(),
            node,
            luks_uuid: Uuid::new_v4(),
            created: now,
            state: State::Declared,
            header_digest: None,
            rotation: None,
            key_check: None,
            mac: None,
        }
    }

    /// What was asked for, of a volume in `pool`.
    #[must_use]
    pub fn spec(&self, pool: PoolName) -> VolumeSpec {
        VolumeSpec {
            name: self.name.clone(),
            pool,
            payload_bytes: self.payload_bytes,
            content: self.content,
            profile: self.profile,
            init: self.init,
            key_uri: self.key_uri.clone(),
            claim: self.claim.clone(),
        }
    }

    /// The record once a first stage begins to write.
    #[must_use]
    pub fn formatting(mut self) -> Self {
        self.state = State::Formatting;
        self.initialised_bytes = None;
        (self.header_digest, self.key_check, self.mac) = (None, None, None);
        self
    }

    /// The record once the volume's secret is at `key_uri`, and a second one where `rotation` says.
    #[must_use]
    pub fn keyed(mut self, key_uri: KeyUri, rotation: Option<Rotation>) -> Self {
        if rotation.is_some() {
            self.schema = SCHEMA;
        }
        self.key_uri = key_uri;
        self.rotation = rotation;
        self
    }

    /// The record of a first stage that has tagged `bytes` of the payload under the header with this digest. It is
    /// authenticated like that of a complete volume, so that a later stage may go on from there.
    #[must_use]
    pub fn initialised(mut self, bytes: u64, header_digest: [u8; 32], key_check: [u8; 32], key: &SecretBytes) -> Self {
        self.initialised_bytes = Some(bytes);
        self.authenticated(header_digest, key_check, key)
    }

    /// The record of a complete volume, authenticated with `key`.
    #[must_use]
    pub fn ready(mut self, header_digest: [u8; 32], key_check: [u8; 32], key: &SecretBytes) -> Self {
        self.state = State::Ready;
        self.initialised_bytes = None;
        self.authenticated(header_digest, key_check, key)
    }

    fn authenticated(mut self, header_digest: [u8; 32], key_check: [u8; 32], key: &SecretBytes) -> Self {
        self.header_digest = Some(Digest32(header_digest));
        self.key_check = Some(Digest32(key_check));
        self.mac = Some(Digest32(self.keyed_mac(key).finalize().into_bytes().into()));
        self
    }

    /// Digests of the sealed headers that may be on the disk: a second one until a rotation is finished.
    pub fn header_digests(&self) -> impl Iterator<Item = [u8; 32]> {
        let other = self.rotation.as_ref().map(|rotation| rotation.header_digest);
        self.header_digest.into_iter().chain(other).map(|digest| digest.0)
    }

    /// URIs of the secrets that open the volume, the record's own first.
    pub fn key_uris(&self) -> impl Iterator<Item = &KeyUri> {
        std::iter::once(&self.key_uri).chain(self.rotation.as_ref().map(|rotation| &rotation.key_uri))
    }

    /// Refuses what the driver has not written, since the volume is Ready or while its sectors got their tags, under the
    /// secret behind `key` and `key_check`.
    ///
    /// # Errors
    /// `WrongKey` if it was another secret, `RecordTampered` if it was not the driver.
    pub fn authenticate(&self, key_check: &[u8; 32], key: &SecretBytes) -> Result<()> {
        if self.key_check.map(|check| check.0) != Some(*key_check) {
            return Err(Error::new(
                Reason::WrongKey,
                format!(
                    "the secret at {} is not the one this volume was made with; restore it at the KBS",
                    self.key_uri
                ),
            ));
        }
        let mac = self.mac.map(|mac| mac.0).unwrap_or_default();
        self.keyed_mac(key).verify_slice(&mac).map_err(|_| {
            Error::new(
                Reason::RecordTampered,
                format!("the MAC of {RECORD_FILE} is wrong: it was changed outside the driver; restore it from a copy"),
            )
        })
    }

    fn keyed_mac(&self, key: &SecretBytes) -> Hmac<Sha256> {
        let unsigned = Self { mac: None, ..self.clone() };
        let text = serde_json_canonicalizer::to_vec(&unsigned).expect("a record has no floats and only text keys");
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        mac.update(MAC_CONTEXT);
        mac.update(&text);
        mac
    }

    /// Reads the record of `id` from `directory`. `None` if there is no such directory.
    ///
    /// # Errors
    /// `RecordDamaged` if it cannot be read; those of [`Self::parse`].
    pub fn read(directory: &Path, id: &VolumeId) -> Result<Option<Self>> {
        if directory.is_symlink() {
            let found = format!("{} is a symbolic link; restore the directory itself", directory.display());
            return Err(Error::new(Reason::RecordDamaged, found));
        }
        let path = directory.join(RECORD_FILE);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !directory.exists() => return Ok(None),
            Err(error) => {
                return Err(
                    Error::new(Reason::RecordDamaged, format!("cannot read the record of {id}")).caused_by(error)
                );
            }
        };
        Self::parse(&text, id).map(Some)
    }

    /// Reads `text` as the record of `id`.
    ///
    /// # Errors
    /// `RecordDamaged` if it is no record or another volume's, `RecordTooNew` if a newer version of the driver wrote it.
    pub fn parse(text: &[u8], id: &VolumeId) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u32,
        }
        // What serde says repeats members as somebody wrote them; it is shown to people, so only the place is told.
        let damaged = |error: serde_json::Error| {
            let (line, column) = (error.line(), error.column());
            let found = format!("{RECORD_FILE} of {id} is not a record from line {line}, column {column} on");
            Error::new(Reason::RecordDamaged, format!("{found}; restore it from a copy"))
        };
        let versioned: Versioned = serde_json::from_slice(text).map_err(damaged)?;
        if versioned.schema > SCHEMA {
            return Err(Error::new(
                Reason::RecordTooNew,
                format!(
                    "{RECORD_FILE} of {id} has schema {}, this driver reads up to {SCHEMA}: update it",
                    versioned.schema
                ),
            ));
        }
        let record: Self = serde_json::from_slice(text).map_err(damaged)?;
        if record.payload_bytes == 0
            || record.payload_bytes > PAYLOAD_LIMIT_BYTES
            || !record.payload_bytes.is_multiple_of(SECTOR_BYTES)
        {
            return Err(Error::new(
                Reason::RecordDamaged,
                format!("{RECORD_FILE} of {id} has a size of {} bytes; restore it from a copy", record.payload_bytes),
            ));
        }
        if record.id != *id {
            return Err(Error::new(
                Reason::RecordDamaged,
                format!("the directory of {id} holds the record of {}; move it back", record.id),
            ));
        }
        Ok(record)
    }

    /// Replaces the record in `directory`, durably.
    ///
    /// # Errors
    /// `NoSpace`, `PoolMissing` if the disk is read-only; otherwise `Internal`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("a record has no floats and only text keys");
        text.push(b'\n');
        replace(directory, RECORD_FILE, &text)
            .map_err(|error| error.into_error(&format!("cannot write the record of {}", self.id)))
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::volume::FsType;

    fn key(byte: u8) -> SecretBytes {
        SecretBytes::new(Zeroizing::new(vec![byte; 32]))
    }

    fn declared() -> Record {
        let spec = VolumeSpec {
            name: "pvc-1".into(),
            pool: PoolName::default(),
            payload_bytes: 1 << 30,
            content: Content::Filesystem(FsType::Ext4),
            profile: Profile::Xts1,
            init: Init::Seeded,
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: None,
        };
        Record::declare(&spec, Some(Place::of("node-1")), "2026-01-01T00:00:00Z".into())
    }

    #[test]
    fn a_record_survives_writing_and_reading() {
        let directory = tempfile::tempdir().expect("a directory");
        let record = declared().formatting().ready([1; 32], [2; 32], &key(3));
        record.write(directory.path()).expect("written");
        let read = Record::read(directory.path(), &record.id).expect("read").expect("there");
        assert_eq!(read, record);
        read.authenticate(&[2; 32], &key(3)).expect("authentic");
    }

    #[test]
    fn a_stored_record_of_schema_1_is_read_and_authentic() {
        // As 0.1.0 wrote it, in one line.
        let stored = concat!(
            r#"{"schema":1,"id":"cv-f2868e1aa7cab669517cd9f5ab1b7957","name":"pvc-1","payload_bytes":1073741824,"#,
            r#""sizes":[{"payload_bytes":1073741824,"since":"2026-01-01T00:00:00Z"}],"content":"ext4","profile":"xts-1","#,
            r#""key_uri":"kbs:///a/b/c","luks_uuid":"cd49d6e7-7540-4c1a-b071-28ef3af72beb","#,
            r#""created":"2026-01-01T00:00:00Z","state":"Ready","#,
            r#""header_digest":"0101010101010101010101010101010101010101010101010101010101010101","#,
            r#""key_check":"0202020202020202020202020202020202020202020202020202020202020202","#,
            r#""mac":"c10b9cdba0c56079eac9eefb2f3c6430309112927cd0e511d0a8237acb2ca70b"}"#,
        );
        let record = Record::parse(stored.as_bytes(), &VolumeId::for_name("pvc-1")).expect("read");
        record.authenticate(&[2; 32], &key(3)).expect("authentic");
        assert_eq!((record.state, record.payload_bytes), (State::Ready, 1 << 30));
        assert_eq!(serde_json::to_string(&record).expect("serialises"), stored);
    }

    #[test]
    fn what_is_no_plain_file_is_refused_and_does_not_block() {
        let directory = tempfile::tempdir().expect("a directory");
        let (record, path) = (declared(), directory.path().join(RECORD_FILE));
        let reason = || Record::read(directory.path(), &record.id).expect_err("refused").reason();
        std::os::unix::fs::symlink("/dev/zero", &path).expect("linked");
        assert_eq!(reason(), Reason::RecordDamaged);
        std::fs::remove_file(&path).expect("removed");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
        assert_eq!(reason(), Reason::RecordDamaged);
    }

    #[test]
    fn another_secret_is_told_from_a_changed_record() {
        let record = declared().ready([1; 32], [2; 32], &key(3));
        let reason = |record: &Record, check| record.authenticate(&check, &key(3)).expect_err("refused").reason();
        assert_eq!(reason(&record, [9; 32]), Reason::WrongKey);
        let changed = Record { payload_bytes: 4096, ..record.clone() };
        assert_eq!(reason(&changed, [2; 32]), Reason::RecordTampered);
        let unsigned = Record { mac: None, ..record };
        assert_eq!(reason(&unsigned, [2; 32]), Reason::RecordTampered);
    }

    #[test]
    fn every_single_changed_byte_is_noticed() {
        let next = KeyUri::parse("keyUri", "kbs:///a/b/d").expect("valid");
        let mut record = declared();
        record.rotation = Some(Rotation { key_uri: next, header_digest: Digest32([4; 32]) });
        let record = record.ready([1; 32], [2; 32], &key(3));
        assert_eq!(record.header_digests().collect::<Vec<_>>(), [[1; 32], [4; 32]]);
        let text = serde_json::to_vec(&record).expect("serialises");
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            let accepted =
                Record::parse(&changed, &record.id).and_then(|record| record.authenticate(&[2; 32], &key(3)));
            assert!(accepted.is_err(), "byte {at} of {}", String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn what_somebody_wrote_into_a_record_is_not_repeated() {
        let record = declared();
        let text = serde_json::to_string(&record).expect("serialises");
        for (member, hostile) in [
            ("\"sizes\"", "\"\\u007fcanary\""),
            ("\"ext4\"", "\"\\ncanary\""),
            ("\"kbs:///a/b/c\"", "\"canary\""),
            ("\"Declared\"", "\"canary\""),
            ("\"node-1\"", "\"\\u001bcanary\""),
            (record.id.as_str(), "canary"),
        ] {
            let changed = text.replace(member, hostile);
            assert_ne!(changed, text);
            let error = Record::parse(changed.as_bytes(), &record.id).expect_err("refused");
            assert!(!error.chain().contains("canary"), "{}", error.chain());
        }
    }

    #[test]
    fn a_file_that_cannot_be_a_record_is_not_read_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(RECORD_FILE);
        std::fs::File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        let error = Record::read(directory.path(), &declared().id).expect_err("refused");
        assert_eq!(error.reason(), Reason::RecordDamaged);
        assert!(error.chain().contains("too large"), "{}", error.chain());
    }

    #[test]
    fn what_is_not_a_record_of_this_volume_is_refused_with_its_reason() {
        let record = declared();
        let text = serde_json::to_string(&record).expect("serialises");
        let reason = |text: &str| Record::parse(text.as_bytes(), &record.id).expect_err("refused").reason();
        assert_eq!(reason(&text[..text.len() / 2]), Reason::RecordDamaged);
        assert_eq!(reason(""), Reason::RecordDamaged);
        assert_eq!(reason(&text.replace("\"schema\":3", "\"schema\":4")), Reason::RecordTooNew);
        assert_eq!(reason(&text.replace("\"name\"", "\"nom\"")), Reason::RecordDamaged);
        for size in ["0", "4095", "18446744073709551615"] {
            assert_eq!(reason(&text.replace("1073741824", size)), Reason::RecordDamaged, "{size}");
        }
        let other = VolumeId::for_name("other");
        assert_eq!(Record::parse(text.as_bytes(), &other).expect_err("refused").reason(), Reason::RecordDamaged);
    }
}
