//! Where the secret, and what is derived from it, must not be found.

mod memory;
mod needles;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use coffer::volume::Profile;

use crate::driver::HTTP;
use crate::driver::KUBELET;
use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;
use crate::strace::Strace;
use crate::strace::TRACE;
use crate::volume::Volume;
use crate::volume::count;
use needles::Needles;

fn files_below(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() && !path.is_symlink() {
            files_below(&path, files);
        } else if path.is_file() {
            files.push(path);
        }
    }
}

/// Every key of `volume`, the one of its data as cryptsetup tells it.
fn keys(scene: &Scene, volume: &Volume) -> Needles {
    let keys = scene.broker.keys(&volume.id);
    let (passphrase, key) = ("/tmp/passphrase", "/tmp/volume-key");
    fs::write(passphrase, keys.passphrase.expose()).expect("written");
    shell(&format!(
        "cryptsetup luksDump --batch-mode --dump-volume-key --volume-key-file {key} --key-file {passphrase} {}",
        volume.backing().display()
    ));
    let volume_key = fs::read(key).expect("cryptsetup wrote it");
    let profile = Profile::ALL.into_iter().find(|profile| profile.as_str() == volume.recorded("profile"));
    assert_eq!(volume_key.len(), profile.expect("a profile").volume_key_bytes());
    shell(&format!("rm {passphrase} {key}"));
    Needles::of_volume(&scene.broker.secret(), &keys, &volume_key)
}

/// What the driver answers over HTTP to a request for `path`.
fn http(path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(HTTP).expect("the driver listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    answer
}

/// Changes the keyslot's area, so that the seal does not verify, or back.
fn flip(volume: &Volume) {
    let backing = volume.backing();
    let mut image = fs::read(&backing).expect("readable");
    image[40_000] ^= 1;
    let file = fs::File::options().write(true).open(backing).expect("writable");
    std::os::unix::fs::FileExt::write_all_at(&file, &image[40_000..40_001], 40_000).expect("written");
}

#[test]
fn no_key_is_in_an_argument_a_variable_an_answer_a_metric_a_log_or_a_file() {
    Profile::ALL.into_iter().for_each(search_everywhere);
}

fn search_everywhere(profile: Profile) {
    let mut scene = Scene::new();
    scene.options().flags = ["--log", "trace"].map(str::to_owned).to_vec();
    scene.restart_driver();
    let pid = scene.driver().pid();
    let strace = Strace::attach_with_programs(pid, &["-v", "-s", "100000", "-e", "trace=execve"]);
    let volume = Volume::create_in(&scene, &[("profile", profile.as_str())], "canary", Kind::Ext4);
    volume.stage(&scene);
    let keys = keys(&scene, &volume);
    let of_process = |file: &str| fs::read(format!("/proc/{pid}/{file}")).expect("the driver runs");
    let mut places = vec![
        ("its arguments".to_owned(), of_process("cmdline")),
        ("its environment".to_owned(), of_process("environ")),
        ("its metrics".to_owned(), http("/metrics")),
    ];
    assert!(count(&places[2].1, b"coffer_key_request_duration_seconds_count") > 0, "no metrics");
    volume.unstage(&scene);

    let mut refusal = |reason| {
        let status = volume.stage_is_refused(&scene, reason);
        places.push((format!("the answer {reason}"), format!("{status:?}").into_bytes()));
    };
    flip(&volume);
    refusal("HeaderTampered");
    flip(&volume);
    scene.broker.put_secret(&scene.broker.secret()[..31]);
    refusal("KeyTooShort");
    scene.broker.put_secret(&[8; 32]);
    refusal("WrongKey");
    scene.broker.reset();

    strace.detach();
    let started = fs::read(TRACE).expect("strace wrote");
    assert!(count(&started, b"mkfs.ext4") > 0, "the programs that the driver starts were not seen");
    places.push(("programs that it started".to_owned(), started));
    let mut files = vec![scene.log().to_owned()];
    files_below(scene.pool(), &mut files);
    files_below(Path::new(KUBELET), &mut files);
    places.extend(files.into_iter().map(|path| (path.display().to_string(), fs::read(&path).expect("readable"))));

    let known = Needles::default().and("the volume's id", volume.id.as_bytes());
    let mut has_known = 0;
    for (place, bytes) in &places {
        let found: Vec<_> = keys.found_in(bytes).collect();
        assert!(found.is_empty(), "in {place}: {found:?}");
        has_known += usize::from(known.found_in(bytes).next().is_some());
    }
    assert!(has_known >= 3, "what is told, written and passed on was not searched");
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

#[test]
fn the_memory_of_the_program_belongs_to_root_whoever_runs_it() {
    let scene = Scene::new();
    shell("rm -rf /tmp/nobody && install -d -o 65534 -g 65534 /tmp/nobody");
    let run = |arguments: &[&str]| {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let mut command = Command::new("setpriv");
        command.args(nobody).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("setpriv starts")
    };
    let runs = |child: &Child, program: &str| {
        fs::read_to_string(format!("/proc/{}/comm", child.id())).is_ok_and(|name| name.trim() == program)
    };
    let owner = |child: &Child| fs::metadata(format!("/proc/{}/mem", child.id())).expect("it runs").uid();
    // The kernel gives the files of a process that may not be dumped, or traced by its user, to root.
    let mut other = run(&["sleep", "60"]);
    wait_until("another program's start", || runs(&other, "sleep"));
    assert_eq!(owner(&other), 65534, "so it is with all programs");
    let mut coffer = run(&["coffer", "dev-kbs", "--state", "/tmp/nobody", "serve", "--listen", "127.0.0.1:8445"]);
    wait_until("memory that is root's", || runs(&coffer, "coffer") && owner(&coffer) == 0);
    for child in [&mut other, &mut coffer] {
        child.kill().expect("our child");
        child.wait().expect("our child");
    }
    scene.end();
}
