//! `cargo run -p manual -- DIR`: manual pages and completions of both programs, laid out as below `/usr/share`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Parser;

/// Write manual pages and shell completions of nydus-image and nydusify.
#[derive(Parser)]
#[command(name = "manual")]
struct Arguments {
    /// Directory such as /usr/local/share or ~/.local/share; made if absent
    dir: PathBuf,
}

fn main() -> anyhow::Result<()> {
    manual::write(&Arguments::parse().dir)
}
