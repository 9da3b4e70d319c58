//! The life of a program that serves a mount: until a signal or an unmount, then an orderly end.

use std::io;
use std::sync::mpsc;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::{Error, Mounted, Stats};

/// The signals a serving program listens to, from the moment this is made: SIGINT, SIGTERM and SIGHUP end it,
/// SIGUSR1 asks for statistics. Make it before mounting, so that none is lost.
#[derive(Debug)]
pub struct Signals(signal_hook::iterator::Signals);

impl Signals {
    /// Installs the handlers, for the whole process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self, Error> {
        let signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]);
        Ok(Self(signals.map_err(|source| Error::System {
            what: "signal handlers",
            source,
        })?))
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
    Over(io::Result<()>),
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
        let Signals(mut signals) = signals;
        let handle = signals.handle();
        let relay = sender.clone();
        spawn("signals", move || {
            signals
                .forever()
                .map(Event::Signal)
                .map(|event| relay.send(event))
                .all(|sent| sent.is_ok());
        })?;
        if let Some(session) = self.session.take() {
            spawn("session", move || {
                // If nobody listens any more, nobody wants to know.
                let _ = sender.send(Event::Over(session.join()));
            })?;
        }
        let ended = self.wait(&events, &mut report);
        handle.close();
        self.settle();
        Ok(Ending {
            signal: ended?,
            stats: self.stats(),
        })
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
                    result.map_err(|source| Error::Session { path, source })?;
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
