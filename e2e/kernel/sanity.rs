//! csi-sanity in full against the real kernel. `make sanity` runs these, `make kernel` does not.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::driver::KUBELET;
use crate::driver::SOCKET;
use crate::scene::Scene;

/// Runs every case with volumes of the access type `access`; a case may be skipped only for want of a capability.
fn passes(access: &str) {
    let scene = Scene::new();
    let parameters = "/tmp/parameters.yaml";
    fs::write(parameters, format!("keyUri: {}\n", crate::broker::KEY_URI)).expect("written");
    let report = format!("/log/sanity-{access}.json");
    let directory = Path::new(KUBELET).join("sanity");
    fs::create_dir_all(&directory).expect("a directory");
    let status = Command::new("csi-sanity")
        .arg(format!("--csi.endpoint=unix://{SOCKET}"))
        .arg(format!("--csi.mountdir={}", directory.join("mount").display()))
        .arg(format!("--csi.stagingdir={}", directory.join("staging").display()))
        .arg(format!("--csi.testvolumeparameters={parameters}"))
        .arg(format!("--csi.testvolumeaccesstype={access}"))
        .args(["--csi.testvolumesize=33554432", "--ginkgo.no-color", "--ginkgo.timeout=20m"])
        .arg(format!("--ginkgo.json-report={report}"))
        .status()
        .expect("csi-sanity starts");
    fs::remove_dir_all(directory).expect("what the cases made is removed");
    for (name, why) in skipped(&report) {
        println!("skipped: {name} ({why})");
        assert!(why.contains("not supported"), "{name} was skipped for another reason: {why}");
    }
    assert!(status.success(), "csi-sanity ended with {status}");
    scene.end();
}

/// Names of the cases that were skipped, and why.
fn skipped(report: &str) -> Vec<(String, String)> {
    let report = fs::read(report).expect("csi-sanity writes a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("the report is JSON");
    let cases = report[0]["SpecReports"].as_array().expect("the report lists cases");
    let skipped = cases.iter().filter(|case| case["State"] == "skipped");
    skipped
        .map(|case| {
            let groups = case["ContainerHierarchyTexts"].as_array().cloned().unwrap_or_default();
            let mut words: Vec<&str> = groups.iter().filter_map(serde_json::Value::as_str).collect();
            words.push(case["LeafNodeText"].as_str().unwrap_or_default());
            let why = case["Failure"]["Message"].as_str().unwrap_or_default();
            (words.join(" "), why.to_owned())
        })
        .collect()
}

#[test]
#[ignore = "make sanity"]
fn csi_sanity_passes_with_mounted_volumes() {
    passes("mount");
}

#[test]
#[ignore = "make sanity"]
fn csi_sanity_passes_with_block_volumes() {
    passes("block");
}
