//! How a KBS is reached: HTTPS to a server that one given CA signed, and nothing that could lead elsewhere.
//!
//! No system CAs, no proxy from the environment, no redirect, no retry behind our back, no resumed TLS session.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use reqwest::{Client, Url, redirect, retry};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};

use crate::key::evidence::Attester;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// Address and trust, checked once.
pub(super) struct Transport {
    base: Url,
    tls: ClientConfig,
}

impl Transport {
    /// # Errors
    /// `InvalidArgument` that names the flag and what is accepted.
    pub(super) fn new(
        url: &str,
        ca_file: Option<&Path>,
        allow_insecure_http: bool,
        attester: &Attester,
    ) -> Result<Self> {
        let base = base_address(url)?;
        let roots = match (base.scheme(), ca_file) {
            ("https", Some(path)) => pinned_roots(path)?,
            ("https", None) => {
                return Err(Error::invalid(
                    "--kbs-ca",
                    "is needed: the PEM file of the CA that signed the KBS's certificate",
                ));
            }
            _ if !allow_insecure_http => {
                return Err(Error::invalid(
                    "--kbs-url",
                    "must begin with https:// (http:// only with --insecure-kbs-http)",
                ));
            }
            _ if attester.is_genuine() => {
                return Err(Error::invalid("--insecure-kbs-http", "is accepted only together with --attester sample"));
            }
            _ => RootCertStore::empty(),
        };
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.resumption = Resumption::disabled();
        Ok(Self { base, tls })
    }

    /// `.../kbs/v0/`.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// A client with no connection yet; those that it makes are closed when it is dropped.
    pub(super) fn connection(&self) -> Result<Client> {
        Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .user_agent(concat!("coffer/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| Error::new(Reason::Internal, "no HTTP client could be made").caused_by(cause))
    }
}

fn base_address(url: &str) -> Result<Url> {
    let form =
        || Error::invalid("--kbs-url", "must be https://<host>[:<port>][/<path>] without user, query or fragment");
    let mut base = Url::parse(url).map_err(|_| form())?;
    let plain =
        base.username().is_empty() && base.password().is_none() && base.query().is_none() && base.fragment().is_none();
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() || !plain {
        return Err(form());
    }
    base.path_segments_mut().map_err(|()| form())?.pop_if_empty().extend(["kbs", "v0", ""]);
    Ok(base)
}

fn pinned_roots(path: &Path) -> Result<RootCertStore> {
    let refused = |what: &str| Error::invalid("--kbs-ca", format!("{} {what}", path.display()));
    let pem = std::fs::read(path).map_err(|cause| refused("cannot be read").caused_by(cause))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|cause| refused("is not PEM").caused_by(cause))?;
        roots.add(certificate).map_err(|cause| refused("holds a certificate that is not a CA's").caused_by(cause))?;
    }
    if roots.is_empty() { Err(refused("holds no certificate in PEM form")) } else { Ok(roots) }
}

/// What a request's failure below HTTP means.
pub(super) fn failed(base: &Url, cause: reqwest::Error) -> Error {
    let cause = cause.without_url();
    let kbs = format!("the KBS at {}", base.authority());
    let (reason, message) = if let Some(tls) = find::<rustls::Error>(&cause) {
        describe_tls(&kbs, tls)
    } else if cause.is_timeout() {
        (Reason::KbsTimeout, format!("{kbs} did not answer in time"))
    } else if cause.is_connect() {
        (Reason::KbsUnreachable, format!("{kbs} cannot be reached; is it up, is --kbs-url right?"))
    } else if find::<io::Error>(&cause).is_some_and(is_of_the_connection) {
        (Reason::KbsUnreachable, format!("the connection to {kbs} broke"))
    } else {
        (Reason::KbsProtocol, format!("{kbs} sent something that is not HTTP, or ended in the middle of its answer"))
    };
    let error = Error::new(reason, message);
    // That cause repeats what the certificate says, and whoever answers in the place of the KBS has written it.
    if reason == Reason::KbsUntrusted { error } else { error.caused_by(cause) }
}

/// The decoder of chunks tells of what it does not understand as an error of input, too.
fn is_of_the_connection(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}

fn describe_tls(kbs: &str, error: &rustls::Error) -> (Reason, String) {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return (Reason::KbsProtocol, format!("{kbs} does not speak TLS that this driver accepts (1.2 or 1.3)"));
    };
    let why = match certificate {
        // BadSignature: by a CA of the same name with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "was not signed by the CA in --kbs-ca",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is not for the host name in --kbs-url"
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "is not valid at this time; compare its dates with this node's clock"
        }
        _ => "is not one that this driver accepts",
    };
    (Reason::KbsUntrusted, format!("the certificate of {kbs} {why}; nothing was sent to it"))
}

/// The first error of type `T` behind `error`, also inside I/O errors, which hide what they wrap from `source`.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        next = match current.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => current.source(),
        };
    }
    None
}

#[cfg(all(test, feature = "dev"))]
mod tests {
    use super::*;

    fn refused(url: &str, ca_file: Option<&str>, allow_insecure_http: bool) -> String {
        let outcome = Transport::new(url, ca_file.map(Path::new), allow_insecure_http, &Attester::Sample);
        outcome.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn each_wrong_configuration_names_its_flag() {
        for url in
            ["", "kbs", "ftp://kbs", "https://", "https://me@kbs", "https://kbs/?a", "https://kbs/#a", "unix:/kbs"]
        {
            assert!(refused(url, None, true).starts_with("InvalidArgument: --kbs-url"), "{url}");
        }
        assert!(refused("http://kbs", None, false).contains("--insecure-kbs-http"));
        assert!(refused("https://kbs", None, true).starts_with("InvalidArgument: --kbs-ca"));
        assert!(refused("https://kbs", Some("/nonexistent"), false).starts_with("InvalidArgument: --kbs-ca"));
        assert!(refused("https://kbs", Some("/dev/null"), false).contains("no certificate"));
        assert_eq!(refused("http://kbs", None, true), "");
    }

    #[cfg(feature = "tpm")]
    #[test]
    fn evidence_that_proves_something_never_goes_over_plain_http() {
        let tpm = crate::key::evidence::Tpm::new("device:/dev/tpmrm0", None).expect("configured");
        let outcome = Transport::new("http://kbs", None, true, &Attester::Tpm(tpm));
        assert!(outcome.err().expect("refused").to_string().contains("--attester sample"));
    }

    #[test]
    fn the_protocol_prefix_follows_the_path_of_the_address() {
        for (url, base) in [
            ("http://kbs:8080", "http://kbs:8080/kbs/v0/"),
            ("http://kbs/", "http://kbs/kbs/v0/"),
            ("http://kbs/trust/a", "http://kbs/trust/a/kbs/v0/"),
            ("http://kbs/trust/a/", "http://kbs/trust/a/kbs/v0/"),
        ] {
            assert_eq!(base_address(url).expect("an address").as_str(), base);
        }
    }
}
