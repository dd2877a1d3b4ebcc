//! The KBS of the tests: `coffer dev-kbs`, over HTTPS, which knows this machine's TPM.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::OnceLock;

use coffer::key::VolumeKeys;
use coffer::volume::SecretBytes;
use coffer::volume::VolumeId;
use sha2::Digest;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::scene::shell;
use crate::scene::wait_until;

/// The key of every volume in these tests.
pub(crate) const KEY_URI: &str = "kbs:///default/volumes/test";
/// Where a rotation moves them.
pub(crate) const NEXT_KEY_URI: &str = "kbs:///default/volumes/next";
/// On the system disk, where it survives a power cut.
const STATE: &str = "/var/lib/kbs";
const PORT: u16 = 8443;
const GARBAGE_PORT: u16 = 8444;
const NODE: &str = "node1";

/// See the module. There is one for all tests, because registering a TPM takes a while.
pub(crate) struct Broker {
    server: Mutex<Option<Child>>,
    secret: [u8; 32],
}

impl Broker {
    /// The KBS, started when first asked for.
    pub(crate) fn get() -> &'static Self {
        static BROKER: OnceLock<Broker> = OnceLock::new();
        BROKER.get_or_init(|| {
            // After a power cut the node must be known by what it registered before.
            if !Path::new(STATE).exists() {
                shell(&format!(
                    "mkdir {STATE}
                     coffer attest --attester tpm --output json >{STATE}/attest.json
                     coffer dev-kbs --state {STATE} register --pcrs 0-7 {NODE} {STATE}/attest.json
                     head -c 32 /dev/urandom >{STATE}/secret"
                ));
            }
            let secret = fs::read(format!("{STATE}/secret")).expect("the secret is there");
            Self { server: Mutex::new(None), secret: secret.try_into().expect("32 bytes") }
        })
    }

    /// Runs, trusts this node, and has the right secret.
    pub(crate) fn reset(&self) {
        let mut server = self.server.lock().expect("no holder of this lock panics");
        if server.is_none() {
            *server = Some(serve(STATE, PORT));
        }
        self.put_secret(&self.secret);
        self.allow_at(KEY_URI);
    }

    /// Lets the node have the key at `uri`, if there is one.
    pub(crate) fn allow_at(&self, uri: &str) {
        shell(&format!("coffer dev-kbs --state {STATE} allow {uri} {NODE}"));
    }

    /// Ends the server.
    pub(crate) fn stop(&self) {
        let server = self.server.lock().expect("no holder of this lock panics").take();
        let mut server = server.expect("the KBS runs");
        server.kill().expect("the KBS is our child");
        server.wait().expect("the KBS is our child");
    }

    /// Takes the node out of the key's policy.
    pub(crate) fn deny(&self) {
        self.deny_at(KEY_URI);
    }

    /// Takes the node out of the policy of the key at `uri`.
    pub(crate) fn deny_at(&self, uri: &str) {
        shell(&format!("coffer dev-kbs --state {STATE} deny {uri} {NODE}"));
    }

    /// Has a secret at [`NEXT_KEY_URI`] too, for this node.
    pub(crate) fn offer_next(&self) {
        self.put(NEXT_KEY_URI, &self.secret_at(NEXT_KEY_URI));
        self.allow_at(NEXT_KEY_URI);
    }

    /// Loses every secret.
    pub(crate) fn remove_secret(&self) {
        fs::write(format!("{STATE}/secrets.json"), "{}").expect("written");
    }

    /// Stores `secret` in place of the one that is there.
    pub(crate) fn put_secret(&self, secret: &[u8]) {
        self.put(KEY_URI, secret);
    }

    fn put(&self, uri: &str, secret: &[u8]) {
        let mut put = Command::new("coffer")
            .args(["dev-kbs", "--state", STATE, "put", "--stdin", "--replace", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("coffer starts");
        put.stdin.take().expect("a pipe").write_all(secret).expect("coffer reads the secret");
        assert!(put.wait().expect("our child").success(), "the secret was not stored");
    }

    /// The right secret.
    pub(crate) fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// What is derived from the right secret for the volume `id`.
    pub(crate) fn keys(&self, id: &str) -> VolumeKeys {
        self.keys_at(KEY_URI, id)
    }

    fn keys_at(&self, uri: &str, id: &str) -> VolumeKeys {
        let secret = SecretBytes::new(Zeroizing::new(self.secret_at(uri)));
        let id = VolumeId::parse(id).expect("an id");
        VolumeKeys::derive(&secret, &id).expect("32 bytes are enough")
    }

    /// The text that unlocks the keyslot of the volume `id`.
    pub(crate) fn passphrase(&self, id: &str) -> SecretBytes {
        self.keys(id).passphrase
    }

    /// The text that the secret at `uri` gives for the volume `id`.
    pub(crate) fn passphrase_at(&self, uri: &str, id: &str) -> SecretBytes {
        self.keys_at(uri, id).passphrase
    }

    /// A secret for each URI.
    fn secret_at(&self, uri: &str) -> Vec<u8> {
        if uri == KEY_URI { self.secret.to_vec() } else { Sha256::digest(self.secret).to_vec() }
    }

    /// How often a key was released so far.
    pub(crate) fn releases(&self) -> usize {
        fs::read_to_string(format!("{STATE}/release.log")).unwrap_or_default().lines().count()
    }

    /// Flags that make a driver use this KBS.
    pub(crate) fn flags(&self) -> Vec<String> {
        flags(PORT, STATE)
    }

    /// The same authority at another port of this machine.
    pub(crate) fn flags_for_port(&self, port: u16) -> Vec<String> {
        flags(port, STATE)
    }

    /// This KBS, but a driver that trusts another authority.
    pub(crate) fn flags_for_another_authority(&self) -> Vec<String> {
        let other = "/run/other-kbs";
        let mut server = serve(other, GARBAGE_PORT);
        server.kill().expect("our child");
        server.wait().expect("our child");
        flags(PORT, other)
    }

    /// A server with a certificate of the right authority that answers every request with a page of text.
    pub(crate) fn start_garbage(&self) -> Garbage {
        shell(&format!(
            "cd {STATE}
             printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' >garbage.ext
             openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=garbage \
                 -keyout garbage.key -out garbage.csr
             openssl x509 -req -in garbage.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 \
                 -extfile garbage.ext -out garbage.pem"
        ));
        // Waits for the request's first line, then answers as something that is not a KBS.
        shell(&format!(
            "cat >{STATE}/garbage <<'END'
#!/bin/sh
read -r request
printf 'HTTP/1.1 200 OK\r\nContent-Length: 24\r\nConnection: close\r\n\r\n<html>not a KBS</html>  '
END
             chmod +x {STATE}/garbage"
        ));
        let tls = format!("OPENSSL-LISTEN:{GARBAGE_PORT},bind=127.0.0.1,fork,reuseaddr,verify=0");
        let server = Command::new("socat")
            .arg(format!("{tls},cert={STATE}/garbage.pem,key={STATE}/garbage.key"))
            .arg(format!("EXEC:{STATE}/garbage"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("socat starts");
        wait_for_port(GARBAGE_PORT);
        Garbage(server)
    }
}

/// A running server that is no KBS.
pub(crate) struct Garbage(Child);

impl Garbage {
    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        GARBAGE_PORT
    }
}

impl Drop for Garbage {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn flags(port: u16, state: &str) -> Vec<String> {
    let url = format!("https://127.0.0.1:{port}");
    ["--attester", "tpm", "--kbs-url", &url, "--kbs-ca", &format!("{state}/ca.pem")].map(str::to_owned).to_vec()
}

fn serve(state: &str, port: u16) -> Child {
    let log = File::options().create(true).append(true).open("/log/dev-kbs.log").expect("the log");
    let server = Command::new("coffer")
        .args(["dev-kbs", "--state", state, "serve", "--listen", &format!("127.0.0.1:{port}")])
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("coffer starts");
    wait_for_port(port);
    server
}

fn wait_for_port(port: u16) {
    wait_until("a listener on the KBS's port", || TcpStream::connect(("127.0.0.1", port)).is_ok());
}
