//! Keys in the memory of the driver: none when it is idle, and only in memory that stays there while it works.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use coffer::volume::Profile;

use super::flip;
use super::keys;
use super::needles::Needles;
use crate::broker::NEXT_KEY_URI;
use crate::driver::Kind;
use crate::rotation::Rotation;
use crate::scene::Scene;
use crate::scene::wait_until;
use crate::strace::Strace;
use crate::volume::Volume;

/// Found nowhere but in the memory of a driver that was told it.
const MARK: &str = "marked_memory_of_the_driver";

/// How much is read at once.
const WINDOW_BYTES: usize = 64 << 10;
/// What is left out when it cannot be read.
const PAGE_BYTES: u64 = 4096;
/// So that no needle is cut by the end of a window.
const OVERLAP_BYTES: usize = 64;

/// One piece of a needle in the memory of a process.
#[derive(Clone, Debug)]
struct Find {
    /// The needle.
    what: String,
    /// Address range, rights and file of the mapping.
    mapping: String,
    /// The kernel's flags of the mapping: `lo` is locked, `dd` is left out of core dumps.
    flags: Vec<String>,
}

impl Find {
    fn is_protected(&self) -> bool {
        ["lo", "dd"].iter().all(|flag| self.flags.iter().any(|has| has == flag))
    }
}

/// Every piece of `needles` in the memory of the process `pid`.
fn search(pid: u32, needles: &Needles) -> Vec<Find> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let (mut window, nothing) = (vec![0; WINDOW_BYTES], vec![0; WINDOW_BYTES]);
    let mut finds = Vec::new();
    for (mapping, flags) in mappings(pid) {
        let (start, end) = range(&mapping);
        let mut from = start;
        while from < end {
            let length = WINDOW_BYTES.min(usize::try_from(end - from).expect("an address space of 64 bits"));
            // Unreadable are pages that a process may not read itself, and mappings that have ended meanwhile.
            let Ok(read) = memory.read_at(&mut window[..length], from) else {
                from += PAGE_BYTES;
                continue;
            };
            // Most of what is mapped was never used.
            let used = if window[..read] == nothing[..read] { &[] } else { &window[..read] };
            let found = needles.found_in(used).map(|(what, _)| Find {
                what: what.to_owned(),
                mapping: mapping.clone(),
                flags: flags.clone(),
            });
            finds.extend(found);
            if read <= OVERLAP_BYTES {
                break;
            }
            from += u64::try_from(read - OVERLAP_BYTES).expect("a small number");
        }
    }
    finds
}

/// The mappings that the process can write to, each with the flags that the kernel shows of it.
fn mappings(pid: u32) -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process runs");
    let mut mappings: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags: ") {
            let (_, of_last) = mappings.last_mut().expect("flags follow their mapping");
            *of_last = flags.split_whitespace().map(str::to_owned).collect();
        } else if line.split_whitespace().next().is_some_and(|word| !word.ends_with(':')) {
            mappings.push((line.to_owned(), Vec::new()));
        }
    }
    mappings.retain(|(mapping, _)| mapping.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with("rw")));
    mappings
}

fn range(mapping: &str) -> (u64, u64) {
    let (start, end) =
        mapping.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range of addresses");
    let address = |text| u64::from_str_radix(text, 16).expect("an address");
    (address(start), address(end))
}

#[track_caller]
fn is_clean(pid: u32, keys: &Needles, when: &str) {
    let finds = search(pid, keys);
    assert!(finds.is_empty(), "{when}: {finds:#?}");
}

#[test]
fn no_key_is_in_the_memory_of_the_idle_driver() {
    let mut scene = Scene::new();
    scene.options().flags = vec!["--log".into(), format!("info,{MARK}=info")];
    scene.restart_driver();
    let pid = scene.driver().pid();
    let mark = Needles::default().and("the mark", MARK.as_bytes());
    let marked = search(pid, &mark);
    assert!(marked.iter().any(|find| find.mapping.contains("[heap]")), "what is there is not found: {marked:?}");
    for (profile, kind) in [(Profile::Xts1, Kind::Ext4), (Profile::Aead1, Kind::Ext4), (Profile::Xts1, Kind::Block)] {
        let name = format!("idle-{}-{kind:?}", profile.as_str());
        let volume = Volume::create_in(&scene, &[("profile", profile.as_str())], &name, kind);
        volume.stage(&scene);
        let keys = keys(&scene, &volume);
        is_clean(pid, &keys, "formatted and staged");
        volume.unstage(&scene);
        volume.stage(&scene);
        is_clean(pid, &keys, "staged again");
        volume.unstage(&scene);
        flip(&volume);
        volume.stage_is_refused(&scene, "HeaderTampered");
        flip(&volume);
        is_clean(pid, &keys, "refused");
        volume.delete(&scene);
        is_clean(pid, &keys, "deleted");
    }
    scene.end();
}

/// Lets `work` bring the process `pid` to its system call `name`, and expects the keys then to be there, in protected memory
/// only.
#[track_caller]
fn are_protected_at((name, number): (&str, i64), pid: u32, keys: &Needles, work: impl FnOnce() + Send) {
    let (trace, delay) = (format!("trace={name}"), format!("inject={name}:delay_enter=600000000"));
    // A rotation that is held is still the shell that becomes it.
    let strace = Strace::attach_with_programs(pid, &["-e", &trace, "-e", &delay]);
    let finds = thread::scope(|scope| {
        let work = scope.spawn(work);
        wait_until(name, || is_in_system_call(pid, number) || work.is_finished());
        let finds = search(pid, keys);
        strace.detach();
        work.join().expect("done");
        finds
    });
    assert!(finds.iter().any(|find| find.what.contains("passphrase")), "it was over already: {finds:?}");
    let exposed: Vec<_> = finds.iter().filter(|find| !find.is_protected()).collect();
    assert!(exposed.is_empty(), "{exposed:#?}");
}

#[test]
fn the_keys_of_a_stage_that_runs_are_in_locked_memory_only() {
    let scene = Scene::new();
    let pid = scene.driver().pid();
    let volume = Volume::create_staged(&scene, "locked", Kind::Ext4);
    let keys = keys(&scene, &volume);
    volume.unstage(&scene);
    // The mount is the last step, and the keys live until it is done.
    are_protected_at(("mount", libc::SYS_mount), pid, &keys, || volume.stage(&scene));
    is_clean(pid, &keys, "staged");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn the_keys_of_a_rotation_that_runs_are_in_locked_memory_only() {
    let scene = Scene::new();
    scene.broker.offer_next();
    let volume = Volume::create_staged(&scene, "moved", Kind::Ext4);
    let keys = keys(&scene, &volume);
    let mut rotation = Rotation::held(&scene, &volume, NEXT_KEY_URI);
    // The first record that is replaced announces a header that both secrets open.
    are_protected_at(("rename", libc::SYS_rename), rotation.pid(), &keys, || rotation.run());
    let output = rotation.end();
    assert!(output.status.success(), "{output:?}");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

/// Whether a thread of the process has called the kernel for `number`, and has no answer yet.
fn is_in_system_call(pid: u32, number: i64) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    threads.flatten().any(|thread| {
        let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
        call.split_whitespace().next() == Some(&number.to_string())
    })
}
