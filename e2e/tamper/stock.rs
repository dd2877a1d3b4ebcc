//! The control: the same bytes given to a plain `cryptsetup open` with the right passphrase. Both versions that Debian
//! 12 and 13 have are asked.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::Stdio;

use super::forge::Patch;
use crate::broker::Broker;
use crate::scene::shell;

/// In memory, with the passphrase beside it.
const IMAGE: &str = "/tmp/stock";
const PASSPHRASE: &str = "/run/stock-passphrase";
const NAME: &str = "stock";
/// Both layers of a volume with tags.
const REMOVE: &str = "for name in stock stock_dif; do dmsetup remove --retry $name 2>/dev/null || true; done";
/// Some of the headers ask for work that would not end.
const PATIENCE_SECONDS: &str = "20";

/// timeout(1) kills its group, itself with it.
const KILLED: i32 = 9;

/// A `cryptsetup`, and where its library is if that is not the node's.
struct Version {
    program: &'static str,
    libraries: Option<&'static str>,
}

/// Debian 12's first, as the rig shares it.
const VERSIONS: [Version; 2] = [
    Version { program: "/share/older/cryptsetup", libraries: Some(super::OLDER_LIBRARIES) },
    Version { program: "/usr/sbin/cryptsetup", libraries: None },
];

/// A copy of a volume that is given to cryptsetup.
pub(super) struct Stock {
    image: File,
    /// What the copy is made of again each time: cryptsetup repairs what it opens, and the kernel writes superblocks.
    backing: Vec<u8>,
    cipher: String,
}

impl Stock {
    /// A copy of `backing`, the volume `id`.
    pub(super) fn new(broker: &Broker, id: &str, backing: &[u8]) -> Self {
        fs::write(IMAGE, backing).expect("room in memory");
        fs::write(PASSPHRASE, broker.passphrase(id).expose()).expect("room in memory");
        let image = File::options().write(true).open(IMAGE).expect("just written");
        let mut stock = Self { image, backing: backing.to_vec(), cipher: String::new() };
        let [older, newer] = stock.answers(&[]);
        assert_eq!(older, newer, "what is untouched opens with either");
        stock.cipher = older.strip_prefix("opens, ").expect("what is untouched opens").to_owned();
        stock
    }

    /// The versions, as they call themselves.
    pub(super) fn versions() -> [String; 2] {
        VERSIONS.map(|version| {
            let output = version.command().arg("--version").output().expect("cryptsetup starts");
            let text = String::from_utf8(output.stdout).expect("text");
            text.split_whitespace().nth(1).expect("a version").to_owned()
        })
    }

    /// What each version answers to the copy with `patches`: whether it opens, and with which cipher if not the volume's.
    pub(super) fn answers(&self, patches: &[Patch]) -> [String; 2] {
        VERSIONS.map(|version| {
            self.image.write_all_at(&self.backing, 0).expect("written");
            for (offset, bytes) in patches {
                self.image.write_all_at(bytes, *offset).expect("written");
            }
            self.open(&version)
        })
    }

    fn open(&self, version: &Version) -> String {
        let mut open = version.command();
        open.args(["open", "--batch-mode", "--key-file", PASSPHRASE, IMAGE, NAME]);
        let status = open.stdin(Stdio::null()).output().expect("timeout starts").status;
        match (status.code(), status.signal()) {
            (Some(0), _) => {}
            (_, Some(KILLED)) => return "does not end".into(),
            (_, Some(_)) => return "crashes".into(),
            _ => return "refuses".into(),
        }
        let table = shell(&format!("dmsetup table {NAME}; {REMOVE}"));
        let cipher = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, _, "crypt", cipher, ..] => cipher.to_owned(),
            [_, _, target, ..] => target.to_owned(),
            _ => line.to_owned(),
        };
        let ciphers = table.lines().map(cipher).collect::<Vec<_>>().join(" and ");
        if ciphers == self.cipher { "opens".into() } else { format!("opens, {ciphers}") }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        shell(REMOVE);
        // An error means that it is gone already.
        let _ = fs::remove_file(IMAGE);
        let _ = fs::remove_file(PASSPHRASE);
    }
}

impl Version {
    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        // cryptsetup notes a SIGTERM and computes on.
        command.args(["--signal=KILL", PATIENCE_SECONDS]).arg(self.program);
        command.envs(self.libraries.map(|directory| ("LD_LIBRARY_PATH", directory)));
        command
    }
}
