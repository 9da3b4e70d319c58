//! Blobs behind an HTTP server that passes them on: `GET <addr>/<path>/<id>` with a range, and `HEAD` for the size.
//!
//! The server may listen on a Unix socket. Some answer a range with status 200 and no length, and go through a stream
//! that only goes forward: so there is one request at a time, and 200 is taken as the range.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use registry::{Client, Exchange, Make, Outgoing, Settings, Subject};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use storage::BlobReader;

use crate::Error;
use crate::bucket;
use crate::detour::Reading;
use crate::keys::Keys;
use crate::sign::encode;

/// Name of the type.
pub(crate) const KIND: &str = "http-proxy";

/// The server.
pub(crate) struct Proxy {
    client: Client,
    /// With a slash at its end.
    base: Url,
    /// For messages.
    name: String,
    turn: Arc<Mutex<()>>,
}

impl Proxy {
    /// The server of a configuration. Nothing is asked for yet.
    pub(crate) fn open(keys: &Keys, settings: &Settings) -> Result<Self, Error> {
        let address = keys.needed("addr")?;
        let socket = address.starts_with('/').then(|| PathBuf::from(address));
        let url = match &socket {
            Some(_) => "http://localhost",
            None => address,
        };
        let wrong = || keys.wrong("addr", "is neither a URL of HTTP nor the path of a socket");
        let mut base = Url::parse(url).map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong());
        }
        let path = keys.text("path")?.unwrap_or_default();
        let path = format!(
            "{}/{}",
            base.path().trim_matches('/'),
            path.trim_matches('/')
        );
        base.set_path(&match path.trim_matches('/') {
            "" => "/".to_owned(),
            path => format!("/{path}/"),
        });
        let socket_name = socket.as_ref().map(|path| path.display().to_string());
        let client = Client::new(Settings {
            unix_socket: socket,
            ..settings.clone()
        })?;
        Ok(Self {
            client,
            name: match socket_name {
                Some(path) => path,
                None => name(&base),
            },
            base,
            turn: Arc::default(),
        })
    }

    fn exchange(&self, method: Method, id: &str) -> Exchange {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", url.path(), encode(id, b"")));
        let make: Make = Arc::new(move |_| {
            Ok(Outgoing {
                method: method.clone(),
                url: url.clone(),
                headers: HeaderMap::new(),
                authorization: None,
                body: Default::default(),
                key: None,
            })
        });
        Exchange {
            subject: Subject {
                host: self.name.clone(),
                repository: String::new(),
                object: format!("blob {id}"),
            },
            action: "read",
            make,
            again: |_| false,
            parts_as_whole: true,
        }
    }

    /// The size of a blob; `None` if there is no such blob.
    fn size(&self, id: &str) -> Result<Option<u64>, Error> {
        bucket::size(&self.client, &self.exchange(Method::HEAD, id))
    }
}

impl Reading for Proxy {
    fn blob(&self, id: &str, size: Option<u64>) -> Result<Option<Arc<dyn BlobReader>>, Error> {
        let size = match size {
            Some(size) => Some(size),
            None => self.size(id)?,
        };
        Ok(size.map(|size| {
            Arc::new(Passed {
                client: self.client.clone(),
                exchange: self.exchange(Method::GET, id),
                size,
                turn: Arc::clone(&self.turn),
            }) as Arc<dyn BlobReader>
        }))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What to call the server in messages: its address without what may be a password.
fn name(base: &Url) -> String {
    let mut shown = base.clone();
    // Neither fails where there is a host.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.as_str().trim_end_matches('/').to_owned()
}

/// A blob that is passed on.
struct Passed {
    client: Client,
    exchange: Exchange,
    size: u64,
    turn: Arc<Mutex<()>>,
}

impl BlobReader for Passed {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.client.read_object(&self.exchange, offset, buf)?)
    }

    fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(json: &str) -> Result<String, Error> {
        let proxy = Proxy::open(&Keys::parse(KIND, json)?, &Settings::default())?;
        let exchange = proxy.exchange(Method::GET, "abc");
        Ok((exchange.make)(None).ok().unwrap().url.to_string())
    }

    #[test]
    fn blobs_lie_below_the_path() {
        for (json, wanted) in [
            (r#"{"addr":"/run/x.sock"}"#, "http://localhost/abc"),
            (r#"{"addr":"http://h:1"}"#, "http://h:1/abc"),
            (r#"{"addr":"https://h/a/","path":"b"}"#, "https://h/a/b/abc"),
            (
                r#"{"addr":"/run/x.sock","path":"/b/c/"}"#,
                "http://localhost/b/c/abc",
            ),
        ] {
            assert_eq!(address(json).unwrap(), wanted, "{json}");
        }
        let json = r#"{"addr":"http://me:sesame@h:1/a"}"#;
        let proxy = Proxy::open(&Keys::parse(KIND, json).unwrap(), &Settings::default()).unwrap();
        assert_eq!(proxy.name(), "http://h:1/a");
        let shown = format!("{:?}", proxy.exchange(Method::GET, "abc"));
        assert!(
            shown.contains("h:1") && !shown.contains("sesame"),
            "{shown}"
        );
        for json in ["{}", r#"{"addr":"ftp://h"}"#, r#"{"addr":"h:80"}"#, "[]"] {
            assert!(address(json).is_err(), "{json}");
        }
    }
}
