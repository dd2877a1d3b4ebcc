//! The parameters of a StorageClass: names of things, never keys. Unknown ones are refused with the accepted ones
//! named, because a typo must not silently make a volume with other properties.
//!
//! Keys with the provisioner's prefix are never unknown: it passes them raw to `GetCapacity`, and an error there stops
//! all scheduling.

use std::collections::HashMap;

use super::field;
use crate::volume::Claim;
use crate::volume::Error;
use crate::volume::Init;
use crate::volume::KeyUri;
use crate::volume::KeyUriTemplate;
use crate::volume::PoolName;
use crate::volume::Profile;
use crate::volume::Result;
use crate::volume::VolumeId;

const KEY_URI: &str = "keyUri";
const PROFILE: &str = "profile";
const INIT: &str = "init";
const POOL: &str = "pool";
/// The provisioner's own keys.
const PROVISIONER: &str = "csi.storage.k8s.io/";

/// The parameters of one StorageClass, checked.
#[derive(Debug)]
pub(super) struct Class<'a> {
    key_uri: Option<KeyUriTemplate<'a>>,
    /// Cryptographic parameters.
    pub(super) profile: Profile,
    /// Which sectors get their tags before a volume is used.
    pub(super) init: Init,
    /// Which of a node's pools.
    pub(super) pool: PoolName,
    /// The claim that the provisioner works for, if it says so.
    pub(super) claim: Option<Claim>,
}

impl<'a> Class<'a> {
    /// Checks `parameters`. A class without a key URI passes: capacity does not depend on it.
    pub(super) fn parse(parameters: &'a HashMap<String, String>) -> Result<Self> {
        field::map("parameters", parameters)?;
        let mut class = Self {
            key_uri: None,
            profile: Profile::Xts1,
            init: Init::default(),
            pool: PoolName::default(),
            claim: None,
        };
        for (key, value) in parameters {
            match key.as_str() {
                KEY_URI => class.key_uri = Some(KeyUriTemplate(value)),
                PROFILE => class.profile = named(PROFILE, value, Profile::ALL, Profile::as_str)?,
                INIT => class.init = named(INIT, value, Init::ALL, Init::as_str)?,
                POOL => class.pool = PoolName::parse(&parameter(POOL), value)?,
                other if other.starts_with(PROVISIONER) => {}
                other => {
                    let text = format!(
                        "is not a parameter of this driver; {KEY_URI} (required), {PROFILE}, {INIT} and {POOL} are"
                    );
                    return Err(Error::invalid(&parameter(other), text));
                }
            }
        }
        if class.init == Init::Full && !class.profile.has_tags() {
            let text = format!("full is only for a profile with tags; {} has none", class.profile.as_str());
            return Err(Error::invalid(&parameter(INIT), text));
        }
        let claim = |name: &str| parameters.get(&format!("{PROVISIONER}pvc/{name}")).cloned();
        if let (Some(namespace), Some(name)) = (claim("namespace"), claim("name")) {
            class.claim = Some(Claim { namespace, name });
        }
        Ok(class)
    }

    /// Where the secret of the volume `id` is, for `claim` if the class asks for it.
    pub(super) fn key_uri(&self, id: &VolumeId, claim: Option<&Claim>) -> Result<KeyUri> {
        let field = parameter(KEY_URI);
        let template = self.key_uri.as_ref().ok_or_else(|| {
            Error::invalid(&field, "is required: the resource at the KBS, as kbs:///<repository>/<type>/<tag>")
        })?;
        template.expand(&field, id, claim)
    }
}

/// The one of `all` that is called `text`.
fn named<T: Copy, const N: usize>(key: &str, text: &str, all: [T; N], name: fn(T) -> &'static str) -> Result<T> {
    all.into_iter().find(|one| name(*one) == text).ok_or_else(|| {
        Error::invalid(&parameter(key), format!("{text:?} is not known; accepted: {}", all.map(name).join(", ")))
    })
}

fn parameter(key: &str) -> String {
    format!("parameters[{key:?}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_claim_comes_from_the_provisioner_and_fills_the_template() {
        let parameters = parameters(&[
            ("keyUri", "kbs:///keys/${pvc.namespace}/${pvc.name}"),
            ("profile", "xts-1"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("csi.storage.k8s.io/pvc/name", "orders"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/made-up-tomorrow", "x"),
        ]);
        let class = Class::parse(&parameters).expect("all known");
        let uri = class.key_uri(&VolumeId::for_name("x"), class.claim.as_ref()).expect("filled");
        assert_eq!(uri.to_string(), "kbs:///keys/shop/orders");
    }

    #[test]
    fn an_unknown_parameter_is_refused_with_the_accepted_ones_named() {
        let error = Class::parse(&parameters(&[("keyuri", "kbs:///a/b/c")])).expect_err("refused").to_string();
        for word in ["keyuri", "keyUri", "profile"] {
            assert!(error.contains(word), "{error}");
        }
        for (wrong, word) in [
            ([("profile", "xts-9"), ("pool", "a")], "xts-1, aead-1"),
            ([("profile", "aead-1"), ("init", "none")], "seeded, full"),
            ([("profile", "xts-1"), ("init", "full")], "only for a profile with tags"),
        ] {
            let error = Class::parse(&parameters(&wrong)).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_volume_needs_a_key_and_capacity_does_not() {
        let empty = HashMap::new();
        let class = Class::parse(&empty).expect("nothing unknown");
        assert!(class.key_uri(&VolumeId::for_name("x"), None).is_err());
    }
}
