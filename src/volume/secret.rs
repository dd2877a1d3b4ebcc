//! Bytes that must not leave the call they were fetched for.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes of any length. They cannot be printed, compared, serialised or cloned, and are zeroed when dropped.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of `bytes`; the caller keeps no copy.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the one call that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as lower-case hexadecimal text, which is how a keyslot's passphrase is spelled.
    #[must_use]
    pub fn to_hex(&self) -> Self {
        let mut text = Zeroizing::new(vec![0; self.0.len() * 2]);
        hex::encode_to_slice(self.expose(), &mut text).expect("the buffer has two digits for each byte");
        Self(text)
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}
