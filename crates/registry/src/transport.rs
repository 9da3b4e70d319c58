//! One HTTP exchange, with redirects: the lowest floor, below authentication and retries.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::Instant;

use crate::host::{Host, Scheme};
use crate::proxy::Proxies;
use crate::retry::lock;
use crate::{BlobAddresses, Error, Settings, Subject, tls};

/// How many redirects are followed.
const REDIRECTS_MAX: u32 = 10;
/// Pieces in which a body is handed on, so that its progress is seen.
const PIECE: usize = 64 << 10;
/// How many times longer than `stall_timeout` a registry may think when it has all of a request that changes things.
const THINKING: u32 = 4;

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Path and query in the registry, whose scheme may have to be found out first.
    Path(String),
    /// A full address.
    Url(Url),
}

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the body is a secret that no other host may get.
    pub(crate) secret: bool,
    /// Whether redirects are followed.
    pub(crate) follow: bool,
    /// Whether it is about a blob.
    pub(crate) blob: bool,
}

impl Request {
    pub(crate) fn new(method: Method, target: Target) -> Self {
        Self {
            method,
            target,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            secret: false,
            follow: true,
            blob: false,
        }
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Where it came from in the end.
    pub(crate) url: Url,
    /// Whether that is where the request was sent to, and not where a redirect led.
    pub(crate) direct: bool,
}

/// An exchange that did not come to an answer.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) peer: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Http(reqwest::Error),
    Stalled(Duration),
    Answer(String),
}

impl Fault {
    pub(crate) fn answer(peer: String, reason: impl Into<String>) -> Self {
        let kind = Kind::Answer(reason.into());
        Self { peer, kind }
    }

    /// Whether it may pass by itself.
    pub(crate) fn may_pass(&self) -> bool {
        match &self.kind {
            Kind::Http(error) => !error.is_builder() && !is_certificate(error),
            Kind::Stalled(_) => true,
            Kind::Answer(_) => false,
        }
    }

    pub(crate) fn into_error(self, subject: &Subject) -> Error {
        let subject = Box::new(subject.clone());
        let peer = self.peer;
        match self.kind {
            Kind::Http(source) if is_certificate(&source) => Error::Certificate {
                subject,
                peer,
                source,
            },
            Kind::Http(source) => Error::Connection {
                subject,
                peer,
                source,
            },
            Kind::Stalled(waited) => Error::Stalled {
                subject,
                peer,
                waited,
            },
            Kind::Answer(reason) => Error::Answer {
                subject,
                peer,
                reason,
            },
        }
    }
}

/// The connections: one pool, one TLS configuration, for all hosts.
pub(crate) struct Transport {
    http: reqwest::Client,
    proxies: Proxies,
    blob_addresses: BlobAddresses,
    stall: Duration,
}

impl Transport {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let proxies = Proxies::new(&settings.proxy)?;
        let find = proxies.clone();
        let mut builder = reqwest::Client::builder();
        if let Some(path) = &settings.unix_socket {
            builder = builder.unix_socket(path.as_path());
        }
        let http = builder
            .tls_backend_preconfigured(tls::config(settings)?)
            .no_proxy()
            .proxy(reqwest::Proxy::custom(move |url| find.find(url).cloned()))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("nydusify/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .build()
            .map_err(|error| Error::Setup {
                reason: match error.source() {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                },
            })?;
        Ok(Self {
            http,
            proxies,
            blob_addresses: settings.blob_addresses.clone(),
            stall: settings.stall_timeout,
        })
    }

    /// Sends a request and follows redirects. `authorization` never goes to another host.
    pub(crate) async fn send(
        &self,
        host: &Host,
        request: &Request,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Fault> {
        let stand_in = host.stand_in.as_ref();
        let (mut response, mut url, mut own) = match &request.target {
            Target::Path(path) => {
                let own = stand_in.map(|stand_in| &stand_in.headers);
                let sent = self.send_to_registry(host, request, path, authorization);
                let (response, url) = sent.await?;
                (response, url, own)
            }
            Target::Url(url) => {
                let response = self.exchange(request, url, authorization, None).await?;
                (response, url.clone(), None)
            }
        };
        let start = url.clone();
        let mut authorization = authorization;
        for _ in 0..REDIRECTS_MAX {
            let reading = matches!(request.method, Method::GET | Method::HEAD);
            let follow = match response.status().as_u16() {
                307 | 308 => true,
                301..=303 => reading,
                _ => false,
            };
            if !follow || !request.follow {
                return Ok(Answer {
                    direct: same_host(&start, &url),
                    response,
                    url,
                });
            }
            let to = response.headers().get(LOCATION);
            let next = to
                .and_then(|to| url.join(to.to_str().ok()?).ok())
                .filter(|next| matches!(next.scheme(), "http" | "https") && next.has_host())
                .and_then(|next| match request.blob {
                    true => self.blob_addresses.change(next),
                    false => Some(next),
                });
            let Some(next) = next else {
                return Err(Fault::answer(peer(&url), "a redirect to nowhere"));
            };
            if !same_host(&start, &next) {
                (authorization, own) = (None, None);
                if request.secret {
                    let reason = "the token server sends credentials on to another host";
                    return Err(Fault::answer(peer(&url), reason));
                }
            }
            url = next;
            response = self.exchange(request, &url, authorization, own).await?;
        }
        Err(Fault::answer(peer(&url), "redirects without end"))
    }

    /// The first hop to a registry: HTTPS, and HTTP for one that turns out not to speak TLS.
    async fn send_to_registry(
        &self,
        host: &Host,
        request: &Request,
        path: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, Url), Fault> {
        let url = |scheme| {
            host.url(scheme, path)
                .ok_or_else(|| Fault::answer(host.name.clone(), "its name makes no address"))
        };
        let own = host.stand_in.as_ref().map(|stand_in| &stand_in.headers);
        if let Some(scheme) = host.scheme() {
            let url = url(scheme)?;
            let response = self.exchange(request, &url, authorization, own).await?;
            return Ok((response, url));
        }
        let secure = url(Scheme::Https)?;
        let fault = match self.exchange(request, &secure, authorization, own).await {
            Ok(response) => {
                host.set_scheme(Scheme::Https);
                return Ok((response, secure));
            }
            Err(fault) => fault,
        };
        let Kind::Http(error) = &fault.kind else {
            return Err(fault);
        };
        let answers_plainly = speaks_no_tls(error);
        // What a proxy refuses says nothing about the registry.
        let absent = error.is_connect()
            && (is_refused(error) || error.is_timeout())
            && self.proxies.find(&secure).is_none();
        if is_certificate(error) {
            host.set_scheme(Scheme::Https);
        }
        if !(answers_plainly || absent) || host.scheme() == Some(Scheme::Https) {
            return Err(fault);
        }
        let plain = url(Scheme::Http)?;
        match self.exchange(request, &plain, None, None).await {
            // A TLS server that was away for a moment answers so to plain HTTP.
            Ok(response) if absent && response.status() == StatusCode::BAD_REQUEST => Err(fault),
            Ok(response) => {
                tracing::debug!(host = host.name, "no TLS there: going on with plain HTTP");
                host.set_scheme(Scheme::Http);
                Ok((response, plain))
            }
            Err(second) if answers_plainly => Err(second),
            Err(_) => Err(fault),
        }
    }

    /// One request, one answer. `own` are headers for this host alone.
    async fn exchange(
        &self,
        request: &Request,
        url: &Url,
        authorization: Option<&HeaderValue>,
        own: Option<&HeaderMap>,
    ) -> Result<Response, Fault> {
        let activity = Arc::new(Activity::new(request));
        let mut headers = request.headers.clone();
        for (name, value) in own.into_iter().flatten() {
            headers.append(name, value.clone());
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let asked = self.proxies.plain(url);
        let asked = asked.as_ref().unwrap_or(url).clone();
        let mut builder = self.http.request(request.method.clone(), asked);
        if !request.body.is_empty() {
            builder = builder.body(reqwest::Body::wrap(Payload {
                data: request.body.clone(),
                activity: Arc::clone(&activity),
            }));
        } else if !matches!(request.method, Method::GET | Method::HEAD | Method::DELETE) {
            // Some registries insist on a length, be it zero.
            headers.insert(
                reqwest::header::CONTENT_LENGTH,
                HeaderValue::from_static("0"),
            );
        }
        let mut answer = pin!(builder.headers(headers).send());
        let result = loop {
            let (deadline, allowed) = activity.deadline(self.stall);
            tokio::select! {
                result = &mut answer => break result.map_err(|error| Kind::Http(error.without_url())),
                () = tokio::time::sleep_until(deadline) => {
                    if activity.deadline(self.stall).0 <= Instant::now() {
                        break Err(Kind::Stalled(allowed));
                    }
                }
            }
        };
        tracing::debug!(
            method = %request.method,
            host = peer(url),
            path = url.path(),
            status = result.as_ref().ok().map(|response| response.status().as_u16()),
            fault = result.as_ref().err().map(|kind| match kind {
                Kind::Http(error) => chain(error),
                _ => "no answer".to_owned(),
            }),
            "request"
        );
        result.map_err(|kind| Fault {
            peer: peer(url),
            kind,
        })
    }

    /// The next piece of a body.
    pub(crate) async fn chunk(&self, answer: &mut Answer) -> Result<Option<Bytes>, Fault> {
        let kind = match tokio::time::timeout(self.stall, answer.response.chunk()).await {
            Ok(Ok(chunk)) => return Ok(chunk),
            Ok(Err(error)) => Kind::Http(error.without_url()),
            Err(_) => Kind::Stalled(self.stall),
        };
        Err(Fault {
            peer: peer(&answer.url),
            kind,
        })
    }

    /// A whole body, or `None` if it is larger than `limit`.
    pub(crate) async fn body(
        &self,
        answer: &mut Answer,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, Fault> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(answer).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }
}

/// Host and port for messages: never path or query, which may hold signatures.
pub(crate) fn peer(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether credentials for `from` may go to `to`: the same host, never from TLS to plain text.
pub(crate) fn same_host(from: &Url, to: &Url) -> bool {
    let same_port = from.port_or_known_default() == to.port_or_known_default();
    let upgrade = from.scheme() == "http" && to.scheme() == "https";
    from.host() == to.host()
        && (from.scheme() == to.scheme() && same_port
            || upgrade && from.port().is_none() && to.port().is_none())
}

/// An error and all its causes, as one line.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Looks through an error's causes, also into those that `io::Error` carries.
fn any_cause(
    error: &reqwest::Error,
    test: impl Fn(&(dyn std::error::Error + 'static)) -> bool,
) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(error) = cause {
        if test(error) {
            return true;
        }
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref());
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

fn is_refused(error: &reqwest::Error) -> bool {
    any_cause(error, |cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

fn is_certificate(error: &reqwest::Error) -> bool {
    any_cause(error, |cause| {
        matches!(
            cause.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
        )
    })
}

/// Whether the other side answered a TLS greeting with something else, such as HTTP.
fn speaks_no_tls(error: &reqwest::Error) -> bool {
    any_cause(error, |cause| {
        matches!(
            cause.downcast_ref(),
            Some(rustls::Error::InvalidMessage(
                rustls::InvalidMessage::InvalidContentType
            ))
        )
    })
}

/// When something last moved while a request was sent.
#[derive(Debug)]
struct Activity {
    /// The moment, and whether all was sent by then.
    last: Mutex<(Instant, bool)>,
    thinking: u32,
}

impl Activity {
    fn new(request: &Request) -> Self {
        let reading = matches!(request.method, Method::GET | Method::HEAD);
        Self {
            last: Mutex::new((Instant::now(), request.body.is_empty())),
            thinking: if reading { 1 } else { THINKING },
        }
    }

    fn touch(&self, sent: bool) {
        *lock(&self.last) = (Instant::now(), sent);
    }

    /// When to give up, and after how long.
    fn deadline(&self, stall: Duration) -> (Instant, Duration) {
        let (last, sent) = *lock(&self.last);
        let allowed = if sent { stall * self.thinking } else { stall };
        (last + allowed, allowed)
    }
}

/// A request's body.
struct Payload {
    data: Bytes,
    activity: Arc<Activity>,
}

impl http_body::Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.data.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.data.len().min(PIECE);
        let piece = self.data.split_to(length);
        self.activity.touch(self.data.is_empty());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}

/// Whether a status is one of `expected`.
pub(crate) fn is(status: StatusCode, expected: &[u16]) -> bool {
    expected.contains(&status.as_u16())
}
