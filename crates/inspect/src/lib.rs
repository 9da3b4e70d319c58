//! What `nydus-image check`, `inspect` and `stat` say of a bootstrap, and what two images share. Nothing is changed and nothing is printed:
//! text goes to a [`std::io::Write`] of the caller.
#![forbid(unsafe_code)]

mod blobs;
mod command_report;
mod diff;
mod error;
mod report;
mod shell;
mod statistics;
mod walk;

pub use blobs::check_blobs;
pub use command_report::CommandReport;
pub use diff::{Change, Diff, Kind, Shared};
pub use error::Error;
pub use report::{write_blobs, write_files, write_valid};
pub use shell::{Next, PROMPT, Shell};
pub use statistics::{ImageStatistics, Statistics};
