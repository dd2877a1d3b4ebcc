//! The generated wire types of `proto/`, and for every request its name, its volume and a `Debug` that shows no
//! secret. Nothing here is written by hand; `proto/build.rs` says how it comes to be.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

use super::call::Call;

/// The Container Storage Interface.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The kubelet's registration of plugins.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

include!(concat!(env!("OUT_DIR"), "/requests.rs"));
