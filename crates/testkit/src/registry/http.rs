//! HTTP/1.1 as a server speaks it, on blocking sockets, with full control of what goes over the wire.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::answer::{Answer, Damage, Piece, reason};

/// A request's head that is longer is refused.
const MAX_HEAD: u64 = 64 << 10;

/// What a connection runs over: TCP, or TLS over it.
pub(super) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection from a client.
pub(super) struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    socket: TcpStream,
}

impl Connection {
    /// `stream` runs over `socket`.
    pub fn new(stream: Box<dyn Stream>, socket: TcpStream) -> Self {
        Self {
            stream: BufReader::with_capacity(64 << 10, stream),
            socket,
        }
    }

    /// Reads the head of the next request; `None` when the client has closed.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        let mut text = Vec::new();
        loop {
            let before = text.len();
            let left = MAX_HEAD.saturating_sub(before as u64);
            if (&mut self.stream).take(left).read_until(b'\n', &mut text)? == 0 {
                return if text.is_empty() {
                    Ok(None)
                } else {
                    Err(invalid("a head that ends early or is too long"))
                };
            }
            if matches!(&text[before..], b"\r\n" | b"\n") {
                if before == 0 {
                    text.clear();
                    continue;
                }
                return Head::parse(&text).map(Some);
            }
        }
    }

    /// The body that follows `head`.
    pub fn body(&mut self, head: &Head) -> io::Result<Body<'_>> {
        let framing = if head
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            Framing::Chunked {
                left: 0,
                ended: false,
            }
        } else {
            Framing::Length(head.length()?.unwrap_or(0))
        };
        Ok(Body {
            connection: self,
            framing,
            wants_continue: head
                .header("expect")
                .is_some_and(|value| value.eq_ignore_ascii_case("100-continue")),
            cut_at: None,
            received: 0,
        })
    }

    /// Sends an answer. `Err` also when the damage cuts the connection.
    pub fn send(&mut self, answer: &Answer, to_head: bool, damage: Damage) -> io::Result<()> {
        let length = damage.declared.unwrap_or(answer.content.len());
        let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if answer.status != 204 {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        let mut out = head.into_bytes();
        let mut body = Piece::new(answer, damage)?;
        let mut left = if to_head || answer.status == 204 {
            0
        } else {
            length
        };
        let cut_after = damage.cut_after.filter(|_| left > 0);
        if let Some(cut) = cut_after {
            left = left.min(cut);
        }
        loop {
            let room = left.min(256 << 10);
            let start = out.len();
            out.resize(start + room as usize, 0);
            body.fill(&mut out[start..])?;
            self.stream.get_mut().write_all(&out)?;
            left -= room;
            out.clear();
            if left == 0 {
                break;
            }
        }
        self.stream.get_mut().flush()?;
        if cut_after.is_some() {
            self.cut();
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Ends the connection at once.
    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A request without its body.
#[derive(Debug)]
pub(super) struct Head {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// The path, not decoded, without the query.
    pub path: String,
    /// The decoded query.
    pub query: Vec<(String, String)>,
    /// Path and query as they came.
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(text).map_err(|_| invalid("a head that is no text"))?;
        let mut lines = text.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1")) =
            (first.next(), first.next(), first.next())
        else {
            return Err(invalid("no HTTP/1.1 request line"));
        };
        let mut headers = Vec::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| invalid("a header without a colon"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: form(query),
            target: target.to_owned(),
            headers,
        })
    }

    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// All headers of this (lower-case) name.
    pub fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first query parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        parameter(&self.query, name)
    }

    /// What `Content-Length` says.
    pub fn length(&self) -> io::Result<Option<u64>> {
        self.header("content-length")
            .map(|value| value.parse().map_err(|_| invalid("a bad Content-Length")))
            .transpose()
    }

    /// Whether a body that is not empty follows.
    pub fn has_body(&self) -> bool {
        self.header("transfer-encoding").is_some() || self.length().is_ok_and(|len| len > Some(0))
    }

    /// Whether the client wants the connection closed after this request.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// The first value of a name in a decoded query or form.
pub(super) fn parameter<'a>(form: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = form.iter().find(|(own, _)| own == name);
    found.map(|(_, value)| value.as_str())
}

/// Decodes a query or a posted form.
pub(super) fn form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| hex::decode(digits).ok());
        match escaped {
            Some(decoded) => {
                out.extend(decoded);
                at += 3;
            }
            None => {
                out.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How a body's end is known.
#[derive(Debug, Clone, Copy)]
enum Framing {
    Length(u64),
    Chunked { left: u64, ended: bool },
}

/// The body of a request.
pub(super) struct Body<'a> {
    connection: &'a mut Connection,
    framing: Framing,
    wants_continue: bool,
    /// Reading fails once so many bytes were received.
    pub cut_at: Option<u64>,
    /// Bytes received so far.
    pub received: u64,
}

impl Body<'_> {
    /// Reads what the handler left; whether the connection can be used for a next request.
    pub fn drain(&mut self) -> bool {
        if self.wants_continue && !self.ended() {
            // The client waits for a word from us and may or may not send the body after another answer.
            return false;
        }
        io::copy(self, &mut io::sink()).is_ok()
    }

    fn ended(&self) -> bool {
        matches!(
            self.framing,
            Framing::Length(0) | Framing::Chunked { ended: true, .. }
        )
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.connection.stream)
            .take(1024)
            .read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.trim_end().to_owned()),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Bytes that can be read before the next framing.
    fn available(&mut self) -> io::Result<u64> {
        match self.framing {
            Framing::Length(left) | Framing::Chunked { left, ended: true } => Ok(left),
            Framing::Chunked { left, .. } if left > 0 => Ok(left),
            Framing::Chunked { .. } => {
                let size = self.line()?;
                let size = size.split(';').next().unwrap_or_default();
                let left =
                    u64::from_str_radix(size, 16).map_err(|_| invalid("a bad chunk size"))?;
                if left == 0 {
                    while !self.line()?.is_empty() {}
                }
                self.framing = Framing::Chunked {
                    left,
                    ended: left == 0,
                };
                Ok(left)
            }
        }
    }
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ended() || out.is_empty() {
            return Ok(0);
        }
        if std::mem::take(&mut self.wants_continue) {
            let stream = self.connection.stream.get_mut();
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            stream.flush()?;
        }
        let mut room = self.available()?.min(out.len() as u64);
        if let Some(cut) = self.cut_at {
            if self.received >= cut {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            room = room.min(cut - self.received);
        }
        if room == 0 {
            return Ok(0);
        }
        let got = self.connection.stream.read(&mut out[..room as usize])?;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.received += got as u64;
        match &mut self.framing {
            Framing::Length(left) => *left -= got as u64,
            Framing::Chunked { left, .. } => {
                *left -= got as u64;
                if *left == 0 {
                    self.line()?;
                }
            }
        }
        Ok(got)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
