//! What work with keys leaves on the stack: temporaries of ciphers and hashes, and copies that a compiler makes.

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::ptr;

use rustix::mm::Advice;
use rustix::mm::MlockFlags;
use rustix::mm::madvise;
use rustix::mm::mlock_with;
use rustix::mm::munlock;
use zeroize::Zeroize;

use super::unprotected;
use crate::volume::Result;

/// What is overwritten below the frame that wipes; what is further down goes back to the kernel.
const OVERWRITTEN_BYTES: usize = 64 << 10;

/// Runs `work` and then wipes what it used of this thread's stack, which meanwhile is locked and left out of core dumps.
///
/// For a thread that was started by this program: the stack of the first one grows, and is not known in advance.
///
/// # Errors
/// `MemoryUnprotected` if the kernel does not lock the stack.
pub fn wiping_the_stack<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _stack = Stack::lock().map_err(unprotected)?;
    apart(work)
}

/// A frame of its own, which lies below the one that wipes.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// The stack of the calling thread, without the guard at its end. Dropping this wipes it from the calling frame on.
struct Stack {
    end: *mut c_void,
    length_bytes: usize,
}

impl Stack {
    fn lock() -> io::Result<Self> {
        let stack = Self::of_this_thread()?;
        // SAFETY: the range is mapped as long as this thread runs. The advice changes nothing that is in it.
        unsafe { madvise(stack.end, stack.length_bytes, Advice::LinuxDontDump) }?;
        // SAFETY: as above. Only pages that are used become resident.
        unsafe { mlock_with(stack.end, stack.length_bytes, MlockFlags::ONFAULT) }?;
        Ok(stack)
    }

    fn of_this_thread() -> io::Result<Self> {
        let (mut start, mut length_bytes, mut guard_bytes) = (ptr::null_mut(), 0, 0);
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: the first call initialises the attributes of the thread that makes it, or fails; the next two only read
        // them, and the last ends them.
        unsafe {
            match libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            libc::pthread_attr_getstack(attributes.as_ptr(), &mut start, &mut length_bytes);
            libc::pthread_attr_getguardsize(attributes.as_ptr(), &mut guard_bytes);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
        Ok(Self { end: start.wrapping_byte_add(guard_bytes), length_bytes: length_bytes - guard_bytes })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        overwrite();
        let here = ptr::from_mut(self).addr() - OVERWRITTEN_BYTES / 2;
        let page = rustix::param::page_size();
        let unused_bytes = (here - here % page).saturating_sub(self.end.addr());
        // SAFETY: the range is this thread's stack, and unlocking changes nothing that is in it.
        let unlocked = unsafe { munlock(self.end, self.length_bytes) };
        // SAFETY: the range ends half of what was overwritten below this frame, far from everything that is in use.
        let emptied = unsafe { madvise(self.end, unused_bytes, Advice::LinuxDontNeed) };
        debug_assert!(unlocked.is_ok() && emptied.is_ok(), "{unlocked:?} {emptied:?}");
    }
}

/// Zeroes what lies next below the caller's frame.
#[inline(never)]
fn overwrite() {
    let mut area = [0_u8; OVERWRITTEN_BYTES];
    area.zeroize();
    black_box(&area);
}
