//! Bytes that must not leave the call they were fetched for.

mod locked;
mod stack;

pub use stack::wiping_the_stack;

use std::fmt;
use std::io;

use super::Error;
use super::Reason;
use super::Result;
use locked::Locked;

/// Secret bytes of any length. They cannot be displayed, compared, serialised or cloned; `Debug` shows their number. They
/// are in memory that is locked and in no core dump, and are zeroed when dropped.
pub struct SecretBytes(Locked);

impl SecretBytes {
    /// A secret of `length_bytes` that `fill` writes over zeroes, so that there is no other copy.
    ///
    /// # Errors
    /// `MemoryUnprotected` if the kernel does not lock the memory, and what `fill` says.
    pub fn filled(length_bytes: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut bytes = Locked::zeroed(length_bytes).map_err(unprotected)?;
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Takes `bytes` over, which are zeroed.
    ///
    /// # Panics
    /// If the kernel does not lock the memory.
    #[cfg(any(test, feature = "dev"))]
    #[must_use]
    pub fn new(bytes: zeroize::Zeroizing<Vec<u8>>) -> Self {
        let copy = |locked: &mut [u8]| {
            locked.copy_from_slice(&bytes);
            Ok(())
        };
        Self::filled(bytes.len(), copy).expect("a test may lock its memory")
    }

    /// The bytes, for the one call that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as lower-case hexadecimal text, which is how a keyslot's passphrase is spelled.
    ///
    /// # Errors
    /// `MemoryUnprotected` if the kernel does not lock the memory.
    pub fn to_hex(&self) -> Result<Self> {
        Self::filled(self.0.len() * 2, |text| {
            hex::encode_to_slice(self.expose(), text).expect("the buffer has two digits for each byte");
            Ok(())
        })
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

fn unprotected(cause: io::Error) -> Error {
    let message = "memory for keys cannot be locked: give the driver CAP_IPC_LOCK, or raise RLIMIT_MEMLOCK";
    Error::new(Reason::MemoryUnprotected, message).caused_by(cause)
}

#[cfg(test)]
mod tests;
