//! The program's own word on who makes the proof: it must be given, and what proves nothing is not in what is shipped.

use std::path::Path;
use std::process::{Command, Output};

/// With every feature.
const PROGRAM: &str = env!("CARGO_BIN_EXE_coffer");

fn run(program: &Path, arguments: &[&str]) -> Output {
    // What the environment says is no part of a test.
    Command::new(program).args(arguments).env_remove("COFFER_ATTESTER").output().expect("the program; run make kbs")
}

fn is_refused(output: &Output, word: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains(word), "{:?}: {text}", output.status);
}

#[test]
fn a_node_does_not_start_without_an_attester() {
    let node = ["all", "--endpoint", "unix:///nowhere/csi.sock", "--node-name", "node1", "--pool", "/nowhere"];
    let kbs = ["--kbs-url", "https://kbs.example", "--kbs-ca", "/nowhere"];
    is_refused(&run(Path::new(PROGRAM), &[&node[..], &kbs].concat()), "--attester");
}

#[test]
fn the_shipped_program_has_no_attester_that_proves_nothing() {
    let sample = ["attest", "--attester", "sample"];
    assert!(run(Path::new(PROGRAM), &sample).status.success(), "for development it is there");
    // As the Makefile builds it, with the features of the Dockerfile.
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("shipped/coffer");
    is_refused(&run(&shipped, &sample), "sample");
    is_refused(&run(&shipped, &["dev-kbs"]), "dev-kbs");
}
