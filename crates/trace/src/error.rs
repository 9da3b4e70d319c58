use std::io;
use std::path::{Path, PathBuf};

/// What can be wrong with a trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("trace {}: cannot {what}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It does not begin as a trace does.
    #[error("{}: this is no trace of a mount: name another file", .0.display())]
    NoTrace(PathBuf),
    /// It is of a version that this program does not know.
    #[error("{}: the trace is of version {version}, this program knows version 1", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u64,
    },
    /// A line is damaged.
    #[error("{}: line {line} of the trace is damaged: {why}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// It is larger than any that is written.
    #[error("{}: the trace is larger than {} MiB, which no mount writes", .0.display(), super::FILE_MAX >> 20)]
    TooLarge(PathBuf),
    /// It is of another image than the one it is to be used for.
    #[error("{}: this is the trace of another image ({}, bootstrap sha256:{}): trace this one, or name another file", .path.display(), .image.escape_debug(), .bootstrap.escape_debug())]
    OtherImage {
        /// The file.
        path: PathBuf,
        /// How the image was called.
        image: String,
        /// Its bootstrap.
        bootstrap: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, what, source }
    }
}
