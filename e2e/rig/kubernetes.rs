//! Kubernetes, csi-provisioner, csi-sanity, containerd and Helm, built from Go modules into the cache.
//!
//! The tree holds only `go.mod` and `go.sum`; what is built is named by their `tool` lines. One set of programs is kept
//! per content of these files, flags and Go version, so a second run builds nothing.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache;
use crate::image;
use crate::process::read;
use crate::process::succeed;

/// Kubernetes' version, as `e2e/rig/go/k8s/go.mod` requires it.
const KUBERNETES: &str = "v1.37.1";
/// The Kubernetes that csi-provisioner is built with, as its `go.mod` requires it.
const PROVISIONER_KUBERNETES: &str = "v1.36.3";
const PROVISIONER: &str = "v6.3.0";
const CONTAINERD: &str = "2.3.4";
const HELM: &str = "4.2.4";

/// One `go install`: where, with which `-ldflags` after `-s -w`, and what.
struct Install {
    dir: &'static str,
    variables: String,
    targets: Vec<String>,
}

/// The directory with all programs of a cluster, built if the cache does not have them.
pub(crate) fn programs() -> Result<PathBuf> {
    built("go", &installs())
}

/// Helm, which only the chart's tests need.
pub(crate) fn helm() -> Result<PathBuf> {
    let install = Install {
        dir: "provisioner",
        variables: format!("-X helm.sh/helm/v4/internal/version.version=v{HELM}"),
        targets: vec![format!("helm.sh/helm/v4/cmd/helm@v{HELM}")],
    };
    Ok(built("helm", &[install])?.join("helm"))
}

fn built(name: &str, installs: &[Install]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/rig/go");
    let mut inputs = vec![read(Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?];
    for install in installs {
        for file in ["go.mod", "go.sum"] {
            inputs.push(fs::read_to_string(source.join(install.dir).join(file))?);
        }
        inputs.push(install.variables.clone());
        inputs.extend(install.targets.clone());
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    cache::artefact(name, &inputs, |path| installs.iter().try_for_each(|install| go_install(&source, install, path)))
}

/// etcd for the control plane and a static busybox for the images, out of the node's Debian tree.
pub(crate) fn debian_programs() -> Result<PathBuf> {
    let tree = image::tree()?;
    let name = tree.to_string_lossy().into_owned();
    let members = ["./usr/bin/etcd", "./usr/bin/busybox"];
    let made = cache::artefact("debian-programs", &[&[name.as_str()], &members[..]].concat(), |path| {
        fs::create_dir(path)?;
        succeed(Command::new("tar").arg("-C").arg(path).arg("-xf").arg(&tree).args(members))
    })?;
    Ok(made.join("usr/bin"))
}

fn installs() -> [Install; 3] {
    let containerd = "github.com/containerd/containerd/v2";
    let targets = ["containerd", "containerd-shim-runc-v2", "ctr"]
        .map(|program| format!("{containerd}/cmd/{program}@v{CONTAINERD}"));
    [
        Install { dir: "k8s", variables: kubernetes_version(KUBERNETES), targets: vec!["tool".to_owned()] },
        Install {
            dir: "provisioner",
            variables: format!("{} -X main.version={PROVISIONER}", kubernetes_version(PROVISIONER_KUBERNETES)),
            targets: vec!["tool".to_owned()],
        },
        Install {
            dir: "provisioner",
            variables: format!("-X {containerd}/version.Version={CONTAINERD}"),
            targets: targets.to_vec(),
        },
    ]
}

/// Without these variables Kubernetes calls itself v0.0.0, and clients that compare versions refuse it.
fn kubernetes_version(version: &str) -> String {
    let minor = version.split('.').nth(1).expect("the constants have three parts");
    let of = |package: &str| {
        let set = |name: &str, value: &str| format!("-X {package}.{name}={value}");
        [
            set("gitVersion", version),
            set("gitMajor", "1"),
            set("gitMinor", minor),
            set("gitTreeState", "clean"),
            set("gitCommit", "none"),
            set("buildDate", "1970-01-01T00:00:00Z"),
        ]
        .join(" ")
    };
    ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"].map(of).join(" ")
}

/// `-trimpath` and the same flags for every module: Go's build cache is then shared between them.
fn go_install(source: &Path, install: &Install, into: &Path) -> Result<()> {
    println!("    go install {} in e2e/rig/go/{}", install.targets.join(" "), install.dir);
    let mut command = Command::new("go");
    command.current_dir(source.join(install.dir));
    command.env("GOBIN", into).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
    command.args(["install", "-trimpath", "-tags=no_btrfs"]);
    command.arg(format!("-ldflags=-s -w {}", install.variables)).args(&install.targets);
    succeed(&mut command)
}
