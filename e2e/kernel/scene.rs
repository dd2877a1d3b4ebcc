//! One test's world: an empty pool on a file system of its own, a KBS that trusts this node, and a running driver.
//! At its end nothing may be left that was not there before.

use std::panic::Location;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::broker::Broker;
use crate::driver::Driver;
use crate::driver::NODE;
use crate::driver::Options;
use crate::leaks::Listing;

/// The disk that belongs to the tests.
pub(crate) const DISK: &str = "/dev/vdb";
/// What [`DISK`] is called where a test puts a device-mapper table over it.
pub(crate) const FAILING_DISK: &str = "disk";
/// Where it is mounted.
pub(crate) const MOUNT: &str = "/mnt/pool";
const POOL: &str = "/mnt/pool/coffer";
/// For what ends in the background: descriptors of finished connections, threads, keys without a keyring.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Scene {
    /// The KBS.
    pub(crate) broker: &'static Broker,
    /// The driver; gone while a test restarts it.
    driver: Option<Driver>,
    options: Options,
    before: Listing,
    /// Messages about sectors without a valid tag that the kernel had logged when the scene began.
    tag_errors: usize,
    /// Whether the test has changed sectors with tags.
    tampers: bool,
}

impl Scene {
    /// A pool with plenty of room.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::with_pool_of("3G")
    }

    /// A pool on a file system of this size, as `mkfs.ext4` understands it.
    #[track_caller]
    pub(crate) fn with_pool_of(size: &str) -> Self {
        // What a failed test left here must not fail the next one.
        clear();
        make_pool(Path::new(DISK), size);
        Self::start(None)
    }

    /// A pool on the tests' disk as this device-mapper table shows it, under the name [`FAILING_DISK`].
    #[track_caller]
    pub(crate) fn over(table: &str) -> Self {
        clear();
        shell(&format!("printf '{table}' | dmsetup create {FAILING_DISK}"));
        make_pool(&Path::new("/dev/mapper").join(FAILING_DISK), "3G");
        Self::start(None)
    }

    /// A pool on the whole device `disk`.
    #[track_caller]
    pub(crate) fn with_pool_on(disk: &Path) -> Self {
        make_pool(disk, "");
        Self::start(None)
    }

    /// The pool that is on the device `disk`.
    #[track_caller]
    pub(crate) fn with_pool_from(disk: &Path) -> Self {
        shell(&format!("mount {} {MOUNT}", disk.display()));
        Self::start(None)
    }

    /// The driver as a node of the cluster that `kubeconfig` names.
    #[track_caller]
    pub(crate) fn in_cluster(kubeconfig: &'static str) -> Self {
        clear();
        make_pool(Path::new(DISK), "3G");
        Self::start(Some(kubeconfig))
    }

    /// The pool that an earlier boot left.
    #[track_caller]
    pub(crate) fn after_a_power_cut() -> Self {
        clear();
        Self::with_pool_from(Path::new(DISK))
    }

    #[track_caller]
    fn start(kubeconfig: Option<&'static str>) -> Self {
        let broker = Broker::get();
        broker.reset();
        let options = Options {
            node: NODE,
            pool: POOL.into(),
            kbs: broker.flags(),
            flags: Vec::new(),
            variables: &[],
            log: log(Location::caller()),
            kubeconfig,
            libraries: None,
        };
        let driver = Driver::start(&options);
        let before = listing(&options, Some(&driver));
        Self { broker, driver: Some(driver), options, before, tag_errors: logged_tag_errors(), tampers: false }
    }

    /// The running driver.
    pub(crate) fn driver(&self) -> &Driver {
        self.driver.as_ref().expect("the test has started the driver")
    }

    /// The pool's directory.
    pub(crate) fn pool(&self) -> &Path {
        &self.options.pool
    }

    /// What the driver wrote so far.
    pub(crate) fn log(&self) -> &Path {
        &self.options.log
    }

    /// Changes how the driver is started from now on.
    pub(crate) fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Kills the driver, as a crash would, and starts it again.
    pub(crate) fn restart_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.kill();
        }
        self.driver = Some(Driver::start(&self.options));
    }

    /// Whether something has killed the driver.
    pub(crate) fn driver_is_dead(&mut self) -> bool {
        self.driver.as_mut().is_none_or(Driver::is_dead)
    }

    /// What is there now and was not there when the scene began, and the reverse.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.listing().changes(&self.before)
    }

    /// What is there now.
    pub(crate) fn listing(&self) -> Listing {
        listing(&self.options, self.driver.as_ref())
    }

    /// What has changed since `before`, once what ends in the background has ended.
    pub(crate) fn lasting_changes(&self, before: &Listing) -> Vec<String> {
        let start = Instant::now();
        let mut changes = self.listing().changes(before);
        while !changes.is_empty() && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(100));
            changes = self.listing().changes(before);
        }
        changes
    }

    /// Says that this test changes sectors with tags, so that the kernel will complain.
    pub(crate) fn tampers(&mut self) {
        self.tampers = true;
    }

    /// How many messages about sectors without a valid tag the kernel has logged since the scene began.
    pub(crate) fn tag_errors(&self) -> usize {
        logged_tag_errors() - self.tag_errors
    }

    /// Ends the test: everything must be as it was, and no sector had a wrong tag that the test did not change.
    pub(crate) fn end(self) {
        assert!(self.tampers || self.tag_errors() == 0, "the kernel has logged: {}", shell(TAG_ERRORS));
        let changes = self.lasting_changes(&self.before);
        assert!(changes.is_empty(), "left behind:\n{}", changes.join("\n"));
        self.leave();
    }

    /// Ends the test and leaves the volumes in the pool.
    pub(crate) fn leave(mut self) {
        self.driver.take().expect("the driver runs").terminate();
        shell(&format!("umount {MOUNT}"));
    }
}

/// What the kernel says of a sector without a valid tag.
const TAG_ERRORS: &str = "dmesg | grep -E 'INTEGRITY AEAD ERROR|integrity: Checksum failed' || true";

fn logged_tag_errors() -> usize {
    shell(TAG_ERRORS).lines().count()
}

/// What is there now. Connections to an API server come and go.
fn listing(options: &Options, driver: Option<&Driver>) -> Listing {
    let alone = driver.filter(|_| options.kubeconfig.is_none());
    Listing::take(&options.pool, alone.map(Driver::pid))
}

/// Makes a pool on `disk`, on a file system of this size, as `mkfs.ext4` understands it.
#[track_caller]
fn make_pool(disk: &Path, size: &str) {
    let disk = disk.display();
    shell(&format!(
        "mkfs.ext4 -q -F -E nodiscard {disk} {size}
         mkdir -p {MOUNT} && mount {disk} {MOUNT} && mkdir {POOL} && coffer pool init {POOL}"
    ));
}

/// Removes whatever an earlier test left, in the order in which it was stacked.
pub(crate) fn clear() {
    let script = format!(
        "grep -E 'kubelet/(pods|plugins)|coffer-' /proc/1/mountinfo | cut -d' ' -f5 | sort -r | xargs -r umount -q
         dmsetup ls | grep -o '^coffer-[^[:space:]]*' | xargs -r -n1 dmsetup remove
         losetup -D
         mountpoint -q {MOUNT} && umount {MOUNT}
         [ -e /dev/mapper/power-pool ] && for name in cut copy changes live pool log; do dmsetup remove --retry power-$name; done
         dmsetup ls | grep -q '^{FAILING_DISK}[[:space:]]' && dmsetup remove {FAILING_DISK}
         rm -rf /var/lib/kubelet/pods /var/lib/kubelet/plugins
         mkdir -p /var/lib/kubelet/pods /var/lib/kubelet/plugins_registry /var/lib/kubelet/plugins/kubernetes.io/csi/csi.coffer.dev"
    );
    Command::new("bash").args(["-c", &script]).status().expect("bash starts");
}

/// A log of its own for each test, on the host's side of the shared directory.
fn log(location: &Location<'_>) -> PathBuf {
    let file = Path::new(location.file()).file_stem().expect("a source file").to_string_lossy();
    PathBuf::from(format!("/log/coffer-{file}-{}.log", location.line()))
}

/// Runs `script` in bash, which must succeed, and returns what it printed.
#[track_caller]
pub(crate) fn shell(script: &str) -> String {
    let output = Command::new("bash").args(["-o", "pipefail", "-ec", script]).output().expect("bash starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\nended with {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}
