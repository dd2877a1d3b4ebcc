//! One call from start to end: its span, its log lines, its deadline. Errors are logged here and nowhere below.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use tracing::{Instrument, Span, debug, error, field, info_span, warn};

use super::status;
use crate::metrics::Metrics;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// What every request of the CSI knows about itself; implemented by the generated code.
pub(super) trait Call {
    /// The name of the RPC.
    const NAME: &'static str;

    /// The volume that is spoken of; empty if none is.
    fn volume_id(&self) -> &str;
}

/// How long a deletion waits for the unstage when the caller sets no deadline.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(20);
/// How much earlier than the caller's deadline we answer, so that the answer arrives.
const MARGIN: Duration = Duration::from_millis(500);

/// Awaits `work` inside the span of `request`, counts it, and turns its result into the answer on the wire.
pub(super) async fn answer<Q, A>(
    metrics: &Metrics,
    request: &Q,
    work: impl Future<Output = Result<A>>,
) -> Result<Response<A>, Status>
where
    Q: Call + Debug,
{
    let span = info_span!("call", rpc = Q::NAME, volume = field::Empty);
    if !request.volume_id().is_empty() {
        span.record("volume", request.volume_id());
    }
    async {
        debug!(?request, "asked");
        let started = Instant::now();
        let outcome = work.await;
        metrics.operation(Q::NAME, outcome.as_ref().err().map(Error::reason), started.elapsed());
        match outcome {
            Ok(answer) => {
                debug!("answered");
                Ok(Response::new(answer))
            }
            Err(refusal) => {
                let status = status::of(&refusal);
                match refusal.reason() {
                    Reason::Internal => error!(code = ?status.code(), "{}", status.message()),
                    _ => warn!(code = ?status.code(), "{}", status.message()),
                }
                Err(status)
            }
        }
    }
    .instrument(span)
    .await
}

/// Names the volume of a call whose request does not.
pub(super) fn concerns(volume: &impl std::fmt::Display) {
    Span::current().record("volume", field::display(volume));
}

/// When a call that waits for something has to answer: before the caller's own deadline.
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    let patience = metadata
        .get("grpc-timeout")
        .and_then(|value| grpc_timeout(value.to_str().ok()?))
        .map_or(DEFAULT_PATIENCE, |timeout| timeout.saturating_sub(MARGIN.min(timeout / 2)));
    let now = Instant::now();
    now.checked_add(patience).unwrap_or(now + DEFAULT_PATIENCE)
}

/// The header `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, section Requests).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::csi;

    #[test]
    fn a_timeout_has_digits_and_a_unit() {
        assert_eq!(grpc_timeout("60S"), Some(Duration::from_secs(60)));
        assert_eq!(grpc_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1é"] {
            assert_eq!(grpc_timeout(text), None, "{text}");
        }
    }

    #[test]
    fn a_deadline_comes_before_the_callers() {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "10S".parse().expect("a header value"));
        let left = deadline(&metadata) - Instant::now();
        assert!(left < Duration::from_secs(10) && left > Duration::from_secs(9), "{left:?}");
        let left = deadline(&MetadataMap::new()) - Instant::now();
        assert!(left <= DEFAULT_PATIENCE && left > Duration::from_secs(19), "{left:?}");
    }

    #[test]
    fn no_request_shows_what_may_be_secret() {
        let canary = || std::collections::HashMap::from([("token".to_owned(), "canary".to_owned())]);
        let mount = csi::volume_capability::MountVolume { mount_flags: vec!["canary".into()], ..Default::default() };
        let capability = csi::VolumeCapability {
            access_type: Some(csi::volume_capability::AccessType::Mount(mount)),
            ..Default::default()
        };
        let shown = [
            format!("{:?}", csi::CreateVolumeRequest { name: "shown".into(), secrets: canary(), ..Default::default() }),
            format!("{:?}", csi::DeleteVolumeRequest { volume_id: "shown".into(), secrets: canary() }),
            format!(
                "{:?}",
                csi::ValidateVolumeCapabilitiesRequest {
                    volume_id: "shown".into(),
                    secrets: canary(),
                    volume_context: canary(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                csi::NodeStageVolumeRequest {
                    volume_id: "shown".into(),
                    volume_capability: Some(capability.clone()),
                    secrets: canary(),
                    publish_context: canary(),
                    volume_context: canary(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                csi::NodePublishVolumeRequest {
                    volume_id: "shown".into(),
                    volume_capability: Some(capability),
                    secrets: canary(),
                    publish_context: canary(),
                    volume_context: canary(),
                    ..Default::default()
                }
            ),
            format!("{:?} shown", csi::NodeGetStorageHealthRequest { secrets: canary() }),
            format!("{:?} shown", csi::ControllerListVolumeHealthRequest { secrets: canary(), ..Default::default() }),
            format!("{:?}", csi::ControllerGetVolumeHealthRequest { volume_id: "shown".into(), secrets: canary() }),
        ];
        for text in shown {
            assert!(text.contains("shown") && !text.contains("canary"), "{text}");
        }
    }
}
