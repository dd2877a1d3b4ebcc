//! How often a filesystem was made on this machine, as the kernel saw it: every start of a program called mkfs.

use std::fs;
use std::path::Path;

/// A buffer of our own in tracefs.
const TRACE: &str = "/sys/kernel/debug/tracing/instances/formats";

/// How many there were since the first call.
pub(crate) fn count() -> usize {
    let trace = Path::new(TRACE);
    if !trace.exists() {
        let event = trace.join("events/sched/sched_process_exec");
        fs::create_dir(trace)
            .and_then(|()| fs::write(event.join("filter"), "filename ~ \"*/mkfs.*\""))
            .and_then(|()| fs::write(event.join("enable"), "1"))
            .expect("the kernel traces the start of programs");
    }
    let lines = fs::read_to_string(trace.join("trace")).expect("readable");
    lines.lines().filter(|line| !line.starts_with('#')).count()
}
