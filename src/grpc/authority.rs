//! Lets the kubelet's registration calls through an HTTP/2 server that keeps to the letter.
//!
//! The kubelet (1.37, `pluginmanager/operationexecutor`) dials the registration socket by its path, and grpc-go sends
//! that path as `:authority`. RFC 3986 allows no such authority, and h2 resets the stream before anybody could be
//! lenient. So the requests on this one socket are read frame by frame, and a literal `:authority` becomes
//! `localhost`, which is what the kubelet itself says on the CSI socket. Everything else passes unchanged.
//!
//! The replacement keeps the compression in step: an entry of HPACK's dynamic table is found by its place, not by its
//! length, and entries that are shorter here than the sender believes are only kept longer than it needs them.

use std::io;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tracing::debug;

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length, type, flags and stream of a frame (RFC 9113 section 4.1).
const FRAME_HEADER_BYTES: usize = 9;
/// The largest payload that a server accepts which announces no other (`SETTINGS_MAX_FRAME_SIZE`).
const FRAME_PAYLOAD_BYTES: usize = 16_384;
/// Frame type HEADERS (RFC 9113 section 6.2).
const HEADERS: u8 = 1;
/// Flags PADDED and PRIORITY of HEADERS; grpc-go sets neither, and with them the block does not begin at once.
const PADDED_OR_PRIORITY: u8 = 0x08 | 0x20;
/// `:authority` in the static table (RFC 7541 appendix A).
const AUTHORITY: usize = 1;
/// A string literal without Huffman coding: its length, then its bytes.
const LOCALHOST: &[u8] = b"\x09localhost";

/// The connection as the server should see it.
pub(super) fn mend(kubelet: UnixStream) -> DuplexStream {
    let (inner, served) = tokio::io::duplex(FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES);
    tokio::spawn(async move {
        let (requests, mut answers) = kubelet.into_split();
        let (mut from_server, to_server) = tokio::io::split(inner);
        let backward = async {
            tokio::io::copy(&mut from_server, &mut answers).await?;
            answers.shutdown().await
        };
        if let (Err(error), _) | (_, Err(error)) = tokio::join!(forward(requests, to_server), backward) {
            debug!("a registration connection broke: {error}");
        }
    });
    served
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let outcome = forward_frames(&mut from, &mut to).await;
    to.shutdown().await?;
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        outcome => outcome,
    }
}

async fn forward_frames(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut preface = [0; PREFACE_BYTES];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        from.read_exact(&mut header).await?;
        let [high, middle, low, kind, flags, ..] = header;
        let length = (usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low);
        if length > FRAME_PAYLOAD_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is larger than allowed"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        if kind == HEADERS && flags & PADDED_OR_PRIORITY == 0 {
            // A block that is no HPACK is left to the server to refuse.
            payload = with_localhost(&payload).unwrap_or(payload);
        }
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
        header[..3].copy_from_slice(&length[1..]);
        to.write_all(&header).await?;
        to.write_all(&payload).await?;
    }
}

/// The header block with every literal `:authority` replaced, or `None` if it is not HPACK (RFC 7541 section 6).
fn with_localhost(block: &[u8]) -> Option<Vec<u8>> {
    let mut mended = Vec::with_capacity(block.len());
    let mut rest = block;
    while let Some(&first) = rest.first() {
        let (index_bits, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (index, mut length) = integer(rest, index_bits)?;
        if is_literal {
            if index == 0 {
                length += string(rest.get(length..)?)?;
            }
            let value = string(rest.get(length..)?)?;
            if index == AUTHORITY {
                mended.extend_from_slice(&rest[..length]);
                mended.extend_from_slice(LOCALHOST);
                rest = rest.get(length + value..)?;
                continue;
            }
            length += value;
        }
        mended.extend_from_slice(rest.get(..length)?);
        rest = &rest[length..];
    }
    Some(mended)
}

/// An integer in the last `bits` of the first byte and what follows (RFC 7541 section 5.1), and the bytes it takes.
fn integer(bytes: &[u8], bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*bytes.first()?) & mask;
    if value < mask {
        return Some((value, 1));
    }
    // More than three bytes would be longer than a frame.
    for (place, byte) in bytes.get(1..)?.iter().enumerate().take(3) {
        value += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, place + 2));
        }
    }
    None
}

/// How many bytes the string literal takes that `bytes` begin with (RFC 7541 section 5.2).
fn string(bytes: &[u8]) -> Option<usize> {
    let (length, prefix) = integer(bytes, 7)?;
    Some(prefix + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// POST, http, a path, and the path of a socket as `:authority`, which the second block names by its index.
    fn blocks(authority: &[u8]) -> [Vec<u8>; 2] {
        let mut first = vec![0x83, 0x86, 0x44, 0x02, b'/', b'a', 0x41];
        first.extend_from_slice(authority);
        first.extend_from_slice(b"\x40\x01x\x01y");
        [first, vec![0x83, 0x86, 0xbf, 0x04, 0x02, b'/', b'b']]
    }

    #[test]
    fn only_a_literal_authority_changes() {
        let [first, second] = blocks(b"\x11%2Frun%2Freg.sock");
        let [wanted, _] = blocks(LOCALHOST);
        assert_eq!(with_localhost(&first), Some(wanted));
        assert_eq!(with_localhost(&second), Some(second));
    }

    #[test]
    fn long_strings_and_table_sizes_are_stepped_over() {
        let mut long = vec![0x41, 0x7f, 0x81, 0x01];
        long.extend_from_slice(&[b'%'; 127 + 129]);
        let mut block = vec![0x3f, 0xe1, 0x1f];
        block.extend_from_slice(&long);
        block.push(0x82);
        assert_eq!(with_localhost(&block), Some([&[0x3f, 0xe1, 0x1f, 0x41], LOCALHOST, &[0x82]].concat()));
    }

    #[test]
    fn what_is_no_header_block_is_left_alone() {
        for block in [&[0x41][..], &[0x41, 0x05, b'a'], &[0x7f, 0xff, 0xff, 0xff, 0xff], &[0x40, 0x7f]] {
            assert_eq!(with_localhost(block), None, "{block:?}");
        }
    }

    #[tokio::test]
    async fn frames_pass_and_carry_their_new_length() {
        let [first, _] = blocks(b"\x11%2Frun%2Freg.sock");
        let [wanted, _] = blocks(LOCALHOST);
        let frame = |kind: u8, payload: &[u8]| {
            let length = u8::try_from(payload.len()).expect("short");
            [&[0, 0, length, kind, 4, 0, 0, 0, 1], payload].concat()
        };
        let sent = [vec![b'p'; PREFACE_BYTES], frame(HEADERS, &first), frame(0, b"data")].concat();
        let mut received = Vec::new();
        forward(sent.as_slice(), &mut received).await.expect("an end between frames is an end");
        assert_eq!(received, [vec![b'p'; PREFACE_BYTES], frame(HEADERS, &wanted), frame(0, b"data")].concat());
    }
}
