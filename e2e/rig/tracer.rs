//! Counts the calls with which a process changes the kernel's state or files, over all of its threads, and kills it
//! before one of them.
//!
//! A tracer of our own, because strace counts per thread and per name: its third `ioctl` is the third of any thread.
//! Programs that the process starts are left alone, as a crash of the process alone would leave them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::ptrace::Options;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Calls that always change something.
const CHANGING: [i64; 19] = [
    libc::SYS_ioctl,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_umount2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
];

/// Of writes to the same descriptor, one right after the other, only so many count: a volume that is filled from end to
/// end is filled in hundreds of them, and a cut between any two is the same.
const RUN: usize = 2;

/// Follows the process `pid` to its end and prints `attached` as soon as every thread is traced, then how many calls
/// there were. A `write` counts if it goes to a file below `tree`. Before call number `kill_before` the process is
/// killed.
pub(crate) fn follow(pid: i32, kill_before: Option<usize>, tree: &Path) -> Result<()> {
    let process = Pid::from_raw(pid);
    let mut awaited = seize(process)?;
    let (mut calls, mut last, mut run) = (0, None, 0);
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => break,
            status => status.context("cannot wait for the process")?,
        };
        let mut signal = None;
        match status {
            WaitStatus::PtraceSyscall(thread) => {
                if let Some(call) = changing_call(process, thread, tree) {
                    run = if last == Some(call) { run + 1 } else { 1 };
                    last = Some(call);
                    calls += usize::from(call.0 != libc::SYS_pwrite64 || run <= RUN);
                    if kill_before == Some(calls) {
                        kill(process, Signal::SIGKILL)?;
                    }
                }
            }
            WaitStatus::Stopped(_, caught) => signal = Some(caught),
            _ => {}
        }
        let Some(thread) = status.pid() else { continue };
        if awaited.remove(&thread) && awaited.is_empty() {
            println!("attached");
        }
        // A thread that has ended cannot go on.
        let _ = ptrace::syscall(thread, signal);
    }
    println!("{calls}");
    Ok(())
}

/// Attaches to every thread, and to those that they start. Returns the ones whose first stop is still to be seen.
fn seize(process: Pid) -> Result<BTreeSet<Pid>> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    let mut seized = BTreeSet::new();
    loop {
        let before = seized.len();
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = Pid::from_raw(entry?.file_name().to_string_lossy().parse()?);
            // One that a traced thread has started is traced already.
            if !seized.contains(&thread) && ptrace::seize(thread, options).is_ok() {
                ptrace::interrupt(thread)?;
                seized.insert(thread);
            }
        }
        if seized.len() == before {
            return Ok(seized);
        }
    }
}

/// The call that the thread is about to make, and its first argument, if it is one that counts.
fn changing_call(process: Pid, thread: Pid, tree: &Path) -> Option<(i64, u64)> {
    let info = ptrace::syscall_info(thread).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: the kernel fills `entry` for this `op`, and every bit pattern is a number.
    let entry = unsafe { info.u.entry };
    let call = i64::try_from(entry.nr).ok()?;
    let counts = match call {
        libc::SYS_openat => entry.args[2] & u64::from(libc::O_CREAT.unsigned_abs()) != 0,
        libc::SYS_write => {
            let target = fs::read_link(format!("/proc/{process}/fd/{}", entry.args[0]));
            target.is_ok_and(|target| target.starts_with(tree))
        }
        _ => CHANGING.contains(&call),
    };
    counts.then_some((call, entry.args[0]))
}
