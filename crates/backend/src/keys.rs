//! The keys of a backend's configuration, and those that all types have.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use registry::{Proxy, Settings};
use reqwest::Url;
use serde_json::{Map, Value};

use crate::Error;
use crate::detour::Check;
use crate::hosts::{self, MirrorHost};

/// As good as without end, where a time limit of zero says so.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The keys of a configuration.
#[derive(Clone)]
pub(crate) struct Keys {
    /// Type of the backend.
    kind: &'static str,
    map: Map<String, Value>,
}

impl fmt::Debug for Keys {
    /// Without their values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.map.keys().collect();
        write!(f, "Keys({}, {names:?})", self.kind)
    }
}

impl Keys {
    pub(crate) fn parse(kind: &'static str, json: &str) -> Result<Self, Error> {
        let value: Value = serde_json::from_str(json).map_err(|source| Error::Json {
            kind,
            source: Some(source),
        })?;
        match value {
            Value::Object(map) => Ok(Self { kind, map }),
            _ => Err(Error::Json { kind, source: None }),
        }
    }

    pub(crate) fn wrong(&self, key: &'static str, reason: &'static str) -> Error {
        let kind = self.kind;
        Error::Key { kind, key, reason }
    }

    /// Whether something is asked for.
    pub(crate) fn switch(&self, key: &str) -> bool {
        matches!(self.map.get(key), Some(Value::Bool(true)))
    }

    /// A text; empty and absent are the same.
    pub(crate) fn text(&self, key: &'static str) -> Result<Option<&str>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some(_) => Err(self.wrong(key, "is no string")),
        }
    }

    pub(crate) fn needed(&self, key: &'static str) -> Result<&str, Error> {
        self.text(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A list of paths; absent is empty.
    pub(crate) fn paths(&self, key: &'static str) -> Result<Vec<PathBuf>, Error> {
        let value = match self.map.get(key) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(value) => value,
        };
        let list = value.as_array().into_iter().flatten();
        let paths: Option<Vec<PathBuf>> = list.map(|path| Some(path.as_str()?.into())).collect();
        paths
            .filter(|_| value.is_array())
            .ok_or_else(|| self.wrong(key, "is no list of strings"))
    }

    /// A number; absent is `None`.
    fn number(&self, key: &'static str) -> Result<Option<u32>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                number
                    .map(Some)
                    .ok_or_else(|| self.wrong(key, "is no number of 32 bits"))
            }
        }
    }

    /// A time in seconds, of which zero is no limit.
    fn time(&self, key: &'static str) -> Result<Option<Duration>, Error> {
        let seconds = self.number(key)?;
        Ok(seconds.map(|seconds| match seconds {
            0 => NO_LIMIT,
            _ => Duration::from_secs(seconds.into()),
        }))
    }

    /// The address of something that is asked how it does.
    fn ping(&self) -> Result<Option<Url>, Error> {
        let Some(text) = self.text("ping_url")? else {
            return Ok(None);
        };
        let url = Url::parse(text).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| self.wrong("ping_url", "is no URL of HTTP"))?;
        Ok(Some(url))
    }

    /// How to speak to the host, by the keys that all types have.
    pub(crate) fn settings(&self, settings: &Settings) -> Result<Settings, Error> {
        let mut settings = settings.clone();
        settings.insecure = self.switch("skip_verify");
        settings.ca_files.extend(self.paths("ca_cert_files")?);
        if let Some(time) = self.time("timeout")? {
            settings.stall_timeout = time;
        }
        if let Some(time) = self.time("connect_timeout")? {
            settings.connect_timeout = time;
        }
        if let Some(retries) = self.number("retry_limit")? {
            settings.retries = retries;
        }
        Ok(settings)
    }

    /// A table inside.
    fn inner(&self, key: &'static str) -> Result<Option<Self>, Error> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                kind: self.kind,
                map: map.clone(),
            })),
            Some(_) => Err(self.wrong(key, "is no table of keys")),
        }
    }

    /// The proxy that the host is to be reached through, if one is named.
    pub(crate) fn proxy(&self) -> Result<Option<Through>, Error> {
        let Some(keys) = self.inner("proxy")? else {
            return Ok(None);
        };
        if keys.text("dragonfly_scheduler_endpoint")?.is_some() {
            tracing::warn!(
                "proxy.dragonfly_scheduler_endpoint has no effect: only the proxy of a peer is spoken to"
            );
        }
        let Some(address) = keys.text("url")? else {
            return Ok(None);
        };
        let url = Url::parse(address).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let host = url.as_ref().and_then(Url::host_str);
        let host = host.ok_or_else(|| keys.wrong("url", "is no http:// or https:// address"))?;
        let port = url.as_ref().and_then(Url::port);
        let every = keys.number("check_interval")?.filter(|&every| every > 0);
        let usual = Check::default();
        Ok(Some(Through {
            name: match port {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            },
            proxy: Proxy::of_all(address, keys.switch("use_http")),
            fallback: !matches!(keys.map.get("fallback"), Some(Value::Bool(false))),
            check: Check {
                ping: keys.ping()?,
                every: every.map_or(usual.every, |seconds| Duration::from_secs(seconds.into())),
                ..usual
            },
        }))
    }

    /// The hosts that are asked before the backend's own, by the key `mirrors`. `host` is the backend's, whose credentials
    /// they are shown unless they are asked for such by themselves (`auth_through`).
    pub(crate) fn mirrors(&self, host: &str) -> Result<Vec<MirrorHost>, Error> {
        let list = match self.map.get("mirrors") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(self.wrong("mirrors", "is no list")),
        };
        let mut mirrors = Vec::new();
        for value in list {
            let map = value.as_object().cloned();
            let keys = Self {
                kind: self.kind,
                map: map.ok_or_else(|| self.wrong("mirrors", "has an entry that is no table"))?,
            };
            let mut mirror = MirrorHost::new(keys.needed("host")?, true)
                .ok_or_else(|| self.wrong("host", "of a mirror is no address of a host"))?;
            let wrong = || self.wrong("headers", "of a mirror is no table of headers");
            match keys.map.get("headers") {
                None | Some(Value::Null) => {}
                Some(Value::Object(headers)) => {
                    for (name, value) in headers {
                        let value = value.as_str().ok_or_else(wrong)?;
                        mirror.header(name, value).ok_or_else(wrong)?;
                    }
                }
                Some(_) => return Err(wrong()),
            }
            mirror.login = (!keys.switch("auth_through")).then(|| hosts::usual_name(host));
            mirror.check.ping = keys.ping()?;
            let above_zero = |key| Ok::<_, Error>(keys.number(key)?.filter(|&number| number > 0));
            if let Some(seconds) = above_zero("health_check_interval")? {
                mirror.check.every = Duration::from_secs(seconds.into());
            }
            if let Some(failures) = above_zero("failure_limit")? {
                mirror.check.failures = failures;
            }
            mirrors.push(mirror);
        }
        Ok(mirrors)
    }
}

/// A proxy that a backend's host is reached through.
pub(crate) struct Through {
    /// Its host and port, for messages.
    pub(crate) name: String,
    pub(crate) proxy: Proxy,
    /// Whether the host is asked directly for what the proxy fails to give.
    pub(crate) fallback: bool,
    pub(crate) check: Check,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(json: &str) -> Keys {
        Keys::parse("s3", json).unwrap()
    }

    #[test]
    fn common_keys_change_how_hosts_are_spoken_to() {
        let usual = Settings::default();
        let same = keys("{}").settings(&usual).unwrap();
        assert_eq!(
            (same.stall_timeout, same.connect_timeout, same.retries),
            (usual.stall_timeout, usual.connect_timeout, usual.retries)
        );
        let json = r#"{"timeout":2,"connect_timeout":0,"retry_limit":7,"skip_verify":true,"ca_cert_files":["/a"]}"#;
        let found = keys(json).settings(&usual).unwrap();
        assert_eq!(found.stall_timeout, Duration::from_secs(2));
        assert_eq!(found.connect_timeout, NO_LIMIT);
        assert_eq!((found.retries, found.insecure), (7, true));
        assert_eq!(found.ca_files, [PathBuf::from("/a")]);
    }

    #[test]
    fn proxies_and_mirrors_are_read() {
        assert!(keys(r#"{"proxy":{"url":""}}"#).proxy().unwrap().is_none());
        let json = r#"{"proxy":{"url":"http://u:sesame@p:4001","ping_url":"http://p/ping","check_interval":9,
            "use_http":true,"check_pause_elapsed":300}}"#;
        let proxy = keys(json).proxy().unwrap().unwrap();
        assert_eq!((&*proxy.name, proxy.fallback), ("p:4001", true));
        assert_eq!(proxy.check.every, Duration::from_secs(9));
        assert!(proxy.check.ping.is_some() && proxy.proxy.plain && proxy.proxy.loopback);
        let json = r#"{"mirrors":[{"host":"http://127.0.0.1:65001","headers":{"X-Dragonfly-Registry":"https://h"},
            "ping_url":"http://127.0.0.1:40901/server/ping","health_check_interval":3,"failure_limit":2},
            {"host":"m","auth_through":true}]}"#;
        let mirrors = keys(json).mirrors("h").unwrap();
        let [first, second] = &mirrors[..] else {
            panic!("{mirrors:?}")
        };
        assert_eq!(first.login.as_deref(), Some("h"));
        assert_eq!(first.headers.len(), 1);
        assert_eq!(first.check.every, Duration::from_secs(3));
        assert_eq!(first.check.failures, 2);
        assert_eq!((&*second.name(), second.login.as_deref()), ("m", None));
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_repeated() {
        for (json, word) in [
            (r#"{"timeout":"sesame"}"#, "timeout"),
            (r#"{"retry_limit":-1}"#, "retry_limit"),
            (r#"{"connect_timeout":1e99}"#, "connect_timeout"),
            (r#"{"proxy":"sesame"}"#, "proxy"),
            (r#"{"proxy":{"url":"sesame"}}"#, "url"),
            (
                r#"{"proxy":{"url":"http://p","ping_url":"sesame"}}"#,
                "ping_url",
            ),
            (r#"{"mirrors":{"host":"sesame"}}"#, "mirrors"),
            (r#"{"mirrors":["sesame"]}"#, "mirrors"),
            (r#"{"mirrors":[{}]}"#, "host"),
            (r#"{"mirrors":[{"host":"http://u:sesame@h"}]}"#, "host"),
            (
                r#"{"mirrors":[{"host":"h","headers":{"a":["sesame"]}}]}"#,
                "headers",
            ),
        ] {
            let keys = keys(json);
            let found = keys.settings(&Settings::default()).map(drop);
            let found = found.and_then(|()| keys.proxy().map(drop));
            let error = found
                .and_then(|()| keys.mirrors("h").map(drop))
                .unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(
                shown.contains(word) && !shown.contains("sesame"),
                "{json}: {shown}"
            );
        }
    }
}
