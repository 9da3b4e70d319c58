//! The log: lines on standard error that do not get between progress bars, or appended to a file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use indicatif::MultiProgress;
use tracing::Level;

/// Sends the log to `file`, else to standard error, around the bars of `terminal`.
pub fn init(level: Level, file: Option<&Path>, terminal: &MultiProgress) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false);
    match file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file =
                file.with_context(|| format!("cannot open the log file {}", path.display()))?;
            builder.with_ansi(false).with_writer(Arc::new(file)).init();
        }
        None => {
            let terminal = terminal.clone();
            builder
                .with_ansi(false)
                .with_writer(move || BetweenBars(terminal.clone()))
                .init();
        }
    }
    Ok(())
}

/// Writes to standard error while no bar is drawn.
struct BetweenBars(MultiProgress);

impl Write for BetweenBars {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
