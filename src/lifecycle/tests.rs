//! Lifecycles on the fake machine: every rung with every fault, and what a driver that died leaves behind.

mod hostile;
mod init;
mod integrity;
mod threads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;
use zeroize::Zeroizing;

use super::*;
use crate::device::MountOptions;
use crate::device::backing::Attached;
use crate::device::fake::FakeMachine;
use crate::device::fake::Verb;
use crate::device::fake::When;
use crate::key::fake::FakeKbs;
use crate::provision::LocalPool;
use crate::record::State;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::FsType;
use crate::volume::HealthStatus;
use crate::volume::Init;
use crate::volume::KeyUri;
use crate::volume::Place;
use crate::volume::Profile;
use crate::volume::SecretBytes;

pub(super) const EXT4: Content = Content::Filesystem(FsType::Ext4);

pub(super) struct World {
    pub(super) directory: TempDir,
    pub(super) machine: FakeMachine,
    pub(super) kbs: Arc<FakeKbs>,
    pub(super) pool: LocalPool,
    pub(super) lifecycle: Lifecycle,
    profile: Profile,
}

fn pools(pool: &LocalPool) -> Pools {
    Pools::new(vec![pool.clone()]).expect("one pool")
}

impl World {
    pub(super) fn new() -> Self {
        Self::of(Profile::Xts1)
    }

    pub(super) fn of(profile: Profile) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pool");
        LocalPool::init(&path).expect("a pool");
        std::fs::create_dir(directory.path().join("staging")).expect("a staging directory");
        let pool = LocalPool::open(PoolName::default(), path);
        let machine = FakeMachine::default();
        let kbs = Arc::new(FakeKbs::default());
        let lifecycle = Lifecycle::new(Arc::new(machine.clone()), kbs.clone(), pools(&pool), None, Metrics::default());
        Self { directory, machine, kbs, pool, lifecycle, profile }
    }

    /// The driver dies and starts again; the kernel remembers.
    fn restart(&mut self) {
        let machine = Arc::new(self.machine.clone());
        self.lifecycle = Lifecycle::new(machine, self.kbs.clone(), pools(&self.pool), None, Metrics::default());
    }

    fn staging(&self) -> PathBuf {
        self.directory.path().join("staging")
    }

    pub(super) async fn create(&self, content: Content) -> VolumeId {
        let spec = VolumeSpec {
            name: "pvc-1".into(),
            pool: PoolName::default(),
            payload_bytes: 16 << 20,
            content,
            profile: self.profile,
            init: Init::Seeded.of(self.profile, content),
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: None,
        };
        self.lifecycle.create(spec).await.expect("created").id()
    }

    fn request(&self, id: &VolumeId, content: Content) -> StageRequest {
        StageRequest { id: id.clone(), staging_path: self.staging(), content, options: MountOptions::default() }
    }

    pub(super) async fn stage(&self, id: &VolumeId, content: Content) -> Result<()> {
        self.lifecycle.stage(self.request(id, content)).await
    }

    pub(super) async fn unstage(&self, id: &VolumeId) -> Result<()> {
        self.lifecycle.unstage(id.clone(), self.staging()).await
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        self.lifecycle.delete(id.clone(), Instant::now()).await
    }

    pub(super) fn record(&self, id: &VolumeId) -> Record {
        self.pool.get(id).expect("a record")
    }

    pub(super) fn kernel(&self, id: &VolumeId) -> Kernel {
        let shape = self.pool.get(id).ok().map(|record| self.pool.shape(&record));
        self.machine.look(id, shape.as_ref()).expect("the fake can always be looked at")
    }

    pub(super) fn backing(&self, id: &VolumeId) -> PathBuf {
        self.pool.shape(&self.record(id)).backing
    }

    fn publish_request(&self, id: &VolumeId, target: &str, sharing: Sharing) -> PublishRequest {
        PublishRequest {
            id: id.clone(),
            staging_path: self.staging(),
            target_path: self.directory.path().join(target),
            content: EXT4,
            read_only: false,
            sharing,
        }
    }
}

pub(super) fn reason<T: std::fmt::Debug>(outcome: Result<T>) -> Reason {
    outcome.expect_err("refused").reason()
}

#[tokio::test]
async fn a_volume_lives_and_leaves_nothing() {
    let contents = [EXT4, Content::Filesystem(FsType::Xfs), Content::Block];
    for (profile, content) in Profile::ALL.into_iter().flat_map(|profile| contents.map(|content| (profile, content))) {
        let world = World::of(profile);
        let id = world.create(content).await;
        world.stage(&id, content).await.expect("first stage");
        assert_eq!(world.record(&id).state, State::Ready);
        world.stage(&id, content).await.expect("staged already");
        world.unstage(&id).await.expect("unstaged");
        assert_eq!(world.kernel(&id), Kernel::default());
        world.stage(&id, content).await.expect("second stage");
        world.unstage(&id).await.expect("unstaged again");
        world.unstage(&id).await.expect("nothing to unstage");
        world.delete(&id).await.expect("deleted");
        world.delete(&id).await.expect("deleted already");
        let left: Vec<_> = std::fs::read_dir(world.pool.path()).expect("a pool").collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

/// Every verb of a stage, failing before and after its effect, in the first stage and in a later one.
#[tokio::test]
async fn a_refused_stage_leaves_nothing_and_the_next_one_succeeds() {
    let verbs = [Verb::Attach, Verb::Open, Verb::Initialise, Verb::MakeFilesystem, Verb::CheckFilesystem, Verb::Mount];
    for verb in verbs {
        for when in [When::Before, When::After] {
            let world = World::of(Profile::Aead1);
            let id = world.create(EXT4).await;
            if verb == Verb::CheckFilesystem {
                world.stage(&id, EXT4).await.expect("first stage");
                world.unstage(&id).await.expect("unstaged");
            }
            world.machine.fail_at(verb, when, Reason::Internal);
            assert_eq!(reason(world.stage(&id, EXT4).await), Reason::Internal, "{verb:?} {when:?}");
            assert_eq!(world.kernel(&id), Kernel::default(), "{verb:?} {when:?}");
            assert!(world.pool.refusal(&id).is_some());
            world.stage(&id, EXT4).await.expect("the next stage");
            assert_eq!(world.pool.refusal(&id), None);
        }
    }
}

/// A driver that died at a verb could not descend. The next one converges, and formats only what was never Ready.
#[tokio::test]
async fn the_next_driver_converges_from_wherever_the_last_one_died() {
    for (verb, undo) in [(Verb::Open, Verb::Close), (Verb::MakeFilesystem, Verb::Close), (Verb::Mount, Verb::Unmount)] {
        let mut world = World::new();
        let id = world.create(EXT4).await;
        // Failing to close or unmount leaves standing what a killed driver would leave.
        world.machine.fail_at(verb, When::After, Reason::Internal);
        world.machine.fail_at(undo, When::Before, Reason::Internal);
        assert_eq!(reason(world.stage(&id, EXT4).await), Reason::Internal);
        world.restart();
        world.stage(&id, EXT4).await.expect("converges");
        assert_eq!(world.record(&id).state, State::Ready);
        world.unstage(&id).await.expect("unstages");
        assert_eq!(world.kernel(&id), Kernel::default(), "{verb:?}");
    }
}

#[tokio::test]
async fn leftovers_of_the_kernel_are_cleared_first() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let shape = world.pool.shape(&world.record(&id));
    world.machine.put_loop(&shape);
    world.machine.put_mapper(&shape, Mapper::HalfMade);
    world.stage(&id, EXT4).await.expect("converges");
    world.unstage(&id).await.expect("unstages");
    assert_eq!(world.kernel(&id), Kernel::default());
}

#[tokio::test]
async fn a_foreign_device_is_refused_and_untouched() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let shape = world.pool.shape(&world.record(&id));
    world.machine.put_mapper(&shape, Mapper::Foreign("test".into()));
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::ForeignDevice);
    world.unstage(&id).await.expect("nothing of ours is staged");
    assert_eq!(world.machine.calls(Verb::Close), 0);
    assert_eq!(world.record(&id).state, State::Declared);
}

#[tokio::test]
async fn a_ready_volume_is_never_formatted_again() {
    let other = World::new();
    let stranger = other.create(EXT4).await;
    other.stage(&stranger, EXT4).await.expect("staged");
    let header_bytes = usize::try_from(DATA_OFFSET_BYTES).expect("2 MiB fit");
    let foreign_header = std::fs::read(other.backing(&stranger)).expect("read")[..header_bytes].to_vec();
    type Damage = Box<dyn Fn(&std::path::Path)>;
    let overwrite = |bytes: Vec<u8>| -> Damage {
        Box::new(move |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("written");
        })
    };
    let truncate: Damage = Box::new(|path| {
        std::fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(8 << 20)).expect("truncated");
    });
    let remove: Damage = Box::new(|path| std::fs::remove_file(path).expect("removed"));
    for (damage, expected) in [
        (overwrite(vec![0; header_bytes]), Reason::HeaderMissing),
        (overwrite(vec![0x5a; header_bytes]), Reason::HeaderMissing),
        (overwrite(foreign_header), Reason::WrongVolume),
        (truncate, Reason::DeviceTruncated),
        (remove, Reason::DeviceMissing),
    ] {
        let world = World::new();
        let id = world.create(EXT4).await;
        world.stage(&id, EXT4).await.expect("first stage");
        world.unstage(&id).await.expect("unstaged");
        let (record, backing) = (world.record(&id), world.backing(&id));
        damage(&backing);
        let before = std::fs::read(&backing).ok();
        assert_eq!(reason(world.stage(&id, EXT4).await), expected);
        assert_eq!(std::fs::read(&backing).ok(), before, "{expected}");
        assert_eq!(world.record(&id), record);
        assert_eq!(world.kernel(&id), Kernel::default());
        assert_eq!(world.machine.calls(Verb::MakeFilesystem), 1);
        let health = world.lifecycle.health(id).await.expect("told");
        assert!(health.iter().any(|entry| entry.status == HealthStatus::DataLoss), "{expected}: {health:?}");
        assert!(health.iter().any(|entry| entry.reason == expected.as_str()), "{expected}: {health:?}");
    }
}

#[tokio::test]
async fn data_in_a_declared_volume_vetoes_the_format() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let file = std::fs::OpenOptions::new().write(true).open(world.backing(&id)).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, b"precious", 12 << 20).expect("written");
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::NotBlank);
    assert_eq!(world.record(&id).state, State::Declared);
}

/// Killed after the seal and before the record said Ready: everything is there, so nothing is made again.
#[tokio::test]
async fn a_sealed_volume_is_promoted_and_not_formatted() {
    for state in ["Formatting", "Declared"] {
        let world = World::new();
        let id = world.create(EXT4).await;
        world.stage(&id, EXT4).await.expect("first stage");
        world.unstage(&id).await.expect("unstaged");
        let path = world.pool.directory(&id).join(crate::record::RECORD_FILE);
        let mut record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("a record");
        let fields = record.as_object_mut().expect("an object");
        fields["state"] = state.into();
        fields.retain(|name, _| !["mac", "key_check", "header_digest"].contains(&name.as_str()));
        std::fs::write(&path, record.to_string()).expect("written");
        // Between its two copies, that is.
        let lose = |place: u64| {
            let file = std::fs::OpenOptions::new().write(true).open(world.backing(&id)).expect("opens");
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16_384], place).expect("written");
        };
        lose(0);
        world.stage(&id, EXT4).await.expect("promoted");
        assert_eq!(world.record(&id).state, State::Ready);
        world.unstage(&id).await.expect("unstaged");
        lose(16_384);
        world.stage(&id, EXT4).await.expect("the other copy is there again");
        assert_eq!(world.machine.calls(Verb::MakeFilesystem), 1, "{state}");
    }
}

#[tokio::test]
async fn what_the_kbs_says_is_what_the_caller_hears_and_nothing_is_formatted() {
    let refusals = [Reason::KbsUnreachable, Reason::PolicyDenied, Reason::KeyNotFound, Reason::KbsProtocol];
    for expected in refusals {
        let world = World::new();
        let id = world.create(EXT4).await;
        let (before, backing) = (world.record(&id), world.backing(&id));
        world.kbs.answers(Err(expected));
        assert_eq!(reason(world.stage(&id, EXT4).await), expected);
        assert_eq!(world.record(&id), before);
        assert!(!crate::device::backing::holds_data(&backing).expect("asked"));
        assert_eq!(world.machine.calls(Verb::Attach), 0);
        let health = world.lifecycle.health(id.clone()).await.expect("told");
        assert_eq!(health.len(), 1);
        assert_eq!((health[0].status, health[0].reason.as_str()), (HealthStatus::Inaccessible, expected.as_str()));
        world.kbs.answers(Ok(7));
        world.stage(&id, EXT4).await.expect("once the KBS agrees");
        assert_eq!(world.lifecycle.health(id).await.expect("told"), []);
    }
}

#[tokio::test]
async fn another_secret_is_a_wrong_key() {
    let world = World::new();
    let id = world.create(EXT4).await;
    world.stage(&id, EXT4).await.expect("first stage");
    world.unstage(&id).await.expect("unstaged");
    let before = std::fs::read(world.backing(&id)).expect("read");
    world.kbs.answers(Ok(8));
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::WrongKey);
    assert_eq!(std::fs::read(world.backing(&id)).expect("read"), before);
    world.kbs.answers(Ok(7));
    world.stage(&id, EXT4).await.expect("the right secret");
}

#[tokio::test]
async fn no_key_is_asked_for_where_memory_may_get_to_a_disk() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let exposed = || world.machine.fail_at(Verb::CheckMemory, When::Before, Reason::MemoryUnprotected);
    exposed();
    world.kbs.answers(Err(Reason::PolicyDenied));
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::MemoryUnprotected);
    assert_eq!(world.machine.calls(Verb::Attach), 0);
    world.kbs.answers(Ok(7));
    world.stage(&id, EXT4).await.expect("staged");
    exposed();
    world.stage(&id, EXT4).await.expect("what is staged needs no key");
}

#[tokio::test]
async fn an_older_sealed_header_is_refused() {
    let world = World::new();
    let id = world.create(EXT4).await;
    world.stage(&id, EXT4).await.expect("first stage");
    world.unstage(&id).await.expect("unstaged");
    // Formatting again under the same record is what an older header of the same volume looks like.
    let shape = world.pool.shape(&world.record(&id));
    let secret = SecretBytes::new(Zeroizing::new(vec![7; 32]));
    let keys = crate::key::VolumeKeys::derive(&secret, &id).expect("keys");
    let image = crate::device::crypt::format(&shape, &keys.passphrase).expect("formatted");
    let (image, _) = crate::device::crypt::seal(&image, &shape, &[&keys.seal]).expect("sealed");
    let device = std::fs::OpenOptions::new().read(true).write(true).open(&shape.backing).expect("opens");
    image.write(&Attached { device, path: shape.backing.clone() }).expect("written");
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::HeaderTampered);
}

#[tokio::test]
async fn work_goes_on_when_the_caller_gives_up() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let closed = world.kbs.hold().await;
    let call = tokio::spawn({
        let (lifecycle, request) = (world.lifecycle.clone(), world.request(&id, EXT4));
        async move { lifecycle.stage(request).await }
    });
    world.kbs.asked().await;
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    assert_eq!(reason(world.unstage(&id).await), Reason::OperationPending);
    drop(closed);
    world.lifecycle.drain().await;
    assert_eq!(world.kernel(&id).mapper, Mapper::Live);
    world.stage(&id, EXT4).await.expect("done already");
    assert_eq!(world.machine.calls(Verb::Mount), 1);
}

#[tokio::test]
async fn a_deletion_waits_for_the_unstage() {
    let world = World::new();
    let id = world.create(EXT4).await;
    world.stage(&id, EXT4).await.expect("staged");
    assert_eq!(reason(world.delete(&id).await), Reason::StillStaged);
    let deletion = tokio::spawn({
        let (lifecycle, id) = (world.lifecycle.clone(), id.clone());
        async move { lifecycle.delete(id, Instant::now() + Duration::from_secs(60)).await }
    });
    while let Err(error) = world.unstage(&id).await {
        assert_eq!(error.reason(), Reason::OperationPending);
    }
    deletion.await.expect("no panic").expect("deleted");
    assert_eq!(reason(world.lifecycle.get(id).await), Reason::VolumeNotFound);
}

#[tokio::test]
async fn a_deletion_that_waits_for_another_one_ends_with_it() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let guard = world.lifecycle.busy.claim(&id).expect("free");
    let second = world.lifecycle.delete(id.clone(), Instant::now() + Duration::from_secs(60));
    let first = async {
        drop(guard);
        world.delete(&id).await
    };
    let both = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(second, first) });
    let (second, first) = both.await.expect("it is not told");
    first.and(second).expect("deleted");
}

#[tokio::test]
async fn one_path_for_a_single_writer_and_many_for_others() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let publish = |target, sharing| world.lifecycle.publish(world.publish_request(&id, target, sharing));
    assert_eq!(reason(publish("a", Sharing::MultiWriter).await), Reason::StagingMissing);
    world.stage(&id, EXT4).await.expect("staged");
    publish("a", Sharing::MultiWriter).await.expect("published");
    publish("a", Sharing::SingleWriter).await.expect("published there already");
    publish("b", Sharing::MultiWriter).await.expect("published twice");
    assert_eq!(reason(publish("c", Sharing::SingleWriter).await), Reason::PublishConflict);
    let read_only = PublishRequest { read_only: true, ..world.publish_request(&id, "a", Sharing::MultiWriter) };
    assert_eq!(reason(world.lifecycle.publish(read_only).await), Reason::AlreadyExists);
    assert_eq!(reason(world.unstage(&id).await), Reason::PublishConflict);
    for target in ["a", "b", "a"] {
        let target = world.directory.path().join(target);
        world.lifecycle.unpublish(id.clone(), target.clone()).await.expect("unpublished");
        assert!(!target.exists());
    }
    world.unstage(&id).await.expect("unstaged");
}

/// A kubelet directory is often a link to a larger disk, and the mount table knows only where it leads.
#[tokio::test]
async fn a_path_through_a_link_is_the_path_it_leads_to() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let link = world.directory.path().join("kubelet");
    std::os::unix::fs::symlink(world.directory.path(), &link).expect("linked");
    let through_link = StageRequest { staging_path: link.join("staging"), ..world.request(&id, EXT4) };
    world.lifecycle.stage(through_link).await.expect("staged");
    world.stage(&id, EXT4).await.expect("staged there already");
    assert_eq!(world.machine.calls(Verb::Mount), 1);
    world.lifecycle.unstage(id.clone(), link.join("staging")).await.expect("unstaged");
    assert_eq!(world.kernel(&id), Kernel::default());
}

#[tokio::test]
async fn unpublishing_never_deletes_what_is_in_a_directory() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let target = world.directory.path().join("pod");
    std::fs::create_dir(&target).expect("made");
    std::fs::write(target.join("data"), b"precious").expect("written");
    assert_eq!(reason(world.lifecycle.unpublish(id, target.clone()).await), Reason::Internal);
    assert!(target.join("data").exists());
}

#[tokio::test]
async fn a_pool_that_is_away_is_not_an_empty_pool() {
    let world = World::new();
    let id = world.create(EXT4).await;
    world.stage(&id, EXT4).await.expect("staged");
    let (here, away) = (world.pool.path().to_owned(), world.directory.path().join("away"));
    std::fs::rename(&here, &away).expect("unmounted");
    std::fs::create_dir(&here).expect("an empty mount point");
    assert_eq!(reason(world.lifecycle.get(id.clone()).await), Reason::PoolMissing);
    assert_eq!(reason(world.delete(&id).await), Reason::PoolMissing);
    assert_eq!(world.lifecycle.capacity(PoolName::default()).await.expect("told").available_bytes, 0);
    world.unstage(&id).await.expect("goes on from the kernel alone");
    assert!(world.machine.mounts().is_empty());
    std::fs::remove_dir(&here).and_then(|()| std::fs::rename(&away, &here)).expect("mounted again");
    world.stage(&id, EXT4).await.expect("all there");
}

#[tokio::test]
async fn interrupted_creations_and_deletions_are_finished() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let deleting = world.pool.path().join(format!("deleting-{id}"));
    std::fs::rename(world.pool.directory(&id), &deleting).expect("killed after the rename");
    let creating = world.pool.path().join(format!("creating-{id}"));
    std::fs::create_dir(&creating).expect("killed after the directory");
    world.pool.finish_interrupted().expect("swept");
    assert!(!deleting.exists() && !creating.exists());
    world.create(EXT4).await;
}
