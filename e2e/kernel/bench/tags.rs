//! The first stage of a volume with tags: seeded where something reads before it writes, beside one that gets every tag.

use std::time::Instant;

use super::Samples;
use super::settled;
use crate::driver::Kind;
use crate::scene::Scene;

/// Room for one volume.
const POOL: &str = "14G";
const BYTES: i64 = 10 << 30;

/// Keeps the time of a first stage of each kind, once: writing every tag takes minutes.
pub(super) fn measure(samples: &mut Samples) {
    let scene = Scene::with_pool_of(POOL);
    for arm in ["seeded", "full"] {
        let parameters = [("profile", "aead-1"), ("init", arm)];
        let volume = scene.driver().create_in(&parameters, arm, BYTES, Kind::Ext4).expect("created").volume_id;
        let took_ms = settled(|| {
            let start = Instant::now();
            // As the kubelet does: it gives up after two minutes and calls again.
            while let Err(status) = scene.driver().stage(&volume, Kind::Ext4) {
                let goes_on = [tonic::Code::DeadlineExceeded, tonic::Code::Aborted, tonic::Code::Cancelled];
                assert!(goes_on.contains(&status.code()), "{status:?}");
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            start.elapsed().as_secs_f64() * 1000.0
        });
        samples.keep("first stage of 10 GiB with tags", arm, took_ms);
        scene.driver().unstage(&volume).expect("unstaged");
        scene.driver().delete(&volume).expect("deleted");
    }
    scene.end();
}
