//! Where the secret, and what is derived from it, must not be found.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;
use crate::volume::count;
use crate::volume::hex;

/// strace on the running driver and everything that it starts, into `output`.
fn watch_programs(pid: u32, output: &Path) -> Child {
    let child = Command::new("strace")
        .args(["-f", "-v", "-s", "100000", "-e", "trace=execve", "-o"])
        .arg(output)
        .args(["-p", &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("strace starts");
    let start = Instant::now();
    while !fs::read_to_string(format!("/proc/{pid}/status"))
        .expect("it runs")
        .contains(&format!("TracerPid:\t{}", child.id()))
    {
        assert!(start.elapsed() < Duration::from_secs(10), "strace does not attach");
    }
    child
}

fn files_below(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() && !path.is_symlink() {
            files_below(&path, files);
        } else if path.is_file() {
            files.push(path);
        }
    }
}

#[test]
fn no_secret_is_in_an_argument_a_variable_a_log_or_a_file() {
    let scene = Scene::new();
    let pid = scene.driver().pid();
    let programs = Path::new("/tmp/programs");
    let mut strace = watch_programs(pid, programs);
    let volume = Volume::create_staged(&scene, "canary", Kind::Ext4);
    let mut places = vec![
        ("arguments".to_owned(), fs::read(format!("/proc/{pid}/cmdline")).expect("the driver runs")),
        ("environment".to_owned(), fs::read(format!("/proc/{pid}/environ")).expect("the driver runs")),
    ];
    volume.unstage(&scene);
    shell(&format!("kill -INT {}", strace.id()));
    strace.wait().expect("strace ends");
    let started = fs::read(programs).expect("strace wrote");
    assert!(count(&started, b"mkfs.ext4") > 0, "the programs that the driver starts were not seen");
    places.push(("programs that it started".to_owned(), started));

    let mut files = vec![scene.log().to_owned()];
    files_below(scene.pool(), &mut files);
    files_below(Path::new(crate::driver::KUBELET), &mut files);
    places.extend(files.into_iter().map(|path| (path.display().to_string(), fs::read(&path).expect("readable"))));

    let secret = scene.broker.secret();
    let passphrase = scene.broker.passphrase(&volume.id);
    for (place, bytes) in &places {
        for (what, needle) in [
            ("the secret", secret.to_vec()),
            ("the secret in hexadecimal", hex(&secret).into_bytes()),
            ("the passphrase", passphrase.expose().to_vec()),
            ("the passphrase's bytes", hex::decode(passphrase.expose()).expect("hexadecimal")),
        ] {
            assert_eq!(count(bytes, &needle), 0, "{what} is in {place}");
        }
    }
    volume.delete(&scene);
    scene.end();
}

#[test]
fn the_driver_leaves_no_core_dump() {
    let scene = Scene::new();
    let limits = fs::read_to_string(format!("/proc/{}/limits", scene.driver().pid())).expect("the driver runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the kernel has this limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    scene.end();
}
