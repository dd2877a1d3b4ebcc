//! What can go wrong with the API server, in our words.

use std::error::Error as StdError;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::controller::Error as ControllerError;
use kube::runtime::watcher;

use crate::volume::Error;
use crate::volume::Reason;

/// What it means that the API server did not let us `task`.
pub(super) fn failed(task: &str) -> impl FnOnce(kube::Error) -> Error {
    move |error| match &error {
        // Anything but overload and its own trouble is an answer that repeating does not change.
        kube::Error::Api(status) if status.code < 500 && status.code != 429 => {
            Error::new(Reason::Internal, format!("the API server refused to {task}")).caused_by(error)
        }
        _ => unreachable(task, error),
    }
}

/// The API server gave no answer.
pub(super) fn unreachable(task: &str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::new(Reason::ApiServerUnreachable, format!("cannot {task}; the driver tries again by itself"))
        .caused_by(cause)
}

/// How long a failed read or write waits.
const RETRY: Duration = Duration::from_secs(2);

/// Logs that something about `object` has not happened yet and why, and has it tried again soon.
pub(super) fn again(object: &impl ResourceExt, error: &kube::Error, what: &str) -> Action {
    tracing::warn!(object = object.name_any(), error = error as &dyn StdError, "{what}");
    Action::requeue(RETRY)
}

/// Logs why resources cannot be watched. What failed for one resource was logged where it failed.
pub async fn complain<T, E: StdError>(outcome: Result<T, ControllerError<E, watcher::Error>>) {
    if let Err(ControllerError::QueueError(error)) = outcome {
        tracing::warn!(error = &error as &dyn StdError, "the cluster's resources cannot be watched");
    }
}
