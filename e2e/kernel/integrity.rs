//! Profile `aead-1` on storage that changes what it holds: an error for who reads it, and lost data for everybody who asks.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::driver::HTTP;
use crate::driver::Kind;
use crate::listening::Auditing;
use crate::listening::EILSEQ;
use crate::listening::SECTOR_BYTES;
use crate::listening::read_sector;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;
use crate::volume::Volume;

const FILE_BYTES: usize = 16 * SECTOR_BYTES;
const EIO: i32 = 5;

/// A staged volume with a file of which everything is on the disk.
struct Tagged {
    volume: Volume,
    data: Vec<u8>,
    /// Where on the volume each piece of the file is.
    sectors: Vec<u64>,
}

impl Tagged {
    fn new(scene: &Scene, name: &str) -> Self {
        let volume = Volume::create_in(scene, &[("profile", "aead-1")], name, Kind::Ext4);
        volume.stage(scene);
        let mut data = vec![0; FILE_BYTES];
        File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut data)).expect("random bytes");
        let mut file = File::create(volume.file("file")).expect("created");
        file.write_all(&data).and_then(|()| file.sync_all()).expect("written");
        drop(file);
        // dm-integrity leaves nothing in its journal when it is closed.
        volume.unstage(scene);
        volume.stage(scene);
        let blocks = shell(&format!("debugfs -R 'blocks /file' {} 2>/dev/null", volume.mapper().display()));
        let sectors: Vec<u64> = blocks.split_whitespace().map(|block| block.parse().expect("a number")).collect();
        assert_eq!(sectors.len(), FILE_BYTES / SECTOR_BYTES, "{blocks}");
        Self { volume, data, sectors }
    }

    /// Changes one bit of this piece of the file on the backing, as a host could.
    fn change(&self, piece: usize) {
        let at = backing_offset_bytes(self.sectors[piece]);
        let backing = File::options().read(true).write(true).open(self.volume.backing()).expect("the backing");
        let mut byte = [0];
        backing.read_exact_at(&mut byte, at).expect("read");
        backing.write_all_at(&[byte[0] ^ 1], at).and_then(|()| backing.sync_all()).expect("changed");
        shell("echo 3 >/proc/sys/vm/drop_caches");
    }

    /// Reads every piece of the file: those in `changed` are errors, the others are what was written.
    fn read(&self, changed: &[usize]) {
        for (piece, written) in self.data.chunks(SECTOR_BYTES).enumerate() {
            match read_sector(&self.volume.file("file"), piece as u64) {
                Ok(read) => assert!(read == written && !changed.contains(&piece), "piece {piece} has wrong bytes"),
                Err(error) => {
                    assert!(changed.contains(&piece), "piece {piece}: {error}");
                    assert_eq!(error.raw_os_error(), Some(EILSEQ), "{error}");
                }
            }
        }
    }

    /// The numbers of the sectors that the volume's health names; `None` if nothing is wrong.
    fn lost(&self, scene: &Scene) -> Option<String> {
        let health = scene.driver().health(&self.volume.id);
        let [(status, reason, message)] = health.as_slice() else {
            assert!(health.is_empty(), "{health:?}");
            return None;
        };
        assert_eq!((status.as_str(), reason.as_str()), ("DATA_LOSS", "IntegrityError"));
        let (_, numbers) = message.split_once(" there: ").expect("they are named");
        Some(numbers.split(';').next().expect("a text").to_owned())
    }

    /// Reads until these pieces, and no others, are known to be lost: the kernel does not tell of every error.
    #[track_caller]
    fn loses(&self, scene: &Scene, pieces: &[usize]) {
        let mut sectors: Vec<u64> = pieces.iter().map(|piece| self.sectors[*piece]).collect();
        sectors.sort_unstable();
        let numbers = sectors.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let expected = Some(format!("{} ({numbers})", sectors.len()));
        wait_until("news of every changed sector", || {
            self.read(pieces);
            self.lost(scene) == expected
        });
    }

    /// The N of `dm-N`.
    fn number(&self) -> String {
        shell(&format!("dmsetup info -c --noheadings -o minor {}", self.volume.mapper_name()))
    }

    fn inspect(&self, scene: &Scene) -> String {
        shell(&format!("coffer volume inspect {} --pool {}", self.volume.id, scene.pool().display()))
    }
}

/// Where dm-integrity keeps a sector of the payload: behind the header of LUKS2, a superblock and a journal of 62 sections,
/// in runs of 16 MiB behind the tags of each. The kernel counts in 512 bytes.
fn backing_offset_bytes(sector: u64) -> u64 {
    let (run, within) = (sector * 8 / 32_768, sector * 8 % 32_768);
    512 * (4096 + 8 + 62 * 264 + run * (256 + 32_768) + 256 + within)
}

/// How many lost sectors the running driver has counted.
fn counted() -> String {
    let metrics = shell(&format!("busybox wget -qO- http://{HTTP}/metrics"));
    let name = "coffer_integrity_errors_total{reason=\"IntegrityError\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0").to_owned()
}

#[test]
fn a_changed_sector_is_an_error_for_its_reader_and_lost_data_of_no_other_volume() {
    let mut scene = Scene::new();
    scene.tampers();
    let (hit, spared) = (Tagged::new(&scene, "hit"), Tagged::new(&scene, "spared"));
    hit.read(&[]);
    for piece in [2, 3, 11] {
        hit.change(piece);
    }
    let refused = fs::read(hit.volume.file("file")).expect_err("its bytes are not what was written");
    assert_eq!(refused.raw_os_error(), Some(EIO), "{refused}");
    hit.loses(&scene, &[2, 3, 11]);
    assert_eq!(counted(), "3");
    assert!(hit.inspect(&scene).contains("IntegrityError: sectors"), "{}", hit.inspect(&scene));
    spared.read(&[]);
    assert_eq!(spared.lost(&scene), None);

    // The log still tells of the three, and they are known.
    scene.restart_driver();
    hit.change(7);
    hit.loses(&scene, &[2, 3, 7, 11]);
    assert_eq!(counted(), "1");
    assert_eq!(spared.lost(&scene), None);

    // The log now tells of a device that is another volume's.
    let number = hit.number();
    hit.volume.unstage(&scene);
    spared.volume.unstage(&scene);
    spared.volume.stage(&scene);
    assert_eq!(spared.number(), number, "the kernel has not given the number again");
    scene.restart_driver();
    spared.change(5);
    spared.loses(&scene, &[5]);

    assert!(hit.lost(&scene).is_some_and(|lost| lost.starts_with("4 (")), "it is closed");
    fs::remove_file(scene.pool().join(&hit.volume.id).join("integrity.json")).expect("removed by the operator");
    assert_eq!(hit.lost(&scene), None);
    spared.volume.unstage(&scene);
    for volume in [hit.volume, spared.volume] {
        volume.delete(&scene);
    }
    scene.end();
}

#[test]
fn what_happened_while_the_driver_was_away_is_learnt_from_the_kernel_log() {
    let mut scene = Scene::new();
    scene.tampers();
    let hit = Tagged::new(&scene, "alone");
    shell(&format!("kill -KILL {}", scene.driver().pid()));
    wait_until("the end of the driver", || scene.driver_is_dead());
    hit.change(4);
    let (line, log) = (format!("INTEGRITY AEAD ERROR, sector {}\n", hit.sectors[4] * 8), shell("dmesg"));
    wait_until("a line about it", || {
        hit.read(&[4]);
        shell("dmesg").matches(&line).count() > log.matches(&line).count()
    });
    scene.restart_driver();
    wait_until("the news", || hit.lost(&scene) == Some(format!("1 ({})", hit.sectors[4])));
    hit.volume.unstage(&scene);
    hit.volume.delete(&scene);
    scene.end();
}

#[test]
fn a_healthy_volume_has_lost_nothing_whatever_udev_reads() {
    let mut scene = Scene::new();
    // Now each error is told.
    let _auditing = Auditing::on();
    let volume = Tagged::new(&scene, "healthy");
    let mapper = volume.volume.mapper();
    shell(&format!(
        "pgrep systemd-udevd >/dev/null
         udevadm trigger --settle --action=change --subsystem-match=block
         blkid -p {mapper}; blkid -p -O 0 {mapper}",
        mapper = mapper.display()
    ));
    fs::write(volume.volume.file("another"), vec![7; 4 << 20]).expect("written");
    shell("sync; echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(fs::read(volume.volume.file("another")).expect("read"), vec![7; 4 << 20]);
    volume.read(&[]);
    assert_eq!(volume.lost(&scene), None);
    assert_eq!(scene.tag_errors(), 0);
    scene.tampers();
    // Records come in order: if the kernel had told of another sector, it would be here by now.
    volume.change(9);
    volume.loses(&scene, &[9]);
    volume.volume.unstage(&scene);
    volume.volume.delete(&scene);
    scene.end();
}
