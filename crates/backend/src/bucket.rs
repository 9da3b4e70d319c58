//! A bucket: single requests on its objects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use registry::{Client, Exchange, Fetch, Incoming, Make, Outgoing, Subject};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};

use crate::access::{Access, KeySource};
use crate::config::{self, Kind};
use crate::date::Moment;
use crate::hosts::MirrorHost;
use crate::sign::{ToSign, encode, sha256};
use crate::{Error, oss, s3};

/// How long tidying up may take for each object.
pub(crate) const TIDY: Duration = Duration::from_secs(5);

/// Sizes that depend on the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Size of the parts of an upload in bytes.
    pub(crate) part: usize,
    /// Largest object that is copied in one go, in bytes.
    pub(crate) copy: u64,
}

impl Limits {
    /// Amazon copies up to 5 GiB in one go, Aliyun up to 1 GiB.
    pub(crate) const USUAL: Self = Self {
        part: 8 << 20,
        copy: 1 << 30,
    };
}

/// A bucket.
pub(crate) struct Bucket {
    pub(crate) client: Client,
    pub(crate) limits: Limits,
    signer: Signer,
}

/// What it takes to make requests.
#[derive(Clone)]
struct Signer {
    kind: Kind,
    /// Scheme, host and port.
    base: Url,
    /// The host as requests name it.
    host: String,
    /// What stands before the name of an object in paths, with both its slashes.
    path: String,
    name: String,
    prefix: String,
    region: String,
    key: KeySource,
    /// Who is asked instead, and is to pass on what is signed for the store.
    mirror: Option<MirrorHost>,
}

/// A request before it is signed.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Name of the object, with the prefix.
    pub(crate) object: String,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Ask {
    pub(crate) fn new(method: Method, object: &str) -> Self {
        Self {
            method,
            object: object.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({self})")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signer {
            kind, host, name, ..
        } = &self.signer;
        write!(f, "{} bucket {name} at {host}", kind.name())
    }
}

impl Bucket {
    pub(crate) fn new(
        config: &config::Bucket,
        client: &Client,
        mirror: Option<&MirrorHost>,
    ) -> Result<Self, Error> {
        let wrong = || Error::Key {
            kind: config.kind.name(),
            key: "endpoint",
            reason: "is no host with an optional port",
        };
        let url = |host: &str| Url::parse(&format!("{}://{host}/", config.scheme)).ok();
        let plain = url(&config.endpoint).ok_or_else(wrong)?;
        // Aliyun wants the bucket in the host's name, where the host has one.
        let named = match plain.domain() {
            Some(domain) if config.kind == Kind::Oss && domain != "localhost" => {
                url(&format!("{}.{}", config.name, config.endpoint))
            }
            _ => None,
        };
        let path = match named {
            Some(_) => "/".to_owned(),
            None => format!("/{}/", config.name),
        };
        let base = named.unwrap_or(plain);
        let name = base.host_str().ok_or_else(wrong)?;
        let host = match base.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        Ok(Self {
            client: client.clone(),
            limits: Limits::USUAL,
            signer: Signer {
                kind: config.kind,
                host,
                base,
                path,
                name: config.name.clone(),
                prefix: config.prefix.clone(),
                region: config.region.clone(),
                key: config.key.clone(),
                mirror: mirror.cloned(),
            },
        })
    }

    /// Name of the object that is the blob `id`.
    pub(crate) fn object(&self, id: &str) -> String {
        format!("{}{id}", self.signer.prefix)
    }

    /// A name for an object that is not a blob yet.
    pub(crate) fn temporary(&self) -> String {
        let random = fastrand::Rng::new().u128(..);
        format!("{}uploading-{random:032x}", self.signer.prefix)
    }

    /// Header and value that name an object as the source of a copy, and the header for a part of it.
    pub(crate) fn copy_source(&self, object: &str) -> ((&'static str, String), &'static str) {
        let value = format!("/{}/{}", self.signer.name, encode(object, b"/"));
        match self.signer.kind {
            Kind::Oss => (("x-oss-copy-source", value), "x-oss-copy-source-range"),
            _ => (("x-amz-copy-source", value), "x-amz-copy-source-range"),
        }
    }

    pub(crate) fn exchange(&self, action: &'static str, ask: Ask) -> Exchange {
        let subject = Subject {
            host: self.signer.host.clone(),
            repository: self.signer.name.clone(),
            object: format!("object {}", ask.object),
        };
        let signer = self.signer.clone();
        let payload = sha256(&ask.body);
        let make: Make = Arc::new(move |_| signer.sign(&ask, &payload));
        Exchange {
            subject,
            action,
            make,
            again,
            parts_as_whole: false,
        }
    }

    /// A request whose answer is to be a success.
    pub(crate) fn ask(&self, action: &'static str, ask: Ask) -> Result<Incoming, Error> {
        let exchange = self.exchange(action, ask);
        let incoming = self.client.exchange(exchange.clone())?;
        accept(&exchange, incoming)
    }

    /// The size of an object; `None` if there is none.
    pub(crate) fn size(&self, object: &str) -> Result<Option<u64>, Error> {
        let exchange = self.exchange("read", Ask::new(Method::HEAD, object));
        size(&self.client, &exchange)
    }

    /// Whether an object is there and has this size. Who may not ask is told that it is not.
    pub(crate) fn has(&self, object: &str, size: u64) -> Result<bool, Error> {
        match self.size(object) {
            Ok(found) => Ok(found == Some(size)),
            Err(Error::Store(registry::Error::Refused { refusal, .. }))
                if refusal.status == 403 =>
            {
                // Without the right to list, stores deny that they know what is absent.
                tracing::debug!("{object}: {refusal} to a question for its size");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn put(&self, object: &str, body: Bytes) -> Result<(), Error> {
        let ask = Ask {
            body,
            ..Ask::new(Method::PUT, object)
        };
        self.ask("write", ask).map(drop)
    }

    /// Removes an object, whatever comes of it.
    pub(crate) fn remove(&self, object: &str) {
        let exchange = self.exchange("delete", Ask::new(Method::DELETE, object));
        if !self.client.tidy(&exchange, TIDY) {
            tracing::warn!("{self}: cannot delete the temporary object {object}");
        }
    }

    /// Gives an upload in parts up, whatever comes of it.
    pub(crate) fn abandon(&self, object: &str, upload: &str) {
        let ask = Ask {
            query: vec![("uploadId", upload.to_owned())],
            ..Ask::new(Method::DELETE, object)
        };
        let exchange = self.exchange("delete", ask);
        if !self.client.tidy(&exchange, TIDY) {
            tracing::warn!("{self}: cannot give the upload of {object} up");
        }
    }
}

/// The size of an object, by the answer to a HEAD; `None` if there is none.
pub(crate) fn size(client: &Client, exchange: &Exchange) -> Result<Option<u64>, Error> {
    let incoming = client.exchange(exchange.clone())?;
    if incoming.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let incoming = accept(exchange, incoming)?;
    let length = incoming.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    length.map(Some).ok_or_else(|| Error::Answer {
        object: exchange.subject.to_string(),
        action: "HEAD",
        missing: "size",
    })
}

/// The answer, if it is a success.
pub(crate) fn accept(exchange: &Exchange, incoming: Incoming) -> Result<Incoming, Error> {
    if incoming.status.is_success() && !is_error(&incoming) {
        Ok(incoming)
    } else {
        Err(exchange.refusal(&incoming).into())
    }
}

/// Long operations are answered with success before they end, and their errors come behind that.
fn is_error(incoming: &Incoming) -> bool {
    contains(&incoming.body, "<Error>")
}

/// Errors that pass by themselves, though their status does not say so.
fn again(incoming: &Incoming) -> bool {
    let passing = [
        "InternalError",
        "RequestTimeout",
        "SlowDown",
        "ServiceUnavailable",
    ];
    let code = |code: &str| contains(&incoming.body, &format!("<Code>{code}</Code>"));
    is_error(incoming) && passing.into_iter().any(code)
}

fn contains(body: &[u8], text: &str) -> bool {
    body.len() <= 64 << 10
        && body
            .windows(text.len())
            .any(|window| window == text.as_bytes())
}

impl Signer {
    /// The request, unless its key has to be fetched first.
    fn sign(&self, ask: &Ask, payload: &str) -> Result<Outgoing, Fetch> {
        let path = format!("{}{}", self.path, encode(&ask.object, b"/"));
        let resource = format!("/{}/{}", self.name, ask.object);
        let request = ToSign {
            method: ask.method.as_str(),
            host: &self.host,
            path: &path,
            resource: &resource,
            query: &ask.query,
            headers: &ask.headers,
            payload,
        };
        let (Access { key, lent }, now) = (self.key.access()?, Moment::now());
        let signed = match self.kind {
            Kind::Oss => oss::sign(key.as_deref(), &request, now),
            _ => s3::sign(key.as_deref(), &self.region, &request, now),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in ask.headers.iter().chain(&signed.headers) {
            if let Ok(mut value) = HeaderValue::try_from(value) {
                value.set_sensitive(name.ends_with("-security-token"));
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let authorization = signed.authorization.and_then(|text| {
            let mut value = HeaderValue::try_from(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let mut url = self.base.clone();
        url.set_path(&path);
        if let Some(mirror) = &self.mirror {
            url = mirror.base.clone();
            url.set_path(&format!("{}{path}", mirror.root));
            for (name, value) in &mirror.headers {
                headers.append(name, value.clone());
            }
        }
        let query: Vec<String> = ask
            .query
            .iter()
            .map(|(name, value)| match value.is_empty() {
                true => (*name).to_owned(),
                false => format!("{name}={}", encode(value, b"")),
            })
            .collect();
        url.set_query(Some(&*query.join("&")).filter(|query| !query.is_empty()));
        Ok(Outgoing {
            method: ask.method.clone(),
            url,
            headers,
            authorization,
            body: ask.body.clone(),
            key: lent,
        })
    }
}

#[cfg(test)]
mod tests {
    use registry::Settings;

    use super::*;
    use crate::Config;

    fn url(kind: Kind, json: &str) -> String {
        let config = match Config::parse(kind, json).unwrap().place {
            config::Place::Bucket(bucket) => bucket,
            config::Place::Local(_) => panic!("{json}"),
        };
        let bucket =
            Bucket::new(&config, &Client::new(Settings::default()).unwrap(), None).unwrap();
        let ask = Ask {
            query: vec![("uploads", String::new()), ("partNumber", "1&2".to_owned())],
            ..Ask::new(Method::GET, &bucket.object("a b"))
        };
        let signed = bucket.signer.sign(&ask, "").ok().unwrap();
        signed.url.to_string()
    }

    #[test]
    fn objects_have_the_addresses_of_their_store() {
        let s3 = r#"{"endpoint":"h:9","region":"r","bucket_name":"b","object_prefix":"x/y/"}"#;
        let query = "?uploads&partNumber=1%262";
        assert_eq!(url(Kind::S3, s3), format!("https://h:9/b/x/y/a%20b{query}"));
        for (endpoint, wanted) in [
            ("oss-cn.example", "https://b.oss-cn.example/a%20b"),
            ("http://127.0.0.1:80", "http://127.0.0.1/b/a%20b"),
        ] {
            let json = format!(r#"{{"endpoint":"{endpoint}","bucket_name":"b"}}"#);
            assert_eq!(url(Kind::Oss, &json), format!("{wanted}{query}"));
        }
    }
}
