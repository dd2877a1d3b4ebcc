//! The policy in `kbs/` in the engine that Trustee has: what it releases to whom, and that it is made as its page says.

#![expect(clippy::disallowed_methods, reason = "the steps of kbs/README.md are followed as they are printed there")]

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer::key::evidence::AttesterDescription;
use regorus::Engine;
use regorus::Value as Rego;
use serde_json::Value;
use serde_json::json;

const SHIPPED: &str = include_str!("../kbs/resource-policy.rego");
const PAGE: &str = include_str!("../kbs/README.md");

/// What is asked for, as Trustee says it to a policy.
fn asked(plugin: &str, path: &str) -> Value {
    json!({ "plugin": plugin, "resource-path": path.split('/').collect::<Vec<_>>(), "query": {} })
}

/// Whether `policy` lets the bearer of a token with `submods` have what it asked for. The steps are those of Trustee's
/// policy engine, which takes a policy as it is.
fn allows(policy: &str, submods: &Value, asked: &Value) -> bool {
    let mut engine = Engine::new();
    engine.add_policy(String::new(), policy.to_owned()).expect("the policy loads");
    engine.add_data(Rego::from_json_str(&asked.to_string()).expect("JSON")).expect("data");
    let token = json!({ "eat_profile": "tag:github.com,2024:confidential-containers/Trustee", "submods": submods });
    engine.set_input_json(&token.to_string()).expect("input");
    *engine.eval_rule("data.policy.allow".to_owned()).expect("the policy decides").as_bool().expect("yes or no")
}

/// A part of a machine as the attestation service appraised it.
fn part(status: &str, evidence: Value) -> Value {
    let mut annotated = json!({
        "report_data": "00", "runtime_data_claims": { "nonce": "00" }, "init_data": "00", "init_data_claims": null,
    });
    annotated.as_object_mut().expect("an object").extend(evidence.as_object().expect("an object").clone());
    json!({ "ear.status": status, "ear.veraison.annotated-evidence": annotated })
}

fn pcr(number: u8, value: u8) -> String {
    hex::encode([number ^ value; 32])
}

/// What a node with a TPM says of itself; `booted` is in all its PCRs.
fn described(key: u8, booted: u8) -> AttesterDescription {
    AttesterDescription {
        attestation_key: Some(STANDARD.encode([key; 294])),
        pcrs: (0..24).map(|number| (number, pcr(number, booted))).collect(),
        ..AttesterDescription::without_proof("tpm")
    }
}

/// What the verifier found in the evidence of a TPM.
fn tpm(key: u8, booted: u8) -> Value {
    let pcrs = (0..24).map(|number| (format!("pcr{number:02}"), pcr(number, booted).into()));
    let mut claims: serde_json::Map<String, Value> = pcrs.collect();
    claims.insert("ak_public".into(), STANDARD.encode([key; 294]).into());
    json!({ "tpm": claims })
}

fn tdx() -> Value {
    json!({ "tdx": { "quote": { "body": { "mr_td": "00" } }, "tcb_status": "UpToDate" } })
}

fn snp() -> Value {
    json!({ "snp": { "evidence": { "measurement": "00" } } })
}

/// The shell of `kbs/README.md` that speaks to no KBS, in a directory with a file of each of `nodes`.
fn follow_the_page(nodes: &[(&str, &AttesterDescription)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("kbs");
    std::os::unix::fs::symlink(tree, directory.path().join("kbs")).expect("linked");
    fs::create_dir(directory.path().join("nodes")).expect("made");
    for (name, description) in nodes {
        let text = serde_json::to_string_pretty(description).expect("JSON");
        fs::write(directory.path().join(format!("nodes/{name}.json")), text).expect("written");
    }
    let blocks = PAGE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let script: Vec<&str> = blocks.filter(|block| !block.contains("curl") && !block.contains("kubectl")).collect();
    assert_eq!(script.len(), 2, "policy and reference values: {script:?}");
    let mut shell = Command::new("bash");
    shell.current_dir(directory.path()).args(["-euo", "pipefail", "-c"]).arg(script.concat());
    let output = shell.output().expect("bash starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory
}

/// The policy for two nodes.
fn policy() -> String {
    let directory = follow_the_page(&[("node1", &described(1, 0)), ("node2", &described(2, 9))]);
    fs::read_to_string(directory.path().join("policy.rego")).expect("the page makes it")
}

#[test]
fn a_key_goes_to_affirmed_platforms_and_pinned_tpms_and_to_nobody_else() {
    let policy = policy();
    let key = asked("resource", "default/storage/coffer");
    let mut undefined = part("affirming", tdx());
    undefined.as_object_mut().expect("an object").remove("ear.status");
    let mut other_boot = tpm(1, 0);
    other_boot["tpm"]["pcr04"] = pcr(4, 1).into();
    let mut other_application = tpm(1, 0);
    other_application["tpm"]["pcr16"] = pcr(16, 1).into();
    let mut unread = tpm(1, 0);
    unread["tpm"].as_object_mut().expect("an object").remove("pcr07");
    let mut disguised = tdx();
    disguised["sample"] = json!({ "svn": "1" });
    let mut pinned_beside = tpm(1, 0);
    pinned_beside["csv"] = json!({});
    for (expected, who, submods) in [
        (true, "TDX", json!({ "cpu0": part("affirming", tdx()) })),
        (true, "SEV-SNP", json!({ "cpu0": part("affirming", snp()) })),
        (true, "a pinned TPM", json!({ "cpu0": part("affirming", tpm(1, 0)) })),
        (true, "the other one", json!({ "cpu0": part("affirming", tpm(2, 9)) })),
        (true, "a PCR that is not compared", json!({ "cpu0": part("affirming", other_application) })),
        (false, "sample", json!({ "cpu0": part("affirming", json!({ "sample": { "svn": "1" } })) })),
        (false, "sample as Trustee appraises it", json!({ "cpu0": part("contraindicated", json!({ "sample": {} })) })),
        (false, "sample beside TDX", json!({ "cpu0": part("affirming", disguised) })),
        (false, "a pinned TPM beside something else", json!({ "cpu0": part("affirming", pinned_beside) })),
        (false, "a TPM that is not pinned", json!({ "cpu0": part("affirming", tpm(3, 0)) })),
        (false, "one node's key, the other's PCRs", json!({ "cpu0": part("affirming", tpm(1, 9)) })),
        (false, "a pinned TPM that booted something else", json!({ "cpu0": part("affirming", other_boot) })),
        (false, "a pinned TPM without a PCR", json!({ "cpu0": part("affirming", unread) })),
        (false, "a pinned TPM, contraindicated", json!({ "cpu0": part("contraindicated", tpm(1, 0)) })),
        (false, "a pinned TPM with a warning", json!({ "cpu0": part("warning", tpm(1, 0)) })),
        (false, "TDX, contraindicated", json!({ "cpu0": part("contraindicated", tdx()) })),
        (false, "TDX with a warning", json!({ "cpu0": part("warning", tdx()) })),
        (false, "TDX that was not appraised", json!({ "cpu0": undefined })),
        (false, "another platform", json!({ "cpu0": part("affirming", json!({ "csv": {} })) })),
        (false, "no platform", json!({ "cpu0": part("affirming", json!({})) })),
        (false, "no evidence", json!({ "cpu0": { "ear.status": "affirming" } })),
        (false, "two, one contraindicated", json!({ "cpu0": part("affirming", tdx()), "cpu1": part("none", tdx()) })),
        (
            false,
            "two, one unknown",
            json!({ "cpu0": part("affirming", tdx()), "gpu0": part("affirming", json!({ "nvidia": {} })) }),
        ),
        (false, "nothing", json!({})),
        (false, "no list", json!(null)),
    ] {
        assert_eq!(allows(&policy, &submods, &key), expected, "{who}");
    }
}

#[test]
fn only_resources_of_coffers_repositories_are_released() {
    let policy = policy();
    let submods = json!({ "cpu0": part("affirming", tdx()) });
    for (expected, plugin, path) in [
        (true, "resource", "default/storage/coffer"),
        (true, "resource", "default/volumes/cv-1"),
        (false, "resource", "other/storage/coffer"),
        (false, "resource", "default"),
        (false, "resource", "default/storage"),
        (false, "resource", "default/storage/coffer/more"),
        (false, "resource", "other/default/coffer"),
        (false, "pkcs11", "default/storage/coffer"),
        (false, "", "default/storage/coffer"),
    ] {
        assert_eq!(allows(&policy, &submods, &asked(plugin, path)), expected, "{plugin} {path}");
    }
    assert!(!allows(&policy, &submods, &json!({})), "nothing is asked for");
    let chart = include_str!("../helm/coffer/values.yaml");
    assert!(chart.contains("keyUri: kbs:///default/"), "the policy lists the repository of the chart's class");
}

#[test]
fn the_policy_as_it_is_shipped_pins_no_tpm() {
    let key = asked("resource", "default/storage/coffer");
    assert!(allows(SHIPPED, &json!({ "cpu0": part("affirming", tdx()) }), &key));
    for claims in [tpm(1, 0), json!({ "tpm": {} }), json!({ "tpm": null })] {
        assert!(!allows(SHIPPED, &json!({ "cpu0": part("affirming", claims) }), &key));
    }
}

#[test]
fn a_node_without_pcrs_or_key_is_pinned_by_neither() {
    let unpinned = AttesterDescription::without_proof("tpm");
    let unmeasured = AttesterDescription { pcrs: [].into(), ..described(1, 0) };
    for description in [unpinned, unmeasured] {
        let nodes = json!({ "node1": description });
        let policy = SHIPPED.replace("tpm_nodes := {}", &format!("tpm_nodes := {nodes:#}"));
        let key = asked("resource", "default/storage/coffer");
        assert!(!allows(&policy, &json!({ "cpu0": part("affirming", tpm(1, 0)) }), &key));
        assert!(!allows(&policy, &json!({ "cpu0": part("affirming", json!({ "tpm": {} })) }), &key));
    }
}

#[test]
fn reference_values_are_those_of_the_nodes() {
    let tdx = AttesterDescription {
        claims: json!({ "mr_td": "a1", "rtmr_1": "a2", "rtmr_2": "a3", "xfam": "a4" }),
        ..AttesterDescription::without_proof("tdx")
    };
    let snp = AttesterDescription {
        claims: json!({ "measurement": "b1",
                        "reported_tcb": { "fmc": null, "bootloader": 3, "tee": 0, "snp": 8, "microcode": 115 } }),
        ..AttesterDescription::without_proof("snp")
    };
    let directory = follow_the_page(&[("a", &tdx), ("b", &snp), ("c", &described(1, 0)), ("d", &described(2, 0))]);
    let text = fs::read(directory.path().join("reference-values.json")).expect("the page makes it");
    let values: Value = serde_json::from_slice(&text).expect("JSON");
    let keys = [STANDARD.encode([1; 294]), STANDARD.encode([2; 294])];
    assert_eq!(
        values,
        json!({
            "trusted_aks": keys, "tpm_pcr11": [pcr(11, 0)],
            "mr_td": ["a1"], "rtmr_1": ["a2"], "rtmr_2": ["a3"], "xfam": ["a4"],
            "snp_launch_measurement": ["b1"], "snp_bootloader": [3], "snp_microcode": [115], "snp_snp_svn": [8],
            "snp_tee_svn": [0],
        })
    );
    let directory = follow_the_page(&[("a", &tdx)]);
    let text = fs::read(directory.path().join("reference-values.json")).expect("the page makes it");
    let values: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(values.as_object().map(serde_json::Map::len), Some(4), "{values}");
}
