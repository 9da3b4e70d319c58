use std::io;
use std::path::PathBuf;

/// Why a backend cannot be used. Secrets are never part of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A type of backend that there is not.
    #[error("there is no backend type {0:?}: the types are oss, s3 and localfs")]
    Kind(String),
    /// A type of backend that cannot be read from.
    #[error(
        "there is no backend type {0:?} to read from: the types are oss, s3, registry, localfs, localdisk and http-proxy"
    )]
    Source(String),
    /// The configuration is no JSON.
    #[error("the configuration of the {kind} backend is no JSON object")]
    Json {
        /// Type of the backend.
        kind: &'static str,
        /// What the parser said, if it is no JSON at all. It repeats nothing of the text.
        source: Option<serde_json::Error>,
    },
    /// The configuration of a daemon is neither JSON nor TOML.
    #[error("the configuration is neither JSON nor, from line {toml_line} on, TOML")]
    Syntax {
        /// First line that is no TOML, counted from 1.
        toml_line: usize,
        /// Why it is no JSON. It repeats nothing of the text.
        source: serde_json::Error,
    },
    /// A key of a daemon's configuration is missing or unusable.
    #[error("configuration of a daemon: {key:?} {reason}")]
    Daemon {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A key of the configuration is missing or unusable.
    #[error("configuration of the {kind} backend: {key:?} {reason}")]
    Key {
        /// Type of the backend.
        kind: &'static str,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A list of mirrors that is none.
    #[error("{key:?} {reason}")]
    Hosts {
        /// The key, or what stands for it.
        key: String,
        /// What is wrong with it. It repeats nothing of the text.
        reason: String,
    },
    /// What should be the address of a mirror. It may hold what nobody should see, and is not repeated.
    #[error("it must be HOST[:PORT], or http:// or https:// before it")]
    Mirror,
    /// A disk whose partitions cannot be told.
    #[error("cannot find the blobs on {path}: {reason}", path = path.display())]
    Disk {
        /// The device, or the file with the image of one.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file of a `localfs` or `localdisk` backend cannot be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried: "open", "write", ...
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An object store did not do what it was asked for.
    #[error(transparent)]
    Store(#[from] registry::Error),
    /// An object store answered what makes no sense.
    #[error("{object}: the answer to {action} has no {missing}")]
    Answer {
        /// Bucket and object.
        object: String,
        /// What was asked for.
        action: &'static str,
        /// What is not in the answer.
        missing: &'static str,
    },
    /// A blob that is too large for an upload in parts.
    #[error("{object}: the blob is larger than what can be uploaded in {parts} parts")]
    TooLarge {
        /// Bucket and object.
        object: String,
        /// Most parts.
        parts: usize,
    },
}

impl Error {
    /// It and all its causes, as one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }

    /// An [`Error::Io`] maker for `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<Error> for image::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(registry::Error::Cancelled(cancelled)) => Self::Cancelled(cancelled),
            Error::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            other => Self::Remote(other.into()),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            Error::Io { ref source, .. } => Self::new(source.kind(), error),
            other => Self::other(other),
        }
    }
}
