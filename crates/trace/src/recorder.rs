//! Recording what a mount is asked for and does.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rafs_format::{Bootstrap, Nid};
use storage::{Decoded, Fetch, Observer};

use crate::format::{VERSION, read_header};
use crate::writer::{Clock, Writer};
use crate::{Error, Header, bootstrap_digest};

/// Events that may wait to be written; more are dropped.
const WAITING_MAX: usize = 1 << 15;
/// How far back from its end the file is searched for the end of a line.
const TAIL: u64 = 1 << 20;

/// Whether a trace begins, or goes on where a process before this one left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With an empty file. A trace of the same image that lies there is overwritten.
    Anew,
    /// Behind what is there.
    GoOn,
}

/// Writes a trace. A thread of its own does that, behind a queue: who is recorded never waits, and if events come faster
/// than they can be written, some are left out and counted. Dropping it waits until all else is written.
#[derive(Debug)]
pub struct Recorder {
    /// `None` once it is dropped.
    sender: Option<SyncSender<Raw>>,
    dropped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// An event as it comes.
#[derive(Debug)]
pub(crate) enum Raw {
    Serving(&'static str),
    Read {
        nid: Nid,
        range: Range<u64>,
        began: Instant,
        took: Duration,
    },
    Fill {
        blob: u32,
        range: Range<u64>,
        began: Instant,
        took: Duration,
    },
    Fetch(Fetch),
    Chunk(Decoded),
}

impl Recorder {
    /// Begins to write the trace of the image with this bootstrap, which is called `image`, to the file `path`.
    ///
    /// # Errors
    /// [`Error`]: the file cannot be written, or holds something else than a trace of this image.
    pub fn start(
        path: &Path,
        image: &str,
        bootstrap: Arc<Bootstrap<Vec<u8>>>,
        begin: Begin,
    ) -> Result<Self, Error> {
        let path = std::path::absolute(path).map_err(Error::io(path, "find it"))?;
        let header = Header {
            version: VERSION,
            image: image.to_owned(),
            bootstrap: bootstrap_digest(bootstrap.data()),
            started: now(),
            blobs: bootstrap.blobs().iter().map(|b| b.id.to_string()).collect(),
        };
        let (file, size, started) = open(&path, &header, begin)?;
        let clock = Clock {
            base: Instant::now(),
            offset: Duration::from_micros(now().saturating_sub(started)),
        };
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(path.clone(), file, size, clock, dropped.clone());
        let thread = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || writer.run(&bootstrap, &receiver))
            .map_err(Error::io(&path, "start the thread that writes it"))?;
        Ok(Self {
            sender: Some(sender),
            dropped,
            thread: Some(thread),
        })
    }

    /// This process begins to serve the mount, in a mode of this name.
    pub fn serving(&self, mode: &'static str) {
        self.note(Raw::Serving(mode));
    }

    /// The kernel read bytes of a file, from `began` until now.
    pub fn read(&self, nid: Nid, range: Range<u64>, began: Instant) {
        self.note(Raw::Read {
            nid,
            range,
            began,
            took: began.elapsed(),
        });
    }

    /// The kernel had bytes of a blob's uncompressed address space filled, from `began` until now.
    pub fn filled(&self, blob: u32, range: Range<u64>, began: Instant) {
        self.note(Raw::Fill {
            blob,
            range,
            began,
            took: began.elapsed(),
        });
    }

    fn note(&self, event: Raw) {
        if let Some(sender) = &self.sender
            && sender.try_send(event).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Observer for Recorder {
    fn fetched(&self, fetch: &Fetch) {
        self.note(Raw::Fetch(fetch.clone()));
    }

    fn decoded(&self, chunk: &Decoded) {
        self.note(Raw::Chunk(chunk.clone()));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // What went wrong there it has said.
            let _ = thread.join();
        }
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// The file, ready for the next event; its size, and when its mount began.
fn open(path: &PathBuf, header: &Header, begin: Begin) -> Result<(File, u64, u64), Error> {
    let mut options = OpenOptions::new();
    let options = options.read(true).append(true).create(true);
    let mut file = options.open(path).map_err(Error::io(path, "open it"))?;
    let there = {
        let len = file.metadata().map_err(Error::io(path, "look at it"))?;
        match len.len() {
            0 => None,
            _ => {
                let header = read_header(path, &mut BufReader::new(&file))?;
                Some(header.ok_or_else(|| Error::NoTrace(path.clone()))?)
            }
        }
    };
    if let Some(there) = &there {
        there.require(path, &header.bootstrap)?;
    }
    let failed = Error::io(path, "write it");
    match there {
        Some(there) if begin == Begin::GoOn => {
            let size = after_last_line(&mut file).and_then(|size| {
                // Whoever was killed may have left half a line.
                file.set_len(size).map(|()| size)
            });
            Ok((file, size.map_err(failed)?, there.started))
        }
        _ => {
            let mut line = serde_json::to_vec(header).unwrap_or_default();
            line.push(b'\n');
            let written = file.set_len(0).and_then(|()| file.write_all(&line));
            written.map_err(failed)?;
            Ok((file, line.len() as u64, header.started))
        }
    }
}

/// Where the file's last whole line ends.
fn after_last_line(file: &mut File) -> std::io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    let from = size.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|&byte| byte == b'\n');
    Ok(end.map_or(size, |end| from + end as u64 + 1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn header(bootstrap: &str) -> Header {
        Header {
            version: 1,
            image: "image".to_owned(),
            bootstrap: bootstrap.to_owned(),
            started: 5,
            blobs: Vec::new(),
        }
    }

    #[test]
    fn a_trace_goes_on_behind_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let (mut file, size, started) = open(&path, &header("a"), Begin::GoOn).unwrap();
        assert_eq!(started, 5);
        assert_eq!(size, std::fs::metadata(&path).unwrap().len());
        file.write_all(b"{\"event\":\"dropped\",\"at\":1,\"count\":1}\n{\"eve")
            .unwrap();
        let before = std::fs::read(&path).unwrap();
        let later = Header {
            started: 9,
            ..header("a")
        };
        let (_, size, started) = open(&path, &later, Begin::GoOn).unwrap();
        assert_eq!(started, 5);
        assert_eq!(size, before.len() as u64 - 5);
        assert_eq!(std::fs::read(&path).unwrap(), before[..before.len() - 5]);
        let (_, _, started) = open(&path, &later, Begin::Anew).unwrap();
        assert_eq!(started, 9);
        assert_eq!(crate::Trace::load(&path).unwrap().events, []);
    }

    #[test]
    fn what_is_no_trace_of_the_image_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        for begin in [Begin::Anew, Begin::GoOn] {
            std::fs::write(&path, "precious\n").unwrap();
            let error = open(&path, &header("a"), begin).unwrap_err();
            assert!(matches!(error, Error::NoTrace(_)), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), b"precious\n");
            std::fs::remove_file(&path).unwrap();
            open(&path, &header("a"), begin).unwrap();
            let error = open(&path, &header("b"), begin).unwrap_err();
            assert!(matches!(error, Error::OtherImage { .. }), "{error}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
