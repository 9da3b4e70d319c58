//! Opens images that `nydus-image` makes with the published reader, and compares what it sees with what our libraries
//! see. `cargo xtask oracle` runs it: `consumer-nydus-rafs NYDUS_IMAGE [FILTER]`.
#![forbid(unsafe_code)]

mod cases;
#[path = "../../../../crates/testkit/src/estargz.rs"]
#[allow(dead_code)]
mod estargz;
mod listing;
mod ours;
mod reader;
mod references;
mod sample;
#[path = "../../../../crates/testkit/src/tar.rs"]
#[allow(dead_code)]
mod tar;

use std::process::ExitCode;

/// Digest of bytes in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: consumer-nydus-rafs NYDUS_IMAGE [FILTER]");
        return ExitCode::from(2);
    };
    let filter = words.next().map(|word| word.to_string_lossy().into_owned());
    match cases::run_all(program.into(), filter.as_deref().unwrap_or_default()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
