//! What is known of a registry host: how to reach it, what it asks for, and the tokens it gave.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use reqwest::Url;
use reqwest::header::HeaderValue;
use std::time::Instant;

use crate::challenge::Challenge;
use crate::credentials::Found;
use crate::retry::lock;
use crate::settings::StandIn;

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
}

/// A value for the `Authorization` header.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    /// When it should not be used any more.
    pub(crate) until: Option<Instant>,
    /// Whether a request with it was ever let in.
    pub(crate) accepted: AtomicBool,
}

impl Token {
    pub(crate) fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// A token of one set of scopes. Who wants to renew it holds the lock, and the others wait for the result.
pub(crate) type Slot = Arc<tokio::sync::Mutex<Option<Arc<Token>>>>;

/// A registry.
#[derive(Debug)]
pub(crate) struct Host {
    /// What the user calls it.
    pub(crate) name: String,
    /// Host and port of its API.
    authority: String,
    /// The registry that it stands in for, if it is none itself.
    pub(crate) stand_in: Option<StandIn>,
    scheme: Mutex<Option<Scheme>>,
    pub(crate) challenge: Mutex<Option<Challenge>>,
    /// The credentials that were found last.
    pub(crate) credential: Mutex<Option<Arc<Found>>>,
    /// Who looks for credentials holds it, and the others wait for the result.
    pub(crate) looking: tokio::sync::Mutex<()>,
    tokens: Mutex<HashMap<String, Slot>>,
}

impl Host {
    pub(crate) fn new(name: &str, plain_http: bool, stand_in: Option<StandIn>) -> Self {
        let authority = match name {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        Self {
            name: name.to_owned(),
            authority: authority.to_owned(),
            stand_in,
            scheme: Mutex::new(plain_http.then_some(Scheme::Http)),
            challenge: Mutex::default(),
            credential: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    /// How it is spoken to, once known.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        *lock(&self.scheme)
    }

    /// Notes how it is spoken to; who once spoke TLS is never spoken to without.
    pub(crate) fn set_scheme(&self, scheme: Scheme) {
        let mut known = lock(&self.scheme);
        if *known != Some(Scheme::Https) {
            *known = Some(scheme);
        }
    }

    /// The address of a path.
    pub(crate) fn url(&self, scheme: Scheme, path: &str) -> Option<Url> {
        let scheme = match scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        let mut path = path.to_owned();
        if let Some(stand_in) = &self.stand_in
            && let Some(rest) = path.strip_prefix("/v2/")
        {
            path = format!("{}/{rest}", stand_in.root);
        }
        let mut url = Url::parse(&format!("{scheme}://{}{path}", self.authority)).ok()?;
        let stand_in = self.stand_in.as_ref();
        if let Some(namespace) = stand_in.and_then(|stand_in| stand_in.namespace.as_ref()) {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Some(url)
    }

    /// The registry whose credentials it is shown.
    pub(crate) fn login(&self) -> &str {
        let other = self.stand_in.as_ref();
        let other = other.and_then(|stand_in| stand_in.login.as_deref());
        other.unwrap_or(&self.name)
    }

    /// The address of its root, as far as it is known how to speak to it.
    pub(crate) fn base(&self) -> Option<Url> {
        self.url(self.scheme()?, "/")
    }

    pub(crate) fn slot(&self, scopes: &[String]) -> Slot {
        let mut tokens = lock(&self.tokens);
        Arc::clone(tokens.entry(scopes.join(" ")).or_default())
    }
}
