//! Ctrl-C and SIGTERM: stop, leave nothing unfinished, exit with 128 + signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use progress::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::Unfinished;

/// How long work that was asked to stop may take before the process ends without it; a read from a silent FIFO never
/// notices.
const GRACE: Duration = Duration::from_millis(500);

/// What came of the signals so far.
#[derive(Debug, Clone)]
pub struct Interrupt {
    signal: Arc<AtomicI32>,
    /// Asks the work to stop.
    pub cancel: Cancel,
    /// Files to remove.
    pub unfinished: Unfinished,
}

impl Interrupt {
    /// Watches for signals from now on.
    pub fn watch() -> anyhow::Result<Self> {
        let interrupt = Self {
            signal: Arc::default(),
            cancel: Cancel::default(),
            unfinished: Unfinished::default(),
        };
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let watcher = interrupt.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    watcher.signal.store(signal, Ordering::SeqCst);
                    watcher.cancel.cancel();
                    eprintln!("Error: interrupted");
                    thread::sleep(GRACE);
                    watcher.unfinished.remove_all();
                    std::process::exit(128 + signal);
                }
            })?;
        Ok(interrupt)
    }

    /// Exit status if a signal has come.
    pub fn exit_status(&self) -> Option<u8> {
        let signal = self.signal.load(Ordering::SeqCst);
        (signal != 0).then(|| 128_u8.saturating_add(signal as u8))
    }
}
