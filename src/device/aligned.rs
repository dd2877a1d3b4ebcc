//! Memory for O_DIRECT, which goes past the page cache and takes only what is aligned as the device's sectors are.

use std::ops::Deref;
use std::ops::DerefMut;
use std::ops::Range;

/// Right for every device with sectors of up to 4096 bytes.
const ALIGNMENT: usize = 4096;

/// Bytes at an address that O_DIRECT accepts.
pub(super) struct Aligned {
    buffer: Vec<u8>,
    /// Where they are in `buffer`.
    range: Range<usize>,
}

impl Aligned {
    /// That many zeros.
    pub(super) fn zeroed(bytes: usize) -> Self {
        let buffer = vec![0; bytes + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Self { buffer, range: start..start + bytes }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.range.clone()]
    }
}

/// A copy of the buffer would lie elsewhere, and its bytes at another distance from the alignment.
impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_is_aligned_and_the_same() {
        let mut first = Aligned::zeroed(8192);
        first[8191] = 7;
        let copies: Vec<_> = std::iter::repeat_with(|| first.clone()).take(16).collect();
        for copy in copies.iter().chain([&first]) {
            assert_eq!(copy.as_ptr().align_offset(ALIGNMENT), 0);
            assert_eq!((copy.len(), copy[0], copy[8191]), (8192, 0, 7));
        }
    }
}
