//! A KBS that does not give the key: each way has its reason word, and nothing is formatted.

use std::net::TcpListener;
use std::thread;

use tonic::Code;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::volume::Volume;

/// A new volume is refused with `reason` and `code` after `spoil`, and staged after `repair`.
fn refused(reason: &str, code: Code, spoil: impl FnOnce(&mut Scene), repair: impl FnOnce(&mut Scene)) {
    let mut scene = Scene::new();
    let volume = Volume::create(&scene, "refused", Kind::Ext4);
    spoil(&mut scene);
    let releases = scene.broker.releases();
    let status = volume.stage_is_refused(&scene, reason);
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(volume.state(), "Declared");
    assert_eq!(scene.broker.releases(), releases);
    repair(&mut scene);
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

/// The driver talks to another port until it is put right again.
fn at_port(port: u16) -> impl FnOnce(&mut Scene) {
    move |scene| {
        scene.options().kbs = scene.broker.flags_for_port(port);
        scene.restart_driver();
    }
}

fn at_the_right_port(scene: &mut Scene) {
    scene.options().kbs = scene.broker.flags();
    scene.restart_driver();
}

#[test]
fn a_kbs_that_is_down() {
    let down = |scene: &mut Scene| scene.broker.stop();
    refused("KbsUnreachable", Code::Unavailable, down, |scene| scene.broker.reset());
}

#[test]
fn a_kbs_that_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        let connections: Vec<_> = listener.incoming().collect();
        drop(connections);
    });
    refused("KbsTimeout", Code::Unavailable, at_port(port), at_the_right_port);
}

#[test]
fn a_kbs_that_answers_garbage() {
    let mut garbage = None;
    refused(
        "KbsProtocol",
        Code::Unavailable,
        |scene| {
            let server = scene.broker.start_garbage();
            at_port(server.port())(scene);
            garbage = Some(server);
        },
        at_the_right_port,
    );
}

#[test]
fn a_kbs_with_a_certificate_of_somebody_else() {
    refused(
        "KbsUntrusted",
        Code::Unavailable,
        |scene| {
            scene.options().kbs = scene.broker.flags_for_another_authority();
            scene.restart_driver();
        },
        at_the_right_port,
    );
}

#[test]
fn a_proxy_in_the_environment_comes_not_between() {
    let mut scene = Scene::new();
    // Nobody listens there: what went that way would come back as KbsUnreachable.
    const NOWHERE: &str = "http://127.0.0.1:9";
    scene.options().variables = &[("https_proxy", NOWHERE), ("HTTPS_PROXY", NOWHERE), ("ALL_PROXY", NOWHERE)];
    scene.restart_driver();
    let volume = Volume::create_staged(&scene, "proxy", Kind::Ext4);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_policy_that_denies() {
    refused("PolicyDenied", Code::PermissionDenied, |scene| scene.broker.deny(), |scene| scene.broker.reset());
}

#[test]
fn a_secret_that_is_not_there() {
    let remove = |scene: &mut Scene| scene.broker.remove_secret();
    refused("KeyNotFound", Code::FailedPrecondition, remove, |scene| scene.broker.reset());
}

#[test]
fn a_secret_that_is_too_short() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "short", Kind::Ext4);
    scene.broker.put_secret(&[7; 31]);
    let status = volume.stage_is_refused(&scene, "KeyTooShort");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(volume.state(), "Declared");
    scene.broker.reset();
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_secret_that_was_changed_does_not_open_and_does_not_format() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "changed", Kind::Ext4);
    std::fs::write(volume.file("file"), "text").expect("written");
    volume.unstage(&scene);
    scene.broker.put_secret(&[8; 32]);
    let status = volume.stage_is_refused(&scene, "WrongKey");
    assert_eq!(status.code(), Code::FailedPrecondition);
    scene.broker.reset();
    volume.stage(&scene);
    assert_eq!(std::fs::read_to_string(volume.file("file")).expect("still there"), "text");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
