//! A client of registries: the OCI distribution protocol with one policy for every request.
//!
//! A [`Client`] owns the connections, a small runtime, tokens and retry budgets; a [`Repository`] reads and writes
//! manifests and blobs. All methods block. Whatever is asked for goes through the same three floors:
//!
//! 1. one exchange over HTTP/1.1, with redirects (credentials never follow to another host), time limits that look at
//!    whether anything moves, proxies, and plain HTTP for registries that turn out not to speak TLS;
//! 2. authentication: the registry says what it wants, docker's configuration says what there is, and a token that
//!    ends is renewed once for all who wait;
//! 3. attempts: what may pass by itself is tried again after growing pauses with jitter, as often as the operation and
//!    the host's budget allow. A blob's stream goes on where it was cut; an upload asks what the registry has.
//!
//! Nothing secret is logged or part of an error: neither credentials nor tokens, nor addresses with their signatures.
#![forbid(unsafe_code)]

mod auth;
mod blob;
mod challenge;
mod client;
mod credentials;
mod describe;
mod error;
mod exchange;
#[doc(hidden)]
pub mod fuzzing;
mod helper;
mod host;
mod ping;
mod proxy;
mod range;
mod reference;
mod referrers;
mod remote;
mod repository;
mod retry;
mod session;
mod settings;
mod time;
mod tls;
mod transport;
mod upload;

pub use blob::BlobStream;
pub use client::Client;
pub use describe::{Challenged, Description};
pub use error::{Error, Refusal, Subject};
pub use exchange::{Exchange, Fetch, Incoming, Lent, Make, Outgoing, Pending};
pub use helper::{Answered, ask_helper};
pub use reference::Reference;
pub use repository::{Pushed, RawManifest, Repository};
pub use settings::{BlobAddresses, Credentials, Proxy, Retried, Secret, Settings, StandIn};
pub use time::parse_rfc3339;
pub use upload::Upload;
