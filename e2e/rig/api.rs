//! What talks to an API server, tested against a real one: etcd, API server, controller manager, and no node.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::control_plane::ControlPlane;
use crate::kubernetes;
use crate::layers;
use crate::process::Fate;
use crate::programs::Programs;
use crate::report::stage;
use crate::sandbox;

/// Runs the tests whose names contain `filter`.
pub(crate) fn test(run: &Path, filter: &str) -> Result<()> {
    let get = || {
        let programs = Programs::product()?.with_test("api")?;
        Ok((programs, kubernetes::programs()?, kubernetes::helm()?, kubernetes::debian_programs()?))
    };
    let (programs, kubernetes, helm, debian) = sandbox::enter_with("Kubernetes", get)?;
    let run = &sandbox::fresh(run)?;
    let plane = stage("Control plane: etcd, API server, controller manager, scheduler", || {
        ControlPlane::start(&run.join("control-plane"), &kubernetes, &debian.join("etcd"), Fate::WithRig)
    })?;
    let mut tests = Command::new(programs.path("test-api")?);
    tests.args(["--test-threads=4", filter]);
    tests.env("KUBECONFIG", plane.kubeconfig("admin")).env("KUBECACHEDIR", run.join("kubectl-cache"));
    tests.env("COFFER_HELM", helm).env("COFFER_KUBECTL", kubernetes.join("kubectl"));
    let count = layers::rust_tests(&mut tests)?;
    if count.failed > 0 {
        println!("the control plane's logs: {}", run.join("control-plane").display());
    }
    count.conclude()
}
