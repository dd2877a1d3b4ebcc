//! Kernel tests: the real program on a real kernel, a real disk and a real TPM, seen from outside.
//!
//! They run as root inside a node of the rig (`make kernel`), one after the other: they own the second disk, the
//! kubelet's directories and every loop and dm device of that machine. Nowhere else do they run at all.

#![expect(clippy::disallowed_methods, reason = "tests look at the program from outside")]

mod aead;
mod bench;
mod broker;
mod configfs;
mod crowds;
mod crypt;
mod driver;
mod formats;
mod integrity;
mod kills;
mod leaks;
mod leaks_are_caught;
mod leftovers;
mod listening;
mod power;
mod publishing;
mod reboot;
mod refusals;
mod registration;
mod rotation;
mod sanity;
mod scene;
mod secrecy;
mod soak;
mod space;
mod staging;
mod strace;
mod swap;
#[path = "../tamper/corpus.rs"]
mod tamper;
mod tampering;
mod tracer;
mod tsm;
mod volume;
