//! A registry (OCI distribution) in the process of a test, on loopback, with faults on a schedule.
//!
//! It is strict where real registries are: digests, the order of segments, the URLs of upload sessions, blobs that a
//! manifest names, scopes of tokens. What it saw can be looked at: requests, figures, violations.

mod answer;
mod auth;
mod blob;
mod exchange;
mod faults;
mod http;
mod image;
mod inspect;
mod manifest;
mod redirect;
mod referrers;
mod route;
mod server;
mod state;
mod storage;
mod tls;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{Auth, Bearer, User};
pub use faults::{Fault, Faults};
pub use state::{Counters, Host, Request};
pub use tls::{Ca, ServerCertificate, provider};

use server::Server;
use state::{State, lock};
use storage::Storage;

/// How a registry behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients have to show.
    pub auth: Auth,
    /// Whose certificates its servers have; plain HTTP without.
    pub tls: Option<Arc<Ca>>,
    /// Where blobs are kept, in files, for images too big for memory; in memory without.
    pub directory: Option<PathBuf>,
    /// Whether blobs come from a storage host, by URLs that live for so long.
    pub redirect: Option<Duration>,
    /// What goes wrong.
    pub faults: Faults,
    /// Whether it has the referrers API.
    pub referrers: bool,
    /// Whether it mounts blobs from other repositories; it opens an upload instead otherwise.
    pub mounts: bool,
    /// Whether it serves ranges; the whole blob otherwise.
    pub ranges: bool,
    /// Whether manifests, tags and blobs can be deleted.
    pub delete: bool,
    /// Whether a segment is appended wherever it belongs, so that one that is sent twice is there twice.
    pub append_twice: bool,
    /// Whether the URL of an upload is good for nothing once there are more bytes than when it was given out: 404, also
    /// to ask where the upload stands or to delete it. An upload that a cut or a lost answer has moved on is lost.
    pub offset_in_url: bool,
    /// Whether the `Location` of uploads is without a host.
    pub relative_locations: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auth: Auth::None,
            tls: None,
            directory: None,
            redirect: None,
            faults: Faults::none(),
            referrers: true,
            mounts: true,
            ranges: true,
            delete: true,
            append_twice: false,
            offset_in_url: false,
            relative_locations: false,
        }
    }
}

impl Options {
    /// As the registry is that Debian ships: docker-registry 2.8.
    pub fn debian() -> Self {
        Self {
            append_twice: true,
            offset_in_url: true,
            referrers: false,
            ..Self::default()
        }
    }
}

/// A running registry; ends with this value.
pub struct Registry {
    state: Arc<State>,
    registry: Server,
    token: Option<Server>,
    storage: Option<Server>,
}

impl Registry {
    /// Starts one without authentication, TLS and faults.
    ///
    /// # Panics
    /// Here as in all methods: when the system refuses what it should not.
    pub fn new() -> Self {
        Self::start(Options::default())
    }

    /// Starts one that behaves like this.
    pub fn start(options: Options) -> Self {
        let tls = options.tls.as_ref().map(|ca| ca.server());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let storage = Storage::new(options.directory.clone()).expect("make the directory");
        let (bearer, redirects) = (
            matches!(options.auth, Auth::Bearer(_)),
            options.redirect.is_some(),
        );
        let state = Arc::new(State::new(options, storage));
        let start = |host, url: &std::sync::OnceLock<String>| {
            let server = Server::start(host, Arc::clone(&state), tls.clone());
            let server = server.expect("start a server on loopback");
            url.set(format!("{scheme}://{}", server.address()))
                .expect("set once");
            server
        };
        let token = bearer.then(|| start(Host::Token, &state.token_url));
        let storage = redirects.then(|| start(Host::Storage, &state.storage_url));
        let registry = start(Host::Registry, &state.registry_url);
        Self {
            registry,
            token,
            storage,
            state,
        }
    }

    /// `127.0.0.1:port`, as it stands in image references.
    pub fn host(&self) -> String {
        self.registry.address()
    }

    /// `http://127.0.0.1:port`, or with `https`.
    pub fn url(&self) -> String {
        self.state.registry_url.get().expect("set at start").clone()
    }

    /// `127.0.0.1:port` of the token server or the storage host, if there is one.
    pub fn host_of(&self, host: Host) -> Option<String> {
        match host {
            Host::Registry => Some(self.host()),
            Host::Token => self.token.as_ref().map(Server::address),
            Host::Storage => self.storage.as_ref().map(Server::address),
        }
    }

    /// The certificate of the authority that its clients have to trust, if it speaks TLS.
    pub fn ca_pem(&self) -> Option<PathBuf> {
        self.state.options.tls.as_ref().map(|ca| ca.pem())
    }

    /// Makes all of its servers unreachable; connections end in the middle of whatever they do.
    pub fn down(&self) {
        for server in self.servers() {
            server.down().expect("stop a server");
        }
    }

    /// Makes its servers reachable again, at the same addresses. Upload sessions are still there.
    pub fn up(&self) {
        for server in self.servers() {
            server.up().expect("start a server again");
        }
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        [
            Some(&self.registry),
            self.token.as_ref(),
            self.storage.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// Replaces the plan of what goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        *lock(&self.state.faults) = faults;
    }

    /// Makes an identity token of a user, such as `docker login` keeps in place of a password.
    pub fn identity_token(&self, user: &str) -> String {
        self.state.guard.identity_token(user)
    }

    /// Makes all tokens that were handed out useless.
    pub fn revoke_tokens(&self) {
        self.state.guard.revoke();
    }

    /// Forgets all open uploads, as a registry does that is started anew without shared storage.
    pub fn forget_uploads(&self) {
        self.state.uploads.forget_all();
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("url", &self.url())
            .finish()
    }
}
