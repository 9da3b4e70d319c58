//! Runs a program of an image that is mounted: in namespaces of its own, with what a program expects to find.
//!
//! Three processes are at work. The *runner* is the one that calls [`Space::enter`], before it has any threads, and
//! then mounts the image within the space's directory, where nobody else sees it. [`Space::run`] starts this program again as the first
//! process of a new PID namespace ([`inside()`]), which makes the image its root and starts the program itself.
//! The two are connected by a socket: over it goes what to run, and every signal that is to be passed on. When it breaks,
//! the runner is dead, and the first process ends; with it ends every process of its namespace, and with the last of
//! these the mounts, for nobody else has them.
//!
//! This is no sandbox for programs that nobody trusts: the network is the host's, and no system call is filtered.
#![forbid(unsafe_code)]

mod error;
mod files;
mod ids;
mod inside;
mod privileges;
mod root;
mod run;
mod space;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use error::Error;
pub use ids::map_ids;
pub use inside::inside;
pub use space::{Space, forget};

/// The program itself, even after its file was replaced.
const PROGRAM: &str = "/proc/self/exe";
/// The hidden command that calls [`inside()`] with the path that follows.
pub const INSIDE: &str = "run-inside";
/// The hidden command that calls [`map_ids`] with the number that follows.
pub const MAP_IDS: &str = "run-map-ids";

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program, searched for in `PATH`, and its arguments.
    pub arguments: Vec<OsString>,
    /// Its variables: `NAME=VALUE`. `PATH`, `HOME` and `HOSTNAME` are added where they are missing; later ones count.
    pub environment: Vec<String>,
    /// Its working directory, made if absent; `/` if not given.
    pub directory: Option<PathBuf>,
    /// Whom it runs as: `USER[:GROUP]`, names or numbers; root if not given.
    pub user: Option<String>,
    /// What the machine is called for it.
    pub hostname: String,
}
