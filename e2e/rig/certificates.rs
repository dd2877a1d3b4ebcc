//! A certificate authority of the rig's own, made anew for every rig.
//!
//! Its names are loopback and the address under which a guest on QEMU's user network sees the host.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;

use crate::machine::HOST_IN_GUEST;

/// Under which addresses and names the API server answers.
const NAMES: [&str; 5] = ["localhost", "127.0.0.1", HOST_IN_GUEST, "10.96.0.1", "kubernetes.default.svc"];

/// Writes `ca.crt`, `server.crt`, `server.key` and the pair `service-account.key` and `.pub` into `dir`.
pub(crate) fn write(dir: &Path) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "coffer rig");
    fs::write(dir.join("ca.crt"), ca.self_signed(&ca_key)?.pem())?;

    let key = KeyPair::generate()?;
    let server = CertificateParams::new(NAMES.map(str::to_owned).to_vec())?;
    let issuer = Issuer::new(ca, ca_key);
    fs::write(dir.join("server.crt"), server.signed_by(&key, &issuer)?.pem())?;
    fs::write(dir.join("server.key"), key.serialize_pem())?;

    // Service account tokens are signed with a key of their own, as in any cluster.
    let service_account = KeyPair::generate()?;
    fs::write(dir.join("service-account.key"), service_account.serialize_pem())?;
    fs::write(dir.join("service-account.pub"), service_account.public_key_pem())?;
    Ok(())
}
