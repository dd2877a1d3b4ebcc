//! What an operator may see of a machine's volumes without Kubernetes and without a key: the pool, the records and what
//! the kernel holds, side by side. Nothing here changes anything.

use std::fmt;

use serde::Serialize;

use crate::device::Kernel;
use crate::device::Machine;
use crate::device::Mapper;
use crate::provision::BadSectors;
use crate::provision::LocalPool;
use crate::provision::Pools;
use crate::provision::Refusal;
use crate::record::PoolFile;
use crate::record::Record;
use crate::volume::PoolName;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// All pools of a machine, each with its volumes.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Overview(Vec<PoolView>);

/// A pool and all its volumes.
#[derive(Debug, Serialize)]
pub struct PoolView {
    /// What StorageClasses call it.
    pub name: PoolName,
    /// The pool's directory.
    pub path: String,
    /// The pool's mark.
    pub pool: PoolFile,
    /// Payload that can still be created, in bytes.
    pub available_bytes: u64,
    /// The volumes, in the order of ids.
    pub volumes: Vec<View>,
}

/// One volume.
#[derive(Debug, Serialize)]
pub struct View {
    /// The volume.
    pub id: VolumeId,
    /// What the record says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
    /// Why there is no readable record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_error: Option<String>,
    /// What the kernel holds.
    pub kernel: Held,
    /// Why the last stage was refused, if none has succeeded since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The sectors that are known not to hold what was written there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_sectors: Option<BadSectors>,
}

/// What the kernel holds for one volume, in words.
#[derive(Debug, Serialize)]
pub struct Held {
    /// `closed`, `open`, `half made`, `foreign: …`, or why that cannot be told.
    pub mapper: String,
    /// Loop devices on the backing.
    pub loops: Vec<String>,
    /// Where the volume is mounted.
    pub mounts: Vec<String>,
}

/// Each pool with all its volumes.
///
/// # Errors
/// `PoolMissing` if a pool cannot be used now.
pub fn list(pools: &Pools, machine: &dyn Machine) -> Result<Overview> {
    pools.iter().map(|pool| pool_view(pool, machine)).collect::<Result<_>>().map(Overview)
}

fn pool_view(pool: &LocalPool, machine: &dyn Machine) -> Result<PoolView> {
    Ok(PoolView {
        name: pool.name().clone(),
        path: pool.path().display().to_string(),
        pool: pool.ready()?,
        available_bytes: pool.capacity()?.available_bytes,
        volumes: pool.list()?.into_iter().map(|(id, record)| view(pool, machine, id, record)).collect(),
    })
}

/// One volume of the pools, or what the kernel still holds of one that is gone from them.
///
/// # Errors
/// `VolumeNotFound` if neither pools nor kernel know it; `PoolMissing` if the kernel does not and a pool cannot be used now.
pub fn volume(pools: &Pools, machine: &dyn Machine, id: &VolumeId) -> Result<View> {
    let record = pools.get(id);
    let is_held = machine.look(id, None).is_ok_and(|kernel| kernel != Kernel::default());
    match record {
        Err(error) if matches!(error.reason(), Reason::VolumeNotFound | Reason::PoolMissing) && !is_held => Err(error),
        record => Ok(view(pools.of(id), machine, id.clone(), record)),
    }
}

fn view(pool: &LocalPool, machine: &dyn Machine, id: VolumeId, record: Result<Record>) -> View {
    let shape = record.as_ref().ok().map(|record| pool.shape(record));
    let kernel = match machine.look(&id, shape.as_ref()) {
        Ok(kernel) => Held::from(kernel),
        Err(error) => Held { mapper: error.chain(), loops: Vec::new(), mounts: Vec::new() },
    };
    let (refusal, bad_sectors) = (pool.refusal(&id), pool.bad_sectors(&id));
    let (record, record_error) = match record {
        Ok(record) => (Some(record), None),
        Err(error) => (None, Some(error.chain())),
    };
    View { id, record, record_error, kernel, refusal, bad_sectors }
}

impl From<Kernel> for Held {
    fn from(kernel: Kernel) -> Self {
        Self {
            mapper: match kernel.mapper {
                Mapper::Absent => "closed".into(),
                Mapper::HalfMade => "half made".into(),
                Mapper::Live => "open".into(),
                Mapper::Foreign(found) => format!("foreign: {found}"),
            },
            loops: kernel.loops.iter().map(|path| path.display().to_string()).collect(),
            mounts: kernel.mounts.iter().map(|mount| mount.path.display().to_string()).collect(),
        }
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pool) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            pool.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for PoolView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, path, pool, available_bytes, .. } = self;
        writeln!(f, "pool {name} ({}) in {path}, {} MiB available", pool.pool_id, available_bytes >> 20)?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<35}  {:>10}  {:<5}  {:<10}  {:<9}  {:>6}  CLAIM",
            "VOLUME", "MIB", "IS", "RECORD", "KERNEL", "MOUNTS"
        )?;
        self.volumes.iter().try_for_each(|volume| volume.fmt_row(f))
    }
}

impl View {
    fn fmt_row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = &self.record else {
            return writeln!(f, "{:<35}  {}", self.id, self.record_error.as_deref().unwrap_or_default());
        };
        let claim = record.claim.as_ref().map_or("-".to_owned(), |claim| format!("{}/{}", claim.namespace, claim.name));
        writeln!(
            f,
            "{:<35}  {:>10}  {:<5}  {:<10}  {:<9}  {:>6}  {claim}",
            self.id,
            record.payload_bytes >> 20,
            record.content.to_string(),
            format!("{:?}", record.state),
            self.kernel.mapper,
            self.kernel.mounts.len(),
        )
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "volume     {}", self.id)?;
        if let Some(record) = &self.record {
            writeln!(f, "name       {}", record.name)?;
            if let Some(claim) = &record.claim {
                writeln!(f, "claim      {}/{}", claim.namespace, claim.name)?;
            }
            writeln!(f, "size       {} bytes", record.payload_bytes)?;
            writeln!(f, "content    {}", record.content)?;
            writeln!(f, "profile    {}", record.profile.as_str())?;
            writeln!(f, "key        {}", record.key_uri)?;
            if let Some(rotation) = &record.rotation {
                writeln!(f, "key too    {} (a rotation is not finished: run it again)", rotation.key_uri)?;
            }
            writeln!(f, "LUKS UUID  {}", record.luks_uuid)?;
            writeln!(f, "created    {}", record.created)?;
            writeln!(f, "record     {:?}", record.state)?;
        }
        if let Some(error) = &self.record_error {
            writeln!(f, "record     {error}")?;
        }
        writeln!(f, "kernel     {}", self.kernel.mapper)?;
        self.kernel.loops.iter().try_for_each(|path| writeln!(f, "loop       {path}"))?;
        self.kernel.mounts.iter().try_for_each(|path| writeln!(f, "mount      {path}"))?;
        if let Some(refusal) = &self.refusal {
            writeln!(f, "refused    {}  {}: {}", refusal.at, refusal.reason, refusal.message)?;
        }
        if let Some(bad) = &self.bad_sectors {
            writeln!(f, "damaged    {}  {}: {bad}", bad.last, Reason::IntegrityError)?;
        }
        Ok(())
    }
}
