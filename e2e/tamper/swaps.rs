//! A disk that answers differently from one moment to the next: what was checked is what is opened.
//!
//! strace holds the driver in its one read of the header, at its beginning or at its end, while the test changes the disk.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use coffer::volume::Profile;

use super::Subject;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;
use crate::strace::Strace;
use crate::strace::TRACE;
use crate::volume::Volume;

/// How long strace holds the driver, in microseconds: far more than the test needs to change the disk.
const HELD: &str = "20000000";

/// The loop device on the volume's image, if there is one.
fn loop_device(volume: &Volume) -> Option<String> {
    let found = shell(&format!("grep -l '/{}/backing' /sys/block/loop*/loop/backing_file || true", volume.id));
    Path::new(found.trim()).iter().nth(3).map(|name| name.to_string_lossy().into_owned())
}

/// How much of the loop device was read so far, in sectors of 512 bytes (`Documentation/block/stat.rst`).
fn sectors_read(device: &str) -> u64 {
    let stat = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap_or_default();
    stat.split_whitespace().nth(2).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Stages while `disturb` changes the disk: the driver stands at the `end` (enter or exit) of its read meanwhile.
fn staged_while(subject: &Subject<'_>, end: &str, disturb: impl FnOnce() + Send) -> Result<(), tonic::Status> {
    let inject = format!("inject=pread64:delay_{end}={HELD}");
    let strace = Strace::attach(subject.scene.driver().pid(), &["-e", "trace=pread64", "-e", &inject]);
    let answer = std::thread::scope(|scope| {
        let stage = scope.spawn(|| subject.scene.driver().stage(&subject.volume.id, subject.volume.kind));
        wait_until("the read of the header", || {
            loop_device(&subject.volume).is_some_and(|device| {
                // udev reads a few sectors of every new device; the header is 4096 of them.
                end == "enter" || sectors_read(&device) >= 4096
            })
        });
        disturb();
        assert!(!stage.is_finished(), "the driver was not held");
        stage.join().expect("the stage does not panic")
    });
    strace.detach();
    answer
}

#[test]
fn a_header_swapped_after_it_was_read_opens_what_was_checked() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "swapped");
    let null = subject.header().with(|d| d["segments"]["0"]["encryption"] = "cipher_null-ecb".into());
    let swap = || {
        subject.write(&null, None);
        shell("sync");
    };
    staged_while(&subject, "exit", swap).expect("what was read is the volume's own header");
    let table = shell(&format!("dmsetup table {}", subject.volume.mapper_name()));
    assert!(table.contains(" crypt aes-xts-plain64 :64:logon:"), "{table}");
    subject.opened().map(|seen| assert_eq!(seen, "opens")).expect("the file is there");
    let front = fs::read(subject.volume.backing()).expect("the backing");
    assert!(null.iter().all(|(at, bytes)| front[*at as usize..].starts_with(bytes)), "the hostile header stays");

    subject.volume.stage_is_refused(&scene, "HeaderTampered");
    subject.write(&[(0, subject.backing[..super::FRONT_BYTES].to_vec())], None);
    subject.volume.stage(&scene);
    subject.opened().expect("the file is there");
    subject.volume.delete(&scene);
    scene.end();
}

#[test]
fn an_image_that_ends_while_it_is_read_is_refused() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "short");
    let image = || File::options().write(true).open(subject.volume.backing()).expect("the backing");
    let cut = || image().set_len(64 << 10).expect("shorter");
    let status = staged_while(&subject, "enter", cut).expect_err("refused");
    assert!(status.message().starts_with("DeviceUnreadable: "), "{status:?}");
    subject.volume.stage_leaves_nothing();
    subject.volume.stage_is_refused(&scene, "DeviceTruncated");

    image().write_all_at(&subject.backing, 0).expect("restored");
    subject.volume.stage(&scene);
    subject.opened().expect("the file is there");
    subject.volume.delete(&scene);
    scene.end();
}

#[test]
fn the_header_is_read_once_and_by_nobody_else() {
    let scene = Scene::new();
    for profile in Profile::ALL {
        read_once(&Subject::of_profile(&scene, profile, profile.as_str()));
    }
    scene.end();
}

/// Where a line of strace says that it read, and how much; the file is in its first argument.
fn extent(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split(") = ").next()?.rsplit(", ");
    let (offset, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((offset, bytes))
}

fn read_once(subject: &Subject<'_>) {
    let calls = "trace=read,pread64,readv,preadv,preadv2,io_submit,io_uring_setup,mmap";
    shell(&format!("rm -f {TRACE}.*"));
    // A file for each thread: in a common one, lines of several threads cut each other in two.
    let strace = Strace::attach(subject.scene.driver().pid(), &["-ff", "-y", "-e", calls]);
    subject.volume.stage(subject.scene);
    strace.detach();
    let trace = shell(&format!("cat {TRACE}.*"));
    let reads: Vec<_> = trace.lines().filter(|line| line.contains("</dev/loop")).collect();
    let extents: Vec<_> = reads.iter().map(|line| extent(line).expect("a read at an offset")).collect();
    let front = super::FRONT_BYTES as u64;
    // Behind the header lies what dm-integrity has to say, which is a block of its own.
    assert_eq!(extents[0], (0, front), "{reads:#?}");
    assert!(extents[1..].iter().all(|extent| *extent == (front, 4096)), "{reads:#?}");
    let image: Vec<_> = trace.lines().filter(|line| line.contains("/backing>")).collect();
    assert!(image.is_empty(), "past the loop device: {image:#?}");
    assert!(!trace.contains("io_uring_setup(") && !trace.contains("io_submit("), "reads that were not seen");
    subject.opened().expect("the file is there");
    subject.volume.delete(subject.scene);
}
