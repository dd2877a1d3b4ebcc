//! A pool whose files somebody changes while the driver uses them.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::device::Mapper;
use crate::record::RECORD_FILE;
use crate::volume::MESSAGE_BYTES;

/// Changes one member of the record of `id`.
fn change(world: &World, id: &VolumeId, member: &str, value: impl Into<serde_json::Value>) {
    let path = world.pool.directory(id).join(RECORD_FILE);
    let text = std::fs::read(&path).expect("read");
    let mut record: serde_json::Value = serde_json::from_slice(&text).expect("a record");
    record[member] = value.into();
    std::fs::write(path, record.to_string()).expect("written");
}

fn pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
}

/// No thread may wait for ever for what is in a pool.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("it hangs")
}

#[tokio::test]
async fn an_open_volume_whose_record_was_changed_is_closed_and_not_deleted_below_its_mount() {
    for (member, value) in [
        ("luks_uuid", serde_json::json!("11111111-2222-4333-8444-555555555555")),
        ("payload_bytes", serde_json::json!(8 << 20)),
        ("profile", serde_json::json!("aead-1")),
    ] {
        let world = World::new();
        let id = world.create(EXT4).await;
        world.stage(&id, EXT4).await.expect("staged");
        change(&world, &id, member, value);
        assert!(matches!(world.kernel(&id).mapper, Mapper::Foreign(_)), "{member}");
        assert_eq!(reason(world.delete(&id).await), Reason::StillStaged, "{member}");
        assert!(world.backing(&id).exists());
        world.unstage(&id).await.expect("unstaged");
        assert_eq!(world.kernel(&id), Kernel::default(), "{member}");
        assert_eq!(world.machine.mounts(), [], "{member}");
        world.delete(&id).await.expect("deleted");
    }
}

#[tokio::test]
async fn what_stands_in_a_volumes_place_is_refused_and_not_followed() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let (place, moved) = (world.pool.directory(&id), world.directory.path().join("moved"));
    std::fs::rename(&place, &moved).expect("moved");
    let contents = || std::fs::read(moved.join(RECORD_FILE)).map(|record| (record, moved.join("backing").exists()));
    let before = contents().expect("there");
    symlink(&moved, &place).expect("linked");
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::RecordDamaged);
    assert_eq!(reason(world.delete(&id).await), Reason::RecordDamaged);
    assert_eq!(reason(world.lifecycle.sight(id.clone()).await), Reason::RecordDamaged);
    std::fs::rename(&place, world.pool.path().join(format!("deleting-{id}"))).expect("moved");
    world.pool.finish_interrupted().expect("a link is no volume");
    assert_eq!(contents().expect("there"), before);
    assert!(!moved.join("refusal.json").exists());

    pipe(&place);
    assert_eq!(reason(soon(world.stage(&id, EXT4)).await), Reason::RecordDamaged);
    assert_eq!(reason(soon(world.delete(&id)).await), Reason::RecordDamaged);
}

#[tokio::test]
async fn a_pipe_in_the_place_of_an_image_holds_nobody_up() {
    let world = World::new();
    let id = world.create(EXT4).await;
    world.stage(&id, EXT4).await.expect("first stage");
    world.unstage(&id).await.expect("unstaged");
    std::fs::remove_file(world.backing(&id)).expect("removed");
    pipe(&world.backing(&id));
    let health = soon(world.lifecycle.health(id.clone())).await.expect("told");
    assert_eq!(health[0].reason, Reason::DeviceMissing.as_str(), "{health:?}");
}

#[tokio::test]
async fn a_deletion_that_cannot_be_finished_holds_up_no_other_volume() {
    let world = World::new();
    let id = world.create(EXT4).await;
    let stuck = VolumeId::for_name("stuck");
    let leftover = world.pool.path().join(format!("deleting-{stuck}"));
    std::fs::create_dir(&leftover).expect("a directory");
    symlink("/etc/hostname", leftover.join("backing")).expect("linked");
    world.pool.finish_interrupted().expect("told in the log");
    world.delete(&id).await.expect("deleted");
    world.create(EXT4).await;
    assert_eq!(reason(world.delete(&stuck).await), Reason::DeviceMissing);
    assert!(leftover.join("backing").is_symlink(), "what is unexpected is left as it is");
}

#[tokio::test]
async fn only_what_this_driver_says_is_shown_as_a_refusal() {
    let world = World::new();
    let id = world.create(EXT4).await;
    world.kbs.answers(Err(Reason::PolicyDenied));
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::PolicyDenied);
    let path = world.pool.directory(&id).join("refusal.json");
    let text = std::fs::read_to_string(&path).expect("noted");
    let shown = || world.pool.refusal(&id);
    assert_eq!(shown().expect("shown").reason, "PolicyDenied");
    std::fs::write(&path, text.replace("\"PolicyDenied\"", "\"RunThis\"")).expect("written");
    assert_eq!(shown(), None);
    let hostile = serde_json::json!({ "reason": "PolicyDenied", "message": "\u{1b}[2J".repeat(5000), "at": "now" });
    std::fs::write(&path, hostile.to_string()).expect("written");
    let message = shown().expect("shown").message;
    assert!(message.len() == MESSAGE_BYTES && !message.contains('\u{1b}'), "{message:?}");
}

#[tokio::test]
async fn a_volume_of_another_node_is_refused_before_a_key_is_asked_for() {
    let mut world = World::new();
    let on = |world: &World, node: &str| {
        let (machine, pools) = (Arc::new(world.machine.clone()), pools(&world.pool).on(Place::of(node)));
        Lifecycle::new(machine, world.kbs.clone(), pools, None, Metrics::default())
    };
    world.lifecycle = on(&world, "node-1");
    let id = world.create(EXT4).await;
    world.stage(&id, EXT4).await.expect("first stage");
    world.unstage(&id).await.expect("unstaged");
    world.lifecycle = on(&world, "node-2");
    world.kbs.answers(Err(Reason::PolicyDenied));
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::WrongNode);
    world.kbs.answers(Ok(7));
    let spec = world.pool.get(&id).expect("there").spec(PoolName::default());
    assert_eq!(reason(world.lifecycle.create(spec).await), Reason::WrongNode);
    change(&world, &id, "node", "node-2");
    assert_eq!(reason(world.stage(&id, EXT4).await), Reason::RecordTampered);
    change(&world, &id, "node", "node-1");
    world.lifecycle = on(&world, "node-1");
    world.stage(&id, EXT4).await.expect("at home");
}
