//! SEV-SNP reports in the form in which a KBS reads them, and the certificates that the host adds.
//!
//! Refused: a report of a version that the KBS does not read, of another privilege level than 0, with bytes that its JSON
//! would lose, and one that is not bound to this exchange.

use serde_json::{Value, json};
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::CertTableEntry;
use sev::parser::ByteParser;
use uuid::Uuid;

use super::{Bound, refused};
use crate::volume::Result;

/// Bytes of an `ATTESTATION_REPORT` (SEV-SNP Firmware ABI, table 23).
const REPORT_BYTES: usize = 1184;
/// Versions of the report that the KBS reads.
const VERSIONS: std::ops::RangeInclusive<u32> = 3..=5;
/// Of one entry in a table of certificates: GUID, offset and length (SEV-ES GHCB, 4.1.8.1).
const ENTRY_BYTES: usize = 24;

/// The evidence of a SEV-SNP machine, if `report` is bound to `bound`. `certificates` come from the host.
pub(super) fn evidence(report: &[u8], certificates: &[u8], bound: &Bound) -> Result<Value> {
    let report = parse(report, bound)?;
    let chain = table(certificates).ok_or_else(|| refused("the host's table of certificates is damaged"))?;
    // Without certificates the KBS finds those of the chip itself.
    let chain = Some(chain).filter(|chain| !chain.is_empty());
    Ok(json!({ "attestation_report": report, "cert_chain": chain }))
}

/// What `report`, which must be bound to `bound`, says of the machine.
pub(super) fn claims(report: &[u8], bound: &Bound) -> Result<Value> {
    let report = parse(report, bound)?;
    let (tcb, policy, platform) = (report.reported_tcb, report.policy, report.plat_info);
    Ok(json!({
        "measurement": hex::encode(report.measurement),
        "host_data": hex::encode(report.host_data),
        "chip_id": hex::encode(report.chip_id),
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "reported_tcb": {
            "fmc": tcb.fmc, "bootloader": tcb.bootloader, "tee": tcb.tee, "snp": tcb.snp, "microcode": tcb.microcode,
        },
        "policy": {
            "abi_major": policy.abi_major(), "abi_minor": policy.abi_minor(),
            "smt_allowed": policy.smt_allowed(), "migrate_ma_allowed": policy.migrate_ma_allowed(),
            "debug_allowed": policy.debug_allowed(), "single_socket_required": policy.single_socket_required(),
        },
        "plat_info": { "smt_enabled": platform.smt_enabled(), "tsme_enabled": platform.tsme_enabled() },
    }))
}

fn parse(bytes: &[u8], bound: &Bound) -> Result<AttestationReport> {
    if bytes.len() != REPORT_BYTES {
        return Err(refused(format!("the SEV-SNP report has {} bytes, not {REPORT_BYTES}", bytes.len())));
    }
    let version = bytes.first_chunk().copied().map_or(0, u32::from_le_bytes);
    if !VERSIONS.contains(&version) {
        return Err(refused(format!("the SEV-SNP report has version {version}; 3 to 5 are known")));
    }
    let report = AttestationReport::from_bytes(bytes)
        .map_err(|cause| refused("the SEV-SNP report is not understood").caused_by(cause))?;
    // The KBS makes the bytes that were signed out of the JSON again.
    if report.to_bytes().ok().is_none_or(|again| again != bytes) {
        return Err(refused("the SEV-SNP report has parts that are not understood"));
    }
    if report.vmpl != 0 {
        return Err(refused(format!("the SEV-SNP report is of privilege level {}, not 0", report.vmpl)));
    }
    if report.report_data != *bound {
        return Err(refused("the SEV-SNP report is bound to something else than this exchange"));
    }
    Ok(report)
}

/// The certificates in `bytes`, a table that a zero GUID ends; `None` if it points outside of itself. Nothing at all is a
/// table without entries.
fn table(bytes: &[u8]) -> Option<Vec<CertTableEntry>> {
    let mut entries = Vec::new();
    if bytes.is_empty() {
        return Some(entries);
    }
    for entry in bytes.chunks_exact(ENTRY_BYTES) {
        let (guid, place) = entry.split_first_chunk::<16>()?;
        let guid = Uuid::from_bytes(*guid);
        if guid.is_nil() {
            return Some(entries);
        }
        let number = |bytes: &[u8]| usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok();
        let (offset, length) = (number(&place[..4])?, number(&place[4..])?);
        let certificate = bytes.get(offset..offset.checked_add(length)?)?;
        entries.push(CertTableEntry::from_guid(&guid, certificate.to_vec()).ok()?);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &[u8] = include_bytes!("../../../../e2e/recorded/snp-report-v2.bin");
    /// Where the report has what.
    const VMPL: usize = 0x30;
    const REPORT_DATA: usize = 0x50;
    const MEASUREMENT: usize = 0x90;
    const CPUID: usize = 0x188;
    /// GUID of a VCEK in a table of certificates.
    const VCEK: [u8; 16] = 0x63da_758d_e664_4564_adc5_f4b9_3be8_accd_u128.to_be_bytes();

    /// The recorded report as one of `version`: see `e2e/recorded/README.md`.
    fn report(version: u8) -> Vec<u8> {
        let mut report = RECORDED.to_vec();
        report[0] = version;
        report[CPUID..][..3].copy_from_slice(&[0x19, 0x01, 0x01]);
        report
    }

    fn bound() -> Bound {
        *RECORDED[REPORT_DATA..].first_chunk().expect("64 bytes")
    }

    fn refusal(report: &[u8]) -> String {
        evidence(report, &[], &bound()).expect_err("refused").explanation()
    }

    #[test]
    fn the_evidence_is_the_report_as_a_kbs_reads_it() {
        for version in 3..=5 {
            let report = report(version);
            let evidence = evidence(&report, &[], &bound()).expect("evidence");
            let json = &evidence["attestation_report"];
            assert_eq!((&json["version"], &json["vmpl"], &json["sig_algo"]), (&version.into(), &0.into(), &1.into()));
            assert_eq!(json["policy"], 0x3_0000);
            assert_eq!(json["cpuid_fam_id"], 0x19);
            assert_eq!(json["report_data"], json!(bound().to_vec()));
            assert_eq!(json["measurement"], json!(report[MEASUREMENT..][..48]));
            assert_eq!(
                json["reported_tcb"],
                json!({ "fmc": null, "bootloader": 3, "tee": 0, "snp": 8, "microcode": 115 })
            );
            assert_eq!(json["launch_mit_vector"], if version == 5 { json!(0) } else { json!(null) });
            assert_eq!(json["signature"]["r"].as_array().map(Vec::len), Some(72));
            assert_eq!(evidence["cert_chain"], json!(null));
            let again: AttestationReport = serde_json::from_value(json.clone()).expect("as the KBS reads it");
            assert_eq!(again.to_bytes().expect("bytes")[..], report);
        }
    }

    #[test]
    fn the_description_has_the_names_of_the_kbs() {
        let claims = claims(&report(3), &bound()).expect("a report");
        assert_eq!(claims["measurement"], hex::encode(&RECORDED[MEASUREMENT..][..48]));
        assert_eq!(claims["chip_id"].as_str().map(|id| id[..20].to_owned()), Some("d49554ec717f4e5b0fe6".into()));
        assert_eq!((&claims["vmpl"], &claims["host_data"]), (&json!(0), &json!("0".repeat(64))));
        assert_eq!(claims["reported_tcb"]["microcode"], 115);
        assert_eq!(claims["policy"]["debug_allowed"], false);
        assert_eq!(claims["policy"]["smt_allowed"], true);
        assert_eq!(claims["plat_info"]["smt_enabled"], true);
    }

    #[test]
    fn the_recorded_version_is_too_old() {
        assert!(refusal(RECORDED).contains("version 2"));
        assert!(refusal(&report(6)).contains("version 6"));
    }

    #[test]
    fn a_report_of_another_exchange_is_refused() {
        for at in [0, 47, 48, 63] {
            let mut other = bound();
            other[at] ^= 1;
            let error = evidence(&report(3), &[], &other).expect_err("another exchange");
            assert!(error.explanation().contains("bound to something else"), "{at}: {error}");
        }
    }

    #[test]
    fn another_form_or_privilege_level_is_refused() {
        let changed = |at: usize| {
            let mut report = report(3);
            report[at] ^= 1;
            refusal(&report)
        };
        assert!(changed(VMPL).contains("privilege level 1"));
        assert!(changed(CPUID).contains("not understood"), "an unknown processor");
        assert!(changed(CPUID + 3).contains("not understood"), "a reserved byte");
        assert!(refusal(&report(3)[1..]).contains("1183 bytes"));
        assert!(refusal(&[]).contains("0 bytes"));
    }

    fn entry(guid: [u8; 16], offset: u32, length: u32) -> Vec<u8> {
        [&guid[..], &offset.to_le_bytes(), &length.to_le_bytes()].concat()
    }

    #[test]
    fn certificates_of_the_host_go_along() {
        let table = [entry(VCEK, 48, 3), entry([0; 16], 0, 0), vec![7, 8, 9], vec![0; 100]].concat();
        let evidence = evidence(&report(3), &table, &bound()).expect("evidence");
        assert_eq!(evidence["cert_chain"], json!([{ "cert_type": "VCEK", "data": [7, 8, 9] }]));
        let empty = super::evidence(&report(3), &[0; 4096], &bound()).expect("evidence");
        assert_eq!(empty["cert_chain"], json!(null));
    }

    #[test]
    fn a_table_that_points_outside_of_itself_is_refused() {
        let end = entry([0; 16], 0, 0);
        for table in [
            [entry(VCEK, 48, 4), end.clone(), vec![7, 8, 9]].concat(),
            [entry(VCEK, u32::MAX, 2), end.clone()].concat(),
            [entry(VCEK, 0, u32::MAX), end].concat(),
            entry(VCEK, 0, 24),
            vec![0; 10],
        ] {
            let error = evidence(&report(3), &table, &bound()).expect_err("outside");
            assert!(error.explanation().contains("table of certificates"), "{error}");
        }
    }
}
