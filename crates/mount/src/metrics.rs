//! Figures of a mount over a unix socket, for monitoring and for `nydusify stat`.
//!
//! `GET /metrics` is answered with the text that Prometheus reads, one request after the other, by the thread that waits
//! for whatever else happens to the process. The figures come
//! from counters that are kept anyway, so nothing is done for them as long as nobody asks. The socket is made by the
//! process that serves the mount, and again by the one that takes its place.

mod http;
mod samples;
mod text;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use storage::{ChunkStore, MirrorStats};

use crate::stats::Counters;
use crate::{Error, runtime_dir};

pub(crate) use http::ask;
pub use samples::{Sample, Samples};

/// Directory of the sockets in the user's runtime directory.
const MOUNTS: &str = "mounts";

/// What the figures of a mount are about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) image: String,
    pub(crate) mode: &'static str,
    pub(crate) mountpoint: PathBuf,
    /// Device number of the mount.
    pub(crate) device: Option<String>,
    pub(crate) upstream: Option<Arc<dyn Upstream>>,
}

/// The places that the blobs of a mount come from.
pub trait Upstream: fmt::Debug + Send + Sync {
    /// How often this process has tried again what a place failed to do.
    fn retries(&self) -> u64;

    /// What each mirror has done for this process.
    fn mirrors(&self) -> Vec<MirrorStats>;
}

/// Where `stat` looks for the socket of the mount with that device number, which no other mount has meanwhile.
pub(crate) fn place(device: &str) -> io::Result<PathBuf> {
    Ok(runtime_dir()?.join(MOUNTS).join(format!("{device}.sock")))
}

/// Whoever asks finds it as long as it lives.
pub(crate) struct Exporter {
    listener: Arc<UnixListener>,
    render: Arc<dyn Fn() -> String + Send + Sync>,
    thread: Option<JoinHandle<()>>,
    /// What was made, with device and inode number of each.
    made: Vec<(PathBuf, (u64, u64))>,
}

impl Exporter {
    /// Can be asked at `socket`, or else where `stat` looks for it anyway. What `stat` needs fails silently, and so does
    /// everything for a process that takes the place of another one.
    pub(crate) fn start(
        socket: Option<&Path>,
        subject: Subject,
        counters: Arc<Counters>,
        store: Arc<ChunkStore>,
    ) -> Result<Option<Self>, Error> {
        let known = subject.device.as_deref().map(place);
        let known = known.and_then(|place| {
            let prepare = |place: PathBuf| {
                fs::create_dir_all(place.parent().unwrap_or(Path::new("/")))?;
                Ok(place)
            };
            let place = place.and_then(prepare);
            let log = |error: &io::Error| tracing::debug!("no place for figures: {error}");
            place.inspect_err(log).ok()
        });
        let first = counters.servers.value() <= 1;
        // The process may go to another directory.
        let socket = socket.map(std::path::absolute).transpose();
        let socket = socket.map_err(|source| Error::Metrics {
            path: PathBuf::new(),
            source,
        })?;
        let socket = socket.as_deref();
        let render = move || text::render(&subject, &counters, &store);
        let bound = match (socket, &known) {
            (Some(socket), _) => bind(socket, !first).map(|it| (it, socket.to_owned())),
            (None, Some(known)) => bind(known, true).map(|it| (it, known.clone())),
            (None, None) => return Ok(None),
        };
        let (listener, path) = match bound {
            Ok(bound) => bound,
            Err(source) => {
                let path = socket.or(known.as_deref()).unwrap_or(Path::new(""));
                let error = Error::Metrics {
                    path: path.to_owned(),
                    source,
                };
                if socket.is_some() && first {
                    return Err(error);
                }
                tracing::warn!("{}", crate::log::chain(&error));
                return Ok(None);
            }
        };
        let mut made = vec![path.clone()];
        if let Some(known) = known.filter(|known| *known != path) {
            match link(&path, &known) {
                Ok(()) => made.push(known),
                Err(error) => tracing::debug!("{}: {error}", known.display()),
            }
        }
        let identify = |path: PathBuf| Some((path.clone(), identity(&path)?));
        Ok(Some(Self {
            listener: Arc::new(listener),
            render: Arc::new(render),
            thread: None,
            made: made.into_iter().filter_map(identify).collect(),
        }))
    }
}

impl Exporter {
    /// Answers one who asks, if somebody does.
    pub(crate) fn answer(&self) {
        // Who does not listen misses the answer.
        let _ = http::serve_one(&self.listener, &*self.render);
    }

    /// Answers from a thread of its own, where no other has the time.
    pub(crate) fn answer_beside(&mut self) {
        let (listener, render) = (Arc::clone(&self.listener), Arc::clone(&self.render));
        // A shut down socket is an error to a thread that waits in it, but merely silent to one that does not.
        if listener.set_nonblocking(false).is_err() {
            return;
        }
        let thread = thread::Builder::new().name("metrics".to_owned());
        // Without it nobody gets an answer, and the mount goes on.
        self.thread = thread.spawn(move || http::serve(&listener, &*render)).ok();
    }
}

impl AsFd for Exporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        for (path, identity) in &self.made {
            // Another process may have put its own there.
            if self::identity(path) == Some(*identity) {
                let _ = fs::remove_file(path);
            }
        }
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A socket at `path`, in place of one that a dead process left there, or, if `replace` says so, of any.
fn bind(path: &Path, replace: bool) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() && !found.file_type().is_symlink() => {
            let what = "something that is no socket is there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Ok(_) if !replace && UnixStream::connect(path).is_ok() => {
            let what = "another process answers there";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        _ => {}
    }
    let temporary = temporary(path);
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    // Who asks may have gone again by the time that it is looked at.
    listener.set_nonblocking(true)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok(listener)
}

fn link(target: &Path, path: &Path) -> io::Result<()> {
    let temporary = temporary(path);
    let _ = fs::remove_file(&temporary);
    symlink(target, &temporary)?;
    fs::rename(&temporary, path)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_socket_takes_the_place_of_a_dead_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = bind(&path, false).unwrap();
        let error = bind(&path, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let second = bind(&path, true).unwrap();
        drop((first, second));
        drop(bind(&path, false).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"precious").unwrap();
        assert!(bind(&path, true).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
