use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use progress::Cancel;
use reqwest::Url;
use reqwest::header::HeaderMap;

/// A password or token: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the wire only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Where credentials come from.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// None: everything is asked for anonymously.
    #[default]
    Anonymous,
    /// `config.json` in this directory of docker's: `auths`, `credHelpers` and `credsStore`. It need not exist.
    Docker {
        /// The directory, usually `$DOCKER_CONFIG` or `~/.docker`.
        directory: PathBuf,
    },
    /// These, for every registry.
    Fixed {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// This token, as it is, for every registry.
    Token(Secret),
    /// Some for one registry, and others for all else.
    OfHost {
        /// The registry, as its user calls it.
        host: String,
        /// What it is shown.
        these: Box<Credentials>,
        /// What all others are shown.
        others: Box<Credentials>,
    },
}

impl Credentials {
    /// Docker's, as the docker client finds them: in `$DOCKER_CONFIG`, else in `~/.docker`.
    pub fn from_environment() -> Self {
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
        match variable("DOCKER_CONFIG").map(PathBuf::from).or_else(home) {
            Some(directory) => Self::Docker { directory },
            None => Self::Anonymous,
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Proxies, as the usual environment variables name them. Empty strings are none.
#[derive(Clone, Default)]
pub struct Proxy {
    /// `HTTP_PROXY`.
    pub http: Option<String>,
    /// `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `NO_PROXY`: names, domains, addresses and networks, separated by commas, or `*`.
    pub exceptions: Option<String>,
    /// Whether hosts on this machine are reached through them as well.
    pub loopback: bool,
    /// Whether they are asked in plain HTTP for what is to be had by HTTPS, so that they see it, and speak TLS themselves.
    pub plain: bool,
}

impl Proxy {
    /// One for everything, wherever it lies.
    pub fn of_all(address: &str, plain: bool) -> Self {
        Self {
            http: Some(address.to_owned()),
            https: Some(address.to_owned()),
            exceptions: None,
            loopback: true,
            plain,
        }
    }

    /// What the variables say; those in lower case count first, as with most programs.
    pub fn from_environment() -> Self {
        let either = |name: &str| variable(&name.to_ascii_lowercase()).or_else(|| variable(name));
        Self {
            http: either("HTTP_PROXY"),
            https: either("HTTPS_PROXY"),
            exceptions: either("NO_PROXY"),
            ..Self::default()
        }
    }
}

impl fmt::Debug for Proxy {
    /// Without the addresses, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("exceptions", &self.exceptions)
            .finish()
    }
}

/// How to speak to hosts that stand in for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct StandIn {
    /// Headers of every request to them, which may hold secrets. They go to no other host.
    pub headers: HeaderMap,
    /// Path below which their API lies, without a slash at its end.
    pub root: String,
    /// The registry that they stand in for, which they are told as the parameter `ns`.
    pub namespace: Option<String>,
    /// The registry whose credentials they are shown, instead of their own.
    pub login: Option<String>,
}

impl Default for StandIn {
    fn default() -> Self {
        Self {
            headers: HeaderMap::new(),
            root: "/v2".to_owned(),
            namespace: None,
            login: None,
        }
    }
}

impl fmt::Debug for StandIn {
    /// Without what the headers say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.keys().map(|name| name.as_str()).collect();
        f.debug_struct("StandIn")
            .field("headers", &names)
            .field("root", &self.root)
            .field("namespace", &self.namespace)
            .field("login", &self.login)
            .finish()
    }
}

/// What is another than registries say in the addresses that they redirect to for blobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobAddresses {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host; its port stays unless one is named.
    pub host: Option<String>,
}

impl BlobAddresses {
    /// Changes an address. `None` if that makes none.
    pub(crate) fn change(&self, mut url: Url) -> Option<Url> {
        if let Some(scheme) = &self.scheme {
            url.set_scheme(scheme).ok()?;
        }
        if let Some(host) = &self.host {
            let other = Url::parse(&format!("{}://{host}/", url.scheme())).ok()?;
            url.set_host(other.host_str()).ok()?;
            // A port that is the scheme's own is not among what was parsed.
            let named = host
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok());
            if let Some(port) = named {
                url.set_port(Some(port)).ok()?;
            }
        }
        Some(url)
    }
}

/// Counts how often something was tried again; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Retried(Arc<AtomicU64>);

impl Retried {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a [`Client`](crate::Client) works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Do not check certificates.
    pub insecure: bool,
    /// Speak HTTP without TLS to every registry.
    pub plain_http: bool,
    /// Files of PEM certificates that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// How often an operation is tried again after a fault that may pass.
    pub retries: u32,
    /// The longest pause between two attempts (unless the registry asks for more, up to a minute).
    pub retry_delay: Duration,
    /// Whether a host that asks for a pause is given up instead: there are others who can do its work.
    pub impatient: bool,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// Proxies.
    pub proxy: Proxy,
    /// Where blobs are fetched from when a registry redirects to them.
    pub blob_addresses: BlobAddresses,
    /// A socket that every request goes through, whatever host it names.
    pub unix_socket: Option<PathBuf>,
    /// Whether the hosts are registries themselves (`None`), or stand in for one.
    pub stand_in: Option<StandIn>,
    /// Size of an upload's segments in bytes; a registry may ask for larger ones.
    pub segment_size: usize,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long nothing may move on a connection before it counts as broken.
    pub stall_timeout: Duration,
    /// Ends everything that goes on.
    pub cancel: Cancel,
    /// Makes the jitter of pauses repeatable.
    pub seed: Option<u64>,
    /// Threads that do the network's work; at least one.
    pub threads: usize,
    /// Where to count what is tried again.
    pub retried: Retried,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            insecure: false,
            plain_http: false,
            ca_files: Vec::new(),
            retries: 3,
            retry_delay: Duration::from_secs(5),
            impatient: false,
            credentials: Credentials::default(),
            proxy: Proxy::default(),
            blob_addresses: BlobAddresses::default(),
            unix_socket: None,
            stand_in: None,
            segment_size: 8 << 20,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            cancel: Cancel::default(),
            seed: None,
            threads: 2,
            retried: Retried::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_blobs_are_changed_as_asked_for() {
        let change = |scheme: &str, host: &str, url: &str| {
            let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let (scheme, host) = (given(scheme), given(host));
            let changed = BlobAddresses { scheme, host }.change(Url::parse(url).unwrap());
            changed.unwrap().to_string()
        };
        let signed = "https://store.example/b/1?sig=a%2Fb";
        assert_eq!(change("", "", signed), signed);
        for (scheme, host, url, expected) in [
            ("http", "", signed, "http://store.example/b/1?sig=a%2Fb"),
            ("", "peer", signed, "https://peer/b/1?sig=a%2Fb"),
            (
                "http",
                "peer:65001",
                signed,
                "http://peer:65001/b/1?sig=a%2Fb",
            ),
            ("", "peer", "https://s:8443/x", "https://peer:8443/x"),
            ("", "peer:443", "https://s:8443/x", "https://peer/x"),
            ("https", "[::1]", "http://s/x", "https://[::1]/x"),
            ("https", "[::1]:9", "http://s/x", "https://[::1]:9/x"),
        ] {
            assert_eq!(change(scheme, host, url), expected);
        }
    }
}
