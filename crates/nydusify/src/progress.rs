//! Rendering progress: bars, plain lines or JSON lines.

mod bars;
mod json;
mod plain;

use std::io::IsTerminal as _;

use indicatif::MultiProgress;
use progress::{Progress, Silent};

/// How to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Bars on a terminal, else nothing
    Auto,
    /// Lines of text on standard error
    Plain,
    /// Lines of JSON on standard output
    Json,
    /// Nothing
    None,
}

/// What shows progress in `mode`. The task named `total` is the sum of all others.
pub fn renderer(mode: Mode, terminal: MultiProgress) -> Box<dyn Progress> {
    match mode {
        Mode::Auto if std::io::stderr().is_terminal() => Box::new(bars::Bars::new(terminal)),
        Mode::Plain => Box::new(plain::Lines::default()),
        Mode::Json => Box::new(json::Lines::new(std::io::stdout())),
        Mode::Auto | Mode::None => Box::new(Silent),
    }
}
