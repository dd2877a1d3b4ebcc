//! Memory for keys: locked, left out of core dumps, not copied to child processes, and zeroed before it is given back.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::ops::DerefMut;
use std::ptr::NonNull;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use rustix::mm::madvise;
use rustix::mm::mlock;
use rustix::mm::mmap_anonymous;
use rustix::mm::munmap;
use zeroize::Zeroize;

/// A mapping of its own: nothing else is on its pages, so that they can be locked and marked as a whole.
pub(super) struct Locked {
    start: NonNull<c_void>,
    length_bytes: usize,
}

impl Locked {
    /// `length_bytes` zeroes.
    ///
    /// # Errors
    /// What the kernel says; it allows a process without privileges a few pages (`RLIMIT_MEMLOCK`).
    pub(super) fn zeroed(length_bytes: usize) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where the kernel finds room for it, is nobody else's.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped(length_bytes), rights, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on it is unmapped whatever happens.
        let memory = Self { start, length_bytes };
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: the mapping is ours; neither advice changes what is in it.
            unsafe { madvise(start.as_ptr(), mapped(length_bytes), advice) }?;
        }
        // SAFETY: the mapping is ours.
        unsafe { mlock(start.as_ptr(), mapped(length_bytes)) }?;
        Ok(memory)
    }
}

/// The kernel maps no less than a byte, and rounds up to whole pages.
fn mapped(length_bytes: usize) -> usize {
    length_bytes.max(1)
}

impl Deref for Locked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has so many bytes, all initialised, and lives as long as `self`, which lends it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length_bytes) }
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length_bytes) }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.zeroize();
        // SAFETY: the mapping is ours, and nothing that borrowed it is left. It fails only for addresses that are none.
        let unmapped = unsafe { munmap(self.start.as_ptr(), mapped(self.length_bytes)) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

// SAFETY: it owns its mapping, which belongs to no thread.
unsafe impl Send for Locked {}
// SAFETY: through a shared reference it can only be read.
unsafe impl Sync for Locked {}
