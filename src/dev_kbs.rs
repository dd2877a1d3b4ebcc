//! A small KBS for evaluation and tests: it speaks KBS protocol 0.4.0 over TLS and really verifies TPM quotes.
//!
//! Everything it knows is in one state directory: `policy.json` (nodes, and who may have which key; read again at every
//! request), `secrets.json` (mode 0600), `release.log` (one JSON line for each key that was released, and nothing
//! else), `ca.pem` and `ca.key`. It refuses evidence that does not verify (`AttestationError`) and, by its policy,
//! every node that is not named for a path (`PolicyDeny`). It has no administration over the network, accepts no bearer
//! tokens, and evidence that proves nothing only with `--allow-sample`. It is no replacement for a KBS in production.

mod envelope;
mod policy;
mod server;
mod state;
mod tls;
mod verify;

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::key::MINIMUM_SECRET_BYTES;
use crate::key::evidence::AttesterDescription;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;
pub use policy::{Node, PcrSet, Policy};
pub use server::{ServeConfig, Server};
pub use state::State;

/// `coffer dev-kbs`.
#[derive(Debug, Args)]
pub struct DevKbsArgs {
    /// Directory with the policy, the secrets, the release log and the CA; made if it is missing.
    #[arg(long, global = true, env = "COFFER_DEV_KBS_STATE", default_value = "dev-kbs", value_name = "DIR")]
    pub state: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: DevKbsCommand,
}

/// The operator's steps. All but `serve` only change files, so they work whether the server runs or not.
#[derive(Debug, Subcommand)]
pub enum DevKbsCommand {
    /// Answers nodes until SIGTERM. Nodes need the file ca.pem of the state directory as their --kbs-ca.
    Serve(ServeArgs),
    /// Adds a node to the policy: its attestation key and the values of some of its PCRs. It may have no key yet.
    Register(RegisterArgs),
    /// Stores a secret: 32 random bytes, or what is on standard input.
    Put(PutArgs),
    /// Lets a node have a key.
    Allow(NodeOfKeyArgs),
    /// Lets a node no longer have a key.
    Deny(NodeOfKeyArgs),
}

/// `coffer dev-kbs serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// A further name or address for the server's certificate, beside 127.0.0.1 and localhost; may be repeated.
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Accepts evidence of attester `sample`, which proves nothing.
    #[arg(long)]
    pub allow_sample: bool,
}

/// `coffer dev-kbs register`.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// The PCRs whose values are compared, for example 0-7 or 0,2,4-7.
    #[arg(long, default_value = "0-7", value_name = "SET")]
    pub pcrs: PcrSet,
    /// Name of the node in the policy; a node of this name is replaced.
    pub name: String,
    /// What `coffer attest --output json` printed on the node; `-` is standard input.
    pub description: PathBuf,
}

/// `coffer dev-kbs put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// Takes the secret from standard input, exactly as it is, instead of making one.
    #[arg(long)]
    pub stdin: bool,
    /// Replaces a secret that is there. Volumes made with the old one can then not be opened any more.
    #[arg(long)]
    pub replace: bool,
    /// A node that may have the key; may be repeated. Without it, and if the policy does not name this key yet, all
    /// nodes that are registered now may have it.
    #[arg(long = "allow", value_name = "NAME")]
    pub allow: Vec<String>,
    /// `kbs:///<repository>/<type>/<tag>`
    pub key_uri: String,
}

/// `coffer dev-kbs allow` and `deny`.
#[derive(Debug, Args)]
pub struct NodeOfKeyArgs {
    /// `kbs:///<repository>/<type>/<tag>`
    pub key_uri: String,
    /// Name of a node in the policy.
    pub name: String,
}

/// Does what `args` say and prints what was done.
///
/// # Errors
/// `InvalidArgument` for what the caller can mend in the command, `Internal` for files that cannot be read or written.
pub async fn run(args: DevKbsArgs) -> Result<()> {
    let state = State::open(&args.state)?;
    match args.command {
        DevKbsCommand::Serve(serve) => serve_until_told(state, serve).await,
        DevKbsCommand::Register(register) => {
            let description = read_description(&register.description)?;
            state.register(&register.name, &description, register.pcrs)?;
            println!(
                "registered {} with PCRs {}; `put` and `allow` say which keys it may have",
                register.name, register.pcrs
            );
            Ok(())
        }
        DevKbsCommand::Put(put) => run_put(&state, &put),
        DevKbsCommand::Allow(allow) => {
            let uri = KeyUri::parse("key URI", &allow.key_uri)?;
            state.allow(&uri, &allow.name)?;
            println!("{} may have {uri}", allow.name);
            Ok(())
        }
        DevKbsCommand::Deny(deny) => {
            let uri = KeyUri::parse("key URI", &deny.key_uri)?;
            state.deny(&uri, &deny.name)?;
            println!("{} may no longer have {uri}", deny.name);
            Ok(())
        }
    }
}

fn run_put(state: &State, put: &PutArgs) -> Result<()> {
    let uri = KeyUri::parse("key URI", &put.key_uri)?;
    let secret = if put.stdin { secret_from_stdin()? } else { random_secret()? };
    if secret.expose().len() < MINIMUM_SECRET_BYTES {
        eprintln!("this secret has fewer than {MINIMUM_SECRET_BYTES} bytes: Coffer will refuse it");
    }
    let nodes = state.put(&uri, &secret, put.replace, &put.allow)?;
    println!(
        "stored {uri}; nodes that may have it: {}",
        if nodes.is_empty() { "none yet".into() } else { nodes.join(", ") }
    );
    Ok(())
}

async fn serve_until_told(state: State, args: ServeArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|cause| Error::new(Reason::Internal, "SIGTERM cannot be waited for").caused_by(cause))?;
    let ca_file = state.ca_file();
    let config = ServeConfig { listen: args.listen, names: args.names, allow_sample: args.allow_sample };
    let server = Server::start(state, config)?;
    println!("listening on https://{} with the CA in {}", server.address(), ca_file.display());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    server.stop().await
}

fn read_description(path: &PathBuf) -> Result<AttesterDescription> {
    let refused = |what: &str| Error::invalid("attest.json", format!("{}: {what}", path.display()));
    let text =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|cause| refused("cannot be read").caused_by(cause))?;
    serde_json::from_str(&text)
        .map_err(|cause| refused("is not what `coffer attest --output json` prints").caused_by(cause))
}

fn secret_from_stdin() -> Result<SecretBytes> {
    let mut bytes = Zeroizing::new(Vec::new());
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|cause| Error::invalid("standard input", "cannot be read").caused_by(cause))?;
    if bytes.is_empty() {
        return Err(Error::invalid("standard input", "holds no secret"));
    }
    Ok(SecretBytes::new(bytes))
}

fn random_secret() -> Result<SecretBytes> {
    let mut bytes = Zeroizing::new(vec![0; MINIMUM_SECRET_BYTES]);
    fill_random(&mut bytes)?;
    Ok(SecretBytes::new(bytes))
}

fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|cause| Error::new(Reason::Internal, "no random numbers").caused_by(cause))
}
