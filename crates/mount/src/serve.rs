//! The life of a program that serves a mount: until a signal or an unmount, then an orderly end. One thread waits for all
//! that may happen meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;

use crate::fuse::Word;
use crate::metrics::Exporter;
use crate::{Error, Mounted, Stats, events};

/// The signals a serving program listens to, from the moment this is made: SIGINT, SIGTERM and SIGHUP end it,
/// SIGUSR1 asks for statistics, and SIGUSR2 is a program that wants to take over. Make it before mounting, so that none
/// is lost.
#[derive(Debug)]
pub struct Signals(SignalDelivery<UnixStream, WithOrigin>);

/// A signal, and the process that sent it, if it was one of root or of this process's own user.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) signal: i32,
    pub(crate) sender: Option<u32>,
}

impl Signals {
    /// Installs the handlers, for the whole process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self, Error> {
        Self::of(&[SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])
    }

    /// Listens to SIGUSR2 alone.
    pub(crate) fn of_successors() -> Result<Self, Error> {
        Self::of(&[SIGUSR2])
    }

    fn of(numbers: &[i32]) -> Result<Self, Error> {
        let listen = || {
            let (read, write) = UnixStream::pair()?;
            SignalDelivery::with_pipe(read, write, WithOrigin::default(), numbers)
        };
        Ok(Self(listen().map_err(|source| Error::System {
            what: "signal handlers",
            source,
        })?))
    }

    /// Those that have come since it was asked last.
    pub(crate) fn take(&mut self) -> Vec<Sent> {
        let own = rustix::process::geteuid().as_raw();
        let sent = self.0.pending().map(|origin| {
            let process = origin
                .process
                .filter(|process| [0, own].contains(&process.uid));
            Sent {
                signal: origin.signal,
                sender: process.and_then(|process| process.pid.try_into().ok()),
            }
        });
        sent.collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// How a mount ended.
#[derive(Debug)]
pub struct Ending {
    /// The signal that asked for it; `None` if somebody unmounted it.
    pub signal: Option<i32>,
    /// What was done in all.
    pub stats: Stats,
}

/// Why there is nothing left to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nobody has it mounted.
    Over,
    /// Another process serves from now on.
    Replaced,
}

impl Mounted {
    /// Serves until a signal comes or somebody unmounts; then nothing is mounted any more, background work has
    /// stopped and the cache is durable. `report` gets the statistics whenever SIGUSR1 asks for them.
    ///
    /// # Errors
    /// When the session broke, or the mount can't be taken away.
    pub fn serve(
        mut self,
        mut signals: Signals,
        mut report: impl FnMut(&Stats),
    ) -> Result<Ending, Error> {
        let ended = self.wait(&mut signals, &mut report);
        drop(signals);
        self.settle();
        let signal = ended?;
        if let Some(link) = &self.link {
            link.end();
        }
        let ending = Ending {
            signal,
            stats: self.stats(),
        };
        // Whoever waits for the end of a writable mount may use the cache again as soon as the directory is free.
        let upper = self.mountpoint.upper.take();
        drop(self);
        drop(upper);
        Ok(ending)
    }

    /// Ends a mount that nobody uses any more, in whichever mount namespace it is: waits until it is gone, and makes the
    /// cache durable. What was done in all.
    ///
    /// # Errors
    /// When the session broke, or the mount can't be taken away.
    pub fn close(mut self) -> Result<Stats, Error> {
        self.detach()?;
        self.abandon();
        let ended = self.front.join();
        ended.map_err(|source| self.broken(source))?;
        self.settle();
        Ok(self.stats())
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Session {
            path: self.mountpoint().to_owned(),
            source,
        }
    }

    /// The signal that ended it, if one did.
    fn wait(
        &mut self,
        signals: &mut Signals,
        report: &mut impl FnMut(&Stats),
    ) -> Result<Option<i32>, Error> {
        let mut ending = None;
        loop {
            let link = self.link.clone();
            let keeper = link.as_ref().map(|link| link.socket());
            let heard = [
                Some(signals.as_fd()),
                Some(self.front.as_fd()),
                keeper.as_ref().map(AsFd::as_fd),
                self.metrics.as_ref().map(Exporter::as_fd),
            ];
            let heard = events::wait(heard, None).map_err(|source| self.broken(source))?;
            let [_, over, from_keeper, asked] = heard;
            let mut came: Vec<i32> = signals.take().into_iter().map(|sent| sent.signal).collect();
            if let Some(metrics) = self.metrics.as_ref().filter(|_| asked) {
                metrics.answer();
            }
            if let Some(link) = link.filter(|_| from_keeper) {
                match link.hear() {
                    Word::Signal(signal) => came.push(signal),
                    Word::Retire => {
                        self.leave_mounted();
                        return Ok(ending);
                    }
                    Word::Nothing => {}
                }
            }
            for signal in came {
                match signal {
                    SIGUSR1 => report(&self.stats()),
                    // For the process that keeps the mount.
                    SIGUSR2 => {}
                    _ => {
                        let second = ending.replace(signal).is_some();
                        let idle = self.detach()?;
                        if second || !idle {
                            // Somebody holds files: they get errors once the process is gone.
                            self.abandon();
                            return Ok(ending);
                        }
                    }
                }
            }
            if let Some(outcome) = over.then(|| self.front.take()).flatten() {
                match outcome.map_err(|source| self.broken(source))? {
                    Outcome::Over => {}
                    Outcome::Replaced => self.leave_mounted(),
                }
                return Ok(ending);
            }
        }
    }
}

/// Starts a thread that nobody waits for.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|source| Error::System {
        what: "starting a thread",
        source,
    })
}
