//! Unix sockets: private from the first moment, bound over what a killed process left, never over a living one.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::UnixListener;

/// Longest path in `sockaddr_un` (`unix(7)`), without the closing zero.
const SOCKET_PATH_BYTES: usize = 107;

/// The socket path in a CSI endpoint: `unix://` and an absolute path that ends in `.sock`.
///
/// # Errors
/// What is accepted, in words.
pub fn parse_endpoint(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").ok_or("must begin with unix://")?;
    if !path.starts_with('/') || !path.ends_with(".sock") {
        return Err("must be unix:// and an absolute path that ends in .sock".into());
    }
    if path.len() > SOCKET_PATH_BYTES {
        return Err(format!("the path of a socket has at most {SOCKET_PATH_BYTES} bytes"));
    }
    Ok(path.into())
}

/// Binds `path` with mode 0600 and makes the directory if need be. The umask belongs to the whole process, so this
/// must run before other threads create files.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    remove_stale(path)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(path);
    umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is not a socket is in its place"));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_absolute_socket_path() {
        assert_eq!(parse_endpoint("unix:///run/csi.sock"), Ok("/run/csi.sock".into()));
        let long = format!("unix:///{}.sock", "a".repeat(120));
        for text in ["", "/run/csi.sock", "unix://run/csi.sock", "unix:///run/csi", "tcp://1.2.3.4:5", &long] {
            assert!(parse_endpoint(text).is_err(), "{text}");
        }
    }
}
