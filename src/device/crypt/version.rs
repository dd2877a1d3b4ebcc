//! Which libcryptsetup this process runs with. The library tells nobody but its debug log, once, when it starts.

use std::sync::OnceLock;

use libcryptsetup_rs::consts::vals::CryptDebugLevel;
use libcryptsetup_rs::consts::vals::EncryptionFormat;

use super::Scratch;

/// What precedes the version in that message (`lib/setup.c`, `init_crypto`).
const BEFORE: &str = "initialized in cryptsetup library version ";

static VERSION: OnceLock<String> = OnceLock::new();

/// The version, such as `2.7.5`; `None` if the library has started already, or no longer tells. To be asked while no
/// other thread uses libcryptsetup: meanwhile it logs at its debug level, which dumps no header and no key.
#[must_use]
pub fn version() -> Option<&'static str> {
    if let Ok(scratch) = Scratch::new()
        && let Ok(mut device) = scratch.device()
    {
        libcryptsetup_rs::set_debug_level(CryptDebugLevel::All);
        // There is no header to load; what is wanted comes before it is looked for.
        let _ = device.context_handle().load::<()>(Some(EncryptionFormat::Luks2), None);
        libcryptsetup_rs::set_debug_level(CryptDebugLevel::None);
    }
    VERSION.get().map(String::as_str)
}

/// Keeps the version if `message` tells it.
pub(super) fn notice(message: &str) {
    if let Some((_, version)) = message.split_once(BEFORE) {
        VERSION.get_or_init(|| version.trim_end().trim_end_matches('.').to_owned());
    }
}
