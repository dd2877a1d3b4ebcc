//! The server's own CA, made once, and a certificate that it signs anew at every start for the names of that start.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::state::{self, Mode};
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// Names that every certificate has.
const OWN_NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

/// TLS for `names` and the machine's own, with the CA in `ca_file` and `key_file`, which is made if it is not there.
pub(super) fn server_config(ca_file: &Path, key_file: &Path, names: &[String]) -> Result<Arc<ServerConfig>> {
    let ca_key = load_or_make_ca(ca_file, key_file)?;
    let issuer = Issuer::new(ca_params(), ca_key);

    let names: Vec<String> = OWN_NAMES.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
    let mut params = CertificateParams::new(names)
        .map_err(|cause| Error::invalid("--name", "is not a host name or an address").caused_by(cause))?;
    params.distinguished_name.push(DnType::CommonName, "Coffer development KBS");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(|cause| failed("the server's key", cause))?;
    let certificate = params.signed_by(&key, &issuer).map_err(|cause| failed("the server's certificate", cause))?;

    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key))
        .map_err(|cause| failed("TLS", cause))?;
    Ok(Arc::new(config))
}

fn load_or_make_ca(ca_file: &Path, key_file: &Path) -> Result<KeyPair> {
    if key_file.exists() {
        let pem = state::read(key_file)?.unwrap_or_default();
        let pem = std::str::from_utf8(&pem).map_err(|cause| failed("the CA's key", cause))?;
        return KeyPair::from_pem(pem).map_err(|cause| failed("the CA's key", cause));
    }
    let key = KeyPair::generate().map_err(|cause| failed("the CA's key", cause))?;
    let certificate = ca_params().self_signed(&key).map_err(|cause| failed("the CA's certificate", cause))?;
    // The key last: with it there, the certificate is there.
    state::replace(ca_file, certificate.pem().as_bytes(), Mode::Readable)?;
    state::replace(key_file, key.serialize_pem().as_bytes(), Mode::Private)?;
    Ok(key)
}

/// The same at every start, so that a certificate signed later still names its issuer.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Coffer development KBS CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn failed(what: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Reason::Internal, format!("{what} cannot be made or read")).caused_by(cause)
}
