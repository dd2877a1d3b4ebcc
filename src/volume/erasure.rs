//! The receipt for a deleted volume: what was destroyed, and what that does not prove.

use super::KeyUri;

/// The word for an erasure of keyslots alone: the secret is still at the KBS.
pub const ERASURE: &str = "Keyslots";

/// The receipt in words. `key_uri` is where the volume's secret was last, if that is known.
#[must_use]
pub fn erasure_receipt(key_uri: Option<&KeyUri>) -> String {
    let secret =
        key_uri.map_or_else(|| "its secret".to_owned(), |uri| format!("the secret that opened it, last at {uri},"));
    format!(
        "whatever keyslots it had were overwritten on this node's disk, and its backing was removed. That proves nothing \
         of copies: a snapshot, a copy-on-write filesystem or remapped flash may still hold them, and whoever has such a \
         copy and {secret} can read the volume. Only destroying that secret at the KBS is certain"
    )
}

#[cfg(test)]
mod tests {
    use super::super::MESSAGE_BYTES;
    use super::*;

    #[test]
    fn a_receipt_names_the_secret_and_fits_into_an_event() {
        let segment = "s".repeat(100);
        let uri = KeyUri::parse("keyUri", &format!("kbs:///{segment}/{segment}/{segment}")).expect("valid");
        let receipt = erasure_receipt(Some(&uri));
        assert!(receipt.contains(&uri.to_string()) && receipt.len() <= MESSAGE_BYTES, "{receipt}");
        for word in ["keyslots", "overwritten", "copies", "destroying that secret"] {
            assert!(receipt.contains(word), "{receipt}");
        }
        assert!(erasure_receipt(None).contains("copy and its secret can read"));
    }
}
