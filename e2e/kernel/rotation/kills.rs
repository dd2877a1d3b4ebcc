//! A rotation is killed at each of its system calls that change anything: the volume opens with what is there then, and
//! the next rotation finishes the work.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;

use super::rotate;
use super::rotated;
use super::scene;
use super::stock_opens;
use crate::broker::KEY_URI;
use crate::broker::NEXT_KEY_URI;
use crate::driver::Kind;
use crate::volume::Volume;

/// The system calls that change the kernel's state or a file's, as far as a rotation makes them.
const CALLS: &str = "ioctl,pwrite64,fsync,fdatasync,rename,unlink,ftruncate";
/// Without `COFFER_SOAK` every so many-th point is tried.
const SAMPLE: usize = 16;
const TRACE: &str = "/tmp/rotation.trace";

/// How often the thread that makes a call most often makes it, for each call: strace counts per thread.
fn points() -> Vec<(String, usize)> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(TRACE).expect("strace wrote").lines() {
        let (thread, call) = line.split_once(' ').expect("a thread and its call");
        if let Some((name, _)) =
            call.trim_start().split_once('(').filter(|(name, _)| CALLS.split(',').any(|it| it == *name))
        {
            *counts.entry((name.to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((name, _), count) in counts {
        let known = most.entry(name).or_default();
        *known = (*known).max(count);
    }
    most.into_iter().flat_map(|(name, count)| (1..=count).map(move |number| (name.clone(), number))).collect()
}

#[test]
fn a_rotation_killed_at_every_step_converges_and_the_volume_opens_in_between() {
    let scene = scene();
    let volume = Volume::create_staged(&scene, "killed", Kind::Ext4);
    let file = volume.file("data");
    fs::write(&file, b"precious").and_then(|()| File::open(&file)?.sync_all()).expect("written");
    let trace = format!("trace={CALLS}");
    let counted = rotate(&scene, &volume, NEXT_KEY_URI, &["strace", "-f", "-qq", "-o", TRACE, "-e", &trace]);
    assert!(counted.status.success(), "{}", String::from_utf8_lossy(&counted.stderr));
    let points = points();
    assert!(points.len() > 20, "{points:?}");

    let step = if std::env::var_os("COFFER_SOAK").is_some() { 1 } else { SAMPLE };
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut at = [NEXT_KEY_URI, KEY_URI];
    for (call, when) in points.iter().step_by(step) {
        let [from, to] = at;
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}"));
        let killed = rotate(&scene, &volume, to, &["strace", "-f", "-qq", "-o", TRACE, "-e", &trace, "-e", &inject]);
        assert!(!killed.status.success(), "not killed at {call} number {when}");
        let record = String::from_utf8(volume.metadata().0).expect("JSON");
        let place = (volume.recorded("key_uri") == from, record.contains("\"rotation\""));
        *places.entry(format!("{place:?}")).or_default() += 1;
        volume.unstage(&scene);
        volume.stage(&scene);
        assert_eq!(fs::read(&file).expect("readable"), b"precious", "after a kill at {call} number {when}");
        rotated(&scene, &volume, to);
        assert!(stock_opens(&scene, &volume, to) && !stock_opens(&scene, &volume, from), "{call} number {when}");
        at = [to, from];
    }
    println!(
        "rotate: {} kills at {} points; left at (old URI, rotating): {places:?}",
        points.len().div_ceil(step),
        points.len()
    );
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
