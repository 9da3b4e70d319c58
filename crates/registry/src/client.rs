use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use progress::{Cancel, Cancelled};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use tokio::runtime::Runtime;

use crate::challenge::Challenge;
use crate::error::Refusal;
use crate::host::{Host, Scheme};
use crate::retry::{self, Backoff, Budget, lock};
use crate::transport::{Answer, Fault, Request, Target, Transport, peer, same_host};
use crate::{Error, Reference, Repository, Settings, Subject, auth};

/// Largest part of an error document that is read.
const REFUSAL_MAX: u64 = 64 << 10;
/// How often one request may get a new token. One is not always enough: where a token is good for a few requests only,
/// others may have used it up meanwhile.
const RENEWALS: u32 = 5;
/// How often it is looked whether the work should stop.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Speaks to registries. Clones share connections, tokens and retry budgets.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

/// The runtime apart from all else.
pub(crate) struct Inner {
    pub(crate) runtime: Running,
    pub(crate) core: Arc<Core>,
}

/// A runtime that may end anywhere. What goes on in it, such as a stream that nobody reads any more, has the client as
/// well: when all others are gone the runtime is dropped by one of its own threads, which must not wait for the rest.
pub(crate) struct Running(Option<Runtime>);

impl Deref for Running {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken in the end alone")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// All that requests share.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) transport: Transport,
    backoff: Backoff,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
    budgets: Mutex<HashMap<String, Arc<Budget>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client with its connections and a small runtime.
    ///
    /// # Errors
    /// [`Error::CaFile`] and [`Error::Setup`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let threads = settings.threads.max(1);
        let core = Arc::new(Core {
            transport: Transport::new(&settings)?,
            backoff: Backoff::new(&settings),
            hosts: Mutex::default(),
            budgets: Mutex::default(),
            settings,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| Error::Setup {
                reason: error.to_string(),
            })?;
        let runtime = Running(Some(runtime));
        let inner = Arc::new(Inner { runtime, core });
        Ok(Self { inner })
    }

    /// The repository of a reference.
    pub fn repository(&self, reference: &Reference) -> Repository {
        self.repository_of(reference.host(), reference.repository())
    }

    /// The repository of this name at `HOST[:PORT]`.
    pub fn repository_of(&self, host: &str, name: &str) -> Repository {
        Repository::new(self.clone(), self.inner.core.host(host), name)
    }

    /// The repository of this name at a host whose scheme and port are known: those of `base`, whose path is of no matter.
    pub fn repository_at(&self, base: &Url, name: &str) -> Repository {
        let host = self.inner.core.host(&peer(base));
        host.set_scheme(match base.scheme() {
            "http" => Scheme::Http,
            _ => Scheme::Https,
        });
        Repository::new(self.clone(), host, name)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Waits for a request, or until the work should stop.
    pub(crate) fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let cancel = &self.inner.core.settings.cancel;
        self.inner
            .runtime
            .block_on(unless_cancelled(cancel, future))
    }
}

/// `future`, or an error soon after the work should stop.
pub(crate) async fn unless_cancelled<T>(
    cancel: &Cancel,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    if cancel.is_cancelled() {
        return Err(Error::Cancelled(Cancelled));
    }
    tokio::select! {
        biased;
        result = future => result,
        () = async {
            while !cancel.is_cancelled() {
                tokio::time::sleep(CANCEL_POLL).await;
            }
        } => Err(Error::Cancelled(Cancelled)),
    }
}

/// A request to a registry, and what it is about.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) host: &'a Host,
    pub(crate) scopes: Vec<String>,
    pub(crate) subject: Subject,
    /// For messages: "read", "write", ...
    pub(crate) action: &'static str,
    pub(crate) request: Request,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whose budget another attempt is taken from.
    pub(crate) peer: String,
    /// Whether it may pass by itself.
    pub(crate) may_pass: bool,
    /// The pause that the host asks for.
    pub(crate) asked: Option<Duration>,
}

impl Failure {
    pub(crate) fn of(fault: Fault, subject: &Subject) -> Self {
        Self {
            peer: fault.peer.clone(),
            may_pass: fault.may_pass(),
            error: fault.into_error(subject),
            asked: None,
        }
    }

    pub(crate) fn last(error: Error) -> Self {
        Self {
            error,
            peer: String::new(),
            may_pass: false,
            asked: None,
        }
    }
}

/// Counts the attempts of one operation.
pub(crate) struct Retry<'a> {
    core: &'a Core,
    attempt: u32,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(core: &'a Core) -> Self {
        Self { core, attempt: 0 }
    }

    /// Something got on: attempts count anew.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Pauses before the next attempt.
    ///
    /// # Errors
    /// The failure's own, if there is to be no other attempt.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        let pause = failure
            .may_pass
            .then(|| self.core.backoff.pause(self.attempt + 1, failure.asked))
            .flatten()
            .filter(|_| self.core.budget(&failure.peer).take());
        let Some(pause) = pause else {
            return Err(failure.error);
        };
        self.attempt += 1;
        self.core.settings.retried.add();
        tracing::debug!(
            host = failure.peer,
            attempt = self.attempt,
            pause = pause.as_millis(),
            error = %failure.error,
            "trying again"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Core {
    pub(crate) fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = lock(&self.hosts);
        let (plain, stand_in) = (self.settings.plain_http, &self.settings.stand_in);
        let new = || Arc::new(Host::new(name, plain, stand_in.clone()));
        Arc::clone(hosts.entry(name.to_owned()).or_insert_with(new))
    }

    pub(crate) fn budget(&self, peer: &str) -> Arc<Budget> {
        let mut budgets = lock(&self.budgets);
        let new = || Arc::new(Budget::new());
        Arc::clone(budgets.entry(peer.to_owned()).or_insert_with(new))
    }

    /// One attempt: authenticated, and again with new tokens after a 401. Answers that may get better by
    /// themselves are failures; all others are left to the caller.
    pub(crate) async fn attempt(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let (host, scopes, subject) = (call.host, &call.scopes, &call.subject);
        // An upload may be at home elsewhere: the credentials of the registry are none of that host's business.
        let own = match &call.request.target {
            Target::Path(_) => true,
            Target::Url(url) => host.base().is_some_and(|base| same_host(&base, url)),
        };
        let mut token = None;
        if own {
            let known = self.authorization(host, scopes, subject).await;
            token = known.map_err(Failure::last)?;
        }
        let mut renewals = if own { RENEWALS } else { 0 };
        loop {
            let header = token.as_ref().map(|token| &token.header);
            let mut answer = self
                .transport
                .send(host, &call.request, header)
                .await
                .map_err(|fault| Failure::of(fault, subject))?;
            let status = answer.response.status();
            let mut refused = status == StatusCode::UNAUTHORIZED && answer.direct;
            // Some registries say so of a token that has ended; of one that was never good it is the last word.
            let ended = status == StatusCode::FORBIDDEN && answer.direct && renewals == RENEWALS;
            refused |= ended
                && token
                    .as_ref()
                    .is_some_and(|token| token.accepted.load(Ordering::Relaxed));
            if let Some(token) = token
                .as_ref()
                .filter(|_| !refused && status != StatusCode::FORBIDDEN)
            {
                token.accepted.store(true, Ordering::Relaxed);
            }
            // A new token that nobody got anywhere with is refused for what it permits, not for its age.
            let in_vain = renewals < RENEWALS
                && token
                    .as_ref()
                    .is_some_and(|token| !token.accepted.load(Ordering::Relaxed));
            if refused && renewals > 0 && !in_vain {
                renewals -= 1;
                let told = Challenge::find(answer.response.headers());
                let challenge = told.or_else(|| lock(&host.challenge).clone());
                if let Some(challenge) = challenge {
                    let new = self.renew(host, scopes, subject, challenge, token.as_ref());
                    if let Some(new) = new.await.map_err(Failure::last)? {
                        // Read to its end, so that the connection can be used again.
                        let _ = self.transport.body(&mut answer, REFUSAL_MAX).await;
                        token = Some(new);
                        continue;
                    }
                }
            }
            let peer = peer(&answer.url);
            if retry::may_pass(status) {
                let asked = retry::retry_after(answer.response.headers());
                return Err(Failure {
                    error: self.refuse(call, answer).await,
                    peer,
                    may_pass: true,
                    asked,
                });
            }
            self.budget(&peer).refund();
            return Ok(answer);
        }
    }

    /// A request without credentials, whatever the answer; it may be repeated when there is none.
    pub(crate) async fn anonymous(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let mut retry = Retry::new(self);
        loop {
            match self.transport.send(call.host, &call.request, None).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => retry.after(Failure::of(fault, &call.subject)).await?,
            }
        }
    }

    /// A request that may be repeated.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let mut retry = Retry::new(self);
        loop {
            match self.attempt(call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }

    /// A request that may be repeated, with the whole of a body that has at most `limit` bytes.
    pub(crate) async fn document(&self, call: &Call<'_>, limit: u64) -> Result<Document, Error> {
        let mut retry = Retry::new(self);
        loop {
            let failure = match self.attempt(call).await {
                Ok(mut answer) => match self.transport.body(&mut answer, limit).await {
                    Ok(Some(body)) => {
                        return Ok(Document {
                            status: answer.response.status(),
                            headers: answer.response.headers().clone(),
                            body,
                        });
                    }
                    Ok(None) => Failure::last(Error::TooLarge {
                        subject: Box::new(call.subject.clone()),
                        limit,
                    }),
                    Err(fault) => Failure::of(fault, &call.subject),
                },
                Err(failure) => failure,
            };
            retry.after(failure).await?;
        }
    }

    /// The error of an answer that was not hoped for.
    pub(crate) async fn refuse(&self, call: &Call<'_>, mut answer: Answer) -> Error {
        let status = answer.response.status();
        let body = self.transport.body(&mut answer, REFUSAL_MAX).await;
        let body = body.ok().flatten().unwrap_or_default();
        self.refusal(call, status, &body)
    }

    /// The error of a whole answer that was not hoped for.
    pub(crate) fn refusal(&self, call: &Call<'_>, status: StatusCode, body: &[u8]) -> Error {
        let subject = Box::new(call.subject.clone());
        let refusal = Refusal::parse(status.as_u16(), body);
        match status.as_u16() {
            401 | 403 => Error::Unauthorized {
                subject,
                refusal,
                tried: match &*lock(&call.host.credential) {
                    Some(found) => found.source.clone(),
                    None => "no credentials, since the registry did not say how".to_owned(),
                },
            },
            404 => Error::NotFound { subject, refusal },
            _ => Error::Refused {
                subject,
                action: call.action,
                refusal,
            },
        }
    }
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        host: &'a Host,
        repository: &str,
        object: String,
        method: Method,
        target: Target,
    ) -> Self {
        let push = !matches!(method, Method::GET | Method::HEAD);
        Self {
            host,
            scopes: vec![auth::scope(repository, push)],
            subject: Subject {
                host: host.name.clone(),
                repository: repository.to_owned(),
                object,
            },
            action: if push { "write" } else { "read" },
            request: Request::new(method, target),
        }
    }
}
