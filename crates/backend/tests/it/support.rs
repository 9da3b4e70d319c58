//! What the tests here share.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backend::Blobs;
use backend::{Backend, Config, Kind};
use image::{Digest, Error, Target};
use registry::{Client, Settings};
use storage::{BlobReader, BlobSource as _};
use testkit::bucket::Bucket;

/// More than two parts.
pub const LARGE: usize = (17 << 20) + 5;

/// Settings with which faults pass fast.
pub fn settings() -> Settings {
    Settings {
        retry_delay: Duration::from_millis(5),
        seed: Some(1),
        ..Settings::default()
    }
}

/// A backend in a bucket.
pub fn open(bucket: &Bucket, prefix: &str) -> Backend {
    open_config(bucket.kind(), &bucket.config(prefix))
}

/// The backend of a configuration.
pub fn open_config(kind: &str, json: &str) -> Backend {
    let config = Config::parse(Kind::from_str(kind).unwrap(), json).unwrap();
    Backend::open(&config, &Client::new(settings()).unwrap()).unwrap()
}

/// All bytes of a blob, in two reads; what is wrong is read again.
pub fn read_all(blobs: &Blobs, id: &str, right: &[u8]) {
    let blob = blobs.open(id).unwrap();
    assert_eq!(blob.size(), right.len() as u64);
    let middle = right.len() / 2;
    for (from, to) in [(0, middle), (middle, right.len())] {
        let mut buf = vec![0; to - from];
        blob.read_exact_at(&mut buf, from as u64).unwrap();
        if buf != right[from..to] {
            assert!(blob.read_again(&mut buf, from as u64).unwrap());
        }
        assert!(buf == right[from..to]);
    }
}

/// Writes a blob in pieces of odd sizes.
pub fn write(target: &Target, bytes: &[u8]) -> Result<u64, Error> {
    let mut writer = target.blob_writer()?;
    for piece in bytes.chunks(1_000_003) {
        writer
            .write_all(piece)
            .map_err(|error| error.downcast::<Error>().unwrap())?;
    }
    writer.finish(Digest::of(bytes))
}

/// All bytes as a stream from `offset` on.
pub fn stream(blob: Arc<dyn BlobReader>, offset: u64) -> Vec<u8> {
    let mut out = Vec::new();
    blob.stream(offset).unwrap().read_to_end(&mut out).unwrap();
    out
}

/// How a [`Relay`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// It says that it is not well.
    Ill,
    /// It answers with an error.
    Failing,
    /// The last byte of what it passes on is another one.
    Lying,
}

/// An HTTP proxy; a mirror as well, which asks the registry that the header `X-Dragonfly-Registry` names. One request for
/// each connection.
pub struct Relay {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            mood: Arc::new(Mutex::new(Mood::Well)),
            heads: Arc::default(),
        };
        let (mood, heads) = (Arc::clone(&relay.mood), Arc::clone(&relay.heads));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mood, heads) = (Arc::clone(&mood), Arc::clone(&heads));
                std::thread::spawn(move || relay_one(client.unwrap(), &mood, &heads));
            }
        });
        relay
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// The heads of the requests since the last question, but for those how it does.
    pub fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap())
    }
}

fn relay_one(mut client: TcpStream, mood: &Mutex<Mood>, heads: &Mutex<Vec<String>>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mood = *mood.lock().unwrap();
    let mut lines = head.lines();
    let Some([method, target, _]) = lines.next().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        <[&str; 3]>::try_from(words).unwrap()
    }) else {
        return;
    };
    let answer = |client: &mut TcpStream, status: &str| {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = client.write_all(text.as_bytes());
    };
    if target == "/ping" {
        return match mood {
            Mood::Ill => answer(&mut client, "503 ill"),
            _ => answer(&mut client, "200 well"),
        };
    }
    heads.lock().unwrap().push(head.clone());
    if mood == Mood::Failing {
        return answer(&mut client, "502 no");
    }
    let dragonfly = head
        .lines()
        .find_map(|line| line.strip_prefix("x-dragonfly-registry: "));
    let url = match dragonfly {
        Some(registry) => format!("{registry}{target}"),
        None => target.to_owned(),
    };
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut request = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for line in lines.filter(|line| {
        !["host:", "connection:", "x-dragonfly", "proxy-"]
            .iter()
            .any(|name| line.to_ascii_lowercase().starts_with(name))
    }) {
        request.push_str(&format!("{line}\r\n"));
    }
    let Ok(mut server) = TcpStream::connect(host) else {
        return answer(&mut client, "502 no such host");
    };
    server.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = server.read_to_end(&mut reply);
    if mood == Mood::Lying && method == "GET" {
        *reply.last_mut().unwrap() ^= 1;
    }
    let line = reply.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    let _ = client.write_all(&reply[..line]);
    let _ = client.write_all(b"connection: close\r\n");
    let _ = client.write_all(&reply[line..]);
}
