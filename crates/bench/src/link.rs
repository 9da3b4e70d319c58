//! A network link with a delay and a bandwidth, as a relay in front of a server on loopback. It counts what passes.
//!
//! Bytes of all connections queue for the same line, one direction apart from the other; each piece arrives half the round
//! trip after it has left the line. A new connection waits one round trip more, as TCP's handshake does.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes of one piece.
const PIECE: usize = 16 << 10;
/// Pieces under way per connection and direction: 4 MiB, well above what 20 ms hold at 200 Mbit/s.
const UNDER_WAY: usize = 256;
/// What ends the first line of a request.
const REQUEST_LINE_END: &[u8] = b" HTTP/1.1\r\n";

/// What a link does to the traffic.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Round trip time.
    pub round_trip: Duration,
    /// Bytes per second in each direction.
    pub bandwidth: Option<f64>,
}

impl Shape {
    /// Loopback as it is.
    pub const NONE: Self = Self {
        round_trip: Duration::ZERO,
        bandwidth: None,
    };
    /// 20 ms and 200 Mbit/s.
    pub const FAR: Self = Self {
        round_trip: Duration::from_millis(20),
        bandwidth: Some(200e6 / 8.0),
    };
}

/// What passed a link.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// HTTP requests.
    pub requests: u64,
    /// Bytes from the server, headers included.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// A running relay. Its threads end with the process.
#[derive(Debug)]
pub struct Link {
    host: String,
    counters: Arc<Counters>,
}

/// One direction of the line: when it will have sent all it was given.
#[derive(Debug)]
struct Line {
    shape: Shape,
    free: Mutex<Instant>,
}

impl Line {
    fn new(shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            shape,
            free: Mutex::new(Instant::now()),
        })
    }

    /// Puts `bytes` on the line; when they arrive at the other end.
    fn arrival(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        let sent = match self.shape.bandwidth {
            None => now,
            Some(bandwidth) => {
                let mut free = self.free.lock().expect("no thread panics with the lock");
                *free = (*free).max(now) + Duration::from_secs_f64(bytes as f64 / bandwidth);
                *free
            }
        };
        sent + self.shape.round_trip / 2
    }
}

impl Link {
    /// Starts a relay to `server` (HOST:PORT).
    pub fn start(server: &str, shape: Shape) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        let counters = Arc::new(Counters::default());
        let (up, down) = (Line::new(shape), Line::new(shape));
        let (server, counted) = (server.to_owned(), counters.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (up, down) = (up.clone(), down.clone());
                let (server, counted) = (server.clone(), counted.clone());
                // A connection that fails is the client's to notice.
                thread::spawn(move || relay(client, &server, up, down, counted));
            }
        });
        Ok(Self { host, counters })
    }

    /// HOST:PORT of the relay.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.counters.requests.load(Ordering::Relaxed),
            bytes: self.counters.bytes.load(Ordering::Relaxed),
        }
    }
}

fn relay(
    client: TcpStream,
    server: &str,
    up: Arc<Line>,
    down: Arc<Line>,
    counters: Arc<Counters>,
) -> std::io::Result<()> {
    thread::sleep(up.shape.round_trip);
    let server = TcpStream::connect(server)?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    let counted = counters.clone();
    let mut line = RequestLines::default();
    direction(client.try_clone()?, server.try_clone()?, up, move |piece| {
        let requests = line.count(piece);
        counted.requests.fetch_add(requests, Ordering::Relaxed);
    });
    direction(server, client, down, move |piece| {
        let bytes = piece.len() as u64;
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    });
    Ok(())
}

/// Carries everything from one socket to the other, in threads of their own.
fn direction(
    from: TcpStream,
    to: TcpStream,
    line: Arc<Line>,
    count: impl FnMut(&[u8]) + Send + 'static,
) {
    let (send, receive) = sync_channel(UNDER_WAY);
    thread::spawn(move || take(from, &line, &send, count));
    thread::spawn(move || deliver(to, &receive));
}

type Piece = (Instant, Vec<u8>);

fn take(mut from: TcpStream, line: &Line, send: &SyncSender<Piece>, mut count: impl FnMut(&[u8])) {
    let mut buffer = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let piece = buffer[..read].to_vec();
        count(&piece);
        if send.send((line.arrival(read), piece)).is_err() {
            break;
        }
    }
}

fn deliver(mut to: TcpStream, receive: &Receiver<Piece>) {
    for (arrival, piece) in receive {
        thread::sleep(arrival.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Counts the ends of request lines, also where they fall between two pieces.
#[derive(Debug, Default)]
struct RequestLines {
    matched: usize,
}

impl RequestLines {
    fn count(&mut self, piece: &[u8]) -> u64 {
        let mut found = 0;
        for byte in piece {
            if *byte != REQUEST_LINE_END[self.matched] {
                self.matched = 0;
            }
            if *byte == REQUEST_LINE_END[self.matched] {
                self.matched += 1;
            }
            if self.matched == REQUEST_LINE_END.len() {
                (found, self.matched) = (found + 1, 0);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_across_pieces() {
        let mut lines = RequestLines::default();
        assert_eq!(
            lines.count(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\nGET  HT"),
            1
        );
        assert_eq!(lines.count(b"TP/1.1\r\n\r\n"), 1);
    }

    #[test]
    fn a_line_takes_its_time() {
        let line = Line::new(Shape::FAR);
        let start = Instant::now();
        line.arrival(25_000_000 / 20);
        let arrival = line.arrival(25_000_000 / 20) - start;
        assert!(arrival >= Duration::from_millis(110), "{arrival:?}");
        assert!(arrival < Duration::from_millis(150), "{arrival:?}");
    }
}
