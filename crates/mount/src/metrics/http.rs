//! As much of HTTP/1.1 as scrapers need: one request per connection.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// How long a client may take to ask, and to take the answer: the others wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest head of a request in bytes.
const HEAD_MAX: usize = 8 << 10;
/// Longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 20;

/// Answers until the socket, which blocks, is shut down.
pub(super) fn serve(listener: &UnixListener, render: &dyn Fn() -> String) {
    loop {
        if let Err(error) = serve_one(listener, render)
            && error.kind() == io::ErrorKind::InvalidInput
        {
            return;
        }
    }
}

/// Answers one who asks.
///
/// # Errors
/// When nobody does, or does not listen; `InvalidInput` if the socket was shut down.
pub(super) fn serve_one(listener: &UnixListener, render: &dyn Fn() -> String) -> io::Result<()> {
    match listener.accept() {
        Ok((stream, _)) => {
            // What comes of this one is no error of the socket's.
            let _ = answer(stream, render);
            Ok(())
        }
        Err(error) => {
            if !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::InvalidInput
            ) {
                // Such as too many open files: it would be tried again at once.
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error)
        }
    }
}

fn answer(mut stream: UnixStream, render: &dyn Fn() -> String) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_MAX {
        match stream.read(&mut part)? {
            0 => break,
            read => head.extend_from_slice(part.get(..read).unwrap_or_default()),
        }
    }
    let (status, body) = match verdict(&head) {
        Verdict::Metrics => ("200 OK", render()),
        Verdict::Elsewhere => ("404 Not Found", "figures are at /metrics\n".to_owned()),
        Verdict::Method => ("405 Method Not Allowed", String::new()),
        Verdict::Broken => ("400 Bad Request", String::new()),
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !head.starts_with(b"HEAD ") {
        answer.push_str(&body);
    }
    stream.write_all(answer.as_bytes())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Metrics,
    Elsewhere,
    Method,
    Broken,
}

fn verdict(head: &[u8]) -> Verdict {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version)) = (method, target, version) else {
        return Verdict::Broken;
    };
    if !version.starts_with(b"HTTP/1.") {
        return Verdict::Broken;
    }
    let path = target.split(|&byte| byte == b'?').next();
    match (method, path) {
        (b"GET" | b"HEAD", Some(b"/metrics")) => Verdict::Metrics,
        (b"GET" | b"HEAD", _) => Verdict::Elsewhere,
        _ => Verdict::Method,
    }
}

/// Asks the process that answers at `path` for its figures, in `patience` at most for each step. Also its process id.
pub(crate) fn ask(path: &Path, patience: Duration) -> io::Result<(String, Option<u32>)> {
    let mut stream = UnixStream::connect(path)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream);
    let peer = peer.ok().map(|peer| peer.pid.as_raw_nonzero().get());
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the answer is none of ours");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(broken());
    }
    let peer = peer.and_then(|pid| u32::try_from(pid).ok());
    Ok((body.to_owned(), peer))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_is_asked_for_is_told_apart() {
        for (head, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Verdict::Metrics),
            ("GET /metrics?name[]=up HTTP/1.0\r\n\r\n", Verdict::Metrics),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Verdict::Metrics),
            ("GET / HTTP/1.1\r\n\r\n", Verdict::Elsewhere),
            ("POST /metrics HTTP/1.1\r\n\r\n", Verdict::Method),
            ("GET /metrics\r\n\r\n", Verdict::Broken),
            ("GET /metrics HTTP/2\r\n\r\n", Verdict::Broken),
            ("", Verdict::Broken),
        ] {
            assert_eq!(verdict(head.as_bytes()), expected, "{head}");
        }
    }

    #[test]
    fn a_client_that_says_nothing_holds_up_nobody_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&listener, &|| "x 1\n".to_owned()));
            let silent = UnixStream::connect(&path).unwrap();
            let (body, peer) = ask(&path, Duration::from_secs(20)).unwrap();
            assert_eq!(body, "x 1\n");
            assert_eq!(peer, Some(std::process::id()));
            drop(silent);
            rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        });
    }
}
