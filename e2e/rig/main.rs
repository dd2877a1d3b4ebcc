//! The rig: a real kernel, a real TPM and a real Kubernetes on a machine that has none of them.
//!
//! `coffer-rig` builds a node image from Debian packages, boots it in QEMU with swtpm, and runs in it whatever looks
//! at Coffer from outside. It wants root, and lives in network and mount namespaces of its own. The Makefile is its
//! user; the same program is the agent in the guest.

#![expect(clippy::disallowed_methods, reason = "starting programs is what the rig is for; the lint guards the product")]

mod agent;
mod api;
mod bench;
mod cache;
mod certificates;
mod cluster;
mod conformance;
mod control_plane;
mod demo;
mod fuzz;
mod guest;
mod image;
mod image_store;
mod images;
mod install;
mod kbs;
mod kubernetes;
mod layers;
mod machine;
mod objects;
mod process;
mod product_image;
mod programs;
mod report;
mod sandbox;
mod scenarios;
mod search;
mod shell;
mod soak;
mod suites;
mod tour;
mod tracer;
mod traces;
mod wait;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::Subcommand;

use conformance::Part;
use process::Fate;

/// Runs Coffer's tests and its demo on nodes of their own.
#[derive(Parser)]
struct Arguments {
    /// Where disks, logs and everything else of a run lie.
    #[arg(long, default_value = ".rig", global = true)]
    run: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the host; runs in the guest.
    Agent,
    /// Make the node image, or say where it is.
    Image,
    /// Run the tests of the library and the programs, on the host.
    Unit {
        /// Only tests whose names contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run one test target of cargo, on the host.
    Target {
        /// Its name in Cargo.toml.
        name: String,
        /// Only tests whose names contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run every layer of tests.
    All,
    /// Run what takes too long for that: all parts of an attack, or every attack and every scenario.
    Soak {
        /// Which attack.
        attack: Option<soak::Attack>,
        /// Only parts whose names contain one of these words; also those that have passed.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run the kernel tests in a fresh node.
    Kernel {
        /// Only tests whose names contain this.
        #[arg(default_value = "")]
        filter: String,
        /// No tests whose names contain this.
        #[arg(long)]
        skip: Vec<String>,
        /// Everything that is long or random, too.
        #[arg(long)]
        soak: bool,
    },
    /// Run the tests of what talks to an API server, with a fresh one and no node.
    Api {
        /// Only tests whose names contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run the tests of the chart, on the host.
    Chart {
        /// Only tests whose names contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run the fuzz targets, on the host.
    Fuzz {
        /// Where cargo-fuzz built them.
        #[arg(long)]
        programs: PathBuf,
        /// For how long, in seconds.
        #[arg(long)]
        seconds: u32,
        /// Only targets whose names contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run csi-sanity in a fresh node, with mounts and with block devices.
    Sanity,
    /// Measure the driver in a fresh node and in a fresh cluster, and print tables.
    Bench {
        /// How often everything is repeated.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Only what is measured there.
        only: Option<bench::Place>,
    },
    /// Boot a fresh node without Kubernetes and leave it up for `shell`.
    Up,
    /// Run Kubernetes' own storage suite in a fresh cluster.
    Conformance {
        /// Only cases whose names match this regular expression.
        #[arg(default_value = "")]
        filter: String,
        /// Only the part of it that `make test` has time for.
        #[arg(long, conflicts_with = "filter")]
        representative: bool,
        /// Leave the rig up afterwards, for `shell`.
        #[arg(long)]
        keep: bool,
    },
    /// Tell the story of one volume in a fresh Kubernetes of two nodes.
    Demo {
        /// Leave the rig up afterwards, for `shell`.
        #[arg(long)]
        keep: bool,
    },
    /// Tell that story, and run what else there is time for in the same cluster.
    Tour,
    /// Run what must hold in a cluster of two nodes.
    Scenarios {
        /// Only scenarios whose names contain one of these words.
        #[arg(default_value = "")]
        filter: String,
        /// Leave the rig up afterwards, for `shell`.
        #[arg(long)]
        keep: bool,
    },
    /// Count how often the bytes on standard input are in a file or device; print hits and bytes read.
    Search {
        /// What to search.
        path: PathBuf,
        /// Read past the page cache.
        #[arg(long)]
        direct: bool,
    },
    /// Count the calls with which a process changes something, and perhaps kill it before one; runs in the guest.
    Trace {
        /// The process.
        pid: i32,
        /// Kill it before the call of this number, from 1.
        #[arg(long)]
        kill_before: Option<usize>,
        /// Count what is written to files below this.
        #[arg(long)]
        tree: PathBuf,
    },
    /// Open a shell on the node of a rig that was left up, or run one command there.
    Shell {
        /// Which run: demo, scenarios, conformance, kernel, up.
        #[arg(long, default_value = "demo")]
        of: String,
        /// Which of its nodes, from 1.
        #[arg(long, default_value_t = 1)]
        node: u8,
        /// Run this and end with its status.
        script: Vec<String>,
    },
    /// End what `--keep` left up; other runs go on.
    Down {
        /// Which run: demo, conformance.
        #[arg(long, default_value = "demo")]
        of: String,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let run = &arguments.run;
    match arguments.command {
        Command::Agent => agent::serve(),
        Command::Image => {
            println!("{}", image::Image::get()?.disk().display());
            Ok(())
        }
        Command::All => layers::all(),
        Command::Soak { attack: None, .. } => layers::soak(&run.join("soak")),
        Command::Soak { attack: Some(attack), filter } => soak::test(&run.join(attack.name()), attack, &filter),
        Command::Unit { filter } => layers::unit(&filter),
        Command::Target { name, filter } => layers::target(&name, &filter),
        Command::Kernel { filter, skip, soak } => suites::kernel(&run.join("kernel"), &filter, &skip, soak),
        Command::Api { filter } => api::test(&run.join("api"), &filter),
        Command::Chart { filter } => layers::chart(&filter),
        Command::Fuzz { programs, seconds, filter } => fuzz::test(&run.join("fuzz"), &programs, &filter, seconds),
        Command::Sanity => suites::sanity(&run.join("sanity")),
        Command::Bench { rounds, only } => bench::report(&run.join("bench"), rounds, only),
        Command::Up => {
            sandbox::enter()?;
            let programs = programs::Programs::product()?;
            suites::boot(&run.join("up"), &programs, Fate::Kept).map(drop)
        }
        Command::Conformance { filter, representative, keep } => {
            let part = if representative { Part::Representative } else { Part::Matching(filter) };
            conformance::test(&run.join("conformance"), &part, fate(keep))
        }
        Command::Demo { keep } => demo::tell(&run.join("demo"), fate(keep)),
        Command::Tour => tour::test(&run.join("tour")),
        Command::Scenarios { filter, keep } => scenarios::test(&run.join("scenarios"), &filter, fate(keep)),
        Command::Search { path, direct } => search_standard_input(&path, direct),
        Command::Trace { pid, kill_before, tree } => tracer::follow(pid, kill_before, &tree),
        Command::Shell { of, node, script } => shell::open(&run.join(of), node, &script.join(" ")),
        Command::Down { of } => process::kill_recorded(&run.join(of)),
    }
}

fn fate(keep: bool) -> Fate {
    if keep { Fate::Kept } else { Fate::WithRig }
}

fn search_standard_input(path: &std::path::Path, direct: bool) -> Result<()> {
    let mut needle = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut needle)?;
    let reading = if direct { search::Reading::Direct } else { search::Reading::Cached };
    let found = search::file(path, &needle, reading)?;
    println!("{} {}", found.hits, found.bytes);
    Ok(())
}
