//! What becomes of a bad sector: whose it is, where it is shown, and for how long.

use super::*;
use crate::metrics::NodeSight;

impl World {
    async fn staged(&self, profile: Profile) -> VolumeId {
        let spec = VolumeSpec {
            name: "pvc-1".into(),
            pool: PoolName::default(),
            payload_bytes: 16 << 20,
            content: EXT4,
            profile,
            init: Init::Seeded,
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: None,
        };
        let id = self.lifecycle.create(spec).await.expect("created").id();
        self.stage(&id, EXT4).await.expect("staged");
        id
    }

    /// The numbers that the health of the volume names.
    async fn lost(&self, id: &VolumeId) -> Option<String> {
        let health = self.lifecycle.health(id.clone()).await.expect("there");
        let [entry] = health.as_slice() else { return None };
        assert_eq!((entry.status, entry.reason.as_str()), (HealthStatus::DataLoss, "IntegrityError"));
        let (_, numbers) = entry.message.split_once(" there: ").expect("they are named");
        Some(numbers.split(';').next().expect("a text").to_owned())
    }

    fn integrity_errors(&self) -> Option<String> {
        let text = self.lifecycle.host.metrics.text(Some(&NodeSight::default()));
        let value = text.lines().find_map(|line| line.strip_prefix("coffer_integrity_errors_total"));
        value.map(str::to_owned)
    }
}

#[tokio::test]
async fn a_bad_sector_is_lost_data_until_the_note_of_it_is_removed() {
    let mut world = World::new();
    let id = world.staged(Profile::Aead1).await;
    assert_eq!(world.lost(&id).await, None);
    let mut settled = world.lifecycle.settled();
    let told = [9, 7, 9].map(|sector| world.machine.bad_sector(&id, sector));
    world.lifecycle.hear(told.to_vec()).await;
    assert_eq!(settled.recv().await.expect("somebody is told"), id);
    assert_eq!(world.lost(&id).await.as_deref(), Some("2 (7, 9)"));
    assert_eq!(world.lifecycle.sight(id.clone()).await.expect("there").bad_sectors, 2);
    assert_eq!(world.integrity_errors().as_deref(), Some("{reason=\"IntegrityError\"} 2"));

    world.lifecycle.hear(told.to_vec()).await;
    assert!(settled.try_recv().is_err(), "nothing is new");
    assert_eq!(world.integrity_errors().as_deref(), Some("{reason=\"IntegrityError\"} 2"));

    world.restart();
    world.unstage(&id).await.expect("unstaged");
    assert_eq!(world.lost(&id).await.as_deref(), Some("2 (7, 9)"));
    world.stage(&id, EXT4).await.expect("a volume with bad sectors still opens");
    world.lifecycle.hear(vec![world.machine.bad_sector(&id, 8)]).await;
    assert_eq!(world.lost(&id).await.as_deref(), Some("3 (7, 8, 9)"));

    std::fs::remove_file(world.pool.directory(&id).join("integrity.json")).expect("removed by the operator");
    assert_eq!(world.lost(&id).await, None);
    world.lifecycle.hear(vec![world.machine.bad_sector(&id, 9)]).await;
    assert_eq!(world.lost(&id).await.as_deref(), Some("1 (9)"));
}

#[tokio::test]
async fn what_was_told_before_a_volume_was_opened_is_not_its_loss() {
    let world = World::new();
    let id = world.staged(Profile::Aead1).await;
    let late = world.machine.bad_sector(&id, 7);
    world.unstage(&id).await.expect("unstaged");
    world.stage(&id, EXT4).await.expect("staged");
    world.lifecycle.hear(vec![late]).await;
    assert_eq!(world.lost(&id).await, None);
    world.lifecycle.hear(vec![world.machine.bad_sector(&id, 8)]).await;
    assert_eq!(world.lost(&id).await.as_deref(), Some("1 (8)"));
}

#[tokio::test]
async fn a_volume_without_tags_cannot_have_bad_sectors() {
    let world = World::new();
    let id = world.staged(Profile::Xts1).await;
    assert_eq!(world.machine.calls(Verb::Opening), 0);
    world.lifecycle.hear(vec![world.machine.bad_sector(&id, 7)]).await;
    assert_eq!(world.lost(&id).await, None);
}

#[tokio::test]
async fn an_opening_that_a_killed_driver_did_not_note_is_noted_by_the_next() {
    let mut world = World::new();
    world.machine.fail_at(Verb::Opening, When::Before, Reason::Internal);
    let id = world.staged(Profile::Aead1).await;
    let unknown = world.machine.bad_sector(&id, 7);
    world.lifecycle.hear(vec![unknown.clone()]).await;
    assert_eq!(world.lost(&id).await, None, "it may have been told of another volume");

    world.restart();
    world.lifecycle.blocking(Host::note_missing_openings).await.expect("noted");
    world.lifecycle.hear(vec![unknown, world.machine.bad_sector(&id, 8)]).await;
    assert_eq!(world.lost(&id).await.as_deref(), Some("1 (8)"));

    world.restart();
    let meanwhile = world.machine.bad_sector(&id, 9);
    world.lifecycle.blocking(Host::note_missing_openings).await.expect("it is noted already");
    world.lifecycle.hear(vec![meanwhile]).await;
    assert_eq!(world.lost(&id).await.as_deref(), Some("2 (8, 9)"));
}
