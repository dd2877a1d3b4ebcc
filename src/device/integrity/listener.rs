//! The kernel log and the audit records, read as they come. What cannot be read is said once, and done without.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netlink;
use rustix::net::netlink::SocketAddrNetlink;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::BadSector;
use super::Told;
use super::text;

const LOG: &str = "/dev/kmsg";
/// Longer than any line of the log (8 KiB) and any audit record (`MAX_AUDIT_MESSAGE_LENGTH`, 8970).
const RECORD_BYTES: usize = 16 << 10;
/// The set of multicast groups that is `AUDIT_NLGRP_READLOG` alone (`linux/audit.h`).
const READ_LOG: u32 = 1 << 0;
/// How much is taken at once of what was told.
const BATCH: usize = 4096;

/// Hears what the kernel tells of bad sectors: what its log holds already, and what comes.
pub struct Listener {
    log: Option<Source>,
    audit: Option<Source>,
}

struct Source {
    name: &'static str,
    descriptor: AsyncFd<OwnedFd>,
    read: fn(&OwnedFd, &mut [u8]) -> io::Result<Option<Told>>,
}

impl Listener {
    /// Listens from now on; wants `CAP_SYSLOG` and `CAP_AUDIT_READ`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start() -> Self {
        Self {
            log: Source::open("the kernel log", open_log(), read_log),
            audit: Source::open("the audit records", open_audit(), read_audit),
        }
    }

    /// Waits until bad sectors of volumes are known that were not told of before.
    pub async fn next(&self) -> Vec<BadSector> {
        loop {
            let told = tokio::select! {
                told = take(self.log.as_ref()) => told,
                told = take(self.audit.as_ref()) => told,
            };
            let bad: Vec<_> = told.into_iter().filter_map(|told| told.of_a_volume(Path::new("/sys"))).collect();
            if !bad.is_empty() {
                return bad;
            }
        }
    }
}

impl Source {
    fn open(
        name: &'static str,
        descriptor: Result<OwnedFd, Errno>,
        read: fn(&OwnedFd, &mut [u8]) -> io::Result<Option<Told>>,
    ) -> Option<Self> {
        // SAFETY: the descriptor is owned, and so the same and open until it is dropped with the `AsyncFd`.
        let registered = |descriptor| unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        let opened = descriptor.map_err(io::Error::from).and_then(|found| registered(found).map_err(io::Error::from));
        match opened {
            Ok(descriptor) => Some(Self { name, descriptor, read }),
            Err(error) => {
                tracing::warn!(%error, "{name} cannot be read, so integrity errors may stay unseen");
                None
            }
        }
    }
}

/// Waits until `source` tells of bad sectors, and takes them. Nothing is lost if the wait is given up.
async fn take(source: Option<&Source>) -> Vec<Told> {
    let Some(source) = source else { return pending().await };
    let mut buffer = vec![0; RECORD_BYTES];
    let mut told = Vec::new();
    while told.is_empty() {
        let Ok(mut ready) = source.descriptor.readable().await else { return pending().await };
        while let Ok(read) = ready.try_io(|descriptor| (source.read)(descriptor.get_ref(), &mut buffer)) {
            match read {
                Ok(found) => told.extend(found),
                // It was overwritten before it was read, or there was no room for it: more will come.
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::PIPE | Errno::NOBUFS)) => {}
                Err(error) => {
                    tracing::warn!(%error, "{} can no longer be read", source.name);
                    return pending().await;
                }
            }
            if told.len() == BATCH {
                break;
            }
        }
    }
    told
}

fn open_log() -> Result<OwnedFd, Errno> {
    rustix::fs::open(LOG, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn read_log(log: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Told>> {
    let length = rustix::io::read(log, &mut *buffer)?;
    Ok(text::in_log(&buffer[..length]))
}

fn open_audit() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::AUDIT))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, READ_LOG))?;
    Ok(socket)
}

fn read_audit(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Told>> {
    let (length, _, sender) = rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::empty())?;
    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
    let is_of_kernel = sender.is_some_and(|sender| sender.pid() == 0);
    Ok(text::in_audit(&buffer[..length]).filter(|_| is_of_kernel))
}

/// The number of the last line of the kernel log. Only reading all of it tells.
pub(super) fn last_line() -> io::Result<u64> {
    let log = open_log()?;
    let mut buffer = vec![0; RECORD_BYTES];
    let mut last = 0;
    loop {
        match rustix::io::read(&log, &mut *buffer) {
            Ok(length) => last = text::line_number(&buffer[..length]).unwrap_or(last),
            Err(Errno::AGAIN) => return Ok(last),
            Err(Errno::PIPE) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
