//! How the processes of a mount start one another.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The program itself, even after its file was replaced.
pub(crate) const PROGRAM: &str = "/proc/self/exe";
/// The hidden flag that makes `mount` the process that serves, or fills, in place of one that died.
const RESUME: &str = "--resume";

/// The command that serves a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Arguments of the command that mounted.
    pub arguments: Vec<OsString>,
    /// Its working directory.
    pub directory: PathBuf,
}

impl Program {
    /// Starts it in place of a process that died. `stdin` is where it is told what that one had. What a terminal
    /// signals does not reach it: whoever started it passes that on.
    pub(crate) fn start(&self, stdin: OwnedFd) -> io::Result<Child> {
        let directory = Some(self.directory.as_path()).filter(|dir| dir.is_dir());
        Command::new(PROGRAM)
            .args(&self.arguments)
            .arg(RESUME)
            .current_dir(directory.unwrap_or(Path::new("/")))
            .process_group(0)
            .stdin(stdin)
            .stdout(Stdio::null())
            .spawn()
    }
}
