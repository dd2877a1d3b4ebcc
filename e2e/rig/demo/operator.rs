//! Chapter 1, the operator's steps: chart, pools, attestation, policy, secret.

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use super::ONLY_FIRST_URI;
use super::Story;
use crate::control_plane::NODES;
use crate::install::KEY_URI;
use crate::product_image;
use crate::traces::POOL;
use crate::wait;

/// What the image may have at most.
const IMAGE_BYTES: u64 = 150_000_000;

impl Story {
    pub(super) fn operate(&mut self, values: &Value) -> Result<()> {
        let commands = self.cluster.install(&self.kbs, values)?;
        self.check(
            "helm install, with the KBS's address and its CA; the notes name three commands",
            commands.len() == 3,
        );
        for command in &commands {
            self.follow(command)?;
        }
        self.cluster.wait_for_registration()?;
        self.check("both kubelets know the driver", true);
        self.check_image()?;
        self.check_pools()?;
        self.cluster.wait_for_capacities()?;
        self.check("the scheduler knows how much room each node has for each class", true);
        for at in 0..NODES.len() {
            self.admit(at)?;
        }
        self.store(KEY_URI, &NODES)?;
        self.store(ONLY_FIRST_URI, &NODES[..1])
    }

    /// Runs a command of the notes as it is printed.
    fn follow(&mut self, command: &str) -> Result<()> {
        let said = self.cluster.shell(command)?;
        // What a node proves takes a screen for each.
        let documents = serde_json::Deserializer::from_str(&said).into_iter::<Value>().filter_map(Result::ok);
        let proofs = documents.filter(|proof| proof["tee"] == "tpm").count();
        if proofs == 0 {
            said.lines().for_each(|line| println!("           {line}"));
        }
        let short = command.split(';').next_back().filter(|last| !last.contains("done")).unwrap_or(command);
        self.check(&format!("works as printed: {short}"), !command.contains(" attest ") || proofs == NODES.len());
        Ok(())
    }

    fn check_image(&mut self) -> Result<()> {
        let bytes = std::fs::metadata(product_image::archive()?)?.len();
        let node = &self.cluster.nodes[0];
        let help = ["coffer --help", "coffer attest --help"].map(|command| self.cluster.in_driver(node, command));
        let help = help.into_iter().collect::<Result<String>>()?;
        let is_for_evaluation = ["dev-kbs", "sample"].iter().any(|word| help.contains(word));
        let is_shipped = bytes < IMAGE_BYTES && help.contains("--attester") && !is_for_evaluation;
        self.check(
            &format!("the image is {} MB to pull, and has nothing that is for evaluation only", bytes / 1_000_000),
            is_shipped,
        );
        Ok(())
    }

    fn check_pools(&mut self) -> Result<()> {
        for node in &self.cluster.nodes {
            wait::until(wait::seconds(60), "the pools to be reported", || {
                let pool = self.cluster.plane.get("encpool", &format!("default.{}", node.name))?.unwrap_or_default();
                Ok((pool["status"]["ready"] == true).then_some(()))
            })?;
        }
        self.show("get encpool")?;
        let mut marked = true;
        for node in &self.cluster.nodes {
            marked &= node.guest.check(&format!("ls -A {POOL}"))? == "pool.json\n";
        }
        self.check("each node's pool is a directory on its own disk, with a mark and nothing else", marked);
        Ok(())
    }

    fn admit(&mut self, at: usize) -> Result<()> {
        let node = &self.cluster.nodes[at];
        let (report, said) = self.cluster.admit(&self.kbs, node)?;
        let name = node.name;
        let pcrs = report["pcrs"].as_object().map_or(0, serde_json::Map::len);
        let key = report["attestationKeySha256"].as_str().context("the attestation key has a digest")?;
        println!("           {name}: tee {}, attestation key SHA-256 {key}", report["tee"]);
        self.check(
            &format!("coffer attest on {name} shows its key and PCRs 0-23; dev-kbs register: {said}"),
            pcrs == 24,
        );
        Ok(())
    }

    fn store(&mut self, uri: &str, allowed: &[&str]) -> Result<()> {
        let said = self.cluster.store(&self.kbs, uri, allowed)?;
        self.check(&format!("coffer dev-kbs put, 32 random bytes for {}: {said}", allowed.join(" and ")), true);
        Ok(())
    }
}
