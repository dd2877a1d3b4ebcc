//! Keys as something to search for: in every spelling in which one could be written down, and in part.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer::key::VolumeKeys;

/// Any so many bytes of a spelling, counted from its beginning, are a find: half of a cipher's 256-bit key, and what one
/// register of a processor spills.
const PIECE_BYTES: usize = 16;
/// What HMAC's inner and outer pad are made of (RFC 2104): a key is in its state as the key XOR one of them.
const PADS: [(&str, u8); 2] = [("under HMAC's inner pad", 0x36), ("under HMAC's outer pad", 0x5c)];

/// What to search for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    /// The secret of a volume, what is derived from it, and the key that the data is encrypted with.
    pub(crate) fn of_volume(secret: &[u8], derived: &VolumeKeys, volume_key: &[u8]) -> Self {
        let passphrase = derived.passphrase.expose();
        Self::default()
            .and("the secret", secret)
            .and("the passphrase", &hex::decode(passphrase).expect("hexadecimal"))
            .and("the passphrase's text", passphrase)
            .and("the key of the seal", derived.seal.expose())
            .and("the key of the record", derived.record.expose())
            .and("the volume key", volume_key)
    }

    /// With every spelling of `key`, which is called `what`.
    pub(crate) fn and(mut self, what: &str, key: &[u8]) -> Self {
        let spellings = [
            ("as it is", key.to_vec()),
            ("in hexadecimal", hex::encode(key).into_bytes()),
            ("in upper-case hexadecimal", hex::encode_upper(key).into_bytes()),
            ("in base64", STANDARD.encode(key).into_bytes()),
            ("in base64url", URL_SAFE_NO_PAD.encode(key).into_bytes()),
        ];
        let padded = PADS.map(|(how, pad)| (how, key.iter().map(|byte| byte ^ pad).collect()));
        for (how, spelling) in spellings.into_iter().chain(padded) {
            let pieces = spelling.chunks_exact(PIECE_BYTES).map(|piece| (format!("{what} {how}"), piece.to_vec()));
            self.0.extend(pieces);
        }
        self
    }

    /// What of it is in `haystack`, and where.
    pub(crate) fn found_in<'a>(&'a self, haystack: &'a [u8]) -> impl Iterator<Item = (&'a str, usize)> {
        self.0.iter().flat_map(move |(what, piece)| {
            memchr::memmem::find_iter(haystack, piece).map(move |at| (what.as_str(), at))
        })
    }
}
