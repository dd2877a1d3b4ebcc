//! What is said of a volume in its resource. Nothing here asks or does anything.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::cluster::EncryptedVolume;
use crate::cluster::EncryptedVolumeStatus;
use crate::cluster::News;
use crate::cluster::Phase;
use crate::cluster::condition;
use crate::lifecycle::Sighting;
use crate::volume::ERASURE;
use crate::volume::Error;
use crate::volume::HealthStatus;
use crate::volume::Reason;
use crate::volume::erasure_receipt;

/// The word for a volume with which nothing is wrong.
const HEALTHY: &str = "Healthy";

/// The node has made the volume, and it looks like this.
pub(super) fn provisioned(volume: &EncryptedVolume, sighting: &Sighting) -> EncryptedVolumeStatus {
    let mut status = seen(volume, sighting);
    say(&mut status, volume, condition::PROVISIONED, Ok(("Provisioned", "the node has made the volume".into())));
    status
}

/// The node will not make the volume, and has nothing of it.
pub(super) fn rejected(volume: &EncryptedVolume, error: &Error) -> EncryptedVolumeStatus {
    let mut status = pending(volume, error);
    status.phase = Some(Phase::Rejected);
    status
}

/// The node could not make the volume yet.
pub(super) fn pending(volume: &EncryptedVolume, error: &Error) -> EncryptedVolumeStatus {
    let mut status = before(volume);
    say(&mut status, volume, condition::PROVISIONED, Err(error));
    status
}

/// Nothing of the volume is left on the node.
pub(super) fn erased(volume: &EncryptedVolume) -> EncryptedVolumeStatus {
    let mut status = before(volume);
    status.phase = Some(Phase::Deleted);
    let receipt = erasure_receipt(Some(&volume.spec.key_uri));
    say(&mut status, volume, condition::ERASED, Ok((ERASURE, receipt)));
    status
}

/// The volume could not be erased yet.
pub(super) fn not_erased(volume: &EncryptedVolume, error: &Error) -> EncryptedVolumeStatus {
    let mut status = before(volume);
    say(&mut status, volume, condition::ERASED, Err(error));
    status
}

/// The volume has moved to the key that its resource names.
pub(super) fn rotated(volume: &EncryptedVolume, sighting: &Sighting) -> EncryptedVolumeStatus {
    let mut status = seen(volume, sighting);
    say_rotated(&mut status, volume);
    status
}

/// The volume could not be moved to that key, and opens as before.
pub(super) fn not_rotated(volume: &EncryptedVolume, sighting: &Sighting, error: &Error) -> EncryptedVolumeStatus {
    let mut status = seen(volume, sighting);
    say(&mut status, volume, condition::KEY_ROTATED, Err(error));
    status
}

/// The volume as it is.
pub(super) fn seen(volume: &EncryptedVolume, sighting: &Sighting) -> EncryptedVolumeStatus {
    let mut status = before(volume);
    status.phase = Some(match (sighting.is_open, sighting.is_ready) {
        (true, _) => Phase::Staged,
        (false, true) => Phase::Ready,
        (false, false) => Phase::Provisioned,
    });
    status.ever_ready |= sighting.is_ready;
    if let Some(release) = &sighting.release {
        status.attester = Some(release.attester.clone());
        status.last_attested = release.at.parse().ok().map(Time);
    }
    if let Some(refusal) = sighting.refusal.as_ref().filter(|_| !sighting.is_open) {
        let refused = (refusal.reason.as_str(), refusal.message.clone());
        put(&mut status, volume, condition::OPENED, "False", refused);
    } else if sighting.is_open {
        let text = "the node proved what it is, and its key was released";
        say(&mut status, volume, condition::OPENED, Ok(("Attested", text.into())));
    }
    status.integrity_errors = i64::try_from(sighting.bad_sectors).ok();
    // A refused rotation that was taken back, or done by hand.
    if sighting.opens_with(&volume.spec.key_uri) && volume.condition(condition::KEY_ROTATED).is_some() {
        say_rotated(&mut status, volume);
    }
    let worst = sighting.health.iter().max_by_key(|entry| entry.status);
    status.health = Some(worst.map_or_else(|| HEALTHY.to_owned(), |entry| entry.status.to_string()));
    match worst {
        Some(entry) => {
            let wrong = (entry.reason.as_str(), entry.message.clone());
            put(&mut status, volume, condition::HEALTHY, "False", wrong);
        }
        None => say(&mut status, volume, condition::HEALTHY, Ok((HEALTHY, "nothing is wrong".into()))),
    }
    status
}

/// The volume was made and cannot be looked at.
pub(super) fn unseen(volume: &EncryptedVolume, error: &Error) -> EncryptedVolumeStatus {
    let mut status = before(volume);
    status.health = Some(HealthStatus::Inaccessible.to_string());
    say(&mut status, volume, condition::HEALTHY, Err(error));
    status
}

/// What `status` says that `volume` did not say before, as far as somebody wants to be told: whatever is refused or found
/// wrong, once under each word, that the volume has moved to another key, and that it is no more.
pub(super) fn news(volume: &EncryptedVolume, status: &EncryptedVolumeStatus) -> Vec<News> {
    let mut news: Vec<News> = Vec::new();
    // In this order: a refused stage also makes a volume unhealthy, under the same word.
    for (kind, action) in [
        (condition::PROVISIONED, "Create"),
        (condition::OPENED, "Stage"),
        (condition::KEY_ROTATED, "Rotate"),
        (condition::ERASED, "Delete"),
        (condition::HEALTHY, "Look"),
    ] {
        let Some(now) = status.conditions.iter().find(|condition| condition.type_ == kind) else { continue };
        let failed = now.status == "False";
        // A claim is let go before its volume is closed: that is how every deletion begins.
        let warning = failed && now.reason != Reason::StillStaged.as_str();
        let is_news = failed || kind == condition::ERASED || kind == condition::KEY_ROTATED;
        let is_old = volume.condition(kind).is_some_and(|was| {
            // Of the same word, a key elsewhere is another key.
            let is_same = kind != condition::KEY_ROTATED || was.message == now.message;
            (&was.status, &was.reason) == (&now.status, &now.reason) && is_same
        });
        let reason = if kind == condition::ERASED && !failed { "Deleted".to_owned() } else { now.reason.clone() };
        if is_news && !is_old && news.iter().all(|told| told.reason != reason) {
            news.push(News { warning, reason, action, note: now.message.clone() });
        }
    }
    news
}

fn say_rotated(status: &mut EncryptedVolumeStatus, volume: &EncryptedVolume) {
    let text = format!("the secret at {} opens the volume, and no other", volume.spec.key_uri);
    say(status, volume, condition::KEY_ROTATED, Ok(("Rotated", text)));
}

fn before(volume: &EncryptedVolume) -> EncryptedVolumeStatus {
    volume.status.clone().unwrap_or_default()
}

fn say(
    status: &mut EncryptedVolumeStatus,
    volume: &EncryptedVolume,
    kind: &str,
    outcome: Result<(&str, String), &Error>,
) {
    match outcome {
        Ok(said) => put(status, volume, kind, "True", said),
        Err(error) => put(status, volume, kind, "False", (error.reason().as_str(), error.explanation())),
    }
}

/// Puts one condition in its place. Its time moves only when its status does.
fn put(
    status: &mut EncryptedVolumeStatus,
    volume: &EncryptedVolume,
    kind: &str,
    truth: &str,
    (reason, message): (&str, String),
) {
    let earlier = volume.condition(kind).filter(|condition| condition.status == truth);
    let condition = Condition {
        type_: kind.to_owned(),
        status: truth.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: volume.metadata.generation,
        last_transition_time: earlier
            .map_or_else(|| Time(Timestamp::now()), |condition| condition.last_transition_time.clone()),
    };
    status.conditions.retain(|condition| condition.type_ != kind);
    status.conditions.push(condition);
    status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::EncryptedVolumeSpec;
    use crate::cluster::Quantity;
    use crate::provision::Refusal;
    use crate::volume::Content;
    use crate::volume::HealthEntry;
    use crate::volume::HealthStatus;
    use crate::volume::Init;
    use crate::volume::KeyUri;
    use crate::volume::Profile;
    use crate::volume::Reason;

    fn volume() -> EncryptedVolume {
        let spec = EncryptedVolumeSpec {
            node_name: "node1".into(),
            pool: "default".into(),
            name: "pvc-1".into(),
            size: Quantity(1 << 20),
            content: Content::Block,
            profile: Profile::Xts1,
            init: Init::Seeded,
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: None,
        };
        EncryptedVolume::new("cv-1", spec)
    }

    /// The words of what is told when `status` is written, which is then what `volume` says.
    fn told(volume: &mut EncryptedVolume, status: EncryptedVolumeStatus) -> Vec<String> {
        let told = news(volume, &status);
        volume.status = Some(status);
        let sign = |news: &News| if news.warning { "!" } else { "" };
        told.iter().map(|news| format!("{}{} {}", sign(news), news.action, news.reason)).collect()
    }

    fn refused(reason: Reason) -> Sighting {
        let word = reason.to_string();
        let health =
            vec![HealthEntry { status: HealthStatus::Inaccessible, reason: word.clone(), message: "no".into() }];
        let refusal = Some(Refusal { reason: word, message: "no".into(), at: "2026-01-01T00:00:00Z".into() });
        let key_uris = vec![KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid")];
        Sighting { is_ready: true, key_uris, is_open: false, refusal, release: None, bad_sectors: 0, health }
    }

    #[test]
    fn each_refusal_is_told_once_until_something_else_is_said() {
        let mut volume = volume();
        let full = Error::new(Reason::PoolMissing, "away");
        let status = pending(&volume, &full);
        assert_eq!(told(&mut volume, status), ["!Create PoolMissing"]);
        let status = pending(&volume, &full);
        assert!(told(&mut volume, status).is_empty());
        let open = Sighting { is_open: true, refusal: None, health: Vec::new(), ..refused(Reason::Internal) };
        let status = provisioned(&volume, &Sighting { is_open: false, is_ready: false, ..open.clone() });
        assert!(told(&mut volume, status).is_empty());
        for _ in 0..2 {
            let status = seen(&volume, &refused(Reason::PolicyDenied));
            assert_eq!(told(&mut volume, status), ["!Stage PolicyDenied"]);
            let status = seen(&volume, &refused(Reason::PolicyDenied));
            assert!(told(&mut volume, status).is_empty());
            let status = seen(&volume, &open);
            assert!(told(&mut volume, status).is_empty());
        }
        let status = unseen(&volume, &Error::new(Reason::RecordTampered, "changed"));
        assert_eq!(told(&mut volume, status), ["!Look RecordTampered"]);
        let lost = |bad_sectors| {
            let health = HealthEntry {
                status: HealthStatus::DataLoss,
                reason: Reason::IntegrityError.to_string(),
                message: format!("{bad_sectors}"),
            };
            Sighting { bad_sectors, health: vec![health], ..open.clone() }
        };
        for (bad_sectors, news) in [(0, [].as_slice()), (1, &["!Look IntegrityError"]), (2, &[])] {
            let sighting = if bad_sectors == 0 { open.clone() } else { lost(bad_sectors) };
            let status = seen(&volume, &sighting);
            assert_eq!(status.integrity_errors, i64::try_from(bad_sectors).ok());
            assert_eq!(told(&mut volume, status), news);
        }
        let status = not_erased(&volume, &Error::new(Reason::StillStaged, "in use"));
        assert_eq!(told(&mut volume, status), ["Delete StillStaged"]);
        let status = erased(&volume);
        assert_eq!(told(&mut volume, status), ["Delete Deleted"]);
    }

    #[test]
    fn the_receipt_says_what_was_erased_and_what_that_proves() {
        let volume = volume();
        let status = erased(&volume);
        let told = news(&volume, &status);
        let condition = status.conditions.iter().find(|said| said.type_ == condition::ERASED).expect("said");
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "Keyslots"));
        assert_eq!(told.len(), 1);
        for text in [&condition.message, &told[0].note] {
            assert!(text.contains("keyslots") && text.contains("copies") && text.contains("kbs:///a/b/c"), "{text}");
        }
    }

    #[test]
    fn each_key_that_a_volume_has_moved_to_or_cannot_is_told_once() {
        let mut volume = volume();
        let sighting = |uri: &KeyUri| Sighting { key_uris: vec![uri.clone()], ..refused(Reason::Internal) };
        let [first, second] = ["kbs:///a/b/d", "kbs:///a/b/e"].map(|uri| KeyUri::parse("keyUri", uri).expect("valid"));
        let old = sighting(&volume.spec.key_uri);
        let status = seen(&volume, &old);
        told(&mut volume, status);
        for uri in [&first, &second] {
            volume.spec.key_uri = uri.clone();
            for expected in [&["!Rotate KeyNotFound"][..], &[]] {
                let status = not_rotated(&volume, &old, &Error::new(Reason::KeyNotFound, format!("none at {uri}")));
                assert_eq!(told(&mut volume, status), expected);
            }
            let status = rotated(&volume, &old);
            assert_eq!(told(&mut volume, status), ["Rotate Rotated"]);
            let status = seen(&volume, &sighting(uri));
            assert_eq!(told(&mut volume, status), [""; 0]);
        }
        volume.spec.key_uri = first.clone();
        let status = not_rotated(&volume, &sighting(&second), &Error::new(Reason::PolicyDenied, "no"));
        assert_eq!(told(&mut volume, status), ["!Rotate PolicyDenied"]);
        volume.spec.key_uri = second.clone();
        let status = seen(&volume, &sighting(&second));
        assert_eq!(told(&mut volume, status), ["Rotate Rotated"]);
    }
}
