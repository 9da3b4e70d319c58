//! Object stores in the process of a test, on loopback, with faults on demand.
//!
//! The bucket of the S3 protocol is s3s-fs, which nobody here wrote; that of Aliyun's protocol is a small one of our own
//! that computes signatures in its own way. Both have a bucket [`NAME`] and know the key [`KEY_ID`] with [`SECRET`].

mod oss;
mod s3;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::Body;

/// The only bucket.
pub const NAME: &str = "blobs";
/// Name of the access key.
pub const KEY_ID: &str = "AKTEST";
/// Its secret.
pub const SECRET: &str = "open-sesame/1+2=3";

type Reply = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = dyn Fn(Request<Incoming>) -> Reply + Send + Sync;

/// What goes wrong, `times` times.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Requests that begin so are concerned, such as `PUT /blobs/ab`; a `*` stands for anything.
    pub request: &'static str,
    /// What is answered.
    pub status: u16,
    /// With which body.
    pub body: &'static str,
    /// How often.
    pub times: usize,
}

/// A running store; ends with this value.
pub struct Bucket {
    address: SocketAddr,
    state: Arc<State>,
    objects: Box<dyn Fn() -> BTreeMap<String, Vec<u8>>>,
    uploads: Box<dyn Fn() -> usize>,
    kind: &'static str,
    // Ends the tasks.
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct State {
    faults: Mutex<Vec<Fault>>,
    requests: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bucket {
    /// A bucket of the S3 protocol.
    pub fn s3() -> Self {
        s3::start()
    }

    /// A bucket of Aliyun's protocol.
    pub fn oss() -> Self {
        oss::start()
    }

    /// What `--backend-type` calls it.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// What `--backend-config` says to reach it.
    pub fn config(&self, prefix: &str) -> String {
        self.config_with(prefix, SECRET)
    }

    /// The same with another secret.
    pub fn config_with(&self, prefix: &str, secret: &str) -> String {
        serde_json::json!({
            "endpoint": self.address.to_string(),
            "scheme": "http",
            "region": "us-east-1",
            "bucket_name": NAME,
            "object_prefix": prefix,
            "access_key_id": KEY_ID,
            "access_key_secret": secret,
        })
        .to_string()
    }

    /// All objects.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        (self.objects)()
    }

    /// How many files or records of unfinished uploads there are.
    pub fn uploads(&self) -> usize {
        (self.uploads)()
    }

    /// Lets something go wrong.
    pub fn fail(&self, fault: Fault) {
        lock(&self.state.faults).push(fault);
    }

    /// The requests since the last question: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.state.requests))
    }

    fn start(
        kind: &'static str,
        handler: Arc<Handler>,
        objects: Box<dyn Fn() -> BTreeMap<String, Vec<u8>>>,
        uploads: Box<dyn Fn() -> usize>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("start a runtime");
        let state = Arc::new(State::default());
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("listen on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (state, handler) = (Arc::clone(&shared), Arc::clone(&handler));
                let service = service_fn(move |request| {
                    answer(Arc::clone(&state), Arc::clone(&handler), request)
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        Self {
            address,
            state,
            objects,
            uploads,
            kind,
            _runtime: runtime,
        }
    }
}

async fn answer(
    state: Arc<State>,
    handler: Arc<Handler>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    lock(&state.requests).push(line.clone());
    let fault = {
        let mut faults = lock(&state.faults);
        let found = faults
            .iter_mut()
            .find(|fault| fault.times > 0 && concerns(fault.request, &line));
        found.map(|fault| {
            fault.times -= 1;
            fault.clone()
        })
    };
    Ok(match fault {
        None => handler(request).await,
        Some(fault) => {
            // Read to its end, so that the connection can be used again.
            let _ = http_body_util::BodyExt::collect(request.into_body()).await;
            reply(fault.status, fault.body)
        }
    })
}

fn concerns(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    for (number, piece) in pattern.split('*').enumerate() {
        match rest.find(piece) {
            Some(at) if number > 0 || at == 0 => rest = &rest[at + piece.len()..],
            _ => return false,
        }
    }
    true
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(Body::from(body.into()))
        .expect("the parts of an answer are sound")
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({} at {})", self.kind, self.address)
    }
}
