//! What somebody who owns the disk can make of a volume at rest: a corpus of small changes, made by a program from the
//! volume's own header and record, and opened by the real driver.
//!
//! Checksums are made right again, as an attacker would. Either a change is refused with its reason, alters no byte and
//! leaves nothing behind, or it is legal and what was there is opened. Headers are also shown to `cryptsetup open` with the
//! right passphrase, and `docs/tampering.md` says what came of it.

mod attacks;
mod binary;
mod document;
mod errors;
mod forge;
mod inside;
mod older;
mod page;
mod record;
mod rollback;
mod stock;
mod swaps;

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

use coffer::device::Shape;
use coffer::key::VolumeKeys;
use coffer::volume::DATA_OFFSET_BYTES;
use coffer::volume::Profile;
use coffer::volume::Reason;
use coffer::volume::SecretBytes;
use coffer::volume::VolumeId;

use crate::driver::Kind;
use crate::driver::remove_staging;
use crate::leaks::Listing;
use crate::scene::Scene;
use crate::scene::wait_until;
use crate::volume::Volume;
use forge::Header;
use forge::Patch;
use page::Table;
use stock::Stock;

/// Where the rig shares the libcryptsetup of Debian 12.
const OLDER_LIBRARIES: &str = "/share/older";
/// The smallest ext4.
const PAYLOAD_BYTES: i64 = 16 << 20;
/// Everything before the payload.
const FRONT_BYTES: usize = DATA_OFFSET_BYTES as usize;
/// Without `COFFER_SOAK` every so many-th generated case is run.
const SAMPLE: usize = 12;
/// After so many cases the untouched volume must still open.
const BETWEEN_LOOKS: usize = 25;
/// The most that the driver may ever have had resident: some headers ask for gigabytes.
const RESIDENT_KIB: u64 = 96 << 10;

/// What must come of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Opens,
    Refused(Reason),
}

impl Answer {
    fn words(self) -> &'static str {
        match self {
            Self::Opens => "opens",
            Self::Refused(reason) => reason.as_str(),
        }
    }
}

/// One change.
struct Case {
    /// What was changed: the name of its row.
    name: String,
    backing: Vec<Patch>,
    record: Option<Vec<u8>>,
    answer: Answer,
}

impl Case {
    fn header(name: String, backing: Vec<Patch>, answer: Answer) -> Self {
        Self { name, backing, record: None, answer }
    }

    fn record(name: String, record: Vec<u8>, answer: Answer) -> Self {
        Self { name, backing: Vec::new(), record: Some(record), answer }
    }
}

/// A volume at rest, and the scene that it is in.
struct Subject<'a> {
    scene: &'a Scene,
    volume: Volume,
    backing: Vec<u8>,
    record: Vec<u8>,
    nothing: Listing,
}

impl<'a> Subject<'a> {
    /// A Ready volume of the default profile with a file in it.
    fn new(scene: &'a Scene, name: &str) -> Self {
        Self::of_profile(scene, Profile::Xts1, name)
    }

    /// The same in `profile`.
    fn of_profile(scene: &'a Scene, profile: Profile, name: &str) -> Self {
        let class = [("profile", profile.as_str())];
        let id = scene.driver().create_in(&class, name, PAYLOAD_BYTES, Kind::Ext4).expect("created").volume_id;
        let volume = Volume::existing(scene, &id, Kind::Ext4);
        volume.stage(scene);
        fs::write(volume.file("file"), "text").expect("written");
        volume.unstage(scene);
        // Connections to the KBS are closed in the background.
        wait_until("the end of what the stage began", || {
            !scene.changes().iter().any(|change| change.contains("descriptor"))
        });
        let [backing, record] = [volume.backing(), volume.record()].map(|file| fs::read(file).expect("a file"));
        Self { scene, volume, backing, record, nothing: scene.listing() }
    }

    fn header(&self) -> Header {
        Header::of(&self.backing)
    }

    /// Makes the change, stages, puts everything back; what differs from the case's answer is told.
    fn answer(&mut self, case: &Case) -> Result<(), String> {
        self.write(&case.backing, case.record.as_ref());
        let answered = self.scene.driver().stage(&self.volume.id, self.volume.kind);
        let outcome = match &answered {
            Ok(()) => self.opened(),
            Err(status) => {
                remove_staging(&self.volume.id);
                self.untouched(case).map(|()| status.message().split(':').next().unwrap_or_default().to_owned())
            }
        };
        // The note of a refusal is no part of the volume; there is none of a request that came to nothing.
        let _ = fs::remove_file(self.volume.refusal());
        let changes = self.scene.lasting_changes(&self.nothing);
        self.write(&self.originals(&case.backing), Some(&self.record));
        if answered.is_ok() {
            self.backing = fs::read(self.volume.backing()).expect("the backing");
        }
        if !changes.is_empty() {
            return Err(format!("left behind: {}", changes.join(", ")));
        }
        let expected = case.answer.words();
        match outcome? {
            seen if seen == expected => Ok(()),
            seen => Err(format!("{expected} expected, {seen} seen: {answered:?}")),
        }
    }

    /// The file is there, and what is on the disk was not repaired.
    fn opened(&self) -> Result<String, String> {
        let text = fs::read_to_string(self.volume.file("file"));
        self.volume.unstage(self.scene);
        match text {
            Ok(text) if text == "text" => Ok("opens".into()),
            other => Err(format!("opened, and its file is {other:?}")),
        }
    }

    /// Record and backing are what the case made of them.
    fn untouched(&self, case: &Case) -> Result<(), String> {
        let mut expected = self.backing.clone();
        for (offset, bytes) in &case.backing {
            expected[usize::try_from(*offset).expect("within the backing")..][..bytes.len()].copy_from_slice(bytes);
        }
        if fs::read(self.volume.backing()).expect("the backing") != expected {
            return Err("the refusal changed the backing".into());
        }
        if fs::read(self.volume.record()).expect("the record") != *case.record.as_ref().unwrap_or(&self.record) {
            return Err("the refusal changed the record".into());
        }
        Ok(())
    }

    /// What is at the places of `patches` in an untouched volume.
    fn originals(&self, patches: &[Patch]) -> Vec<Patch> {
        let original = |(offset, bytes): &Patch| {
            let at = usize::try_from(*offset).expect("within the backing");
            (*offset, self.backing[at..][..bytes.len()].to_vec())
        };
        patches.iter().map(original).collect()
    }

    fn write(&self, patches: &[Patch], record: Option<&Vec<u8>>) {
        let file = File::options().write(true).open(self.volume.backing()).expect("the backing");
        for (offset, bytes) in patches {
            file.write_all_at(bytes, *offset).expect("written");
        }
        if let Some(record) = record {
            fs::write(self.volume.record(), record).expect("written");
        }
    }

    /// Runs every `step`-th case and shows it to `each` while nothing is attached.
    fn run(mut self, cases: &[Case], step: usize, mut each: impl FnMut(&Case)) {
        let mut failures = Vec::new();
        for (number, case) in cases.iter().step_by(step).enumerate() {
            if let Err(failure) = self.answer(case) {
                println!("{}: {failure}", case.name);
                failures.push(format!("{}: {failure}", case.name));
            }
            each(case);
            if number % BETWEEN_LOOKS == 0 {
                self.volume.stage(self.scene);
                self.opened().expect("the volume is as it was");
                self.backing = fs::read(self.volume.backing()).expect("the backing");
            }
        }
        println!("{} of {} cases", cases.len().div_ceil(step), cases.len());
        let resident = resident_at_most(self.scene.driver().pid());
        self.volume.delete(self.scene);
        assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
        assert!(resident < RESIDENT_KIB, "the driver had {resident} KiB resident");
    }

    fn shape(&self) -> Shape {
        let record: serde_json::Value = serde_json::from_slice(&self.record).expect("JSON");
        let text = |name: &str| record[name].as_str().expect("text").to_owned();
        Shape {
            id: VolumeId::parse(&self.volume.id).expect("an id"),
            profile: serde_json::from_value::<Profile>(record["profile"].clone()).expect("a profile"),
            payload_bytes: PAYLOAD_BYTES.cast_unsigned(),
            luks_uuid: text("luks_uuid").parse().expect("a UUID"),
            backing: self.volume.backing(),
        }
    }

    fn keys(&self) -> VolumeKeys {
        let secret = SecretBytes::new(self.scene.broker.secret().to_vec().into());
        VolumeKeys::derive(&secret, &VolumeId::parse(&self.volume.id).expect("an id")).expect("long enough")
    }
}

/// The most that the process ever had resident, in KiB.
fn resident_at_most(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the driver runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn is_soak() -> bool {
    std::env::var_os("COFFER_SOAK").is_some()
}

fn sample() -> usize {
    if is_soak() { 1 } else { SAMPLE }
}

/// Shows every `step`-th case to the driver. In a soak stock cryptsetup is shown them too, for which everybody has to wait,
/// and the page must say what came of it.
fn compare(subject: Subject<'_>, cases: &[Case], step: usize, mut table: Table) {
    let control = is_soak().then(|| Stock::new(subject.scene.broker, &subject.volume.id, &subject.backing));
    subject.run(cases, step, |case| {
        if let Some(control) = &control {
            table.add(&case.name, case.answer.words(), control.answers(&case.backing));
        }
    });
    if control.is_some() {
        println!("cryptsetup {}", Stock::versions().join(" and "));
        table.check();
    }
}

#[test]
fn known_attacks_on_the_header_are_refused_whatever_stock_cryptsetup_does() {
    let scene = Scene::new();
    let other = Subject::new(&scene, "other");
    let subject = Subject::new(&scene, "volume");
    let mut cases = attacks::alone(&subject.header());
    cases.extend(attacks::swapped(&subject.backing, &other.backing, &subject.shape(), &subject.keys()));
    other.volume.delete(&scene);
    let subject = Subject { nothing: scene.listing(), ..subject };
    compare(subject, &cases, 1, Table::new("Known attacks"));
    scene.end();
}

#[test]
fn a_changed_field_of_the_binary_header_is_refused_or_decides_nothing() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "volume");
    let mut cases = binary::cases(&subject.header());
    cases.extend(binary::outside(&subject.backing, area_bytes(&subject.header())));
    compare(subject, &cases, sample(), Table::summed("Fields of the binary header"));
    scene.end();
}

#[test]
fn a_changed_member_of_the_headers_json_is_refused() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "volume");
    let mut cases = document::texts(&subject.header());
    cases.extend(document::members(&subject.header()));
    compare(subject, &cases, sample(), Table::summed("Members of the JSON"));
    scene.end();
}

#[test]
fn a_changed_member_of_the_record_is_refused() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "volume");
    let cases = record::cases(&subject.record);
    subject.run(&cases, sample(), |_| {});
    scene.end();
}

#[test]
fn with_tags_the_same_is_refused_and_a_changed_superblock_too() {
    let scene = Scene::new();
    let other = Subject::of_profile(&scene, Profile::Aead1, "other");
    let subject = Subject::of_profile(&scene, Profile::Aead1, "volume");
    let header = subject.header();
    let mut cases = attacks::without_tags(&header);
    cases.extend(attacks::swapped(&subject.backing, &other.backing, &subject.shape(), &subject.keys()));
    cases.extend(binary::superblock(&subject.backing));
    cases.extend(attacks::alone(&header));
    cases.extend(binary::outside(&subject.backing, area_bytes(&header)));
    cases.extend(document::members(&header));
    other.volume.delete(&scene);
    let subject = Subject { nothing: scene.listing(), ..subject };
    subject.run(&cases, sample(), |_| {});
    scene.end();
}

/// The size of one keyslot's area.
fn area_bytes(header: &Header) -> usize {
    let document = header.document();
    let size = document["keyslots"]["0"]["area"]["size"].as_str().and_then(|text| text.parse().ok());
    size.expect("a number as text")
}
