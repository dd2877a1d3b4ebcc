//! The way of a claim to a running pod and back, in a cluster of the rig: how long, and whose time it is.

use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use super::at_most;
use super::table::Spread;
use super::table::Table;
use super::table::number;
use crate::cluster::Cluster;
use crate::cluster::Node;
use crate::cluster::Parts;
use crate::cluster::has_condition;
use crate::control_plane::NODES;
use crate::objects;
use crate::process::Fate;
use crate::product_image;
use crate::report::stage;
use crate::wait;

/// Coffer's own share of the way from a claim to a Ready pod.
const SHARE_AIM: f64 = 0.10;
/// Resident memory of the node's container that has nothing to do.
const NODE_AIM_MIB: f64 = 14.0;
/// Claims that are applied at once.
const CROWD: usize = 30;
/// Volumes open when memory is looked at the last time, half of them on each node.
const VOLUMES: usize = 50;
const DEADLINE: Duration = wait::seconds(600);

/// Where the time of one round went, in seconds.
#[derive(Clone, Copy, Default)]
struct Round {
    bound: f64,
    ready: f64,
    gone: f64,
    coffer: f64,
    kbs: f64,
}

/// Measures in a fresh cluster in `run` and returns the report.
pub(super) fn report(run: &std::path::Path, rounds: u32) -> Result<String> {
    let (cluster, kbs) = Cluster::start_with_kbs(run, Parts::get()?, Fate::WithRig)?;
    stage("Install the chart", || cluster.set_up(&kbs, &json!({})))?;
    let idle = memory(&cluster)?;
    let writes = writes(&cluster)?;
    let ways =
        stage("A claim and a pod, there and back", || (0..rounds).map(|_| way(&cluster)).collect::<Result<Vec<_>>>())?;
    let writes = (self::writes(&cluster)? - writes) / f64::from(rounds);
    let crowd =
        stage("Thirty claims at once", || many(&cluster, CROWD, |_| Ok(())).map(|(bound, ready, ())| (bound, ready)))?;
    let (.., full) = stage("Fifty volumes", || many(&cluster, VOLUMES, memory))?;
    Ok(format!(
        "From a claim to a Ready pod and back, s: median (lowest to highest) of {rounds} rounds\n{}\n\
         {CROWD} claims at once: all bound after {} s, their pods Ready after {} s\n\
         Resource writes in a volume's life: {} ({})\n\
         The image: {} MiB\n\
         Memory of the containers, MiB\n{}\n",
        times(&ways),
        number(crowd.0),
        number(crowd.1),
        number(writes),
        at_most(8.0, writes),
        number(mib(std::fs::metadata(product_image::archive()?)?.len())),
        memories(&idle, &full),
    ))
}

fn times(ways: &[Round]) -> Table {
    let mut table = Table::new(["", "s", "share of applied → Ready", "aim"]);
    let spread = |part: fn(&Round) -> f64| Spread::of(&ways.iter().map(part).collect::<Vec<_>>());
    let share = |part: fn(&Round) -> f64| spread_of(ways, |way| part(way) / way.ready);
    let mut row = |name: &str, part: fn(&Round) -> f64, aim: String| {
        table.row([name.to_owned(), spread(part).to_string(), share(part).to_string(), aim]);
    };
    row("applied → Ready", |way| way.ready, String::new());
    let ours = spread_of(ways, |way| way.coffer / way.ready).median;
    row("of it Coffer, without the KBS", |way| way.coffer, at_most(SHARE_AIM, ours));
    row("of it attestation and key release", |way| way.kbs, String::new());
    row("of it scheduler and provisioner", |way| way.bound, String::new());
    row("of it kubelet and the rest", |way| way.ready - way.bound - way.coffer - way.kbs, String::new());
    row("deleted → gone", |way| way.gone, String::new());
    table
}

fn spread_of(ways: &[Round], part: impl Fn(&Round) -> f64) -> Spread {
    Spread::of(&ways.iter().map(part).collect::<Vec<_>>())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// One claim and its pod, applied and deleted.
fn way(cluster: &Cluster) -> Result<Round> {
    let before = spent(cluster)?;
    let begun = Instant::now();
    cluster.plane.apply(&manifests(NODES[0], 0..1))?;
    wait::until(DEADLINE, "the claim to be bound", || Ok(bound(cluster)?.eq(&1).then_some(())))?;
    let bound = begun.elapsed().as_secs_f64();
    wait::until(DEADLINE, "the pod to be Ready", || {
        Ok(cluster.plane.get("pod", NODES[0])?.filter(|pod| has_condition(pod, "Ready")).map(drop))
    })?;
    let ready = begun.elapsed().as_secs_f64();
    let after = spent(cluster)?;
    let begun = Instant::now();
    delete(cluster, 1)?;
    let gone = begun.elapsed().as_secs_f64();
    let (bound, kbs) = (bound - (after.create - before.create), after.kbs - before.kbs);
    Ok(Round { bound, ready, gone, coffer: after.calls - before.calls - kbs, kbs })
}

/// `count` claims, half of them with a pod on each node; what `then` finds when all are Ready.
fn many<T>(cluster: &Cluster, count: usize, then: impl FnOnce(&Cluster) -> Result<T>) -> Result<(f64, f64, T)> {
    let begun = Instant::now();
    let middle = count / 2;
    for (node, numbers) in NODES.iter().zip([0..middle, middle..count]) {
        cluster.plane.apply(&manifests(node, numbers))?;
    }
    wait::until(DEADLINE, "all claims to be bound", || Ok(bound(cluster)?.eq(&count).then_some(())))?;
    let bound = begun.elapsed().as_secs_f64();
    for node in NODES {
        wait::until(DEADLINE, "the pods to be Ready", || {
            Ok(cluster.plane.get("pod", node)?.filter(|pod| has_condition(pod, "Ready")).map(drop))
        })?;
    }
    let ready = begun.elapsed().as_secs_f64();
    let found = then(cluster)?;
    delete(cluster, count)?;
    Ok((bound, ready, found))
}

fn delete(cluster: &Cluster, claims: usize) -> Result<()> {
    cluster.shell("kubectl delete pod,pvc --all --wait=false")?;
    wait::until(DEADLINE, &format!("{claims} volumes to be gone"), || {
        Ok(cluster.shell("kubectl get pod,pvc,pv,encvol --output name")?.is_empty().then_some(()))
    })
}

fn bound(cluster: &Cluster) -> Result<usize> {
    let list: Value = serde_json::from_str(&cluster.shell("kubectl get pvc --output json")?)?;
    Ok(list["items"].as_array().into_iter().flatten().filter(|claim| claim["status"]["phase"] == "Bound").count())
}

/// A pod on `node`, named so, and a claim of 16 MiB for each of `numbers`.
fn manifests(node: &str, numbers: Range<usize>) -> String {
    let claims: Vec<_> = numbers.map(|number| format!("data-{number}")).collect();
    let mut all: Vec<_> = claims.iter().map(|name| objects::claim(name, "16Mi")).collect();
    all.push(objects::on(node, objects::pod(node, &claims)));
    objects::list(&all)
}

/// What Coffer's calls took since its pods started, by their metrics.
#[derive(Clone, Copy, Default)]
struct Spent {
    calls: f64,
    create: f64,
    kbs: f64,
}

/// The calls on the way from a claim to a Ready pod.
const CALLS: [&str; 3] = ["CreateVolume", "NodeStageVolume", "NodePublishVolume"];

fn spent(cluster: &Cluster) -> Result<Spent> {
    let mut spent = Spent::default();
    for line in metrics(cluster)?.lines() {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let seconds = || value.parse::<f64>().with_context(|| format!("{line:?} ends with no number"));
        if name.starts_with("coffer_key_request_duration_seconds_sum") {
            spent.kbs += seconds()?;
        } else if name.starts_with("coffer_operation_duration_seconds_sum") {
            let is = |call: &str| name.contains(&format!("method=\"{call}\""));
            if CALLS.into_iter().any(is) {
                spent.calls += seconds()?;
            }
            if is(CALLS[0]) {
                spent.create += seconds()?;
            }
        }
    }
    Ok(spent)
}

/// The metrics of every container of the driver. The API server, which runs outside of the nodes, does not reach pods.
fn metrics(cluster: &Cluster) -> Result<String> {
    let of_node = |node: &Node| {
        let mine = format!("--field-selector spec.nodeName={}", node.name);
        let addresses = cluster.shell(&format!(
            "kubectl -n coffer-system get pods {mine} --output jsonpath='{{.items[*].status.podIP}}'"
        ))?;
        let script: String = addresses
            .split_whitespace()
            .map(|address| format!("busybox wget -q -O - http://{address}:9808/metrics || exit;"))
            .collect();
        node.guest.check(&script)
    };
    cluster.nodes.iter().map(of_node).collect()
}

/// How often the API server wrote an EncryptedVolume.
fn writes(cluster: &Cluster) -> Result<f64> {
    let all = cluster.shell("kubectl get --raw /metrics")?;
    let of_volumes = all
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{") && line.contains("resource=\"encryptedvolumes\""));
    let written = of_volumes.filter(|line| {
        let is_write = |verb: &&str| line.contains(&format!("verb=\"{verb}\""));
        // A refused write is none, such as one that was made of an older version.
        line.contains("code=\"2") && ["APPLY", "DELETE", "PATCH", "POST", "PUT"].iter().any(is_write)
    });
    Ok(written.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// Working set and resident memory of node and controller, in MiB.
struct Memory(Vec<(&'static str, f64, f64)>);

fn memory(cluster: &Cluster) -> Result<Memory> {
    let guest = &cluster.nodes[0].guest;
    let figures = ["node", "controller"].into_iter().map(|half| {
        let script = format!(
            "pid=$(pgrep -f '^/usr/bin/coffer {half}' | head -1) && group=/sys/fs/cgroup$(cut -d: -f3 /proc/$pid/cgroup) && \
             awk '/^VmRSS/ {{ print $2 * 1024 }}' /proc/$pid/status && cat $group/memory.current && \
             awk '/^inactive_file/ {{ print $2 }}' $group/memory.stat"
        );
        let text = guest.check(&script)?;
        let mut numbers = text.lines().filter_map(|line| line.parse::<u64>().ok());
        let mut next = || numbers.next().context("three figures of memory");
        let (rss, current, inactive) = (next()?, next()?, next()?);
        Ok((half, mib(current - inactive.min(current)), mib(rss)))
    });
    Ok(Memory(figures.collect::<Result<Vec<_>>>()?))
}

fn memories(idle: &Memory, full: &Memory) -> Table {
    let mut table =
        Table::new(["", "working set, idle", "RSS, idle", "working set, 25 of 50 volumes", "RSS, the same", "aim"]);
    for ((half, idle_set, idle_rss), (_, full_set, full_rss)) in idle.0.iter().zip(&full.0) {
        let aim = if *half == "node" { at_most(NODE_AIM_MIB, *idle_rss) } else { String::new() };
        table.row([
            (*half).to_owned(),
            number(*idle_set),
            number(*idle_rss),
            number(*full_set),
            number(*full_rss),
            aim,
        ]);
    }
    table
}
