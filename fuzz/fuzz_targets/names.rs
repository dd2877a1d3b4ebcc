//! Volume ids, pools and templates of key URIs, as a request or a StorageClass gives them.
//!
//! Input: the template, the claim's namespace, the claim's name and the id, a line each.

#![no_main]

use coffer::volume::{Claim, KeyUri, KeyUriTemplate, Place, PoolName, Reason, VolumeId};
use coffer_fuzz::assert_fit_to_show;
use libfuzzer_sys::fuzz_target;

/// Longest name of a device-mapper device without the NUL behind it (`DM_NAME_LEN` in `linux/dm-ioctl.h`).
const MAPPER_NAME_BYTES: usize = 127;
/// Longest value of a label in Kubernetes.
const LABEL_BYTES: usize = 63;

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let [template, namespace, name, id] = [line(), line(), line(), line()];
    let id = volume_id(id);
    pool_name(name);
    place(name);
    key_uri(template, &id, None);
    key_uri(template, &id, Some(&Claim { namespace: namespace.to_owned(), name: name.to_owned() }));
});

/// The id that `text` is, or else the one of the volume with this name.
fn volume_id(text: &str) -> VolumeId {
    let parsed = VolumeId::parse(text);
    match serde_json::from_value::<VolumeId>(text.into()) {
        Ok(id) => assert_eq!(Some(&id), parsed.as_ref()),
        Err(error) => {
            assert_eq!(parsed, None);
            assert_fit_to_show(&coffer::volume::Error::invalid("id", error));
        }
    }
    let id = parsed.inspect(|id| assert_eq!(id.as_str(), text)).unwrap_or_else(|| VolumeId::for_name(text));
    assert!(!id.as_str().contains(['/', '.', '\0']) && id.as_str().is_ascii());
    assert!(id.mapper_name().len() <= MAPPER_NAME_BYTES);
    assert_eq!(VolumeId::parse(id.as_str()).as_ref(), Some(&id));
    id
}

fn pool_name(text: &str) {
    match PoolName::parse("pool", text) {
        Ok(pool) => {
            assert_eq!(pool.as_str(), text);
            assert!(text.len() <= LABEL_BYTES && !text.contains(['/', '.', '\0']) && !text.is_empty());
        }
        Err(error) => assert_fit_to_show(&error),
    }
}

fn place(node_name: &str) {
    let place = Place::of(node_name);
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    assert!((1..=LABEL_BYTES).contains(&place.as_str().len()) && place.as_str().bytes().all(is_inner));
    assert_eq!(Place::of(place.as_str()), place);
}

/// What a KBS gets to see of `template` has exactly three segments of its alphabet, whatever the claim is called.
fn key_uri(template: &str, id: &VolumeId, claim: Option<&Claim>) {
    let uri = match KeyUriTemplate(template).expand("keyUri", id, claim) {
        Ok(uri) => uri,
        Err(error) => {
            assert_eq!(error.reason(), Reason::InvalidArgument);
            return assert_fit_to_show(&error);
        }
    };
    let segments: Vec<&str> = uri.resource_path().split('/').collect();
    assert_eq!(segments.len(), 3, "{uri}");
    for segment in segments {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        assert!(!segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(is_allowed), "{uri}");
    }
    assert_eq!(uri.to_string(), format!("kbs:///{}", uri.resource_path()));
    assert_eq!(KeyUri::parse("keyUri", &uri.to_string()).expect("an expanded URI is a URI"), uri);
    assert!(!template.contains("${volume.id}") || uri.to_string().contains(id.as_str()), "{uri}");
}
