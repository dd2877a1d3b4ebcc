//! What a kernel can do for encrypted volumes, in words.

use devicemapper::DM;
use linux_keyutils::KeyRing;
use linux_keyutils::KeyRingIdentifier;

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// The targets of the device mapper that matter to volumes.
const TARGETS: [&str; 2] = ["crypt", "integrity"];
/// From which version on a target can do something, and the word for it.
const ABILITIES: [(&str, (u32, u32), &str); 3] = [
    ("crypt", (1, 11), "discard"),
    // Takes a key from a keyring instead of from its table.
    ("crypt", (1, 15), KEYRING),
    // Marks what is discarded so that only a holder of the key can.
    ("integrity", (1, 15), "integrity-keyed-discard"),
];
const KEYRING: &str = "keyring";

/// Name and version of one target of the device mapper.
type Target = (String, u32, u32, u32);

/// The words for this kernel. A target whose module was not needed yet has none.
pub(super) fn of_this_kernel() -> Result<Vec<String>> {
    let unreadable = |error| Error::new(Reason::Internal, "the device mapper tells no versions").caused_by(error);
    let targets = DM::new().and_then(|dm| dm.list_versions()).map_err(unreadable)?;
    let has_keyring = KeyRing::from_special_id(KeyRingIdentifier::Thread, true).is_ok();
    Ok(words(&targets, has_keyring))
}

fn words(targets: &[Target], has_keyring: bool) -> Vec<String> {
    let version = |wanted: &str| {
        targets
            .iter()
            .filter(|(name, ..)| name == wanted)
            .map(|(_, major, minor, patch)| (*major, *minor, *patch))
            .max()
    };
    let versions = TARGETS.iter().filter_map(|target| {
        let (major, minor, patch) = version(target)?;
        Some(format!("dm-{target}-{major}.{minor}.{patch}"))
    });
    let can =
        |target: &str, least: (u32, u32)| version(target).is_some_and(|(major, minor, _)| (major, minor) >= least);
    let abilities = ABILITIES
        .iter()
        .filter(|(target, least, word)| can(target, *least) && (*word != KEYRING || has_keyring))
        .map(|(_, _, word)| (*word).to_owned());
    versions.chain(abilities).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_told_by_its_targets() {
        let crypt = |minor| ("crypt".to_owned(), 1, minor, 0);
        let integrity = |minor| ("integrity".to_owned(), 1, minor, 0);
        let linear = ("linear".to_owned(), 1, 4, 0);
        assert!(words(std::slice::from_ref(&linear), true).is_empty());
        assert_eq!(words(&[linear, crypt(28)], true), ["dm-crypt-1.28.0", "discard", "keyring"]);
        assert_eq!(words(&[crypt(28)], false), ["dm-crypt-1.28.0", "discard"]);
        assert_eq!(words(&[crypt(14), integrity(13)], true), ["dm-crypt-1.14.0", "dm-integrity-1.13.0", "discard"]);
        assert!(words(&[integrity(15)], true).contains(&"integrity-keyed-discard".to_owned()));
    }
}
