//! The life of a program that serves a mount: until a signal or an unmount, then an orderly end.

use std::io;
use std::sync::mpsc;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;

use crate::{Error, Mounted, Stats};

/// The signals a serving program listens to, from the moment this is made: SIGINT, SIGTERM and SIGHUP end it,
/// SIGUSR1 asks for statistics, and SIGUSR2 is a program that wants to take over. Make it before mounting, so that none
/// is lost.
#[derive(Debug)]
pub struct Signals(SignalsInfo<WithOrigin>);

/// A signal, and the process that sent it, if it was one of root or of this process's own user.
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
        let signals = SignalsInfo::new(numbers);
        Ok(Self(signals.map_err(|source| Error::System {
            what: "signal handlers",
            source,
        })?))
    }

    /// Passes each signal on until `pass` says that it is enough.
    pub(crate) fn each(mut self, mut pass: impl FnMut(Sent) -> bool) {
        let own = rustix::process::geteuid().as_raw();
        for origin in self.0.forever() {
            let process = origin
                .process
                .filter(|process| [0, own].contains(&process.uid));
            let sent = Sent {
                signal: origin.signal,
                sender: process.and_then(|process| process.pid.try_into().ok()),
            };
            if !pass(sent) {
                return;
            }
        }
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

enum Event {
    Signal(i32),
    Over(io::Result<Outcome>),
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
        signals: Signals,
        mut report: impl FnMut(&Stats),
    ) -> Result<Ending, Error> {
        let (sender, events) = mpsc::channel();
        let handle = signals.0.handle();
        let relay = sender.clone();
        spawn("signals", move || {
            signals.each(|sent| relay.send(Event::Signal(sent.signal)).is_ok());
        })?;
        if let Some(link) = &self.link {
            let relay = sender.clone();
            link.on_retire(move || {
                // If nobody listens any more, the process ends anyway.
                let _ = relay.send(Event::Over(Ok(Outcome::Replaced)));
            });
        }
        if let Some(session) = self.session.take() {
            spawn("session", move || {
                // If nobody listens any more, nobody wants to know.
                let _ = sender.send(Event::Over(session.join()));
            })?;
        }
        let ended = self.wait(&events, &mut report);
        handle.close();
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
        if let Some(session) = self.session.take() {
            let path = self.mountpoint().to_owned();
            let joined = session.join();
            joined.map_err(|source| Error::Session { path, source })?;
        }
        self.settle();
        Ok(self.stats())
    }

    /// The signal that ended it, if one did.
    fn wait(
        &mut self,
        events: &mpsc::Receiver<Event>,
        report: &mut impl FnMut(&Stats),
    ) -> Result<Option<i32>, Error> {
        let mut ending = None;
        while let Ok(event) = events.recv() {
            match event {
                Event::Signal(SIGUSR1) => report(&self.stats()),
                // For the process that keeps the mount.
                Event::Signal(SIGUSR2) => {}
                Event::Signal(signal) => {
                    let second = ending.replace(signal).is_some();
                    let idle = self.detach()?;
                    if second || !idle {
                        // Somebody holds files: they get errors once the process is gone.
                        self.abandon();
                        break;
                    }
                }
                Event::Over(result) => {
                    let path = self.mountpoint().to_owned();
                    match result.map_err(|source| Error::Session { path, source })? {
                        Outcome::Over => {}
                        Outcome::Replaced => self.leave_mounted(),
                    }
                    break;
                }
            }
        }
        Ok(ending)
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
