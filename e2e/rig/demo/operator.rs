//! Chapter 1, the operator's steps: pool, attestation, policy, secret.

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use super::DRIVER;
use super::KEY_URI;
use super::POD_DEADLINE;
use super::Story;
use crate::control_plane::NODE;
use crate::traces::POOL;
use crate::wait;

impl Story {
    pub(super) fn operate(&mut self) -> Result<()> {
        wait::until(POD_DEADLINE, "the driver's registration", || {
            let node = self.cluster.plane.get("csinode", NODE)?.context("the kubelet made no CSINode")?;
            let drivers = node["spec"]["drivers"].as_array().cloned().unwrap_or_default();
            Ok(drivers.iter().any(|driver| driver["name"] == DRIVER).then_some(()))
        })?;
        self.check("the driver has registered itself with the kubelet", true);
        self.cluster.guest.check(&format!("coffer pool init {POOL}"))?;
        self.check("coffer pool init made pool.json on the pool's disk", {
            self.cluster.guest.check(&format!("ls -A {POOL}"))? == "pool.json\n"
        });
        self.admit_node()?;
        self.store_secret()
    }

    /// What the node proves goes into the KBS's policy.
    fn admit_node(&mut self) -> Result<()> {
        let attestation = self.cluster.guest.check("coffer attest --attester tpm --output json")?;
        let report: Value = serde_json::from_str(&attestation).context("coffer attest prints JSON")?;
        let pcrs = report["pcrs"].as_object().map_or(0, serde_json::Map::len);
        println!("           tee {}, attestation key SHA-256 {}", report["tee"], report["attestationKeySha256"]);
        self.check("coffer attest shows tee tpm, the attestation key, its SHA-256 and PCRs 0-23", {
            report["tee"] == "tpm"
                && report["attestationKey"].is_string()
                && report["attestationKeySha256"].is_string()
                && pcrs == 24
        });
        let file = self.cluster.run.join("attest.json");
        std::fs::write(&file, &attestation)?;
        let said = self.kbs.operate(&["register", "--pcrs", "0-7", NODE, &file.to_string_lossy()])?;
        self.check(&format!("coffer dev-kbs register: {said}"), true);
        Ok(())
    }

    fn store_secret(&mut self) -> Result<()> {
        let said = self.kbs.operate(&["put", "--allow", NODE, KEY_URI])?;
        self.check(&format!("coffer dev-kbs put, 32 random bytes: {said}"), true);
        Ok(())
    }
}
