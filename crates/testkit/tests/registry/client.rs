//! As little of an HTTP client as will do: one request on one connection, answers taken as they come.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    /// Status code; 0 when the connection ended before the head did.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body, as far as it came.
    pub body: Vec<u8>,
    /// Whether all of the body came that `Content-Length` promised.
    pub complete: bool,
}

impl Answer {
    /// A header by its name in lower case; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map_or("", |(_, value)| value)
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Insists on a status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}

/// Talks to one host.
#[derive(Clone)]
pub struct Client {
    host: String,
    ca: Option<CertificateDer<'static>>,
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
}

impl Client {
    /// For a `host:port`.
    pub fn new(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            ca: None,
            headers: Vec::new(),
        }
    }

    /// With TLS, trusting the certificate in this file alone.
    pub fn trusting(mut self, ca: &Path) -> Self {
        self.ca = Some(CertificateDer::from_pem_file(ca).expect("a certificate"));
        self
    }

    /// With one more header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[])
    }

    pub fn head(&self, target: &str) -> Answer {
        self.send("HEAD", target, &[])
    }

    pub fn post(&self, target: &str, body: &[u8]) -> Answer {
        self.send("POST", target, body)
    }

    pub fn put(&self, target: &str, body: &[u8]) -> Answer {
        self.send("PUT", target, body)
    }

    pub fn patch(&self, target: &str, body: &[u8]) -> Answer {
        self.send("PATCH", target, body)
    }

    pub fn delete(&self, target: &str) -> Answer {
        self.send("DELETE", target, &[])
    }

    /// Sends a request; `target` may be a URL of this host. Broken connections show in the answer.
    pub fn send(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        let target = match target.split_once("://") {
            Some((_, rest)) => rest.strip_prefix(self.host.as_str()).expect("of this host"),
            None => target,
        };
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(method, &bytes)
    }

    /// Sends bytes as they are and reads one answer.
    pub fn raw(&self, method: &str, bytes: &[u8]) -> Answer {
        let Ok(socket) = TcpStream::connect(&self.host) else {
            return Answer::default();
        };
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        match &self.ca {
            None => converse(socket, method, bytes),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone()).expect("a CA");
                let provider = testkit::registry::provider();
                let config = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .expect("versions")
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let name = ServerName::try_from("127.0.0.1").expect("a name");
                let tls = ClientConnection::new(Arc::new(config), name).expect("TLS");
                converse(StreamOwned::new(tls, socket), method, bytes)
            }
        }
    }
}

/// One request and its answer.
fn converse(mut stream: impl Read + Write, method: &str, bytes: &[u8]) -> Answer {
    // The server may cut the connection while this is being sent.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    read_answer(&mut stream, method)
}

/// Reads one answer.
pub fn read_answer(stream: &mut impl Read, method: &str) -> Answer {
    let mut answer = Answer::default();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return answer,
        }
    }
    let head = String::from_utf8(head).expect("text");
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    answer.status = first
        .split(' ')
        .nth(1)
        .map_or(0, |code| code.parse().expect("a code"));
    answer.headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = match answer.header("content-length") {
        _ if method == "HEAD" => 0,
        "" => 0,
        text => text.parse().expect("a length"),
    };
    let mut buffer = [0; 16 << 10];
    while answer.body.len() < length {
        let room = buffer.len().min(length - answer.body.len());
        match stream.read(&mut buffer[..room]) {
            Ok(got) if got > 0 => answer.body.extend_from_slice(&buffer[..got]),
            _ => break,
        }
    }
    answer.complete = answer.body.len() == length;
    answer
}
