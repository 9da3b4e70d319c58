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

/// Stops work of a process that others want to know of these signals, too: for what comes before it serves a mount.
pub struct Stop {
    signal: Arc<AtomicUsize>,
    cancel: Cancel,
}

impl Stop {
    /// Watches for these signals from now on.
    pub fn on(signals: &[i32]) -> Self {
        let (signal, flag) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        for &number in signals {
            // Without it, the work goes on to its end.
            let _ = signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize);
            let _ = signal_hook::flag::register(number, Arc::clone(&flag));
        }
        let cancel = Cancel::from_flag(flag);
        Self { signal, cancel }
    }

    /// Asks the work to stop once a signal has come.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// What came of the work: after a signal, whatever failed did so since it was to stop.
    pub fn settle<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(|error| match self.signal.load(Ordering::SeqCst) {
            0 => error,
            signal => Interrupted(signal).into(),
        })
    }
}

impl Interrupt {
    /// Watches for signals from now on.
    pub fn watch() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM] {
            let code = 128 + number;
            // Order matters: the shutdown sees whether an earlier signal has set the flag.
            signal_hook::flag::register_conditional_shutdown(number, code, Arc::clone(&flag))
                .and_then(|_| signal_hook::flag::register(number, Arc::clone(&flag)))
                .and_then(|_| {
                    signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)
                })
                .context("cannot watch for signals")?;
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
    pub fn settle(&self, result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
        match (result, self.exit_code()) {
            (Err(_), Some(code)) => {
                eprintln!("error: {}", ::progress::Cancelled);
                Ok(code)
            }
            (result, _) => result,
        }
    }

    /// The exit status, 128 + signal, if a signal has come.
    pub fn exit_code(&self) -> Option<ExitCode> {
        let signal = self.signal.load(Ordering::SeqCst);
        (signal != 0).then(|| Interrupted(signal).exit_code())
    }
}
