//! A volume's life on this machine: one operation per volume at a time, each of which looks at the host first.
//!
//! Every verb runs on a thread of its own, which ends with it and holds the volume's guard. A caller that goes away
//! changes nothing: the work goes on, the next call is told `OperationPending`, and the one after that finds it done.

mod busy;
mod health;
mod integrity;
mod local;
mod publish;
mod purge;
mod rotate;
mod sighting;
mod stage;

pub use local::Local;
pub use publish::PublishRequest;
pub use publish::Sharing;
pub use purge::purge;
pub use sighting::PoolSighting;
pub use sighting::Sighting;
pub use stage::StageRequest;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::broadcast;

use crate::cluster::Witness;
use crate::device::Kernel;
use crate::device::Machine;
use crate::device::Mapper;
use crate::device::Shape;
use crate::device::Usage;
use crate::device::mount;
use crate::key::KeySource;
use crate::key::VolumeKeys;
use crate::metrics::Metrics;
use crate::provision::Capacity;
use crate::provision::Pools;
use crate::record::Record;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::HealthEntry;
use crate::volume::KeyUri;
use crate::volume::PoolName;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;
use busy::Busy;
use busy::Guard;

/// How many ended operations a slow listener may be behind.
const SETTLED_LIMIT: usize = 256;

/// The volumes of one machine.
#[derive(Clone)]
pub struct Lifecycle {
    host: Arc<Host>,
    busy: Arc<Busy>,
    /// Told of each volume on which an operation has ended, or which has lost data: deletions wait for it, and others show
    /// what has changed.
    settled: broadcast::Sender<VolumeId>,
}

/// What the operations work with. It holds no state of any volume.
struct Host {
    machine: Arc<dyn Machine>,
    keys: Arc<dyn KeySource>,
    pools: Pools,
    /// Who bears witness beside the record that a volume was ever formatted; a machine alone has nobody.
    witness: Option<Witness>,
    metrics: Metrics,
}

impl Lifecycle {
    /// The volumes of `pools`, opened on `machine` with secrets from `keys`, and formatted only if `witness`, where there is
    /// one, agrees. What happens is counted in `metrics`.
    #[must_use]
    pub fn new(
        machine: Arc<dyn Machine>,
        keys: Arc<dyn KeySource>,
        pools: Pools,
        witness: Option<Witness>,
        metrics: Metrics,
    ) -> Self {
        Self {
            host: Arc::new(Host { machine, keys, pools, witness, metrics }),
            busy: Arc::default(),
            settled: broadcast::Sender::new(SETTLED_LIMIT),
        }
    }

    /// Tells of each volume on which an operation has ended, or which has lost data, from now on.
    #[must_use]
    pub fn settled(&self) -> broadcast::Receiver<VolumeId> {
        self.settled.subscribe()
    }

    /// Whether an operation on the volume is running. Its end is told by [`Self::settled`].
    #[must_use]
    pub fn is_busy(&self, id: &VolumeId) -> bool {
        self.busy.holds(id)
    }

    /// Creates a volume, or finds it as asked for.
    ///
    /// # Errors
    /// Those of [`Pools::create`], and `OperationPending`.
    pub async fn create(&self, spec: VolumeSpec) -> Result<VolumeSpec> {
        self.exclusive(&spec.id(), move |host| host.pools.create(&spec)).await
    }

    /// Deletes a volume and its key material on this node. One that is still staged is waited for until `deadline`:
    /// the kubelet releases a claim before it has unstaged it.
    ///
    /// # Errors
    /// `StillStaged` or `OperationPending` if it is so at the deadline; those of [`Pools::delete`].
    pub async fn delete(&self, id: VolumeId, deadline: Instant) -> Result<()> {
        let mut settled = self.settled.subscribe();
        loop {
            let (mine, told) = (id.clone(), self.settled.clone());
            let work = |guard: Guard| {
                self.blocking(move |host| {
                    guard.hold(|| host.alone(&mine, || host.delete(&mine)))?;
                    // Another deletion may wait for this one. A refusal is not told: it would wake its own caller.
                    let _ = told.send(mine);
                    Ok(())
                })
            };
            let outcome = match self.busy.claim(&id) {
                Ok(guard) => work(guard).await,
                Err(pending) => Err(pending),
            };
            match outcome {
                Err(error) if matches!(error.reason(), Reason::StillStaged | Reason::OperationPending) => {
                    // Whatever has ended, or was missed: the volume is looked at again.
                    if tokio::time::timeout_at(deadline.into(), settled.recv()).await.is_err() {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Moves a volume, open or not, to the secret at `to`. A rotation that was interrupted is finished by the next one.
    ///
    /// # Errors
    /// `OperationPending` while it is being formatted or worked on; those of its keys, its header and its record, after
    /// which one of the two secrets opens it.
    pub async fn rotate(&self, id: VolumeId, to: KeyUri) -> Result<()> {
        self.exclusive(&id.clone(), move |host| host.rotate(&id, &to)).await
    }

    /// Makes a volume usable at its staging path: attested, opened, checked and mounted.
    ///
    /// # Errors
    /// Those of its record, its key, its header, its device and its mount, each with a reason of its own. What was
    /// opened is closed again, unless a pod uses it.
    pub async fn stage(&self, request: StageRequest) -> Result<()> {
        self.exclusive(&request.id.clone(), move |host| host.stage(&request.resolved()?)).await
    }

    /// Undoes a stage. Nothing staged is fine.
    ///
    /// # Errors
    /// `PublishConflict` while a pod uses it, `ForeignDevice` for a device under its name that is not ours,
    /// `OperationPending`; `Internal` if the kernel does not let it go.
    pub async fn unstage(&self, id: VolumeId, staging_path: PathBuf) -> Result<()> {
        let mine = id.clone();
        self.exclusive(&id, move |host| host.unstage(&mine, &mount::resolve(&staging_path)?)).await
    }

    /// Shows a staged volume at a pod's path.
    ///
    /// # Errors
    /// `StagingMissing` if it is not staged there, `PublishConflict` if it is single-writer and elsewhere,
    /// `AlreadyExists` if it is there with other access, `CapabilityExceeded` if it has other content; those of its
    /// record, and `OperationPending`.
    pub async fn publish(&self, request: PublishRequest) -> Result<()> {
        self.exclusive(&request.id.clone(), move |host| host.publish(&request.resolved()?)).await
    }

    /// Undoes a publish and removes the path. Nothing published is fine.
    ///
    /// # Errors
    /// `OperationPending`; `Internal` if the kernel does not let it go, or the path is not empty.
    pub async fn unpublish(&self, id: VolumeId, target_path: PathBuf) -> Result<()> {
        let mine = id.clone();
        self.exclusive(&id, move |host| host.unpublish(&mine, &mount::resolve(&target_path)?)).await
    }

    /// Space at a path where the volume is staged or published.
    ///
    /// # Errors
    /// `VolumeNotFound` if it is not there; those of its record.
    pub async fn usage(&self, id: VolumeId, path: PathBuf) -> Result<Usage> {
        self.blocking(move |host| host.usage(&id, &path)).await
    }

    /// What is wrong with the volume, from local state alone; empty if nothing is.
    ///
    /// # Errors
    /// Those of [`Self::sight`].
    pub async fn health(&self, id: VolumeId) -> Result<Vec<HealthEntry>> {
        self.blocking(move |host| Ok(host.sight(&id)?.health)).await
    }

    /// What can be seen of a volume without its key.
    ///
    /// # Errors
    /// Those of its record.
    pub async fn sight(&self, id: VolumeId) -> Result<Sighting> {
        self.blocking(move |host| host.sight(&id)).await
    }

    /// What was asked for when the volume was created.
    ///
    /// # Errors
    /// Those of its record.
    pub async fn get(&self, id: VolumeId) -> Result<VolumeSpec> {
        self.blocking(move |host| Ok(host.pools.spec(&host.pools.get(&id)?))).await
    }

    /// All volumes in the order of ids. One whose record cannot be read is left out, and named in the log.
    ///
    /// # Errors
    /// `PoolMissing` if a pool cannot be used now.
    pub async fn list(&self) -> Result<Vec<(VolumeId, VolumeSpec)>> {
        let readable = |(id, record): (VolumeId, Result<Record>)| {
            record
                .inspect_err(|error| tracing::warn!(volume = %id, error = error.chain(), "a record cannot be read"))
                .ok()
        };
        self.blocking(move |host| {
            let records = host.pools.list()?.into_iter().filter_map(readable);
            Ok(records.map(|record| (record.id.clone(), host.pools.spec(&record))).collect())
        })
        .await
    }

    /// What a pool can still promise: nothing while it is away.
    ///
    /// # Errors
    /// `Internal` if the pool cannot be looked at.
    pub async fn capacity(&self, pool: PoolName) -> Result<Capacity> {
        self.blocking(move |host| host.pools.capacity(&pool)).await
    }

    /// What can be seen of the pools.
    ///
    /// # Errors
    /// `Internal` if the machine has no thread for it.
    pub async fn sight_pools(&self) -> Result<Vec<PoolSighting>> {
        self.blocking(|host| Ok(host.sight_pools())).await
    }

    /// How many volumes of the pools are open.
    ///
    /// # Errors
    /// `Internal` if the kernel cannot be asked.
    pub async fn open_volumes(&self) -> Result<u64> {
        self.blocking(|host| host.open_volumes()).await
    }

    /// The volumes in the pool called `pool`, in the order of ids, with what is wrong with their records.
    ///
    /// # Errors
    /// `NoSpace` if there is no such pool, `PoolMissing` if it cannot be used now.
    pub async fn contents(&self, pool: PoolName) -> Result<Vec<(VolumeId, Option<Error>)>> {
        self.blocking(move |host| host.contents(&pool)).await
    }

    /// Why the last key that was asked for did not come; `None` if it did.
    #[must_use]
    pub fn last_key_error(&self) -> Option<Reason> {
        self.host.keys.last_error()
    }

    /// Who makes the proof when a key is asked for.
    #[must_use]
    pub fn attester(&self) -> &str {
        self.host.keys.attester()
    }

    /// What this machine's kernel can do for volumes, in words for display.
    ///
    /// # Errors
    /// `Internal` if the kernel cannot be asked.
    pub async fn features(&self) -> Result<Vec<String>> {
        self.blocking(|host| host.machine.features()).await
    }

    /// Whether every pool can be used now.
    ///
    /// # Errors
    /// `PoolMissing` if one cannot.
    pub async fn ready(&self) -> Result<()> {
        self.blocking(|host| host.pools.all_ready()).await
    }

    /// Waits until no operation is running.
    pub async fn drain(&self) {
        self.busy.idle().await;
    }

    async fn exclusive<T: Send + 'static>(
        &self,
        id: &VolumeId,
        work: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (settled, id) = (self.settled.clone(), id.clone());
        let guard = self.busy.claim(&id)?;
        self.blocking(move |host| {
            let outcome = guard.hold(|| host.alone(&id, || work(host)));
            // Nobody may be listening.
            let _ = settled.send(id);
            outcome
        })
        .await
    }

    /// Runs `work` on a thread that ends with it, and returns when that has ended.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Host) -> Result<T> + Send + 'static) -> Result<T> {
        let host = Arc::clone(&self.host);
        let (span, runtime) = (tracing::Span::current(), Handle::current());
        let operation = move || {
            let _runtime = runtime.enter();
            span.in_scope(|| work(&host)).inspect_err(|error| host.metrics.found(error.reason()))
        };
        let thread = std::thread::Builder::new()
            .name("operation".to_owned())
            .spawn(operation)
            .map_err(|error| Error::new(Reason::Internal, "no thread for the operation").caused_by(error))?;
        // Also where the caller has gone away the runtime waits for this before it ends. A process that ends earlier takes
        // from OpenSSL what the end of a thread still uses, and crashes.
        let outcome = tokio::task::spawn_blocking(|| thread.join()).await;
        outcome.ok().and_then(std::thread::Result::ok).unwrap_or_else(|| {
            Err(Error::new(Reason::Internal, "the operation ended abnormally; see the driver's log"))
        })
    }
}

impl Host {
    /// Does `work` while no other process works on the volume.
    fn alone<T>(&self, id: &VolumeId, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _claim = self.pools.claim(id)?;
        work()
    }

    /// The keys of the volume from the secret at `uri`, for which this machine proves anew what it is.
    fn volume_keys(&self, uri: &KeyUri, id: &VolumeId) -> Result<VolumeKeys> {
        self.machine.check_memory()?;
        let started = Instant::now();
        let released = Handle::current().block_on(self.keys.secret(uri));
        let (took, refusal) = (started.elapsed(), released.as_ref().err().map(Error::reason));
        self.metrics.key_request(self.keys.kbs(), refusal, took);
        let secret = released?;
        tracing::info!(milliseconds = took.as_millis(), key = %uri, "secret released");
        VolumeKeys::derive(&secret, id)
            .map_err(|error| Error::new(error.reason(), format!("{uri}: {}", error.explanation())))
    }

    /// What the kernel holds for `id`; refuses a device under the volume's name that is not ours.
    fn look(&self, id: &VolumeId, shape: Option<&Shape>) -> Result<Kernel> {
        let kernel = self.machine.look(id, shape)?;
        match &kernel.mapper {
            Mapper::Foreign(found) => Err(Error::new(
                Reason::ForeignDevice,
                format!("device {} is not this volume's ({found}); remove it by hand", id.mapper_name()),
            )),
            _ => Ok(kernel),
        }
    }

    /// What there is to close: what the kernel holds for `id` and this driver has made, also where the record or the image
    /// no longer say so. Whoever holds the disk may change both while the volume is open.
    fn look_for_ours(&self, id: &VolumeId, shape: Option<&Shape>) -> Result<Kernel> {
        for shape in [shape, None] {
            match self.look(id, shape) {
                Err(error) if error.reason() == Reason::ForeignDevice => {
                    tracing::warn!(error = error.chain(), "what is open is not what the record says");
                }
                looked => return looked,
            }
        }
        Ok(Kernel::default())
    }

    fn delete(&self, id: &VolumeId) -> Result<()> {
        self.pools.ready(id)?;
        let record = self.pools.get(id).ok();
        let shape = record.as_ref().map(|record| self.shape(record));
        let kernel = self.look_for_ours(id, shape.as_ref())?;
        let is_block = record.is_some_and(|record| record.content == Content::Block);
        if !kernel.mounts.is_empty() || (is_block && kernel.mapper == Mapper::Live) {
            let message = format!("volume {id} is still staged on this node; it is deleted once it is unstaged");
            return Err(Error::new(Reason::StillStaged, message));
        }
        self.release(id, shape.as_ref(), kernel)?;
        self.pools.delete(id)
    }

    /// What the kernel must show when the volume of `record` is open.
    fn shape(&self, record: &Record) -> Shape {
        self.pools.of(&record.id).shape(record)
    }

    /// Removes the mapper and leftover loop devices of a volume that is mounted nowhere.
    fn release(&self, id: &VolumeId, shape: Option<&Shape>, mut kernel: Kernel) -> Result<()> {
        if matches!(kernel.mapper, Mapper::HalfMade | Mapper::Live) {
            self.machine.close(id)?;
            // The loop under the mapper has gone with it, and its number may be somebody else's by now.
            kernel = self.machine.look(id, shape)?;
        }
        if kernel.loops.is_empty() { Ok(()) } else { self.machine.detach(&kernel.loops) }
    }
}

#[cfg(test)]
mod tests;
