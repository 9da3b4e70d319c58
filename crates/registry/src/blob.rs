//! Streaming a blob, across cut connections.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use image::Digest;
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::client::{Core, Failure, Retry, unless_cancelled};
use crate::repository::length;
use crate::transport::{Answer, Fault, peer};
use crate::{Client, Error, Exchange, Repository, Subject};

/// What is read ahead: so many pieces of so many bytes.
const AHEAD: usize = 16;
const PIECE: usize = 64 << 10;

/// The bytes of a blob from some offset to its end.
///
/// An error of [`Read::read`] has an [`Error`] inside.
#[derive(Debug)]
pub struct BlobStream {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    current: Bytes,
    left: u64,
    task: AbortHandle,
    // The task ends with the client's runtime.
    _client: Client,
}

impl Read for BlobStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && self.left > 0 && !buf.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = self.current.len().min(buf.len());
        buf[..length].copy_from_slice(&self.current.split_to(length));
        self.left -= length as u64;
        Ok(length)
    }
}

impl Drop for BlobStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the stream of what `origin` names, from `offset` to its end.
pub(crate) fn open(
    client: &Client,
    origin: Origin,
    size: u64,
    offset: u64,
) -> Result<BlobStream, Error> {
    let core = client.core();
    let mut source = Source {
        core: Arc::clone(core),
        origin,
        size,
        position: offset.min(size),
        ranges: true,
    };
    let body = client.wait(async {
        let mut retry = Retry::new(core);
        loop {
            match source.connect().await {
                Ok(body) => return Ok(body),
                Err(failure) => retry.after(failure).await?,
            }
        }
    })?;
    let (sender, pieces) = mpsc::channel(AHEAD);
    let left = size - source.position;
    let cancel = core.settings.cancel.clone();
    let task = client.inner.runtime.spawn(async move {
        let result = unless_cancelled(&cancel, source.run(body, &sender)).await;
        if let Err(error) = result {
            // Nobody reads any more: then nobody cares.
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(BlobStream {
        pieces,
        current: Bytes::new(),
        left,
        task: task.abort_handle(),
        _client: client.clone(),
    })
}

/// An answer with bytes of the blob, of which the first `skip` are not wanted.
#[derive(Debug)]
struct Body {
    answer: Answer,
    skip: u64,
}

/// What a stream is of.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A blob in a repository.
    Blob(Repository, Digest),
    /// An object in a store that is no registry.
    Object(Exchange),
}

impl Origin {
    fn subject(&self) -> Subject {
        match self {
            Self::Blob(repository, digest) => repository.blob_call(digest, Method::GET).subject,
            Self::Object(exchange) => exchange.subject.clone(),
        }
    }

    /// One attempt to get these bytes, or all.
    async fn get(&self, core: &Core, range: Option<(u64, u64)>) -> Result<Answer, Failure> {
        match self {
            Self::Blob(repository, digest) => {
                let mut call = repository.blob_call(digest, Method::GET);
                if let Some((start, end)) = range {
                    let range = range_header(start, end);
                    call.request.headers.insert(RANGE, range);
                }
                core.attempt(&call).await
            }
            Self::Object(exchange) => exchange.ranged(core, range).await,
        }
    }

    /// The error of an answer that was not hoped for.
    async fn refuse(&self, core: &Core, answer: Answer) -> Error {
        match self {
            Self::Blob(repository, digest) => {
                let call = repository.blob_call(digest, Method::GET);
                core.refuse(&call, answer).await
            }
            Self::Object(exchange) => exchange.refuse(core, answer).await,
        }
    }
}

/// Where a stream comes from and how far it is.
struct Source {
    core: Arc<Core>,
    origin: Origin,
    size: u64,
    position: u64,
    /// Whether ranges are asked for: not once the registry answered another one than asked for.
    ranges: bool,
}

impl Source {
    async fn connect(&mut self) -> Result<Body, Failure> {
        // A range that begins at the end is none.
        let ranged = self.ranges && self.position > 0 && self.position < self.size;
        let range = ranged.then_some((self.position, self.size));
        let answer = self.origin.get(&self.core, range).await?;
        let subject = self.origin.subject();
        match check(&answer, &subject, range, Some(self.size)) {
            Checked::Good { skip } => {
                let skip = if skip { self.position } else { 0 };
                Ok(Body { answer, skip })
            }
            Checked::WrongRange(failure) => {
                self.ranges = false;
                Err(failure)
            }
            Checked::Bad(failure) => Err(failure),
            Checked::Refused => {
                let peer = peer(&answer.url);
                Err(Failure {
                    peer,
                    ..Failure::last(self.origin.refuse(&self.core, answer).await)
                })
            }
        }
    }

    /// Hands on all bytes to the end.
    async fn run(
        &mut self,
        mut body: Body,
        sender: &mpsc::Sender<Result<Bytes, Error>>,
    ) -> Result<(), Error> {
        let subject = self.origin.subject();
        let core = Arc::clone(&self.core);
        let mut retry = Retry::new(&core);
        loop {
            let mut failure = match core.transport.chunk(&mut body.answer).await {
                Ok(Some(mut chunk)) => {
                    let skipped = body.skip.min(chunk.len() as u64);
                    body.skip -= skipped;
                    let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
                    if chunk.len() as u64 > self.size - self.position {
                        return Err(self.too_long(&subject, &body.answer));
                    }
                    while !chunk.is_empty() {
                        let piece = chunk.split_to(chunk.len().min(PIECE));
                        self.position += piece.len() as u64;
                        if sender.send(Ok(piece)).await.is_err() {
                            return Ok(());
                        }
                        retry.reset();
                    }
                    continue;
                }
                _ if self.position == self.size => return Ok(()),
                Ok(None) => Failure {
                    may_pass: true,
                    ..Failure::of(
                        Fault::answer(peer(&body.answer.url), "the blob ended early"),
                        &subject,
                    )
                },
                Err(fault) => Failure::of(fault, &subject),
            };
            body = loop {
                retry.after(failure).await?;
                match self.connect().await {
                    Ok(body) => break body,
                    Err(next) => failure = next,
                }
            };
        }
    }

    fn too_long(&self, subject: &Subject, answer: &Answer) -> Error {
        let reason = format!("more than the blob's {} bytes", self.size);
        Fault::answer(peer(&answer.url), reason).into_error(subject)
    }
}

/// What an answer to a GET of a blob is worth.
pub(crate) enum Checked {
    /// Its body is what was asked for, or (`skip`) begins at the blob's start instead.
    Good { skip: bool },
    /// It has another range than asked for.
    WrongRange(Failure),
    /// It contradicts what is known of the blob.
    Bad(Failure),
    /// It is no success.
    Refused,
}

/// The header for the bytes from `start` to before `end`.
pub(crate) fn range_header(start: u64, end: u64) -> HeaderValue {
    let text = format!("bytes={start}-{}", end.saturating_sub(1));
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// Checks an answer to a GET of a blob of `size` bytes, of which `range` was asked for.
pub(crate) fn check(
    answer: &Answer,
    subject: &Subject,
    range: Option<(u64, u64)>,
    size: Option<u64>,
) -> Checked {
    let headers = answer.response.headers();
    let bad = |reason: String| Failure::of(Fault::answer(peer(&answer.url), reason), subject);
    match (answer.response.status().as_u16(), range) {
        (200, _) => match (length(headers), size) {
            (Some(actual), Some(expected)) if actual != expected => {
                Checked::Bad(Failure::last(Error::SizeMismatch {
                    subject: Box::new(subject.clone()),
                    expected,
                    actual,
                }))
            }
            _ => Checked::Good { skip: true },
        },
        (206, Some((start, end))) => {
            let text = headers
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            match parse_content_range(text) {
                Some((from, to, total))
                    if (from, to) == (start, end)
                        && (total.is_none() || size.is_none() || total == size) =>
                {
                    Checked::Good { skip: false }
                }
                _ => Checked::WrongRange(Failure {
                    may_pass: true,
                    peer: peer(&answer.url),
                    ..bad(format!(
                        "bytes {start}-{} were asked for and {text:?} came",
                        end - 1
                    ))
                }),
            }
        }
        (206, None) => Checked::Bad(bad("a part, though all was asked for".to_owned())),
        (416, Some((start, _))) => {
            Checked::Bad(bad(format!("it says there are no bytes at {start}")))
        }
        _ => Checked::Refused,
    }
}

/// `bytes 0-9/10`: start, end (behind the last byte) and total size.
pub(crate) fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes")?.trim().split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let to: u64 = to.trim().parse().ok()?;
    Some((from.trim().parse().ok()?, to.checked_add(1)?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 10, Some(10))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, 1, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes 5-x/10",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
