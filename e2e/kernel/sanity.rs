//! csi-sanity in full against the real kernel. `make sanity` runs these, `make kernel` does not.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;

use crate::driver::KUBELET;
use crate::driver::SOCKET;
use crate::scene::Scene;
use crate::scene::wait_until;

/// How the rig's API server is reached, of which this machine is a node, and how as the controller.
const KUBECONFIG: &str = "/share/admin.kubeconfig";
const CONTROLLER_KUBECONFIG: &str = "/share/controller.kubeconfig";
/// The socket of the controller service in a cluster.
const CONTROLLER_SOCKET: &str = "/run/coffer-controller.sock";

/// Runs every case with volumes of the access type `access` against `scene`, whose controller service is at `controller`; a
/// case may be skipped only for want of a capability.
fn passes(scene: Scene, controller: &str, access: &str) {
    let parameters = "/tmp/parameters.yaml";
    fs::write(parameters, format!("keyUri: {}\n", crate::broker::KEY_URI)).expect("written");
    let cluster = if controller == SOCKET { "alone" } else { "cluster" };
    let report = format!("/log/sanity-{cluster}-{access}.json");
    let directory = Path::new(KUBELET).join("sanity");
    fs::create_dir_all(&directory).expect("a directory");
    let status = Command::new("csi-sanity")
        .arg(format!("--csi.endpoint=unix://{SOCKET}"))
        .arg(format!("--csi.controllerendpoint=unix://{controller}"))
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
    passes(Scene::new(), SOCKET, "mount");
}

#[test]
#[ignore = "make sanity"]
fn csi_sanity_passes_with_block_volumes() {
    passes(Scene::new(), SOCKET, "block");
}

#[test]
#[ignore = "make sanity"]
fn csi_sanity_passes_with_controller_and_node_in_a_cluster() {
    let scene = Scene::in_cluster(KUBECONFIG);
    let log = fs::File::create("/log/coffer-controller.log").expect("the controller's log");
    let controller = Command::new("coffer")
        .args(["controller", "--endpoint", &format!("unix://{CONTROLLER_SOCKET}")])
        .env("KUBECONFIG", CONTROLLER_KUBECONFIG)
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("coffer starts");
    let _controller = Controller(controller);
    let capacity = || scene.driver().capacity_of_cluster(CONTROLLER_SOCKET);
    wait_until("the node shows its pool", || capacity().is_ok_and(|capacity| capacity.available_capacity > 0));
    passes(scene, CONTROLLER_SOCKET, "mount");
}

/// Ends with the test, however that ends.
struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        // It has ended already if that fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
