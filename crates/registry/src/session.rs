//! An upload's session on the registry: what it has, and how to go on after faults.
//!
//! A segment is kept until the registry says that it has it. After a fault nothing is assumed: the session is asked
//! what it holds, and only what is missing is sent. (A registry that has a segment already would append it again.)

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use image::Digest;
use reqwest::header::{
    CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Url};
use tokio::time::timeout;

use crate::client::{Call, Core, Failure, Retry};
use crate::repository::content_digest;
use crate::transport::{Answer, Fault, Target, is, peer};
use crate::{Error, Repository, Subject, auth};

/// How long giving up a session may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions to a session that may still be taking in what a broken connection had delivered.
const SETTLE: Duration = Duration::from_millis(50);
const SETTLE_MAX: u32 = 20;
/// The segment size that a registry asks for.
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// An open upload.
#[derive(Debug)]
pub(crate) struct Session {
    repository: Repository,
    location: Url,
    /// Bytes that the registry has for sure.
    acknowledged: u64,
    /// Segments smaller than this are refused, except for the last.
    pub(crate) segment_min: usize,
}

/// What a session holds, as far as it can be known.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    Bytes(u64),
    /// `0-0`: nothing or one byte, the protocol does not tell.
    Unclear,
    Gone(String),
}

impl Session {
    /// Begins an upload.
    pub(crate) async fn open(repository: &Repository) -> Result<Self, Error> {
        let call = repository.call("an upload".to_owned(), Method::POST, "blobs/uploads/");
        let answer = repository.core().send(&call).await?;
        Self::begun(repository, &call, answer).await
    }

    /// Takes a blob over from another repository, or else begins an upload.
    pub(crate) async fn mount(
        repository: &Repository,
        digest: &Digest,
        from: &str,
    ) -> Result<Option<Self>, Error> {
        let path = format!("blobs/uploads/?mount={digest}&from={from}");
        let mut call = repository.call(format!("blob {digest}"), Method::POST, &path);
        call.action = "mount";
        call.scopes.push(auth::scope(from, false));
        let answer = match repository.core().send(&call).await {
            Ok(answer) => answer,
            // Who may not read the other repository may still write to this one.
            Err(Error::Unauthorized { .. }) => return Self::open(repository).await.map(Some),
            Err(error) => return Err(error),
        };
        match answer.response.status().as_u16() {
            201 => Ok(None),
            202 => Self::begun(repository, &call, answer).await.map(Some),
            _ => Self::open(repository).await.map(Some),
        }
    }

    async fn begun(
        repository: &Repository,
        call: &Call<'_>,
        answer: Answer,
    ) -> Result<Self, Error> {
        let core = repository.core();
        if !is(answer.response.status(), &[201, 202]) {
            return Err(match core.refuse(call, answer).await {
                // The repository is not there, not the upload that is to be.
                Error::NotFound { subject, refusal } => Error::Refused {
                    subject,
                    action: "begin an upload",
                    refusal,
                },
                other => other,
            });
        }
        let headers = answer.response.headers();
        let Some(location) = location(repository, &answer.url, headers) else {
            let reason = "it does not say where to upload to";
            return Err(Fault::answer(peer(&answer.url), reason).into_error(&call.subject));
        };
        let asked = headers
            .get(CHUNK_MIN_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Self {
            repository: repository.clone(),
            location,
            acknowledged: 0,
            segment_min: asked.unwrap_or(0),
        })
    }

    fn core(&self) -> &Arc<Core> {
        self.repository.core()
    }

    fn call(&self, method: Method, url: Url) -> Call<'_> {
        let mut call = Call::new(
            &self.repository.host,
            &self.repository.name,
            "an upload".to_owned(),
            method,
            Target::Url(url),
        );
        // The state of an upload is its writer's business alone.
        call.scopes = vec![auth::scope(&self.repository.name, true)];
        call.action = "upload";
        call
    }

    fn subject(&self) -> Subject {
        self.call(Method::GET, self.location.clone()).subject
    }

    fn lost(&self, reason: String) -> Error {
        Error::UploadLost {
            subject: Box::new(self.subject()),
            reason,
        }
    }

    /// Appends a segment.
    pub(crate) async fn append(&mut self, data: &Bytes) -> Result<(), Error> {
        let core = Arc::clone(self.core());
        let mut retry = Retry::new(&core);
        let start = self.acknowledged;
        let end = start + data.len() as u64;
        while self.acknowledged < end {
            let before = self.acknowledged;
            if let Err(failure) = self.patch(start, data).await {
                retry.after(failure).await?;
                self.recover(start, end).await?;
            }
            if self.acknowledged > before {
                retry.reset();
            }
        }
        Ok(())
    }

    /// Sends what the registry does not have of the segment that begins at `start`.
    async fn patch(&mut self, start: u64, data: &Bytes) -> Result<(), Failure> {
        let core = Arc::clone(self.core());
        let from = self.acknowledged;
        let end = start + data.len() as u64;
        let mut call = self.call(Method::PATCH, self.location.clone());
        let have = usize::try_from(from - start).unwrap_or(data.len());
        call.request.body = data.slice(have..);
        let headers = &mut call.request.headers;
        let kind = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, kind);
        if let Ok(range) = HeaderValue::try_from(format!("{from}-{}", end - 1)) {
            headers.insert(CONTENT_RANGE, range);
        }
        let answer = core.attempt(&call).await?;
        let status = answer.response.status();
        if !is(status, &[200, 201, 202, 204]) {
            let peer = peer(&answer.url);
            let error = core.refuse(&call, answer).await;
            return Err(Failure {
                // Offsets that disagree, or a session that is gone: asking it shows which.
                may_pass: is(status, &[404, 416]),
                peer,
                error: match error {
                    Error::NotFound { subject, refusal } => Error::Refused {
                        subject,
                        action: "upload",
                        refusal,
                    },
                    other => other,
                },
                asked: None,
            });
        }
        let headers = answer.response.headers();
        let moved = location(&self.repository, &answer.url, headers);
        // Without a range, success means all of it.
        let held = match headers.contains_key(RANGE) {
            false => Held::Bytes(end),
            true => held(headers),
        };
        let held = match held {
            Held::Bytes(bytes) => Some(bytes),
            // After success it is not nothing.
            Held::Unclear => Some(1),
            Held::Gone(_) => None,
        };
        let subject = call.subject;
        if let Some(moved) = moved {
            self.location = moved;
        }
        match held {
            Some(bytes) if bytes > from && bytes <= end => {
                self.acknowledged = bytes;
                Ok(())
            }
            _ => {
                let reason = "it does not acknowledge what it was sent";
                Err(Failure {
                    may_pass: true,
                    ..Failure::of(Fault::answer(peer(&answer.url), reason), &subject)
                })
            }
        }
    }

    /// After a fault: finds out what the registry has of the segment from `start` to `end`.
    async fn recover(&mut self, start: u64, end: u64) -> Result<(), Error> {
        let mut held = self.ask().await?;
        for _ in 0..SETTLE_MAX {
            if held == Held::Bytes(end) {
                break;
            }
            tokio::time::sleep(SETTLE).await;
            let again = self.ask().await?;
            if again == held {
                break;
            }
            held = again;
        }
        match held {
            Held::Bytes(bytes) if (start..=end).contains(&bytes) => self.acknowledged = bytes,
            // All of the data is still here.
            _ if start == 0 => {
                self.close().await;
                *self = Self::open(&self.repository).await?;
            }
            Held::Bytes(bytes) => {
                let reason =
                    format!("the registry has {bytes} bytes, of {start} to {end} that it was sent");
                return Err(self.lost(reason));
            }
            Held::Unclear => {
                return Err(self.lost(format!("the registry has lost {start} bytes")));
            }
            Held::Gone(reason) => return Err(self.lost(reason)),
        }
        Ok(())
    }

    /// Asks the session what it holds.
    async fn ask(&mut self) -> Result<Held, Error> {
        let core = Arc::clone(self.core());
        let call = self.call(Method::GET, self.location.clone());
        let answer = core.send(&call).await?;
        let status = answer.response.status();
        if is(status, &[200, 202, 204]) {
            let headers = answer.response.headers();
            let held = held(headers);
            if let Some(moved) = location(&self.repository, &answer.url, headers) {
                self.location = moved;
            }
            return Ok(held);
        }
        match core.refuse(&call, answer).await {
            Error::NotFound { refusal, .. } => Ok(Held::Gone(format!(
                "the registry lost the upload ({refusal})"
            ))),
            Error::Refused { refusal, .. } => Ok(Held::Gone(format!(
                "the registry does not tell what it has ({refusal})"
            ))),
            other => Err(other),
        }
    }

    /// Completes the blob with its last bytes, `rest`, and its digest; gives its size.
    pub(crate) async fn commit(&mut self, digest: &Digest, rest: &Bytes) -> Result<u64, Error> {
        // A blob of one segment goes with the digest at once.
        let whole = (self.acknowledged == 0).then(|| rest.clone());
        let size = self.acknowledged + rest.len() as u64;
        if whole.is_none() {
            self.append(rest).await?;
        }
        let core = Arc::clone(self.core());
        let mut retry = Retry::new(&core);
        loop {
            let failure = match self.put(digest, whole.as_ref(), size).await {
                Ok(()) => return Ok(size),
                Err(failure) => failure,
            };
            retry.after(failure).await?;
            // The answer alone may have been lost.
            if self.repository.head_blob(digest).await? == Some(size) {
                return Ok(size);
            }
            match &whole {
                Some(_) => {
                    self.close().await;
                    *self = Self::open(&self.repository).await?;
                }
                None => match self.ask().await? {
                    Held::Bytes(bytes) if bytes == size => {}
                    Held::Unclear if size == 1 => {}
                    Held::Gone(reason) => return Err(self.lost(reason)),
                    _ => {
                        let reason =
                            format!("the registry does not have the {size} bytes any more");
                        return Err(self.lost(reason));
                    }
                },
            }
        }
    }

    async fn put(&self, digest: &Digest, whole: Option<&Bytes>, size: u64) -> Result<(), Failure> {
        let core = self.core();
        let mut url = self.location.clone();
        // Added by hand: what the registry wrote into its address must stay as it is.
        let query = match url.query() {
            Some(query) if !query.is_empty() => format!("{query}&digest={digest}"),
            _ => format!("digest={digest}"),
        };
        url.set_query(Some(&query));
        let mut call = self.call(Method::PUT, url);
        call.subject.object = format!("blob {digest} of {size} bytes");
        let kind = HeaderValue::from_static("application/octet-stream");
        call.request.headers.insert(CONTENT_TYPE, kind);
        call.request.body = whole.cloned().unwrap_or_default();
        let answer = core.attempt(&call).await?;
        let status = answer.response.status();
        if !is(status, &[200, 201, 204]) {
            let peer = peer(&answer.url);
            return Err(Failure {
                may_pass: is(status, &[404, 416]),
                peer,
                error: match core.refuse(&call, answer).await {
                    Error::NotFound { subject, refusal } => Error::Refused {
                        subject,
                        action: "complete",
                        refusal,
                    },
                    other => other,
                },
                asked: None,
            });
        }
        match content_digest(answer.response.headers()) {
            Some(actual) if actual != *digest => Err(Failure::last(Error::DigestMismatch {
                subject: Box::new(call.subject),
                expected: *digest,
                actual,
            })),
            _ => Ok(()),
        }
    }

    /// Gives the session up, as far as the registry lets us; also when the work was asked to stop, but not for long.
    pub(crate) async fn close(&self) {
        let call = self.call(Method::DELETE, self.location.clone());
        // Whatever comes of it: the registry clears up in the end.
        let core = self.core();
        let result = match core.settings.cancel.is_cancelled() {
            // Whoever waits has waited long enough.
            true => timeout(CLOSE_TIMEOUT, core.attempt(&call)).await.map(drop),
            false => timeout(CLOSE_TIMEOUT, core.send(&call)).await.map(drop),
        };
        if result.is_err() {
            tracing::debug!(upload = %self.location.path(), "an upload is left to the registry");
        }
    }
}

/// Where an upload goes on.
fn location(repository: &Repository, base: &Url, headers: &HeaderMap) -> Option<Url> {
    let text = headers.get(LOCATION)?.to_str().ok()?;
    let mut url = base.join(text).ok()?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return None;
    }
    // Registries behind a proxy that ends TLS do not always know of it.
    let registry = repository.host.base()?;
    if registry.scheme() == "https" && url.scheme() == "http" && url.host() == registry.host() {
        url.set_scheme("https").ok()?;
        url.set_port(registry.port()).ok()?;
    }
    Some(url)
}

/// `Range: 0-N` of a session: N is its last byte.
fn held(headers: &HeaderMap) -> Held {
    let text = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let unusable = || Held::Gone(format!("the registry tells {text:?} for what it has"));
    let Some((start, end)) = text.and_then(|text| {
        let text = text.trim();
        text.strip_prefix("bytes=").unwrap_or(text).split_once('-')
    }) else {
        return unusable();
    };
    match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(0), Ok(0)) => Held::Unclear,
        (Ok(0), Ok(last)) if last < u64::MAX => Held::Bytes(last + 1),
        _ => unusable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_sessions_are_read() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            held(&headers)
        };
        assert_eq!(read("0-99"), Held::Bytes(100));
        assert_eq!(read("bytes=0-99"), Held::Bytes(100));
        assert_eq!(read("0-0"), Held::Unclear);
        for bad in ["", "0", "5-9", "0-x", "0-18446744073709551615"] {
            assert!(matches!(read(bad), Held::Gone(_)), "{bad}");
        }
        assert!(matches!(held(&HeaderMap::new()), Held::Gone(_)));
    }
}
