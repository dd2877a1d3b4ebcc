//! What the driver counts and measures: every name in one table, [`Metrics::text`].
//!
//! What can be read from kernel and pools is read at each scrape, and only what has happened is remembered. No label
//! names a volume, a claim or a key.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use prometheus_client::registry::Unit;

use crate::volume::PoolName;
use crate::volume::Reason;

/// Upper ends of the buckets of a duration, in seconds: from a look at the kernel to the kubelet's deadline.
const BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 45.0, 120.0];
/// The word in the place of a reason for what went well.
const OK: &str = "OK";
/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, String); N];

/// What has happened since the process started. Clones are the same metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    operations: Family<Labels<2>, Histogram, fn() -> Histogram>,
    key_requests: Family<Labels<2>, Histogram, fn() -> Histogram>,
    integrity_errors: Family<Labels<1>, Counter>,
    /// Seconds since 1970; 0 is never.
    last_attestation: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            operations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            key_requests: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            integrity_errors: Family::default(),
            last_attestation: AtomicU64::new(0),
        }
    }
}

/// What a node's kernel and pools show at the time of a scrape.
#[derive(Clone, Debug, Default)]
pub struct NodeSight {
    /// How many volumes are open.
    pub open_volumes: u64,
    /// Each pool, with what is in it if it can be used now.
    pub pools: Vec<(PoolName, Option<PoolBytes>)>,
}

/// What is in a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolBytes {
    /// Sum of the payloads that it can hold.
    pub capacity: u64,
    /// Sum of the payloads that can still be promised.
    pub available: u64,
    /// Sum of the payloads that were promised.
    pub promised: u64,
}

impl Metrics {
    /// A call of the CSI was answered: well, or with `refusal`.
    pub fn operation(&self, method: &'static str, refusal: Option<Reason>, took: Duration) {
        let labels = [("method", method.to_owned()), ("reason", word(refusal))];
        self.0.operations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The KBS at `kbs` was asked for a key, and released it unless there is a `refusal`.
    pub fn key_request(&self, kbs: &str, refusal: Option<Reason>, took: Duration) {
        let labels = [("kbs", kbs.to_owned()), ("result", word(refusal))];
        self.0.key_requests.get_or_create(&labels).observe(took.as_secs_f64());
        if refusal.is_none() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            self.0.last_attestation.store(now, Ordering::Relaxed);
        }
    }

    /// Something was found wrong. Counted if it means that stored bytes are not those that were written.
    pub fn found(&self, reason: Reason) {
        if reason.is_integrity() {
            self.0.integrity_errors.get_or_create(&[("reason", reason.to_string())]).inc();
        }
    }

    /// Everything as the text that a scraper reads, with what `node` shows now if this process serves a node.
    #[must_use]
    pub fn text(&self, node: Option<&NodeSight>) -> String {
        let mut table = Registry::with_prefix("coffer");
        table.register("build", "The version of the driver", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        table.register_with_unit(
            "operation_duration",
            "How long calls of the CSI took until they were answered, by method and reason word; OK is none",
            Unit::Seconds,
            self.0.operations.clone(),
        );
        if let Some(node) = node {
            self.add_node(&mut table, node);
        }
        let mut text = String::new();
        encode(&mut text, &table).expect("a string takes all that is written");
        text
    }

    /// What only a node has.
    fn add_node(&self, table: &mut Registry, node: &NodeSight) {
        table.register_with_unit(
            "key_request_duration",
            "How long attestation and key release took, by host of the KBS and reason word; OK is a key that was released",
            Unit::Seconds,
            self.0.key_requests.clone(),
        );
        table.register(
            "integrity_errors",
            "How often stored bytes were found not to be those that were written, by reason word",
            self.0.integrity_errors.clone(),
        );
        match self.0.last_attestation.load(Ordering::Relaxed) {
            0 => {}
            at => table.register_with_unit(
                "last_attestation_timestamp",
                "When a KBS last released a key to this node after attestation. Absent before the first time",
                Unit::Seconds,
                ConstGauge::new(at),
            ),
        }
        table.register("open_volumes", "Volumes that are open on this node", ConstGauge::new(node.open_volumes));
        let of_pools = |value: fn(PoolBytes) -> u64| {
            let gauges = Family::<Labels<1>, Gauge<u64, AtomicU64>>::default();
            for (pool, bytes) in node.pools.iter().filter_map(|(pool, bytes)| Some((pool, (*bytes)?))) {
                gauges.get_or_create(&[("pool", pool.to_string())]).set(value(bytes));
            }
            gauges
        };
        let mut bytes = |name: &str, help: &str, value| {
            table.register_with_unit(name, help, Unit::Bytes, of_pools(value));
        };
        bytes("pool_capacity", "Payload that the pool can hold. Absent while it cannot be used", |pool| pool.capacity);
        bytes("pool_available", "Payload that can still be promised", |pool| pool.available);
        bytes("pool_promised", "Payload that was promised to volumes", |pool| pool.promised);
        let ready = Family::<Labels<1>, Gauge<u64, AtomicU64>>::default();
        for (pool, bytes) in &node.pools {
            ready.get_or_create(&[("pool", pool.to_string())]).set(u64::from(bytes.is_some()));
        }
        table.register("pool_ready", "1 while the pool can be used, otherwise 0", ready);
    }
}

fn word(refusal: Option<Reason>) -> String {
    refusal.map_or(OK, Reason::as_str).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeSight {
        let bytes = PoolBytes { capacity: 30, available: 20, promised: 10 };
        let away = PoolName::parse("pool", "away").expect("a name");
        NodeSight { open_volumes: 2, pools: vec![(PoolName::default(), Some(bytes)), (away, None)] }
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|there| there == line), "{line:?} is not in\n{text}");
    }

    #[test]
    fn every_sample_has_a_type_and_help() {
        let metrics = Metrics::default();
        metrics.operation("NodeStageVolume", None, Duration::from_millis(7));
        metrics.key_request("kbs.example", None, Duration::from_millis(7));
        metrics.found(Reason::HeaderTampered);
        let text = metrics.text(Some(&node()));
        for (name, kind) in [
            ("coffer_build", "info"),
            ("coffer_operation_duration_seconds", "histogram"),
            ("coffer_key_request_duration_seconds", "histogram"),
            ("coffer_integrity_errors", "counter"),
            ("coffer_last_attestation_timestamp_seconds", "gauge"),
            ("coffer_open_volumes", "gauge"),
            ("coffer_pool_capacity_bytes", "gauge"),
            ("coffer_pool_available_bytes", "gauge"),
            ("coffer_pool_promised_bytes", "gauge"),
            ("coffer_pool_ready", "gauge"),
        ] {
            has(&text, &format!("# TYPE {name} {kind}"));
            assert!(text.contains(&format!("# HELP {name} ")), "{name} is not explained in\n{text}");
        }
        // The library ends each with a full stop.
        assert!(!text.contains("..\n"), "{text}");
        let described = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(described, 10, "a name is missing from this test:\n{text}");
        let mut name = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(described) => name = described.split(' ').next().unwrap_or_default(),
                None => assert!(line.starts_with('#') || line.starts_with(name), "{line} is described nowhere"),
            }
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_happens_is_counted_under_its_reason() {
        let metrics = Metrics::default();
        metrics.operation("NodeStageVolume", Some(Reason::PolicyDenied), Duration::from_secs(3));
        metrics.operation("NodeStageVolume", Some(Reason::PolicyDenied), Duration::from_secs(300));
        metrics.key_request("kbs.example", Some(Reason::PolicyDenied), Duration::from_millis(7));
        metrics.found(Reason::RecordTampered);
        metrics.found(Reason::PolicyDenied);
        let text = metrics.text(Some(&node()));
        let labels = "method=\"NodeStageVolume\",reason=\"PolicyDenied\"";
        has(&text, &format!("coffer_operation_duration_seconds_count{{{labels}}} 2"));
        has(&text, &format!("coffer_operation_duration_seconds_bucket{{le=\"2.5\",{labels}}} 0"));
        has(&text, &format!("coffer_operation_duration_seconds_bucket{{le=\"120.0\",{labels}}} 1"));
        has(&text, "coffer_key_request_duration_seconds_count{kbs=\"kbs.example\",result=\"PolicyDenied\"} 1");
        has(&text, "coffer_integrity_errors_total{reason=\"RecordTampered\"} 1");
        assert_eq!(text.matches("coffer_integrity_errors_total").count(), 1, "{text}");
        assert!(!text.contains("last_attestation"), "nothing was released:\n{text}");
        metrics.key_request("kbs.example", None, Duration::from_millis(7));
        let text = metrics.text(Some(&node()));
        let told = text.lines().find_map(|line| line.strip_prefix("coffer_last_attestation_timestamp_seconds "));
        let told: u64 = told.expect("shown").parse().expect("seconds");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        assert!(now - told < 60, "{told} is not now");
    }

    #[test]
    fn a_pool_that_cannot_be_used_has_no_bytes() {
        let text = Metrics::default().text(Some(&node()));
        has(&text, "coffer_open_volumes 2");
        has(&text, "coffer_pool_capacity_bytes{pool=\"default\"} 30");
        has(&text, "coffer_pool_available_bytes{pool=\"default\"} 20");
        has(&text, "coffer_pool_promised_bytes{pool=\"default\"} 10");
        has(&text, "coffer_pool_ready{pool=\"default\"} 1");
        has(&text, "coffer_pool_ready{pool=\"away\"} 0");
        assert!(!text.contains("_bytes{pool=\"away\"}"), "{text}");
    }

    #[test]
    fn a_controller_shows_nothing_of_a_node() {
        let text = Metrics::default().text(None);
        has(&text, &format!("coffer_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        assert!(!text.contains("pool") && !text.contains("key"), "{text}");
    }
}
