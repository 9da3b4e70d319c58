//! What a mount is asked for and what it does for it, as a file: a *trace*.
//!
//! * [`Recorder`] writes one while a mount is served; whoever reads never waits for it.
//! * [`Trace`] is one that was read back, strictly: see the module `format` for what stands in the file.
//! * [`prefetch_list`] makes of it the list of what a container needs first, and [`Report`] says where the time went.
#![forbid(unsafe_code)]

mod error;
mod format;
mod list;
mod names;
mod recorder;
mod report;
mod writer;

pub use error::Error;
pub use format::{ChunkId, Event, FILE_MAX, Header, Purpose, Trace, bootstrap_digest};
pub use list::{files_read, prefetch_list};
pub use recorder::{Begin, Recorder};
pub use report::{FileReport, Moment, Phase, Phases, Report, RequestReport, Totals, Unread};
