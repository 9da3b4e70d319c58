//! How a process comes to keep a FUSE mount.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use signal_hook::consts::SIGTERM;

use super::keeper::{Keeper, Orders, Server, failed};
use super::kit::Letter;
use crate::events::{self, Sender};
use crate::program::Program;
use crate::serve::{Sent, Signals};
use crate::{Error, channel};

/// What is to be mounted and kept.
#[derive(Debug)]
pub struct ToKeep<'a> {
    /// Directory to mount on, made if absent.
    pub mountpoint: &'a Path,
    /// Directory that takes changes, for a writable mount; made if absent.
    pub upper: Option<&'a Path>,
    /// This program with the arguments that make it a server.
    pub program: Program,
    /// What a server is to know of the image, if that is known already.
    pub record: Option<&'a [u8]>,
}

/// Mounts an image and keeps it mounted until a signal comes or somebody unmounts it. `ready` is called when the image is
/// mounted, with the mount point and the directory of the cache. Returns the exit code of the server.
///
/// As root, all users see the mount, devices and setuid bits included; without root it goes through `fusermount3`
/// and is the caller's alone. A mount of ours whose processes died is replaced.
///
/// # Errors
/// When the image can't be mounted, or servers die one after the other; nothing stays mounted then. A server that ends
/// with an exit code has said why.
pub fn keep(
    what: ToKeep<'_>,
    signals: Signals,
    ready: impl FnOnce(&Path, &Path) -> io::Result<()> + Send + 'static,
) -> Result<u8, Error> {
    Keeper::begin(what, Box::new(ready))
        .map_err(failed)?
        .run(Orders::Signals(signals))
}

/// A mount that this process keeps while it does something else. It does not outlive the process: servers of it are to
/// be [`crate::Orphan`]s that end.
#[derive(Debug)]
pub struct Kept {
    sender: Sender<Sent>,
    thread: JoinHandle<Result<u8, Error>>,
}

/// Mounts an image, and keeps it mounted from a thread of its own. `None` if the server ended with an exit code, and has
/// said why.
///
/// # Errors
/// When the image can't be mounted; nothing stays mounted then.
pub fn keep_beside(what: ToKeep<'_>) -> Result<Option<Kept>, Error> {
    let (sender, orders) = events::channel().map_err(failed)?;
    let (mounted, ready) = mpsc::channel();
    let tell = move |_: &Path, _: &Path| mounted.send(()).map_err(io::Error::other);
    let keeper = Keeper::begin(what, Box::new(tell)).map_err(failed)?;
    let thread = thread::Builder::new().name("keeper".to_owned());
    let thread = thread.spawn(move || keeper.run(Orders::Owner(orders)));
    let thread = thread.map_err(failed)?;
    let kept = Kept { sender, thread };
    match ready.recv() {
        Ok(()) => Ok(Some(kept)),
        Err(_) => kept.join().map(|_| None),
    }
}

impl Kept {
    /// Ends a mount that nobody uses any more, in whichever mount namespace it is: waits until it is gone and its cache is
    /// durable.
    ///
    /// # Errors
    /// When servers had died one after the other.
    pub fn close(self) -> Result<(), Error> {
        let end = Sent {
            signal: SIGTERM,
            sender: None,
        };
        // If nobody listens, the mount has ended.
        self.sender.send(end);
        self.join().map(drop)
    }

    fn join(self) -> Result<u8, Error> {
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| Err(failed(io::Error::other("a thread broke"))))
    }
}

/// Goes on in place of a keeper that died, or of another program. What it kept comes over the standard input.
///
/// # Errors
/// As [`keep`], and if no process of a mount started this one.
pub fn keep_on() -> Result<u8, Error> {
    let signals = Signals::listen()?;
    let socket = channel::take_stdin().map_err(failed)?;
    let (kit, server, renew) = match Letter::receive(&socket).map_err(failed)? {
        Letter::Kit(kit) => {
            // What a terminal signals is for the processes that the user sees.
            let _ = rustix::process::setsid();
            (kit, Server::new(socket, None), false)
        }
        Letter::Succeed(kit, socket, child) => (kit, Server::new(socket, child), true),
        _ => return Err(failed(io::ErrorKind::InvalidData.into())),
    };
    let mut keeper = Keeper::succeeding(kit, server).map_err(failed)?;
    if renew {
        keeper.retire();
    }
    keeper.run(Orders::Signals(signals))
}
