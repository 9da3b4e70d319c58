//! The process that serves a FUSE mount, and its link to the one that keeps it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rafs_format::Bootstrap;
use storage::{ChunkStore, Words};

use super::kit::{Kit, Letter};
use super::{begin, keeper};
use crate::mountpoint::Place;
use crate::program::PROGRAM;
use crate::session::{Mounted, Options};
use crate::{Error, channel, record};

/// Pause before a keeper that could not be started is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a server does whose keeper has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// It starts another keeper.
    GoesOn,
    /// It ends as if it had been killed as well: with the keeper, all users of the mount have ended.
    Ends,
}

/// Exit status of an orphan that ends.
const ORPHAN: i32 = 128 + 9;

/// Where a process sits down that is to serve a FUSE mount.
#[derive(Debug)]
pub struct Seat {
    socket: OwnedFd,
    orphan: Orphan,
    /// What is known of the image, if anything is.
    record: Option<OwnedFd>,
    /// `None` if nothing is mounted yet.
    link: Option<Arc<Link>>,
}

impl Seat {
    /// Learns over the standard input what there is to serve. From then on the keeper's signals count as this process's
    /// own, so listen for them before.
    ///
    /// # Errors
    /// When no keeper started this process.
    pub fn from_stdin(orphan: Orphan) -> Result<Self, Error> {
        let sit = || {
            let socket = channel::take_stdin()?;
            let (record, link) = match Letter::receive(&socket)? {
                Letter::Begin(record) => (record, None),
                Letter::Kit(kit) => {
                    let record = kit.record.try_clone()?;
                    let link = Link::new(kit, socket.try_clone()?, orphan);
                    (Some(record), Some(link))
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            Ok(Self {
                socket,
                orphan,
                record,
                link,
            })
        };
        sit().map_err(|source| Error::System {
            what: "taking a seat at a mount",
            source,
        })
    }

    /// Whether this process is to be the first one that serves the mount.
    pub fn is_first(&self) -> bool {
        self.link.is_none()
    }

    /// What a process before this one noted of the image, if one did.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn record(&self) -> Result<Option<Vec<u8>>, Error> {
        let record = self.record.as_ref().map(record::read).transpose();
        record.map_err(|source| Error::System {
            what: "reading what is known of the mounted image",
            source,
        })
    }

    /// Where the servers before this one counted; new words in the first one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn words(&self) -> io::Result<Words> {
        match &self.record {
            Some(memory) => record::words(memory),
            None => Words::new(),
        }
    }

    /// Serves the image, which is mounted now if it was not. `cache` is the store's directory, and `record` whatever
    /// servers after this one are to know.
    ///
    /// # Errors
    /// When the image cannot be mounted, or the session does not begin.
    pub fn serve(
        self,
        bootstrap: Arc<Bootstrap<Vec<u8>>>,
        store: Arc<ChunkStore>,
        cache: &Path,
        record: &[u8],
        options: &Options,
    ) -> Result<Mounted, Error> {
        let link = match self.link {
            Some(link) => link,
            None => first(self.socket, cache, (store.words(), record), self.orphan).map_err(
                |source| Error::System {
                    what: "getting the mount from the process that keeps it",
                    source,
                },
            )?,
        };
        let ready = |place: &Place| link.ready(place);
        let keeper = link.keeper.clone();
        let mut mounted = begin(&link.kit, keeper, bootstrap, store, options, ready)?;
        mounted.link = Some(link);
        Ok(mounted)
    }
}

/// Has the keeper mount.
fn first(
    socket: OwnedFd,
    cache: &Path,
    (words, record): (&Words, &[u8]),
    orphan: Orphan,
) -> io::Result<Arc<Link>> {
    Letter::Prepared(cache.to_owned(), record::create(words, record)?).send(&socket)?;
    match Letter::receive(&socket)? {
        Letter::Kit(kit) => Ok(Link::new(kit, socket, orphan)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A server's link to the keeper, whoever that is just now.
pub(crate) struct Link {
    /// The mount as it was when this process came to it.
    kit: Kit,
    now: Mutex<Now>,
    orphan: Orphan,
    /// Process id of the keeper.
    keeper: Arc<AtomicU32>,
}

/// What changes: a keeper knows either all of it or is told.
struct Now {
    socket: Arc<OwnedFd>,
    place: Place,
    /// The keeper, if this process has started it.
    child: Option<Child>,
}

/// What the keeper has to say.
pub(crate) enum Word {
    /// It got this signal.
    Signal(i32),
    /// Another program takes the place of this one.
    Retire,
    Nothing,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("kit", &self.kit).finish()
    }
}

impl Link {
    fn new(kit: Kit, socket: OwnedFd, orphan: Orphan) -> Arc<Self> {
        Arc::new(Self {
            keeper: Arc::new(kit.keeper.into()),
            now: Mutex::new(Now {
                socket: Arc::new(socket),
                place: kit.place.clone(),
                child: None,
            }),
            kit,
            orphan,
        })
    }

    /// Where the keeper speaks; it changes with the keeper.
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        lock(&self.now).socket.clone()
    }

    fn say(&self, letter: &Letter) {
        let socket = self.socket();
        // A keeper that is dead is replaced by whoever listens.
        let _ = letter.send(&*socket);
    }

    /// Tells the keeper that requests are answered, and where users see the mount.
    fn ready(&self, place: &Place) {
        let mut now = lock(&self.now);
        now.place = place.clone();
        // If it is dead, the next one learns of it from here.
        let _ = Letter::Ready(place.clone()).send(&*now.socket);
    }

    /// Tells the keeper that the mount has ended.
    pub(crate) fn end(&self) {
        self.say(&Letter::Over);
    }

    /// Listens to the keeper, who has something to say or is dead: then another one is started.
    pub(crate) fn hear(&self) -> Word {
        match Letter::receive(&*self.socket()) {
            Ok(Letter::Signal(signal)) => return Word::Signal(signal),
            Ok(Letter::Retire) => return Word::Retire,
            Ok(_) => {}
            Err(_) if self.orphan == Orphan::Ends => std::process::exit(ORPHAN),
            Err(_) => {
                let before = lock(&self.now).child.take();
                if let Some(mut before) = before {
                    let _ = before.wait();
                }
                tracing::warn!("the process that keeps a mount died: another one takes its place");
                self.start_keeper();
            }
        }
        Word::Nothing
    }

    fn start_keeper(&self) {
        let start = || {
            let mut now = lock(&self.now);
            let (ours, theirs) = channel::pair()?;
            let mut kit = self.kit.try_clone()?;
            kit.place = now.place.clone();
            kit.keeper = std::process::id();
            Letter::Kit(kit).send(&ours)?;
            let child = Command::new(PROGRAM)
                .arg(keeper::KEEP)
                .current_dir("/")
                .stdin(theirs)
                .stdout(Stdio::null())
                .spawn()?;
            self.keeper.store(child.id(), Ordering::Relaxed);
            now.socket = Arc::new(ours);
            now.child = Some(child);
            io::Result::Ok(())
        };
        if let Err(error) = start() {
            // It is tried again as soon as somebody listens.
            tracing::error!("cannot start a process that keeps a mount: {error}");
            thread::sleep(AGAIN);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
