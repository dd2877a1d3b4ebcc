//! The client of the KBS protocol against `dev-kbs` and a real TPM in software, over a network that lies.
//!
//! Each test first shows that the untouched exchange gives the key, then changes one thing, and then asserts the reason
//! and that nothing was released. Needs swtpm and tpm2-tools.

#![allow(clippy::disallowed_methods, reason = "tests start the TPM that they ask")]

#[path = "kbs/proxy.rs"]
mod proxy;
#[path = "kbs/rig.rs"]
mod rig;
#[path = "kbs/swtpm.rs"]
mod swtpm;

#[path = "kbs/answers.rs"]
mod answers;
#[path = "kbs/evidence.rs"]
mod evidence;
#[path = "kbs/hostile.rs"]
mod hostile;
#[path = "kbs/operator.rs"]
mod operator;
#[path = "kbs/program.rs"]
mod program;
#[path = "kbs/silence.rs"]
mod silence;
#[path = "kbs/transport.rs"]
mod transport;
