use std::io;
use std::path::PathBuf;

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There are no user namespaces for this user.
    #[error(
        "a user namespace can't be made; run this as root, or have them allowed (sysctl user.max_user_namespaces, and kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns where there is one)"
    )]
    UserNamespace {
        /// What the system said.
        source: io::Error,
    },
    /// Namespaces, mounts or processes are refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The image has no such user or group.
    #[error(
        "{user}: there is no such user or group in the image (/etc/passwd, /etc/group); give a number"
    )]
    NoUser {
        /// What was asked for.
        user: String,
    },
    /// The user has no number in this user namespace.
    #[error(
        "the user {uid}:{gid} does not exist in this user namespace; run this as root, give --user 0, or get subordinate ids (/etc/subuid, /etc/subgid and the package uidmap)"
    )]
    UserNotMapped {
        /// The number of the user.
        uid: u32,
        /// The number of the group.
        gid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to run.
    #[error("there is no command: the image names none, so give one after two dashes")]
    NoCommand,
    /// The program could not be started.
    #[error("{}: cannot be run", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The exit status that says so: 127 for a program that is not there, 126 for one that can't be run, else 125.
    pub fn code(&self) -> u8 {
        match self {
            Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Start { .. } => 126,
            _ => 125,
        }
    }

    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }
}
