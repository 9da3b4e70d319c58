//! `hosts.toml`: the mirrors of a registry, as containerd and the snapshotter of Nydus have them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use registry::StandIn;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use crate::Error;
use crate::detour::Check;

/// Name of the file in a registry's directory.
const FILE: &str = "hosts.toml";
/// The directory for registries that have none of their own.
const DEFAULT: &str = "_default";
/// Names the registry that a Dragonfly peer is to ask.
const DRAGONFLY: &str = "x-dragonfly-registry";

/// A host that has copies of blobs, and how to reach it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct MirrorHost {
    /// Scheme, host and port.
    pub(crate) base: Url,
    /// Whether the scheme is what it says; else TLS is only tried first.
    pub(crate) scheme_given: bool,
    /// Path below which the API lies, without a slash at its end.
    pub(crate) root: String,
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) insecure: bool,
    /// May hold secrets.
    pub(crate) headers: HeaderMap,
    /// Whether it is told which registry it stands in for.
    pub(crate) namespace: bool,
    /// The registry whose credentials it is shown, instead of its own.
    pub(crate) login: Option<String>,
    pub(crate) check: Check,
}

impl fmt::Debug for MirrorHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MirrorHost({})", self.name())
    }
}

impl MirrorHost {
    /// The one at an address: `HOST[:PORT]`, or `http://` or `https://` before it, and a path where `with_path` says so.
    /// `None` if it is no address; what it may hold besides is not for everybody to see.
    pub(crate) fn new(address: &str, with_path: bool) -> Option<Self> {
        let (scheme_given, text) = match address.contains("://") {
            true => (true, address.to_owned()),
            false => (false, format!("https://{address}")),
        };
        let mut base = Url::parse(&text).ok().filter(Url::has_host)?;
        let path = base.path().trim_end_matches('/').to_owned();
        let bare = base.username().is_empty() && base.password().is_none();
        let more = base.query().is_some() || base.fragment().is_some();
        if !matches!(base.scheme(), "http" | "https") || !bare || more || address.contains(' ') {
            return None;
        }
        if !path.is_empty() && !with_path {
            return None;
        }
        base.set_path("/");
        Some(Self {
            base,
            scheme_given,
            root: path,
            ca_files: Vec::new(),
            insecure: false,
            headers: HeaderMap::new(),
            namespace: false,
            login: None,
            check: Check::default(),
        })
    }

    /// What to call it in messages.
    pub(crate) fn name(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// As a client sees it that asks it instead of the registry `host`.
    pub(crate) fn stand_in(&self, host: &str) -> StandIn {
        StandIn {
            headers: self.headers.clone(),
            root: self.root.clone(),
            namespace: self.namespace.then(|| host.to_owned()),
            login: self.login.clone(),
        }
    }

    /// A header of every request to it. `None` if it is none.
    pub(crate) fn header(&mut self, name: &str, value: &str) -> Option<()> {
        let name: HeaderName = name.parse().ok()?;
        let mut value: HeaderValue = value.parse().ok()?;
        value.set_sensitive(true);
        self.headers.append(name, value);
        Some(())
    }

    /// The registry that a Dragonfly peer is told to ask: it passes its refusals on, and the credentials to it.
    pub(crate) fn dragonfly_registry(&self) -> Option<String> {
        let value = self.headers.get(DRAGONFLY)?.to_str().ok()?;
        let url = Url::parse(value).ok()?;
        let host = url.host_str()?;
        Some(match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => usual_name(host),
        })
    }
}

/// What docker calls a registry.
pub(crate) fn usual_name(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// Where the mirrors of the registry `host` may be listed below `dir`; the first file that there is counts.
pub(crate) fn candidates(dir: &Path, host: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if host == "docker.io" {
        names.push("index.docker.io".to_owned());
    }
    if let Some((name, port)) = host.rsplit_once(':') {
        names.push(format!("{name}_{port}_"));
    }
    names.push(host.to_owned());
    names.push(DEFAULT.to_owned());
    names.iter().map(|name| dir.join(name).join(FILE)).collect()
}

/// Reads `hosts.toml`: the hosts that blobs are pulled from, in the order in which they stand there. Unknown keys are
/// ignored. Paths in it are those of the directory `dir`.
///
/// # Errors
/// [`Error::Hosts`], which repeats nothing of what may be a secret.
pub(crate) fn parse(text: &str, dir: &Path) -> Result<Vec<MirrorHost>, Error> {
    let table: Table = toml::from_str(text).map_err(|error: toml::de::Error| {
        // Its own words would repeat the line.
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().split('\n').count();
        wrong("the file", format!("is no TOML from line {line} on"))
    })?;
    let hosts = match table.get("host") {
        None => return Ok(Vec::new()),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err(wrong("host", "is no table of tables".to_owned())),
    };
    let mut mirrors = Vec::new();
    for (index, (address, value)) in hosts.iter().enumerate() {
        let entry = Entry {
            number: index + 1,
            table: value.as_table(),
        };
        mirrors.extend(entry.mirror(address, dir)?);
    }
    Ok(mirrors)
}

/// A host's table.
struct Entry<'a> {
    /// Counted from 1.
    number: usize,
    table: Option<&'a Table>,
}

impl Entry<'_> {
    /// The mirror, unless nothing is pulled from it.
    fn mirror(&self, address: &str, dir: &Path) -> Result<Option<MirrorHost>, Error> {
        let table = self.table.ok_or_else(|| self.wrong("host", "no table"))?;
        let mut host = MirrorHost::new(address, true)
            .ok_or_else(|| self.wrong("host", "no address of a host"))?;
        host.scheme_given = true;
        host.namespace = true;
        if table.contains_key("capabilities")
            && !self.texts("capabilities")?.iter().any(|one| one == "pull")
        {
            return Ok(None);
        }
        if table.contains_key("client") {
            return Err(self.wrong("client", "not supported: no certificate can be shown"));
        }
        if !self.switch("override_path")? && !host.root.ends_with("/v2") {
            host.root.push_str("/v2");
        }
        host.ca_files = self.texts("ca")?.iter().map(|ca| dir.join(ca)).collect();
        host.insecure = self.switch("skip_verify")?;
        if let Some(headers) = table.get("header") {
            let none = || self.wrong("header", "no table of headers");
            for (name, value) in headers.as_table().ok_or_else(none)? {
                for value in texts(value).ok_or_else(none)? {
                    host.header(name, &value).ok_or_else(none)?;
                }
            }
        }
        host.login = host.dragonfly_registry();
        if let Some(ping) = table.get("ping_url") {
            let url = ping.as_str().and_then(|text| Url::parse(text).ok());
            let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            let url = url.ok_or_else(|| self.wrong("ping_url", "no URL of HTTP"))?;
            host.check.ping = Some(url);
        }
        if let Some(seconds) = self.number("health_check_interval")? {
            host.check.every = Duration::from_secs(seconds.into());
        }
        if let Some(failures) = self.number("failure_limit")? {
            host.check.failures = failures;
        }
        Ok(Some(host))
    }

    fn wrong(&self, key: &str, reason: &str) -> Error {
        let number = self.number;
        wrong(key, format!("of host {number} is {reason}"))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.table?.get(key)
    }

    fn switch(&self, key: &str) -> Result<bool, Error> {
        let value = self.get(key).map(|value| value.as_bool());
        let wrong = || self.wrong(key, "neither true nor false");
        value.unwrap_or(Some(false)).ok_or_else(wrong)
    }

    /// A number above zero; zero is as good as none.
    fn number(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_integer().and_then(|n| u32::try_from(n).ok());
        let number = number.ok_or_else(|| self.wrong(key, "no number"))?;
        Ok(Some(number).filter(|&number| number > 0))
    }

    /// A text, or several; absent is none.
    fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        texts(value).ok_or_else(|| self.wrong(key, "neither a string nor a list of strings"))
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list
            .iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

fn wrong(key: &str, reason: String) -> Error {
    Error::Hosts {
        key: key.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_their_order() {
        let text = r#"
            server = "https://registry.example"
            [host."https://z.example:5000"]
              capabilities = ["pull", "resolve"]
              ca = "z.pem"
              skip_verify = true
              health_check_interval = 7
              failure_limit = 2
              ping_url = "http://z.example/healthy"
              dial_timeout = "3s"
              [host."https://z.example:5000".header]
                x-one = "1"
                x-two = ["2", "sesame"]
            [host."http://a.example/proxy/"]
              ca = ["/ca/a.pem", "b.pem"]
            [host."m.example/own"]
              override_path = true
            [host."http://push.example"]
              capabilities = ["push"]
            [host."http://127.0.0.1:65001"]
              header = { X-Dragonfly-Registry = "https://index.docker.io" }
        "#;
        let hosts = parse(text, Path::new("/etc/m")).unwrap();
        let names: Vec<String> = hosts.iter().map(MirrorHost::name).collect();
        assert_eq!(
            names,
            [
                "z.example:5000",
                "a.example",
                "m.example",
                "127.0.0.1:65001"
            ]
        );
        let [z, a, m, dragonfly] = &hosts[..] else {
            panic!("{hosts:?}")
        };
        assert_eq!(
            (z.base.scheme(), &*z.root, z.insecure),
            ("https", "/v2", true)
        );
        assert_eq!(z.ca_files, [PathBuf::from("/etc/m/z.pem")]);
        assert_eq!(
            z.check,
            Check {
                ping: Some(Url::parse("http://z.example/healthy").unwrap()),
                every: Duration::from_secs(7),
                failures: 2,
            }
        );
        assert_eq!(z.headers.get_all("x-two").iter().count(), 2);
        assert!(z.login.is_none() && z.scheme_given && z.namespace);
        assert!(!format!("{z:?} {:?}", z.stand_in("h")).contains("sesame"));
        assert_eq!((a.base.scheme(), &*a.root), ("http", "/proxy/v2"));
        assert_eq!(
            a.ca_files,
            [PathBuf::from("/ca/a.pem"), PathBuf::from("/etc/m/b.pem")]
        );
        assert_eq!((m.base.scheme(), &*m.root), ("https", "/own"));
        assert_eq!(dragonfly.login.as_deref(), Some("docker.io"));
        assert_eq!(a.check, Check::default());
        assert!(parse("server = \"x\"", Path::new("/")).unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_repeated() {
        for (text, word) in [
            ("[host.\"https://sesame\"\n", "line 1"),
            ("host = \"sesame\"", "table of tables"),
            ("[host]\n\"https://a\" = \"sesame\"", "host 1"),
            ("[host.\"https://user:sesame@a\"]", "no address"),
            ("[host.\"ftp://sesame\"]", "no address"),
            ("[host.\"https://a?sesame\"]", "no address"),
            (
                "[host.\"https://a\"]\n[host.\"https://b\"]\nca = 7",
                "\"ca\" of host 2",
            ),
            ("[host.\"https://a\"]\nskip_verify = \"sesame\"", "neither"),
            ("[host.\"https://a\"]\nheader = \"sesame\"", "header"),
            (
                "[host.\"https://a\"]\nheader = {\"a b\" = \"sesame\"}",
                "header",
            ),
            ("[host.\"https://a\"]\nping_url = \"sesame\"", "ping_url"),
            ("[host.\"https://a\"]\nfailure_limit = -1", "failure_limit"),
            ("[host.\"https://a\"]\nclient = \"sesame\"", "client"),
        ] {
            let error = parse(text, Path::new("/")).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(word), "{text}: {shown}");
            assert!(!shown.contains("sesame"), "{text}: {shown}");
        }
    }

    #[test]
    fn a_registry_has_its_directory_or_the_one_of_all() {
        let names = |host: &str| -> Vec<String> {
            candidates(Path::new("/m"), host)
                .iter()
                .map(|path| path.display().to_string())
                .collect()
        };
        let of = |names: &[&str]| -> Vec<String> {
            names
                .iter()
                .map(|name| format!("/m/{name}/hosts.toml"))
                .collect()
        };
        assert_eq!(names("h:5000"), of(&["h_5000_", "h:5000", "_default"]));
        assert_eq!(names("h"), of(&["h", "_default"]));
        assert_eq!(
            names("docker.io"),
            of(&["index.docker.io", "docker.io", "_default"])
        );
    }
}
