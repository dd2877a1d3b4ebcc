//! Attestation of confidential machines. No test machine is one: the kernel's configfs-tsm is stood in for, and reports are
//! recorded ones (`e2e/recorded`); only that there is no TEE is asked of the kernel itself.

use std::process::Command;
use std::process::Output;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer::key::evidence::Tee;
use coffer::key::evidence::Tsm;
use coffer::volume::Error;
use coffer::volume::Reason;
use fuser::Errno;
use serde_json::Value;
use serde_json::json;

use crate::configfs::Configfs;
use crate::configfs::Machine;
use crate::scene::shell;
use crate::scene::wait_until;

const QUOTE: &[u8] = include_bytes!("../recorded/tdx-quote-v4.bin");
const REPORT: &[u8] = include_bytes!("../recorded/snp-report-v2.bin");
/// Where a quote of version 4, and a report, have what they are bound to.
const QUOTE_DATA: usize = 568;
const REPORT_DATA: usize = 0x50;
const DIGEST: [u8; 48] = [7; 48];

fn tdx() -> Configfs {
    Configfs::mount(Machine::new("tdx_guest", QUOTE.to_vec(), QUOTE_DATA))
}

/// With a certificate of the host.
fn snp() -> Configfs {
    let mut report = REPORT.to_vec();
    report[0] = 3;
    report[0x188..0x18b].copy_from_slice(&[0x19, 0x01, 0x01]);
    let vcek = 0x63da_758d_e664_4564_adc5_f4b9_3be8_accd_u128.to_be_bytes();
    let table = [&vcek[..], &48_u32.to_le_bytes(), &2_u32.to_le_bytes(), &[0; 24], &[8, 9]].concat();
    let mut machine = Machine::new("sev_guest", report, REPORT_DATA);
    machine.auxblob = Some(table);
    Configfs::mount(machine)
}

/// The evidence of `tee` for `digest`. Nothing may be left of the request.
#[track_caller]
fn evidence(configfs: &Configfs, tee: Tee, digest: &[u8; 48]) -> Result<Value, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let outcome = runtime.block_on(Tsm::new(configfs.directory().into(), tee).evidence(digest));
    assert_eq!(configfs.machine().requests(), [""; 0], "a request was left");
    outcome
}

#[track_caller]
fn refusal(configfs: &Configfs, tee: Tee) -> String {
    let error = evidence(configfs, tee, &DIGEST).expect_err("refused");
    assert_eq!(error.reason(), Reason::AttesterUnavailable);
    error.explanation()
}

/// The data that the quote in `evidence` is bound to.
fn bound(evidence: &Value) -> Vec<u8> {
    let quote = STANDARD.decode(evidence["quote"].as_str().expect("a quote")).expect("base64");
    quote[QUOTE_DATA..][..64].to_vec()
}

fn attest(configfs: &Configfs, attester: &str) -> Command {
    let mut command = Command::new("coffer");
    command.args(["attest", "--attester", attester, "--output", "json", "--tsm"]).arg(configfs.directory());
    command
}

fn described(configfs: &Configfs, attester: &str) -> Value {
    let output = attest(configfs, attester).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What the program says on standard error when it describes nothing.
fn complaint(output: Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_tdx_machine_proves_what_it_is() {
    let configfs = tdx();
    let evidence = evidence(&configfs, Tee::Tdx, &DIGEST).expect("evidence");
    assert_eq!(bound(&evidence), [&DIGEST[..], &[0; 16]].concat());
    assert_eq!(evidence["cc_eventlog"], json!(null));
    assert_eq!(evidence.as_object().map(|members| members.len()), Some(2));
    assert_eq!(configfs.machine().reports, 1);
}

#[test]
fn a_snp_machine_proves_what_it_is() {
    let configfs = snp();
    let evidence = evidence(&configfs, Tee::Snp, &DIGEST).expect("evidence");
    assert_eq!(evidence["attestation_report"]["report_data"], json!([&DIGEST[..], &[0; 16]].concat()));
    assert_eq!(evidence["cert_chain"], json!([{ "cert_type": "VCEK", "data": [8, 9] }]));
    configfs.machine().auxblob = Some(Vec::new());
    let evidence = self::evidence(&configfs, Tee::Snp, &DIGEST).expect("evidence");
    assert_eq!(evidence["cert_chain"], json!(null));
}

#[test]
fn the_program_describes_a_machine_under_the_names_of_the_kbs() {
    let configfs = tdx();
    let description = described(&configfs, "tdx");
    assert_eq!(description["tee"], "tdx");
    assert_eq!(description["claims"]["mr_td"], hex::encode(&QUOTE[184..232]));
    assert_eq!(description["claims"]["rtmr_1"], hex::encode(&QUOTE[424..472]));
    assert_eq!(described(&configfs, "tsm"), description, "what the kernel names");
    let configfs = snp();
    let description = described(&configfs, "tsm");
    assert_eq!(description["tee"], "snp");
    assert_eq!(description["claims"]["measurement"], hex::encode(&REPORT[0x90..0xc0]));
    assert_eq!(description["claims"]["reported_tcb"]["snp"], 8);
}

#[test]
fn another_tee_than_the_one_that_was_named_is_refused() {
    let said = refusal(&tdx(), Tee::Snp);
    assert!(said.contains("tdx_guest") && said.contains("sev_guest"), "{said}");
    let configfs = tdx();
    configfs.machine().provider = Some("arm_cca_guest");
    let said = complaint(attest(&configfs, "tsm").output().expect("the program starts"));
    assert!(said.contains("AttesterUnavailable: ") && said.contains("arm_cca_guest"), "{said}");
    // What a driver says of itself is believed no more than what it makes.
    configfs.machine().provider = Some("sev_guest");
    assert!(refusal(&configfs, Tee::Snp).contains("bytes"));
}

#[test]
fn a_busy_tee_is_asked_again() {
    let configfs = tdx();
    configfs.machine().errors = [Errno::EINTR, Errno::EWOULDBLOCK, Errno::EBUSY, Errno::EINTR].into();
    let evidence = evidence(&configfs, Tee::Tdx, &DIGEST).expect("evidence");
    assert!(bound(&evidence).starts_with(&DIGEST));
    let machine = configfs.machine();
    assert_eq!((machine.errors.len(), machine.reports), (0, 1));
}

#[test]
fn a_report_that_somebody_else_had_a_hand_in_is_made_anew() {
    let configfs = tdx();
    configfs.machine().intruders = 2;
    let evidence = evidence(&configfs, Tee::Tdx, &DIGEST).expect("evidence");
    assert!(bound(&evidence).starts_with(&DIGEST));
    assert_eq!(configfs.machine().reports, 3);
    configfs.machine().intruders = usize::MAX;
    assert!(refusal(&configfs, Tee::Tdx).contains("written by somebody else"));
}

#[test]
fn a_tee_that_fails_is_an_error_that_says_how() {
    let configfs = tdx();
    for (errno, word) in [(Errno::EFBIG, "too large"), (Errno::EIO, "outblob"), (Errno::ENXIO, "no TEE")] {
        configfs.machine().errors = [errno].into();
        let said = refusal(&configfs, Tee::Tdx);
        assert!(said.contains(word), "{said}");
        assert_eq!(configfs.machine().reports, 0);
    }
    configfs.machine().provider = None;
    assert!(refusal(&configfs, Tee::Tdx).contains("no TEE"));
}

#[test]
fn a_report_larger_than_any_tee_makes_is_not_read_to_its_end() {
    let configfs = tdx();
    configfs.machine().report.resize(8 << 20, 0);
    assert!(refusal(&configfs, Tee::Tdx).contains("too large"));
}

#[test]
fn a_report_that_is_not_bound_to_the_exchange_is_not_sent() {
    for (configfs, tee) in [(tdx(), Tee::Tdx), (snp(), Tee::Snp)] {
        configfs.machine().binds = false;
        assert!(refusal(&configfs, tee).contains("bound to something else"));
    }
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let configfs = tdx();
    configfs.machine().always = Some(Errno::EWOULDBLOCK);
    let mut killed = attest(&configfs, "tdx").spawn().expect("the program starts");
    wait_until("the request", || !configfs.machine().requests().is_empty());
    killed.kill().expect("it is our child");
    killed.wait().expect("it is our child");
    assert_eq!(configfs.machine().requests(), ["coffer"]);
    configfs.machine().always = None;
    evidence(&configfs, Tee::Tdx, &DIGEST).expect("evidence");
}

#[test]
fn whoever_asks_at_the_same_time_waits() {
    let configfs = tdx();
    thread::scope(|scope| {
        let askers: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn({
                    let configfs = &configfs;
                    move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                        let tsm = Tsm::new(configfs.directory().into(), Tee::Tdx);
                        runtime.block_on(tsm.evidence(&[number; 48]))
                    }
                })
            })
            .collect();
        for (number, asker) in (0..).zip(askers) {
            let evidence = asker.join().expect("no panic").expect("evidence");
            assert!(bound(&evidence).starts_with(&[number; 48]));
        }
    });
    let machine = configfs.machine();
    assert_eq!((machine.reports, machine.requests().len()), (8, 0));
}

#[test]
fn a_kernel_without_a_tee_proves_nothing_in_its_place() {
    shell("modprobe tsm && (mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config)");
    for attester in ["tdx", "snp", "tsm"] {
        let output = Command::new("coffer").args(["attest", "--attester", attester]).output();
        let said = complaint(output.expect("the program starts"));
        assert!(said.contains("AttesterUnavailable: ") && said.contains("no TEE"), "{said}");
    }
    // Although the machine has a TPM.
    let said = complaint(Command::new("coffer").arg("attest").output().expect("the program starts"));
    assert!(said.contains("--attester"), "{said}");
    assert_eq!(shell("ls /sys/kernel/config/tsm/report"), "");
}
