//! Removing a volume by hand that nothing asks for any more, beside a driver that may be running.

use crate::device::Kernel;
use crate::device::Machine;
use crate::provision::Pools;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Deletes a volume of `pools` and its key material on this machine, whatever its record says.
///
/// # Errors
/// `VolumeNotFound` if no pool holds it; `StillStaged` if the kernel does; `OperationPending` while a driver works on it.
pub fn purge(pools: &Pools, machine: &dyn Machine, id: &VolumeId) -> Result<()> {
    pools.ready(id)?;
    let pool = pools.of(id);
    if !pool.directory(id).exists() {
        return Err(Error::new(Reason::VolumeNotFound, format!("no pool of this machine holds volume {id}")));
    }
    let _claim = pool.claim(id)?;
    let shape = pool.get(id).ok().map(|record| pool.shape(&record));
    if machine.look(id, shape.as_ref())? != Kernel::default() {
        let message = format!("volume {id} is in use; `coffer volume inspect` says what holds it");
        return Err(Error::new(Reason::StillStaged, message));
    }
    pool.delete(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fake::FakeMachine;
    use crate::provision::LocalPool;
    use crate::volume::Content;
    use crate::volume::Init;
    use crate::volume::KeyUri;
    use crate::volume::PoolName;
    use crate::volume::Profile;
    use crate::volume::VolumeSpec;

    #[test]
    fn what_the_kernel_holds_or_the_pool_does_not_is_not_purged() {
        let directory = tempfile::tempdir().expect("a directory");
        LocalPool::init(directory.path()).expect("a pool");
        let pool = LocalPool::open(PoolName::default(), directory.path().to_owned());
        let pools = Pools::new(vec![pool.clone()]).expect("one pool");
        let machine = FakeMachine::default();
        let spec = VolumeSpec {
            name: "orphan".into(),
            pool: PoolName::default(),
            payload_bytes: 1 << 20,
            content: Content::Block,
            profile: Profile::Xts1,
            init: Init::Seeded,
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: None,
        };
        let record = pool.create(&spec, None).expect("made");
        machine.put_loop(&pool.shape(&record));
        let held = purge(&pools, &machine, &record.id).expect_err("held");
        assert_eq!(held.reason(), Reason::StillStaged);
        machine.reboot();
        purge(&pools, &machine, &record.id).expect("nothing holds it");
        assert!(!pool.directory(&record.id).exists());
        let gone = purge(&pools, &machine, &record.id).expect_err("gone");
        assert_eq!(gone.reason(), Reason::VolumeNotFound);
    }
}
