//! Claims and pods, as JSON, of which YAML is a superset.

use serde_json::Value;
use serde_json::json;

/// Ends with status 0 as soon as it is told to.
const RUN_FOREVER: &str = "trap 'exit 0' TERM; sleep infinity & wait";

/// Where a pod finds its raw device.
pub(crate) const DEVICE: &str = "/dev/secret";

/// A claim of `size` in the chart's own class.
pub(crate) fn claim(name: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": {
            "storageClassName": "coffer", "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": size } },
        },
    })
}

/// `claim`, of another class.
pub(crate) fn of_class(class: &str, mut claim: Value) -> Value {
    claim["spec"]["storageClassName"] = json!(class);
    claim
}

/// `claim`, for a raw device.
pub(crate) fn raw(mut claim: Value) -> Value {
    claim["spec"]["volumeMode"] = json!("Block");
    claim
}

/// A pod that runs until it is told to end, with the raw device of `claim` at [`DEVICE`].
pub(crate) fn device_pod(name: &str, claim: &str) -> Value {
    let mut pod = pod(name, &[claim]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([]);
    container["volumeDevices"] = json!([{ "name": claim, "devicePath": DEVICE }]);
    pod
}

/// A pod that runs until it is told to end, with the volumes of `claims` below `/` under the claims' names.
pub(crate) fn pod(name: &str, claims: &[impl AsRef<str>]) -> Value {
    let claims = claims.iter().map(AsRef::as_ref);
    let mounts: Vec<_> =
        claims.clone().map(|claim| json!({ "name": claim, "mountPath": format!("/{claim}") })).collect();
    let volumes: Vec<_> =
        claims.map(|claim| json!({ "name": claim, "persistentVolumeClaim": { "claimName": claim } })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", RUN_FOREVER], "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    })
}

/// `pod`, on the node `name`.
pub(crate) fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    pod
}

/// `objects` as one manifest.
pub(crate) fn list(objects: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}
