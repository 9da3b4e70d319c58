//! Requests to hosts that are no registries (object stores), over the same connections and with the same patience.
//!
//! Who asks signs its requests itself: each attempt is made anew, so that none carries an old date. Redirects are not
//! followed, since no signature would hold there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::task::JoinHandle;

use crate::blob::{self, Origin};
use crate::client::{Core, Failure, Retry};
use crate::error::Refusal;
use crate::host::Host;
use crate::range::Wanted;
use crate::retry;
use crate::transport::{Answer, Request, Target, is, peer};
use crate::{BlobStream, Client, Error, Subject, range};

/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 4 << 20;

/// A request, whole and signed.
#[derive(Clone)]
pub struct Outgoing {
    /// What to do.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// Headers; the one with the signature apart.
    pub headers: HeaderMap,
    /// The signature.
    pub authorization: Option<HeaderValue>,
    /// What is sent.
    pub body: Bytes,
    /// What it was signed with, if that may end.
    pub key: Option<Arc<dyn Lent>>,
}

/// A key that comes from elsewhere and may end at any time.
pub trait Lent: Send + Sync {
    /// The store has refused a request that was signed with it. Whether that may be because it has ended; then it is not used
    /// any more.
    fn is_over(&self, refused: &Incoming) -> bool;
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} {})", self.method, self.url.path())
    }
}

/// An answer with its whole body.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The HTTP status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// Makes a request each time that it is tried; the bytes of an object that it is about, if not all of them. What is not there
/// yet is fetched, and then the request is made once more.
pub type Make = Arc<dyn Fn(Option<HeaderValue>) -> Result<Outgoing, Fetch> + Send + Sync>;

/// Fetches what a request needs. It may take its time.
pub type Fetch = Box<dyn FnOnce() -> Result<(), Error> + Send>;

/// One operation on an object.
#[derive(Clone)]
pub struct Exchange {
    /// For messages: host, bucket and object.
    pub subject: Subject,
    /// For messages: "read", "write", ...
    pub action: &'static str,
    /// Makes the request.
    pub make: Make,
    /// Which answers besides the usual may get better by themselves.
    pub again: fn(&Incoming) -> bool,
    /// Whether status 200 to a range means that range, as some proxies have it, and not all of the object.
    pub parts_as_whole: bool,
}

/// An [`Exchange`] that goes on by itself.
#[derive(Debug)]
pub struct Pending {
    task: JoinHandle<Result<Incoming, Error>>,
    client: Client,
}

impl Client {
    /// Begins an operation that may be repeated. The answer may be one of success or a refusal, but none that could get
    /// better by itself.
    pub fn start(&self, exchange: Exchange) -> Pending {
        let core = Arc::clone(self.core());
        let task = async move { exchange.answered(&core).await };
        Pending {
            task: self.inner.runtime.spawn(task),
            client: self.clone(),
        }
    }

    /// An operation that may be repeated.
    ///
    /// # Errors
    /// What keeps a good answer or a refusal from coming.
    pub fn exchange(&self, exchange: Exchange) -> Result<Incoming, Error> {
        self.start(exchange).wait()
    }

    /// An operation that is tried once, within this time, and even if the work should stop: for tidying up.
    pub fn tidy(&self, exchange: &Exchange, within: Duration) -> bool {
        let core = self.core();
        let attempt = async {
            exchange
                .attempt(core)
                .await
                .is_ok_and(|found| found.status.is_success())
        };
        let bounded = async { tokio::time::timeout(within, attempt).await };
        self.inner.runtime.block_on(bounded).unwrap_or(false)
    }

    /// Reads the bytes of an object from `offset` on into the whole of `buf`.
    ///
    /// # Errors
    /// As those of a registry's blobs.
    pub fn read_object(
        &self,
        exchange: &Exchange,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        if buf.is_empty() {
            return Ok(());
        }
        let core = self.core();
        self.wait(async {
            let end = offset.saturating_add(buf.len() as u64);
            let mut filled = 0;
            let mut retry = Retry::new(core);
            loop {
                let before = filled;
                let wanted = (offset + filled as u64, end);
                let answer = exchange.ranged(core, Some(wanted)).await;
                let failure = match answer {
                    Ok(answer) if !is(answer.response.status(), &[200, 206, 416]) => {
                        Failure::last(exchange.refuse(core, answer).await)
                    }
                    Ok(answer) => {
                        let wanted = Wanted {
                            range: wanted,
                            parts_as_whole: exchange.parts_as_whole,
                        };
                        let part =
                            range::take(core, answer, &exchange.subject, wanted, buf, &mut filled);
                        match part.await {
                            Ok(()) => return Ok(()),
                            Err(failure) => failure,
                        }
                    }
                    Err(failure) => failure,
                };
                if filled > before {
                    retry.reset();
                }
                retry.after(failure).await?;
            }
        })
    }

    /// The bytes of an object of `size` bytes from `offset` to its end.
    ///
    /// # Errors
    /// As those of a registry's blobs.
    pub fn stream_object(
        &self,
        exchange: Exchange,
        size: u64,
        offset: u64,
    ) -> Result<BlobStream, Error> {
        blob::open(self, Origin::Object(exchange), size, offset)
    }
}

impl Pending {
    /// The answer.
    ///
    /// # Errors
    /// What keeps a good answer or a refusal from coming.
    pub fn wait(mut self) -> Result<Incoming, Error> {
        let client = self.client.clone();
        let task = &mut self.task;
        match client.wait(async { Ok(task.await) })? {
            Ok(result) => result,
            Err(error) => Err(Error::Setup {
                reason: format!("the task of a request failed: {error}"),
            }),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({} {})", self.action, self.subject)
    }
}

impl Exchange {
    async fn answered(&self, core: &Core) -> Result<Incoming, Error> {
        let mut retry = Retry::new(core);
        loop {
            match self.attempt(core).await {
                Ok(incoming) => return Ok(incoming),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }

    /// One attempt, and another if the key that it was signed with had ended.
    async fn send(&self, core: &Core, bytes: Option<HeaderValue>) -> Result<Answer, Failure> {
        let mut renewed = false;
        loop {
            let mut outgoing = self.outgoing(bytes.clone()).await?;
            let key = outgoing.key.take();
            let answer = self.send_once(core, outgoing, bytes.clone()).await?;
            let refused = is(answer.response.status(), &[400, 401, 403]);
            let Some(key) = key.filter(|_| refused) else {
                return Ok(answer);
            };
            let peer = peer(&answer.url);
            let incoming = self.whole(core, answer).await?;
            if renewed || !key.is_over(&incoming) {
                core.budget(&peer).refund();
                return Err(self.failure(&incoming, peer));
            }
            renewed = true;
        }
    }

    /// The request, with all that it needs.
    async fn outgoing(&self, bytes: Option<HeaderValue>) -> Result<Outgoing, Failure> {
        loop {
            let fetch = match (self.make)(bytes.clone()) {
                Ok(outgoing) => return Ok(outgoing),
                Err(fetch) => fetch,
            };
            let fetched = tokio::task::spawn_blocking(fetch).await;
            let fetched = fetched.unwrap_or_else(|error| {
                Err(Error::Setup {
                    reason: format!("what a request needs was not fetched: {error}"),
                })
            });
            fetched.map_err(Failure::last)?;
        }
    }

    async fn send_once(
        &self,
        core: &Core,
        outgoing: Outgoing,
        bytes: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let mut request = Request::new(outgoing.method, Target::Url(outgoing.url));
        request.headers = outgoing.headers;
        if let Some(bytes) = bytes {
            request.headers.insert(RANGE, bytes);
        }
        request.body = outgoing.body;
        request.follow = false;
        let host = Host::new(&self.subject.host, false, None);
        let sent = core
            .transport
            .send(&host, &request, outgoing.authorization.as_ref());
        sent.await
            .map_err(|fault| Failure::of(fault, &self.subject))
    }

    /// An answer with its body.
    async fn whole(&self, core: &Core, mut answer: Answer) -> Result<Incoming, Failure> {
        let (status, headers) = (answer.response.status(), answer.response.headers().clone());
        let body = core.transport.body(&mut answer, ANSWER_MAX).await;
        let body = body.map_err(|fault| Failure::of(fault, &self.subject))?;
        let too_large = || {
            Failure::last(Error::TooLarge {
                subject: Box::new(self.subject.clone()),
                limit: ANSWER_MAX,
            })
        };
        Ok(Incoming {
            status,
            headers,
            body: body.ok_or_else(too_large)?,
        })
    }

    /// What an answer is that was not hoped for.
    fn failure(&self, incoming: &Incoming, peer: String) -> Failure {
        Failure {
            error: self.refusal(incoming),
            asked: retry::retry_after(&incoming.headers),
            may_pass: self.may_pass(incoming),
            peer,
        }
    }

    fn may_pass(&self, incoming: &Incoming) -> bool {
        retry::may_pass(incoming.status) || (self.again)(incoming)
    }

    async fn attempt(&self, core: &Core) -> Result<Incoming, Failure> {
        let answer = self.send(core, None).await?;
        let peer = peer(&answer.url);
        let incoming = self.whole(core, answer).await?;
        if self.may_pass(&incoming) {
            return Err(self.failure(&incoming, peer));
        }
        core.budget(&peer).refund();
        Ok(incoming)
    }

    /// One attempt to get these bytes of an object, or all; the body is still to come.
    pub(crate) async fn ranged(
        &self,
        core: &Core,
        bytes: Option<(u64, u64)>,
    ) -> Result<Answer, Failure> {
        let bytes = bytes.map(|(start, end)| blob::range_header(start, end));
        let answer = self.send(core, bytes).await?;
        let (status, peer) = (answer.response.status(), peer(&answer.url));
        if retry::may_pass(status) {
            return Err(Failure {
                asked: retry::retry_after(answer.response.headers()),
                error: self.refuse(core, answer).await,
                may_pass: true,
                peer,
            });
        }
        core.budget(&peer).refund();
        Ok(answer)
    }

    /// The error of an answer that was not hoped for.
    pub(crate) async fn refuse(&self, core: &Core, mut answer: Answer) -> Error {
        let (status, headers) = (answer.response.status(), answer.response.headers().clone());
        let body = core.transport.body(&mut answer, ANSWER_MAX).await;
        let body = body.ok().flatten().unwrap_or_default();
        self.refusal(&Incoming {
            status,
            headers,
            body,
        })
    }

    /// The error of a whole answer that was not hoped for.
    pub fn refusal(&self, incoming: &Incoming) -> Error {
        let subject = Box::new(self.subject.clone());
        let mut refusal = Refusal::parse(incoming.status.as_u16(), &incoming.body);
        if incoming.status.is_redirection() {
            refusal.message = "it is in another region or at another endpoint".to_owned();
        }
        match incoming.status {
            StatusCode::NOT_FOUND => Error::NotFound { subject, refusal },
            _ => Error::Refused {
                subject,
                action: self.action,
                refusal,
            },
        }
    }

    /// The error of an object that is not as large as it should be.
    pub fn wrong_size(&self, expected: u64, actual: u64) -> Error {
        Error::SizeMismatch {
            subject: Box::new(self.subject.clone()),
            expected,
            actual,
        }
    }
}
