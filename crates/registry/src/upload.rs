use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use image::Digest;
use progress::Cancel;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::unless_cancelled;
use crate::session::Session;
use crate::{Error, Repository};

/// Largest segment that a registry can ask for.
const SEGMENT_MAX: usize = 128 << 20;
/// How long the segment on the wire may take to arrive when the upload is given up. Cut in the middle, it would leave
/// docker/distribution with a session that nobody can end.
const GRACE: Duration = Duration::from_millis(700);
/// How long a segment that is cut may take to notice.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// A blob on its way to a registry. What is written goes out in segments: while one is on the wire, the next fills.
///
/// Dropped before [`Upload::finish`] it is given up, and the registry is told so. An error of [`Write::write`] has an
/// [`Error`] inside.
pub struct Upload {
    repository: Repository,
    /// The segment that fills.
    buffer: Vec<u8>,
    segment: usize,
    state: State,
    written: u64,
    /// Ends the segment on the wire when the upload is given up.
    abort: Cancel,
}

enum State {
    Idle(Box<Session>),
    Busy(JoinHandle<(Box<Session>, Result<(), Error>)>),
    /// Finished, or failed so that nothing can be told to the registry.
    Over,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = self.written;
        write!(f, "Upload({}, {written} bytes)", self.repository)
    }
}

impl Upload {
    pub(crate) fn new(repository: Repository, session: Session) -> Self {
        let settings = &repository.core().settings;
        Self {
            segment: settings
                .segment_size
                .max(session.segment_min.min(SEGMENT_MAX))
                .max(1),
            abort: Cancel::default(),
            repository,
            buffer: Vec::new(),
            state: State::Idle(Box::new(session)),
            written: 0,
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Waits for the segment on the wire.
    fn settle(&mut self) -> Result<(), Error> {
        let State::Busy(task) = &mut self.state else {
            return Ok(());
        };
        // Cancelled, the task goes on until the upload is dropped.
        match self.repository.client.wait(async { Ok(task.await) })? {
            Ok((session, result)) => {
                self.state = State::Idle(session);
                result
            }
            Err(error) => {
                self.state = State::Over;
                Err(Error::Setup {
                    reason: format!("a segment's task failed: {error}"),
                })
            }
        }
    }

    /// The session, if nothing is on the wire.
    fn session(&mut self) -> Result<&mut Session, Error> {
        match &mut self.state {
            State::Idle(session) => Ok(session),
            _ => Err(Error::Setup {
                reason: "the upload is over".to_owned(),
            }),
        }
    }

    /// Sends the segment that is full.
    fn send(&mut self) -> Result<(), Error> {
        self.settle()?;
        self.session()?;
        let State::Idle(mut session) = std::mem::replace(&mut self.state, State::Over) else {
            return Ok(());
        };
        let next = Vec::with_capacity(self.segment);
        let data = Bytes::from(std::mem::replace(&mut self.buffer, next));
        let abort = self.abort.clone();
        let task = async move {
            let result = unless_cancelled(&abort, session.append(&data)).await;
            (session, result)
        };
        self.state = State::Busy(self.repository.client.inner.runtime.spawn(task));
        Ok(())
    }

    /// Completes the blob, whose digest is `digest`; gives its size.
    ///
    /// # Errors
    /// [`Error::Refused`] if the registry does not find that digest; [`Error::UploadLost`] if it lost what it had;
    /// and all that can go wrong on the way.
    pub fn finish(mut self, digest: Digest) -> Result<u64, Error> {
        self.settle()?;
        let rest = Bytes::from(std::mem::take(&mut self.buffer));
        let client = self.repository.client.clone();
        let size = client.wait(self.session()?.commit(&digest, &rest))?;
        self.state = State::Over;
        Ok(size)
    }
}

impl Write for Upload {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= self.segment {
            self.send()?;
        }
        let length = buf.len().min(self.segment - self.buffer.len());
        if self.buffer.capacity() < self.buffer.len() + length {
            // Small blobs take little, and no segment takes more than its size.
            let more = (2 * self.buffer.len()).clamp(length, self.segment - self.buffer.len());
            self.buffer.reserve_exact(more);
        }
        self.buffer.extend_from_slice(&buf[..length]);
        self.written += length as u64;
        Ok(length)
    }

    /// Does nothing: segments go out when they are full, and the last with [`Upload::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Over);
        if matches!(state, State::Over) {
            return;
        }
        let abort = self.abort.clone();
        self.repository.client.inner.runtime.block_on(async move {
            let session = match state {
                State::Idle(session) => Some(session),
                State::Busy(mut task) => {
                    let mut ended = timeout(GRACE, &mut task).await;
                    if ended.is_err() {
                        abort.cancel();
                        ended = timeout(ABORT_TIMEOUT, &mut task).await;
                    }
                    ended.ok().and_then(Result::ok).map(|(session, _)| session)
                }
                State::Over => None,
            };
            if let Some(session) = session {
                session.close().await;
            }
        });
    }
}
