//! Rotations on the fake machine, cut at every write: each state of the disk that a cut may leave opens, and the next
//! rotation, to wherever, goes on from it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use super::*;
use crate::device::Kernel;
use crate::device::Mapper;
use crate::device::fake::Verb;
use crate::device::fake::When;
use crate::lifecycle::tests::EXT4;
use crate::lifecycle::tests::World;
use crate::lifecycle::tests::reason;
use crate::record::RECORD_FILE;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Profile;

const COPIES: [std::ops::Range<usize>; 2] = [16_384..32_768, 0..16_384];
const AREAS: [std::ops::Range<usize>; 2] = [32_768..290_816, 290_816..548_864];

/// `kbs:///a/b/c`, where the secret of a new volume is, and two other places, each with a secret of its own.
fn uris() -> [KeyUri; 3] {
    ["c", "d", "e"].map(|tag| KeyUri::parse("keyUri", &format!("kbs:///a/b/{tag}")).expect("valid"))
}

/// What is on the disk: the record's text and everything in front of the payload.
#[derive(Clone, PartialEq, Eq)]
struct Disk {
    record: Vec<u8>,
    header: Vec<u8>,
}

impl Disk {
    fn read(record: &Path, backing: &Path) -> Self {
        let mut header = vec![0; usize::try_from(DATA_OFFSET_BYTES).expect("2 MiB fit")];
        std::fs::File::open(backing).and_then(|file| file.read_exact_at(&mut header, 0)).expect("read");
        Self { record: std::fs::read(record).expect("read"), header }
    }

    /// The states of the disk while it becomes `after`, each write also cut after its first 4096 bytes.
    fn cuts(&self, step: Step, after: &Self) -> Vec<Self> {
        let header_before = |record: &Vec<u8>, ranges: Vec<std::ops::Range<usize>>| {
            let mut now = Self { record: record.clone(), header: self.header.clone() };
            let mut cuts = vec![now.clone()];
            for range in ranges {
                for end in [range.start + 4096, range.end] {
                    now.header[range.start..end].copy_from_slice(&after.header[range.start..end]);
                    if cuts.last() != Some(&now) {
                        cuts.push(now.clone());
                    }
                }
            }
            cuts
        };
        match step {
            Step::Mend => header_before(&self.record, COPIES.to_vec()),
            Step::Admit => header_before(&after.record, [AREAS, COPIES].concat()),
            Step::Promote => Vec::new(),
            Step::Settle => header_before(&self.record, [COPIES, AREAS].concat()),
        }
    }
}

/// Every state of the disk from `before` on, through `steps`, in which a cut may leave it.
fn states(mut before: Disk, steps: Vec<(Step, Disk)>) -> Vec<Disk> {
    let mut states = vec![before.clone()];
    for (step, after) in steps {
        states.extend(before.cuts(step, &after));
        states.push(after.clone());
        before = after;
    }
    states
}

impl World {
    /// A volume that was staged once, and a KBS that has three secrets.
    async fn rotating() -> (Self, VolumeId) {
        Self::rotating_of(Profile::Xts1).await
    }

    async fn rotating_of(profile: Profile) -> (Self, VolumeId) {
        let world = Self::of(profile);
        world.release(&uris());
        let id = world.create(EXT4).await;
        world.stage(&id, EXT4).await.expect("first stage");
        world.unstage(&id).await.expect("unstaged");
        (world, id)
    }

    /// The KBS has these secrets and no others.
    fn release(&self, released: &[KeyUri]) {
        for (uri, byte) in uris().iter().zip(1..) {
            let answer = if released.contains(uri) { Ok(byte) } else { Err(Reason::KeyNotFound) };
            self.kbs.answers_for(uri, answer);
        }
    }

    fn files(&self, id: &VolumeId) -> [PathBuf; 2] {
        let directory = self.pool.directory(id);
        [directory.join(RECORD_FILE), directory.join("backing")]
    }

    fn disk(&self, id: &VolumeId) -> Disk {
        let [record, backing] = self.files(id);
        Disk::read(&record, &backing)
    }

    /// The power goes, and this is what is on the disk when it comes back.
    fn reboot_with(&self, id: &VolumeId, disk: &Disk) {
        let [record, backing] = self.files(id);
        std::fs::write(record, &disk.record).expect("written");
        let file = std::fs::OpenOptions::new().write(true).open(backing).expect("opens");
        file.write_all_at(&disk.header, 0).expect("written");
        self.machine.reboot();
    }

    async fn rotate(&self, id: &VolumeId, to: &KeyUri) -> Result<()> {
        self.lifecycle.rotate(id.clone(), to.clone()).await
    }

    /// The disk before a rotation, and after each of its steps.
    async fn steps(&self, id: &VolumeId, to: &KeyUri) -> (Disk, Vec<(Step, Disk)>) {
        let (before, [record, backing], id, to) = (self.disk(id), self.files(id), id.clone(), to.clone());
        let work = move |host: &Host| {
            let mut rotation = Rotation::new(host, host.pools.get(&id)?, &to)?;
            let mut seen = Vec::new();
            while let Some(step) = rotation.step()? {
                seen.push((step, Disk::read(&record, &backing)));
            }
            Ok(seen)
        };
        (before, self.lifecycle.blocking(work).await.expect("rotated"))
    }

    async fn opens(&self, id: &VolumeId) {
        self.stage(id, EXT4).await.expect("opens");
        self.unstage(id).await.expect("unstaged");
        assert_eq!(self.kernel(id), Kernel::default());
    }

    /// The volume is at `uri`, and nothing of another secret is left in its header.
    async fn is_settled(&self, id: &VolumeId, uri: &KeyUri) {
        let record = self.record(id);
        assert_eq!((&record.key_uri, &record.rotation), (uri, &None));
        self.release(std::slice::from_ref(uri));
        self.opens(id).await;
        self.release(&uris());
        let disk = self.disk(id);
        let json = String::from_utf8_lossy(&disk.header[4096..16_384]).into_owned();
        assert_eq!((json.matches("pbkdf2").count(), json.matches("coffer-seal").count()), (2, 1), "{json}");
        assert_eq!(self.lifecycle.health(id.clone()).await.expect("told"), []);
    }
}

#[test]
fn every_state_has_one_next_step() {
    for (is_there, is_rotating, opens, step) in [
        (true, false, false, None),
        (true, false, true, None),
        (false, false, false, Some(Step::Admit)),
        (false, false, true, Some(Step::Admit)),
        (false, true, true, Some(Step::Promote)),
        (false, true, false, Some(Step::Settle)),
        (true, true, false, Some(Step::Settle)),
        (true, true, true, Some(Step::Settle)),
    ] {
        assert_eq!(next_step(is_there, is_rotating, opens), step, "{is_there} {is_rotating} {opens}");
    }
}

#[tokio::test]
async fn wherever_a_rotation_is_cut_the_volume_opens_and_the_next_one_goes_on() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    let (before, steps) = world.steps(&id, &to).await;
    let taken: Vec<_> = steps.iter().map(|(step, _)| *step).collect();
    assert_eq!(taken, [Step::Admit, Step::Promote, Step::Settle]);
    world.is_settled(&id, &to).await;
    let states = states(before, steps);
    assert!(states.len() >= 16, "{} states", states.len());
    for (number, state) in states.iter().enumerate() {
        world.reboot_with(&id, state);
        assert_eq!(world.lifecycle.health(id.clone()).await.expect("told"), [], "state {number}");
        world.release(&[world.record(&id).key_uri]);
        world.opens(&id).await;
        assert!(world.disk(&id) == *state, "a stage changes nothing about a rotation");
        world.release(&uris());
        for target in uris() {
            world.reboot_with(&id, state);
            world.rotate(&id, &target).await.unwrap_or_else(|error| panic!("state {number} to {target}: {error}"));
            world.is_settled(&id, &target).await;
        }
    }
}

#[tokio::test]
async fn a_rotation_that_goes_on_may_be_cut_again() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    let (before, steps) = world.steps(&id, &to).await;
    for (first, state) in states(before, steps).iter().enumerate() {
        world.reboot_with(&id, state);
        let (before, steps) = world.steps(&id, &to).await;
        for (second, state) in states(before, steps).iter().enumerate() {
            world.reboot_with(&id, state);
            let staged = world.stage(&id, EXT4).await;
            staged.unwrap_or_else(|error| panic!("cut at {first}, then at {second}: {error}"));
            world.unstage(&id).await.expect("unstaged");
        }
    }
}

#[tokio::test]
async fn a_rotation_between_two_looks_is_no_loss() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    let before = world.record(&id);
    world.rotate(&id, &to).await.expect("rotated");
    let health = world.lifecycle.blocking(move |host| Ok(host.health(&before, None, None))).await;
    assert_eq!(health.expect("told"), []);
}

#[tokio::test]
async fn the_mapper_of_an_open_volume_is_not_touched() {
    for profile in Profile::ALL {
        let (world, id) = World::rotating_of(profile).await;
        let [_, to, _] = uris();
        world.stage(&id, EXT4).await.expect("staged");
        let (before, opened) = (world.kernel(&id), world.machine.calls(Verb::Open));
        world.rotate(&id, &to).await.expect("rotated");
        assert_eq!(world.kernel(&id), before);
        assert_eq!(before.mapper, Mapper::Live);
        assert_eq!((world.machine.calls(Verb::Open), world.machine.calls(Verb::Close)), (opened, 1));
        assert_eq!(world.pool.release(&id).expect("noted").attester, "sample");
        world.unstage(&id).await.expect("unstaged");
        world.is_settled(&id, &to).await;
    }
}

#[tokio::test]
async fn a_refused_rotation_changes_nothing() {
    let (world, id) = World::rotating().await;
    let [from, to, _] = uris();
    let before = world.disk(&id);
    for expected in [Reason::KeyNotFound, Reason::PolicyDenied, Reason::KbsUnreachable] {
        for uri in [&from, &to] {
            world.kbs.answers_for(uri, Err(expected));
            let error = world.rotate(&id, &to).await.expect_err("refused");
            assert!(error.reason() == expected && error.explanation().contains(&uri.to_string()), "{error}");
            world.release(&uris());
        }
    }
    world.kbs.answers_for(&from, Ok(9));
    assert_eq!(reason(world.rotate(&id, &to).await), Reason::WrongKey);
    world.release(&uris());
    world.machine.fail_at(Verb::Attach, When::Before, Reason::DeviceMissing);
    assert_eq!(reason(world.rotate(&id, &to).await), Reason::DeviceMissing);
    assert!(world.disk(&id) == before);
    world.rotate(&id, &from).await.expect("it is there already");
    assert!(world.disk(&id) == before);
    let stranger = VolumeId::for_name("stranger");
    assert_eq!(reason(world.rotate(&stranger, &to).await), Reason::VolumeNotFound);
}

#[tokio::test]
async fn a_header_from_before_a_rotation_is_refused() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    let (before, steps) = world.steps(&id, &to).await;
    let last = world.disk(&id);
    for (old, expected) in [(before, Reason::HeaderTampered), (steps[0].1.clone(), Reason::HeaderTampered)] {
        let put_back = Disk { record: last.record.clone(), header: old.header };
        world.reboot_with(&id, &put_back);
        assert_eq!(reason(world.stage(&id, EXT4).await), expected);
        assert_eq!(reason(world.rotate(&id, &uris()[2]).await), expected);
        assert!(world.disk(&id) == put_back);
    }
}

#[tokio::test]
async fn a_secret_that_was_replaced_in_the_middle_is_admitted_anew() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    let (_, steps) = world.steps(&id, &to).await;
    world.reboot_with(&id, &steps[0].1);
    world.kbs.answers_for(&to, Ok(9));
    world.rotate(&id, &to).await.expect("rotated");
    world.opens(&id).await;
    world.kbs.answers_for(&to, Ok(2));
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::WrongKey);
}

#[tokio::test]
async fn of_one_secret_at_two_places_only_the_place_changes() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    world.kbs.answers_for(&to, Ok(1));
    let before = world.disk(&id);
    world.rotate(&id, &to).await.expect("moved");
    assert_eq!(world.record(&id).key_uri, to);
    assert!(world.disk(&id).header == before.header);
    world.opens(&id).await;
}

#[tokio::test]
async fn what_has_no_header_yet_only_changes_its_record() {
    let world = World::new();
    world.release(&uris());
    let [_, to, _] = uris();
    let id = world.create(EXT4).await;
    let before = world.disk(&id);
    world.rotate(&id, &to).await.expect("nothing depends on the key");
    assert!(world.disk(&id).header == before.header);
    assert_eq!(world.machine.calls(Verb::Attach), 0);
    world.release(std::slice::from_ref(&to));
    world.opens(&id).await;

    world.release(&uris());
    let record = world.record(&id).formatting();
    record.write(&world.pool.directory(&id)).expect("killed in the middle of a format");
    assert_eq!(reason(world.rotate(&id, &uris()[2]).await), Reason::OperationPending);
    assert_eq!(world.record(&id), record);
}

#[tokio::test]
async fn of_two_processes_one_waits_for_the_other() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    let other = world.pool.claim(&id).expect("free").expect("there");
    assert_eq!(reason(world.rotate(&id, &to).await), Reason::OperationPending);
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::OperationPending);
    let deleted = world.lifecycle.delete(id.clone(), std::time::Instant::now()).await;
    assert_eq!(reason(deleted), Reason::OperationPending);
    drop(other);
    world.rotate(&id, &to).await.expect("rotated");
}

/// The provisioner asks again with what its class says.
#[tokio::test]
async fn a_volume_that_was_moved_is_still_the_one_that_was_asked_for() {
    let (world, id) = World::rotating().await;
    let [_, to, _] = uris();
    world.rotate(&id, &to).await.expect("rotated");
    assert_eq!(world.create(EXT4).await, id);
    assert_eq!(world.record(&id).key_uri, to);
}
