//! Which proxy a host is reached through: the rules of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.

use std::net::IpAddr;

use reqwest::Url;

use crate::{Error, settings};

/// Proxies with the hosts that are reached without.
#[derive(Clone)]
pub(crate) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
    loopback: bool,
    plain: bool,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    /// An address with the length of its network's prefix, and a port.
    Network(IpAddr, u8, Option<u16>),
    /// A domain (with a dot in front: not the name itself), and a port.
    Domain(String, Option<u16>),
}

impl Proxies {
    pub(crate) fn new(settings: &settings::Proxy) -> Result<Self, Error> {
        let url = |name: &str, value: &Option<String>| match value.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => {
                let full = if text.contains("://") {
                    text.to_owned()
                } else {
                    format!("http://{text}")
                };
                // The value may hold a password: it is not repeated.
                match Url::parse(&full) {
                    Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
                        Ok(Some(url))
                    }
                    _ => Err(Error::Setup {
                        reason: format!("{name} is no http:// or https:// address of a proxy"),
                    }),
                }
            }
        };
        Ok(Self {
            http: url("HTTP_PROXY", &settings.http)?,
            https: url("HTTPS_PROXY", &settings.https)?,
            exceptions: settings
                .exceptions
                .as_deref()
                .unwrap_or_default()
                .split([',', ' '])
                .filter_map(exception)
                .collect(),
            loopback: settings.loopback,
            plain: settings.plain,
        })
    }

    /// The address to ask a proxy for, where it is not `url` itself.
    pub(crate) fn plain(&self, url: &Url) -> Option<Url> {
        if !self.plain || url.scheme() != "https" || self.find(url).is_none() {
            return None;
        }
        let mut plain = url.clone();
        plain.set_scheme("http").ok()?;
        Some(plain)
    }

    /// The proxy for an address, if any.
    pub(crate) fn find(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        let host = url
            .host_str()?
            .trim_matches(['[', ']'])
            .to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        // Nothing on this machine is reached through a proxy.
        let near = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        if near && !self.loopback {
            return None;
        }
        let port = url.port_or_known_default();
        let excepted = self
            .exceptions
            .iter()
            .any(|exception| exception.covers(&host, address, port));
        (!excepted).then_some(proxy)
    }
}

fn exception(text: &str) -> Option<Exception> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() {
        return None;
    }
    if text == "*" {
        return Some(Exception::All);
    }
    if let Some((network, length)) = text.split_once('/') {
        return Some(Exception::Network(
            network.parse().ok()?,
            length.parse().ok()?,
            None,
        ));
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        return Some(Exception::Network(address, 128, None));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (&*text, None),
    };
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Some(Exception::Network(address, 128, port));
    }
    let name = name.strip_prefix('*').unwrap_or(name);
    Some(Exception::Domain(name.to_owned(), port))
}

impl Exception {
    fn covers(&self, host: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        match self {
            Self::All => true,
            Self::Network(network, length, wanted) => {
                (wanted.is_none() || *wanted == port)
                    && address.is_some_and(|address| in_network(address, *network, *length))
            }
            Self::Domain(name, wanted) => {
                let inside = match name.strip_prefix('.') {
                    Some(_) => host.ends_with(name.as_str()),
                    None => host
                        .strip_suffix(name.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
                };
                inside && (wanted.is_none() || *wanted == port)
            }
        }
    }
}

fn in_network(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let kept = u32::from(length).min(width);
        kept == 0 || a >> (width - kept) == b >> (width - kept)
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(exceptions: &str) -> Proxies {
        Proxies::new(&settings::Proxy {
            http: Some("proxy:3128".to_owned()),
            https: Some("http://user:pw@secure:3129".to_owned()),
            exceptions: Some(exceptions.to_owned()),
            ..settings::Proxy::default()
        })
        .unwrap()
    }

    fn found(exceptions: &str, url: &str) -> Option<String> {
        let url = Url::parse(url).unwrap();
        let proxies = proxies(exceptions);
        proxies
            .find(&url)
            .and_then(|url| url.host_str().map(str::to_owned))
    }

    #[test]
    fn the_scheme_chooses_the_proxy() {
        assert_eq!(found("", "http://a/"), Some("proxy".to_owned()));
        assert_eq!(found("", "https://a/"), Some("secure".to_owned()));
        let none = Proxies::new(&settings::Proxy::default()).unwrap();
        assert_eq!(none.find(&Url::parse("https://a/").unwrap()), None);
    }

    #[test]
    fn exceptions_are_names_domains_addresses_and_networks() {
        for (exceptions, url, direct) in [
            ("*", "http://a/", true),
            ("", "http://localhost:5000/", true),
            ("", "http://127.0.0.1/", true),
            ("", "http://[::1]:5000/", true),
            ("a.com", "http://a.com/", true),
            ("a.com", "http://x.A.com/", true),
            ("a.com", "http://ba.com/", false),
            (".a.com", "http://a.com/", false),
            ("*.a.com", "http://x.a.com/", true),
            ("b, a.com:5000", "http://a.com:5000/", true),
            ("a.com:5000", "http://a.com/", false),
            ("a.com:443", "https://a.com/", true),
            ("10.0.0.0/8", "http://10.1.2.3/", true),
            ("10.0.0.0/8", "http://11.1.2.3/", false),
            ("10.0.0.1", "http://10.0.0.1/", true),
            ("10.0.0.1", "http://10.0.0.2/", false),
            ("fd00::/8", "http://[fd12::1]/", true),
        ] {
            assert_eq!(
                found(exceptions, url).is_none(),
                direct,
                "{exceptions} {url}"
            );
        }
    }

    #[test]
    fn a_bad_proxy_is_named_without_its_password() {
        let error = Proxies::new(&settings::Proxy {
            https: Some("ftp://user:geheim@x".to_owned()),
            ..settings::Proxy::default()
        })
        .err()
        .map(|error| error.to_string())
        .unwrap();
        assert!(error.contains("HTTPS_PROXY") && !error.contains("geheim"));
    }
}
