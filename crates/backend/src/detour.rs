//! Ways to blobs that are tried before the direct one: mirrors and proxies, with a look at how they do.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use registry::Client;
use reqwest::Url;
use storage::{BlobReader, Mirror, Standing, Tolerance};

use crate::Error;

/// How long an address may take to say that its host is well.
const PING_PATIENCE: Duration = Duration::from_secs(3);

/// Where blobs are read from.
pub(crate) trait Reading: Send + Sync {
    /// The blob `id`, and nothing if it is known not to be there. Where its size is not given, the place is asked for it.
    fn blob(&self, id: &str, size: Option<u64>) -> Result<Option<Arc<dyn BlobReader>>, Error>;

    /// What to call it in messages.
    fn name(&self) -> String;
}

/// How to find out whether a host is well, and when it is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// Answers with a success if it is.
    pub(crate) ping: Option<Url>,
    /// How often to ask, and how long a host is passed over that failed.
    pub(crate) every: Duration,
    /// Failures one after the other that are one too many.
    pub(crate) failures: u32,
}

impl Default for Check {
    fn default() -> Self {
        let Tolerance { failures, pause } = Tolerance::default();
        Self {
            ping: None,
            every: pause,
            failures,
        }
    }
}

/// A place that is tried before the one that has the last word.
pub(crate) struct Detour {
    place: Arc<dyn Reading>,
    standing: Arc<Standing>,
    ping: Option<Ping>,
}

struct Ping {
    client: Client,
    url: Url,
    every: Duration,
    /// When it was last asked.
    last: Mutex<Option<Instant>>,
}

impl Detour {
    /// By way of `place`. `client` asks how it does.
    pub(crate) fn new(
        name: String,
        place: Arc<dyn Reading>,
        check: &Check,
        client: &Client,
    ) -> Self {
        let tolerance = Tolerance {
            failures: check.failures,
            pause: check.every,
        };
        Self {
            place,
            standing: Arc::new(Standing::new(name, tolerance)),
            ping: check.ping.clone().map(|url| Ping {
                client: client.clone(),
                url,
                every: check.every,
                last: Mutex::default(),
            }),
        }
    }
}

impl Mirror for Detour {
    fn open(&self, id: &str, size: u64) -> io::Result<Arc<dyn BlobReader>> {
        let found = self.place.blob(id, Some(size))?;
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The first readers wait until it is known how the host does; later ones go on with what was known before.
    fn look_after(&self) {
        let Some(ping) = &self.ping else {
            return;
        };
        let mut last = ping.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some(at) if at.elapsed() < ping.every => {}
            Some(_) => {
                *last = Some(Instant::now());
                let standing = Arc::clone(&self.standing);
                let then = move |why: Option<String>| standing.examined(why.as_deref());
                ping.client
                    .ping_later(ping.url.clone(), PING_PATIENCE, then);
            }
            None => {
                let why = ping.client.ping(&ping.url, PING_PATIENCE);
                self.standing.examined(why.as_deref());
                *last = Some(Instant::now());
            }
        }
    }
}
