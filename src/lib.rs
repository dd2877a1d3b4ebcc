//! Coffer: a Kubernetes CSI driver whose volumes open only on nodes that have proved what they are.
//!
//! # Bird's-eye view
//! A claim of a Coffer StorageClass becomes an image file in a pool on one node. The first stage formats it as LUKS2
//! with keys derived from a secret that a Key Broker Service (KBS) released to this node after remote attestation;
//! every later stage opens it the same way. Only ciphertext leaves the node's memory.
//!
//! ```text
//!   provisioner, kubelet                                          Key Broker Service
//!          | CSI over a Unix socket                                      ^ TLS, evidence, JWE
//!  .-------v------------------------------------------------------.     |
//!  | http       what probes and scrapers ask                      |     |
//!  | grpc       the door: proto -> words of `volume` -> proto     |     |
//!  | inspect    what an operator may see                          |     |
//!  | reconcile  a node's half of a cluster: resources -> volumes  |----> API server
//!  |--------------------------------------------------------------|     |
//!  | lifecycle  one operation per volume at a time; the ladder    |     |
//!  |   Absent -> Attached -> Prepared -> Open -> Mounted          |     |
//!  |--------------------------------------------------------------|     |
//!  | cluster    the resources; asks nodes for volumes; a witness  |----> API server
//!  | provision  trait Provisioner; backings and records in a pool |     |
//!  | key        trait KeySource: the secret, or why not ----------|-----'
//!  | device     trait Machine: loop, LUKS2 header, dm, mounts     |----> kernel
//!  | record     volume.json and pool.json                         |----> pool
//!  |--------------------------------------------------------------|
//!  | metrics    what is counted, and every name                   |
//!  | volume     ids, profiles, sizes, errors; no I/O              |
//!  '--------------------------------------------------------------'
//! ```
//!
//! The modules below are in reading order, and a file uses only floors below its own; `e2e/house.rs` enforces it.
//! `src/main.rs` alone reads flags and environment and picks implementations. `proto/` is the wire, `e2e/` looks at
//! the program from outside, on a real kernel and a real Kubernetes.
//!
//! # Where to look
//! | Question | File |
//! |---|---|
//! | Which code does the kubelet get for this error? | `grpc/status.rs`, one table |
//! | What may a StorageClass say? | `grpc/class.rs`, `device/mount/flags.rs` |
//! | When may a volume be formatted? | `lifecycle/stage/`, `cluster/witness.rs` |
//! | How does a volume move to another secret? | `lifecycle/rotate.rs`, `reconcile/rotation.rs` |
//! | Which node gets a new volume? | `cluster/controller/asking.rs` |
//! | What is believed of a header on the disk? | `device/header.rs`, its parser `device/header/luks2.rs` |
//! | What is on the disk? | `record.rs`, `volume/profile.rs`, `device/crypt.rs`, `device/init.rs` |
//! | Which sector was changed, and whose is it? | `device/integrity.rs`, `lifecycle/integrity.rs` |
//! | What is told as an Event? | `reconcile/status.rs`, `cluster/retained.rs`, `cluster/cleaner.rs` |
//! | What is measured, and by what name? | `metrics.rs`, one table |
//! | What does a KBS see? | `key/kbs.rs`, `key/evidence.rs` |
//! | What should a KBS ask? | `kbs/` |
//! | Where do keys lie in memory, and where could that get to? | `volume/secret.rs`, `device/memory.rs` |
//!
//! # Invariants
//! - A backing may veto a format and never permits one: only the record does, and only until it says `Ready`. What
//!   cannot be read is never taken for empty.
//! - libcryptsetup never sees the backing: it works on a frozen copy of a header that our own parser compared with the
//!   profile and whose seal was verified. The dm table is ours, and is read back.
//! - A refused stage leaves nothing behind on the node: after a final code the kubelet may never call unstage.
//! - Nothing about a volume is remembered in the process except that it is busy, and when a rotation of its key was refused.
//!   Kernel and record are the only memory, so a restart needs no recovery of its own.
//! - Work that has begun goes on when its caller gives up.
//! - A secret is fetched when the next step needs it and is gone with the call, also from the stack that the call used. It
//!   is in no error, log line, argument, environment or file, and `Debug` shows of it how long it is. Memory that could get to
//!   a disk gets none.
//! - Every error carries one [`volume::Reason`], the same word in the gRPC message, the Event, the health entry and the
//!   log. Only `grpc` serves proto and makes a `Status`.
//! - A resource in the cluster permits nothing that the node's disk does not; it can only veto. Ready volumes open without
//!   it.
//! - Unmounts, and removals at the kubelet's paths, are never recursive, and never touch what the volume does not own.

#[cfg(feature = "dev")]
pub mod dev_kbs;
pub mod http;
pub mod grpc;
pub mod inspect;
pub mod reconcile;
pub mod lifecycle;
pub mod cluster;
pub mod provision;
pub mod key;
pub mod device;
pub mod record;
pub mod metrics;
pub mod volume;
