//! First stages that give every sector its tag, and are cut off.

use super::*;

/// All sectors of a raw block volume with tags get theirs; a stage that is cut off half-way is gone on with, under the
/// same key, unless somebody has changed what it relies on.
#[tokio::test]
async fn a_stage_that_was_cut_off_goes_on_where_it_was() {
    type Spoil = fn(&World, &VolumeId);
    let spoils: [(&str, u64, Spoil); 4] = [
        ("nothing", 16 << 20, |_, _| {}),
        ("the record", 0, |world, id| {
            let path = world.pool.directory(id).join(crate::record::RECORD_FILE);
            let text = std::fs::read_to_string(&path).expect("a record");
            let changed = text.replace("\"initialised_bytes\": 16777216", "\"initialised_bytes\": 4096");
            assert_ne!(changed, text);
            std::fs::write(path, changed).expect("written");
        }),
        ("the header", 0, |world, id| {
            let image = std::fs::OpenOptions::new().write(true).open(world.backing(id)).expect("opens");
            std::os::unix::fs::FileExt::write_all_at(&image, b"x", 40_000).expect("written");
        }),
        ("the secret", 0, |world, _| world.kbs.answers(Ok(9))),
    ];
    for (what, from_bytes, spoil) in spoils {
        let world = World::of(Profile::Aead1);
        let id = world.create(Content::Block).await;
        world.machine.fail_at(Verb::Initialise, When::After, Reason::Internal);
        assert_eq!(reason(world.stage(&id, Content::Block).await), Reason::Internal);
        let begun = world.record(&id);
        assert_eq!((begun.state, begun.initialised_bytes), (State::Formatting, Some(16 << 20)));
        spoil(&world, &id);
        world.stage(&id, Content::Block).await.expect("goes on, or begins anew");
        let ready = world.record(&id);
        assert_eq!((ready.state, ready.initialised_bytes), (State::Ready, None));
        assert_eq!(world.machine.initialised(), [(Init::Full, 0), (Init::Full, from_bytes)], "{what} was changed");
        world.unstage(&id).await.expect("unstaged");
        world.stage(&id, Content::Block).await.expect("opens");
    }
}
