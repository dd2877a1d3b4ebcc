//! What host and guest say to each other: one request, then frames of output, then the exit status.

use std::io::Read;
use std::io::Write;

use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;
use serde::Serialize;

/// What the agent sends first: QEMU accepts connections long before anyone in the guest listens.
pub(crate) const GREETING: &[u8; 13] = b"coffer-agent\n";

/// A program for bash in the guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// What bash is to run.
    pub(crate) script: String,
    /// Bytes of standard input that follow the request.
    pub(crate) stdin_bytes: u64,
}

/// The kinds of frames that the guest sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Bytes of standard output.
    Stdout = 1,
    /// Bytes of standard error.
    Stderr = 2,
    /// Four bytes: the exit status, big endian; 128 and the signal's number if a signal ended it.
    Exit = 3,
}

/// Writes the request in front of its standard input.
pub(crate) fn write_request(to: &mut impl Write, request: &Request) -> Result<()> {
    let json = serde_json::to_vec(request)?;
    to.write_all(&u32::try_from(json.len())?.to_be_bytes())?;
    to.write_all(&json)?;
    Ok(())
}

/// Reads what [`write_request`] wrote.
pub(crate) fn read_request(from: &mut impl Read) -> Result<Request> {
    Ok(serde_json::from_slice(&read_sized(from)?)?)
}

/// Writes one frame.
pub(crate) fn write_frame(to: &mut impl Write, kind: Kind, data: &[u8]) -> Result<()> {
    let mut frame = Vec::with_capacity(5 + data.len());
    frame.push(kind as u8);
    frame.extend(u32::try_from(data.len())?.to_be_bytes());
    frame.extend(data);
    to.write_all(&frame)?;
    Ok(())
}

/// Reads what [`write_frame`] wrote.
pub(crate) fn read_frame(from: &mut impl Read) -> Result<(Kind, Vec<u8>)> {
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    let kind = match kind {
        [1] => Kind::Stdout,
        [2] => Kind::Stderr,
        [3] => Kind::Exit,
        [other] => bail!("the agent sent a frame of kind {other}"),
    };
    Ok((kind, read_sized(from)?))
}

fn read_sized(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut data = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    from.read_exact(&mut data)?;
    Ok(data)
}
