//! Kubernetes, its test suite, csi-provisioner, csi-sanity, containerd and Helm, built from Go modules into the cache.
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
/// The image that the chart names for it.
pub(crate) const PROVISIONER_IMAGE: &str = "registry.k8s.io/sig-storage/csi-provisioner:v6.3.0";
const CONTAINERD: &str = "2.3.4";
const HELM: &str = "4.2.4";
/// GNU's `dd`, a shell that has none of its own, their loader and their library, as the node's Debian tree has them.
pub(crate) const DD: [&str; 4] = [
    "usr/bin/dd",
    "usr/bin/dash",
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/libc.so.6",
];

/// One call of `go`: where, with which `-ldflags` after `-s -w`, and what.
struct Install {
    dir: &'static str,
    variables: String,
    what: What,
}

/// What a call of `go` builds.
enum What {
    /// These programs, with `go install`.
    Programs(Vec<String>),
    /// The tests of this package, with `go test -c`.
    Tests(&'static str),
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
        what: What::Programs(vec![format!("helm.sh/helm/v4/cmd/helm@v{HELM}")]),
    };
    Ok(built("helm", &[install])?.join("helm"))
}

/// Kubernetes' own test suite, which only the layer `conformance` needs.
pub(crate) fn suite() -> Result<PathBuf> {
    let install = Install {
        dir: "k8s",
        variables: kubernetes_version(KUBERNETES),
        what: What::Tests("k8s.io/kubernetes/test/e2e"),
    };
    Ok(built("e2e.test", &[install])?.join("e2e.test"))
}

fn built(name: &str, installs: &[Install]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/rig/go");
    let mut inputs = vec![read(Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?];
    for install in installs {
        for file in ["go.mod", "go.sum"] {
            inputs.push(fs::read_to_string(source.join(install.dir).join(file))?);
        }
        inputs.push(install.variables.clone());
        inputs.extend(install.what.packages());
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    cache::artefact(name, &inputs, |path| installs.iter().try_for_each(|install| go(&source, install, path)))
}

/// etcd for the control plane and a static busybox for the images, out of the node's Debian tree.
pub(crate) fn debian_programs() -> Result<PathBuf> {
    Ok(out_of_tree("debian-programs", &["usr/bin/etcd", "usr/bin/busybox"])?.join("usr/bin"))
}

/// A directory with [`DD`], for the images of Kubernetes' own test suite.
pub(crate) fn dd() -> Result<PathBuf> {
    out_of_tree("dd", &DD)
}

fn out_of_tree(name: &str, files: &[&str]) -> Result<PathBuf> {
    let tree = image::tree()?;
    let of_tree = tree.to_string_lossy().into_owned();
    let members: Vec<_> = files.iter().map(|file| format!("./{file}")).collect();
    let mut inputs = vec![of_tree.as_str()];
    inputs.extend(members.iter().map(String::as_str));
    cache::artefact(name, &inputs, |path| {
        fs::create_dir(path)?;
        succeed(Command::new("tar").arg("-C").arg(path).arg("-xf").arg(&tree).args(&members))
    })
}

fn installs() -> [Install; 3] {
    let containerd = "github.com/containerd/containerd/v2";
    let targets = ["containerd", "containerd-shim-runc-v2", "ctr"]
        .map(|program| format!("{containerd}/cmd/{program}@v{CONTAINERD}"));
    [
        Install {
            dir: "k8s",
            variables: kubernetes_version(KUBERNETES),
            what: What::Programs(vec!["tool".to_owned()]),
        },
        Install {
            dir: "provisioner",
            variables: format!("{} -X main.version={PROVISIONER}", kubernetes_version(PROVISIONER_KUBERNETES)),
            what: What::Programs(vec!["tool".to_owned()]),
        },
        Install {
            dir: "provisioner",
            variables: format!("-X {containerd}/version.Version={CONTAINERD}"),
            what: What::Programs(targets.to_vec()),
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

impl What {
    fn packages(&self) -> Vec<String> {
        match self {
            Self::Programs(packages) => packages.clone(),
            Self::Tests(package) => vec![(*package).to_owned()],
        }
    }

    /// `go`'s arguments in front of the flags that all have in common.
    fn arguments(&self, into: &Path) -> Vec<String> {
        match self {
            Self::Programs(_) => vec!["install".to_owned()],
            // With a slash at its end it is a directory; the file is then called `<package>.test`.
            Self::Tests(_) => ["test", "-c", "-o", &format!("{}/", into.display())].map(str::to_owned).to_vec(),
        }
    }
}

/// `-trimpath` and the same flags for every module: Go's build cache is then shared between them.
fn go(source: &Path, install: &Install, into: &Path) -> Result<()> {
    let (arguments, packages) = (install.what.arguments(into), install.what.packages());
    println!("    go {} {} in e2e/rig/go/{}", arguments[0], packages.join(" "), install.dir);
    fs::create_dir_all(into)?;
    let mut command = Command::new("go");
    command.current_dir(source.join(install.dir));
    command.env("GOBIN", into).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
    command.args(arguments).args(["-trimpath", "-tags=no_btrfs"]);
    command.arg(format!("-ldflags=-s -w {}", install.variables)).args(packages);
    succeed(&mut command)
}
