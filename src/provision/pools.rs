//! All pools of this machine. A volume is looked for in each of them, because only its creator names its pool.

use std::fs::File;

use super::Capacity;
use super::LocalPool;
use crate::record::Record;
use crate::volume::Error;
use crate::volume::Place;
use crate::volume::PoolName;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;

/// The pools of one machine, each with a name of its own. There is at least one.
#[derive(Clone, Debug)]
pub struct Pools {
    pools: Vec<LocalPool>,
    /// The node that they are on, if it has a name.
    node: Option<Place>,
}

impl Pools {
    /// `pools` together.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none, or two have the same name or the same directory.
    pub fn new(pools: Vec<LocalPool>) -> Result<Self> {
        if pools.is_empty() {
            return Err(Error::invalid("--pool", "at least one is required"));
        }
        for (at, pool) in pools.iter().enumerate() {
            if pools[..at].iter().any(|other| other.name() == pool.name() || other.path() == pool.path()) {
                let text = format!("{}={} repeats a name or a directory", pool.name(), pool.path().display());
                return Err(Error::invalid("--pool", text));
            }
        }
        Ok(Self { pools, node: None })
    }

    /// The same pools on `node`. From then on, volumes that were made on another node are refused: whoever holds the disks
    /// of both can copy them.
    #[must_use]
    pub fn on(self, node: Place) -> Self {
        Self { node: Some(node), ..self }
    }

    /// Each pool.
    pub fn iter(&self) -> impl Iterator<Item = &LocalPool> {
        self.pools.iter()
    }

    /// The pool called `name`.
    ///
    /// # Errors
    /// `NoSpace` if this machine has none of that name: another may.
    pub fn named(&self, name: &PoolName) -> Result<&LocalPool> {
        self.pools.iter().find(|pool| pool.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.pools.iter().map(|pool| pool.name().as_str()).collect();
            let message = format!("this node has no pool {name}; it has {}", names.join(", "));
            Error::new(Reason::NoSpace, message)
        })
    }

    fn holder(&self, id: &VolumeId) -> Option<&LocalPool> {
        self.pools.iter().find(|pool| pool.directory(id).exists())
    }

    /// The pool that holds `id`; any if none does.
    #[must_use]
    pub fn of(&self, id: &VolumeId) -> &LocalPool {
        self.holder(id).unwrap_or(&self.pools[0])
    }

    /// Whether it can be told where `id` is: its pool is ready, or every pool is and none has it.
    ///
    /// # Errors
    /// `PoolMissing` if it cannot.
    pub fn ready(&self, id: &VolumeId) -> Result<()> {
        self.holder(id).map_or_else(|| self.all_ready(), |pool| pool.ready().map(drop))
    }

    /// Whether every pool can be used now.
    ///
    /// # Errors
    /// `PoolMissing` if one cannot.
    pub fn all_ready(&self) -> Result<()> {
        self.pools.iter().try_for_each(|pool| pool.ready().map(drop))
    }

    /// The right to work on the volume, also between processes; see [`LocalPool::claim`].
    ///
    /// # Errors
    /// Those of [`LocalPool::claim`].
    pub fn claim(&self, id: &VolumeId) -> Result<Option<File>> {
        self.of(id).claim(id)
    }

    /// The record of one volume.
    ///
    /// # Errors
    /// `WrongNode` if another node has made the volume; and those of [`LocalPool::get`].
    pub fn get(&self, id: &VolumeId) -> Result<Record> {
        self.ready(id)?;
        self.at_home(self.of(id).get(id)?)
    }

    fn at_home(&self, record: Record) -> Result<Record> {
        match (&record.node, &self.node) {
            (Some(maker), Some(node)) if maker != node => {
                let text = format!(
                    "volume {} was made on node {maker}, and its files lie on {node}: bring them back",
                    record.id
                );
                Err(Error::new(Reason::WrongNode, text))
            }
            _ => Ok(record),
        }
    }

    /// What was asked for when the volume of `record` was made.
    #[must_use]
    pub fn spec(&self, record: &Record) -> VolumeSpec {
        record.spec(self.of(&record.id).name().clone())
    }

    /// Creates the volume in the pool that it names, or finds it as asked for.
    ///
    /// # Errors
    /// `AlreadyExists` if it was made otherwise or in another pool, `NoSpace` if there is no pool of that name,
    /// `WrongNode`; those of [`LocalPool::create`].
    pub fn create(&self, spec: &VolumeSpec) -> Result<VolumeSpec> {
        let id = spec.id();
        if let Some(holder) = self.holder(&id).filter(|holder| holder.name() != &spec.pool) {
            return Err(self.spec(&holder.get(&id)?).conflict(spec));
        }
        let pool = self.named(&spec.pool)?;
        let record = self.at_home(pool.create(spec, self.node.as_ref())?)?;
        Ok(record.spec(pool.name().clone()))
    }

    /// Deletes the volume and its key material on this node. A volume that is not there is deleted.
    ///
    /// # Errors
    /// `PoolMissing` while it cannot be told where it is; those of [`LocalPool::delete`].
    pub fn delete(&self, id: &VolumeId) -> Result<()> {
        self.ready(id)?;
        // The pool of an interrupted deletion cannot be told from its directories' names: each finishes its own.
        self.pools.iter().filter(|pool| pool.ready().is_ok()).try_for_each(|pool| pool.delete(id))
    }

    /// Every volume in the order of ids, with its record or why that cannot be read.
    ///
    /// # Errors
    /// `PoolMissing` if a pool cannot be used now.
    pub fn list(&self) -> Result<Vec<(VolumeId, Result<Record>)>> {
        let mut all = Vec::new();
        for pool in &self.pools {
            all.extend(pool.list()?);
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    /// What the pool called `name` can still promise: nothing if there is none, or while it is away.
    ///
    /// # Errors
    /// `Internal` if the pool cannot be looked at.
    pub fn capacity(&self, name: &PoolName) -> Result<Capacity> {
        match self.named(name).and_then(LocalPool::capacity) {
            Err(error) if matches!(error.reason(), Reason::PoolMissing | Reason::NoSpace) => Ok(Capacity::default()),
            capacity => capacity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Content;
    use crate::volume::Init;
    use crate::volume::KeyUri;
    use crate::volume::Profile;

    fn name(text: &str) -> PoolName {
        PoolName::parse("pool", text).expect("a name")
    }

    fn spec(volume: &str, pool: &str) -> VolumeSpec {
        VolumeSpec {
            name: volume.into(),
            pool: name(pool),
            payload_bytes: 1 << 20,
            content: Content::Block,
            profile: Profile::Xts1,
            init: Init::Seeded,
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: None,
        }
    }

    /// Two pools, `a` and `b`.
    fn two() -> (tempfile::TempDir, Pools) {
        let directory = tempfile::tempdir().expect("a directory");
        let pool = |text: &str| {
            let path = directory.path().join(text);
            LocalPool::init(&path).expect("a pool");
            LocalPool::open(name(text), path)
        };
        let pools = Pools::new(vec![pool("a"), pool("b")]).expect("two names");
        (directory, pools)
    }

    #[test]
    fn a_volume_is_found_in_the_pool_that_it_was_made_in() {
        let (_directory, pools) = two();
        let made = pools.create(&spec("x", "b")).expect("made");
        assert_eq!(pools.create(&spec("x", "b")).expect("made already"), made);
        assert_eq!(pools.spec(&pools.get(&made.id()).expect("found")).pool, name("b"));
        assert_eq!(pools.create(&spec("x", "a")).expect_err("elsewhere").reason(), Reason::AlreadyExists);
        assert_eq!(pools.create(&spec("y", "c")).expect_err("no such pool").reason(), Reason::NoSpace);
        pools.delete(&made.id()).expect("deleted");
        assert_eq!(pools.get(&made.id()).expect_err("gone").reason(), Reason::VolumeNotFound);
    }

    #[test]
    fn while_a_pool_is_away_only_what_the_others_hold_is_certain() {
        let (directory, pools) = two();
        let made = pools.create(&spec("x", "a")).expect("made");
        std::fs::remove_file(directory.path().join("b/pool.json")).expect("unmarked");
        pools.get(&made.id()).expect("still there");
        let stranger = VolumeId::for_name("y");
        assert_eq!(pools.get(&stranger).expect_err("perhaps in b").reason(), Reason::PoolMissing);
        assert_eq!(pools.delete(&stranger).expect_err("perhaps in b").reason(), Reason::PoolMissing);
        assert_eq!(pools.capacity(&name("b")).expect("nothing"), Capacity::default());
        pools.delete(&made.id()).expect("deleted");
    }

    #[test]
    fn names_and_directories_are_told_apart() {
        let pool = |text: &str, path: &str| LocalPool::open(name(text), path.into());
        for pools in [vec![], vec![pool("a", "/x"), pool("a", "/y")], vec![pool("a", "/x"), pool("b", "/x")]] {
            assert_eq!(Pools::new(pools).expect_err("refused").reason(), Reason::InvalidArgument);
        }
    }
}
