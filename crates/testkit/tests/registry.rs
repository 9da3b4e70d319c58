//! The test registry, by its protocol: every endpoint, every way to authenticate, every fault.

#[path = "registry/auth.rs"]
mod auth;
#[path = "registry/client.rs"]
mod client;
#[path = "registry/faults.rs"]
mod faults;
#[path = "registry/images.rs"]
mod images;
#[path = "registry/protocol.rs"]
mod protocol;
#[path = "registry/uploads.rs"]
mod uploads;

use client::Client;
use testkit::registry::Registry;

/// The digest of bytes.
fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", testkit::sha256(bytes))
}

/// A client of a registry that trusts its authority.
fn client(registry: &Registry) -> Client {
    let client = Client::new(&registry.host());
    match registry.ca_pem() {
        Some(ca) => client.trusting(&ca),
        None => client,
    }
}
