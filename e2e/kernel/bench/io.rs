//! Throughput of two mounted volumes, in short slices that change sides, so that a machine that becomes slower does
//! so for both.

use std::fs;
use std::path::Path;

use super::Samples;
use super::arms::Arm;
use crate::scene::shell;

const FILE: &str = "fio";
const FILE_MIB: u32 = 256;
/// Of each of a round's four slices.
const SLICE_SECONDS: u32 = 3;
const REPORT: &str = "/tmp/fio.json";
const MIB: f64 = 1048576.0;

/// What fio does: its name in the samples, its pattern, its block size, how many requests are under way.
const WORKLOADS: [(&str, &str, &str, u32); 4] = [
    ("random read 4 KiB", "randread", "4k", 16),
    ("random write 4 KiB", "randwrite", "4k", 16),
    ("sequential read 1 MiB", "read", "1M", 4),
    ("sequential write 1 MiB", "write", "1M", 4),
];

/// Writes the file that is read and overwritten later: without holes, so that no slice allocates.
pub(crate) fn lay_out(mounted_at: &Path) {
    let file = mounted_at.join(FILE);
    shell(&format!("dd if=/dev/zero of={} bs=1M count={FILE_MIB} oflag=direct status=none", file.display()));
}

/// One round: each workload in the order A, B, B, A; one sample of each arm, the mean of its two slices.
pub(crate) fn measure(arms: [&dyn Arm; 2], samples: &mut Samples) {
    let [a, b] = arms;
    for (name, pattern, block, depth) in WORKLOADS {
        let slices = [a, b, b, a].map(|arm| {
            let file = arm.mounted_at().join(FILE);
            format!("--stonewall --name={} --filename={}", arm.name(), file.display())
        });
        shell(&format!(
            "fio --output={REPORT} --output-format=json --ioengine=libaio --direct=1 --iodepth={depth} --rw={pattern} \
             --bs={block} --size={FILE_MIB}M --time_based --runtime={SLICE_SECONDS} --norandommap {}",
            slices.join(" ")
        ));
        let figures = figures(block);
        for arm in arms {
            let own: Vec<f64> =
                figures.iter().filter(|(owner, _)| owner == arm.name()).map(|(_, value)| *value).collect();
            let [first, second] = own[..] else { panic!("fio reports {} slices of {}", own.len(), arm.name()) };
            samples.keep(name, arm.name(), f64::midpoint(first, second));
        }
    }
}

/// Each slice of fio's report: whose it is, and requests a second for small blocks, MiB a second for large ones.
fn figures(block: &str) -> Vec<(String, f64)> {
    let report = fs::read(REPORT).expect("fio writes a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("the report is JSON");
    let jobs = report["jobs"].as_array().expect("the report lists jobs");
    let figure = |side: &serde_json::Value| match block {
        "1M" => side["bw_bytes"].as_f64().expect("bytes a second") / MIB,
        _ => side["iops"].as_f64().expect("requests a second"),
    };
    jobs.iter()
        .map(|job| {
            let name = job["jobname"].as_str().expect("a job has a name").to_owned();
            // The side that the pattern does not touch is zero.
            (name, figure(&job["read"]) + figure(&job["write"]))
        })
        .collect()
}
