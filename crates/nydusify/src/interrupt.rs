//! Ctrl-C and SIGTERM: the first asks the work to stop and clean up, the second ends the process at once.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context as _;
use progress::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};

/// What came of the signals so far.
#[derive(Debug)]
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
    cancel: Cancel,
}

/// Work that a signal stopped.
#[derive(Debug)]
pub struct Interrupted(usize);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        ::progress::Cancelled.fmt(f)
    }
}

impl std::error::Error for Interrupted {}

impl Interrupted {
    /// 128 + signal.
    pub fn exit_code(&self) -> ExitCode {
        let signal = u8::try_from(self.0).unwrap_or(u8::MAX);
        ExitCode::from(128_u8.saturating_add(signal))
    }
}

impl Interrupt {
    /// Watches for signals from now on; the second ends the process at once.
    pub fn watch() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            // Before the flag is registered: the shutdown sees whether an earlier signal has set it.
            signal_hook::flag::register_conditional_shutdown(
                number,
                128 + number,
                Arc::clone(&flag),
            )
            .context("cannot watch for signals")?;
        }
        Self::on(&[SIGINT, SIGTERM], flag).context("cannot watch for signals")
    }

    /// Watches for these signals in a process that others in it want to know of, too: for what comes before it serves a mount. Without
    /// it, the work goes on to its end.
    pub fn watch_along(signals: &[i32]) -> Self {
        let flag = Arc::default();
        Self::on(signals, Arc::clone(&flag)).unwrap_or_else(|_| Self {
            signal: Arc::default(),
            cancel: Cancel::from_flag(flag),
        })
    }

    fn on(signals: &[i32], flag: Arc<AtomicBool>) -> std::io::Result<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for &number in signals {
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)?;
            signal_hook::flag::register(number, Arc::clone(&flag))?;
        }
        Ok(Self {
            signal,
            cancel: Cancel::from_flag(flag),
        })
    }

    /// Asks the work to stop once a signal has come.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// What came of the work: after a signal, whatever failed did so since it was to stop.
    pub fn settle<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(|error| self.interrupted().map_or(error, Into::into))
    }

    /// The exit status, 128 + signal, if a signal has come.
    pub fn exit_code(&self) -> Option<ExitCode> {
        self.interrupted()
            .map(|interrupted| interrupted.exit_code())
    }

    fn interrupted(&self) -> Option<Interrupted> {
        let signal = self.signal.load(Ordering::SeqCst);
        (signal != 0).then_some(Interrupted(signal))
    }
}
