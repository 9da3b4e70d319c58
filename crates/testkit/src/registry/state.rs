//! What the servers of one registry share, and what they note for tests to look at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::Options;
use super::auth::Guard;
use super::faults::{Fault, Faults};
use super::storage::Storage;
use super::upload::Uploads;

/// Locks; a panic in another thread does not matter here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The registry itself.
    Registry,
    /// The token server.
    Token,
    /// The host that blobs are redirected to.
    Storage,
}

/// A request, as it was noted when it had been answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Number of the request, counted over all servers.
    pub number: u64,
    /// Which server it went to.
    pub host: Host,
    /// `GET`, `PUT`, ...
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
    /// What `Range` asked for.
    pub range: Option<String>,
    /// What `Content-Range` said of the bytes that came.
    pub content_range: Option<String>,
    /// Bytes of the body that came.
    pub received: u64,
    /// Bytes of the body that were sent.
    pub sent: u64,
    /// The scheme of the `Authorization` header, such as `Basic`.
    pub authorization: Option<String>,
    /// Whether it passed authentication; always so where none is asked for.
    pub authorised: bool,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// What went wrong on purpose.
    pub fault: Option<Fault>,
}

/// Figures over all servers of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests so far.
    pub requests: u64,
    /// Bytes of bodies received.
    pub received: u64,
    /// Bytes of bodies sent.
    pub sent: u64,
    /// Connections now.
    pub connections: u64,
    /// Connections at most at once.
    pub max_connections: u64,
    /// Requests being worked on at most at once.
    pub max_requests_at_once: u64,
    /// Upload sessions that are open now.
    pub open_uploads: u64,
    /// Upload sessions that were opened.
    pub uploads_opened: u64,
    /// Upload sessions that a client deleted.
    pub uploads_deleted: u64,
    /// Blobs that were mounted from another repository.
    pub mounts: u64,
}

/// A figure that goes up and down, and how high it was.
#[derive(Debug, Default)]
pub(super) struct Level {
    now: AtomicU64,
    most: AtomicU64,
}

impl Level {
    pub fn up(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    pub fn down(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    /// Forgets how high it was before.
    pub fn forget(&self) {
        self.most.store(self.now(), Ordering::SeqCst);
    }

    pub fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    pub fn most(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }
}

/// Shared by the servers of one registry.
pub(super) struct State {
    pub options: Options,
    pub storage: Mutex<Storage>,
    pub uploads: Uploads,
    pub guard: Guard,
    pub faults: Mutex<Faults>,
    pub log: Mutex<Vec<Request>>,
    pub violations: Mutex<Vec<String>>,
    pub numbers: AtomicU64,
    pub connections: Level,
    pub requests: Level,
    pub mounts: AtomicU64,
    pub received: AtomicU64,
    pub sent: AtomicU64,
    pub started: Instant,
    /// `http://host:port` of each server that runs.
    pub registry_url: OnceLock<String>,
    pub token_url: OnceLock<String>,
    pub storage_url: OnceLock<String>,
}

impl State {
    pub fn new(options: Options, storage: Storage) -> Self {
        Self {
            guard: Guard::new(options.auth.clone()),
            faults: Mutex::new(options.faults.clone()),
            options,
            storage: Mutex::new(storage),
            uploads: Uploads::default(),
            log: Mutex::default(),
            violations: Mutex::default(),
            numbers: AtomicU64::new(0),
            connections: Level::default(),
            requests: Level::default(),
            mounts: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            started: Instant::now(),
            registry_url: OnceLock::new(),
            token_url: OnceLock::new(),
            storage_url: OnceLock::new(),
        }
    }

    /// Notes a request.
    pub fn note(&self, request: Request) {
        self.received.fetch_add(request.received, Ordering::SeqCst);
        self.sent.fetch_add(request.sent, Ordering::SeqCst);
        lock(&self.log).push(request);
    }

    /// Notes what a client must not do.
    pub fn violation(&self, text: String) {
        lock(&self.violations).push(text);
    }

    /// Where tokens are to be had.
    pub fn realm(&self) -> String {
        let url = self.token_url.get().map_or("", String::as_str);
        format!("{url}/token")
    }
}
