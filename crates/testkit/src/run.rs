//! Runs programs under test.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    command: String,
}

impl Ran {
    /// Of a finished process.
    pub fn new(command: String, output: Output) -> Self {
        Self {
            code: code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command,
        }
    }

    /// Insists on exit code 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Insists on an exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code == code, "want exit code {code}: {self}");
        self
    }

    /// Insists on every word in what it printed.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stdout.contains(word) || self.stderr.contains(word),
                "want {word:?}: {self}"
            );
        }
        self
    }

    /// Insists on failure with an ordinary exit code (no panic, no signal) and a message that holds every word.
    #[track_caller]
    pub fn fails_with(self, words: &[&str]) -> Self {
        assert!(
            (1..100).contains(&self.code),
            "want a failure that is no crash: {self}"
        );
        for word in words {
            assert!(
                self.stderr.contains(word),
                "want {word:?} in the message: {self}"
            );
        }
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            stdout,
            stderr,
            command,
        } = self;
        write!(
            f,
            "{command}: exit code {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

/// Runs a program without standard input to its end.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Ran {
    let mut command = Command::new(program);
    command.args(args);
    output(&mut command)
}

/// Runs a prepared command to its end, without standard input unless it has one.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn output(command: &mut Command) -> Ran {
    let text = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.unwrap_or_else(|error| panic!("{text}: {error}"));
    Ran::new(text, child.wait_with_output().expect("wait for a child"))
}

/// Runs a program in a directory, its arguments separated by blanks.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run_in(dir: &Path, program: &str, words: &str) -> Ran {
    output(
        Command::new(program)
            .args(words.split_whitespace())
            .current_dir(dir),
    )
}

/// Makes a FIFO with the mode that converters give theirs.
///
/// # Panics
/// When it cannot be made.
pub fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, path, FileType::Fifo, mode, 0).expect("make a FIFO");
}

/// The exit code of a process; 128 + signal if a signal ended it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits until `done` says so.
///
/// # Panics
/// When it does not within half a minute.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(
            Instant::now() < deadline,
            "waited half a minute for: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads a file from its file system, whatever the kernel's page cache has of it.
///
/// # Errors
/// Those of the file system.
pub fn read_uncached(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file system is mounted at `path` itself.
pub fn is_mounted(path: &Path) -> bool {
    let Ok(path) =
        std::fs::canonicalize(path.parent().unwrap_or(path)).map(|dir| match path.file_name() {
            Some(name) => dir.join(name),
            None => dir,
        })
    else {
        return false;
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|at| Path::new(at) == path)
    })
}

/// A foreground mount process that is ended, and its mount with it, when this value goes.
#[derive(Debug)]
pub struct Mount {
    child: Option<Child>,
    at: std::path::PathBuf,
    command: String,
}

impl Mount {
    /// Starts `command`, which is to mount something at `at` and stay in the foreground; waits for the mount.
    ///
    /// # Panics
    /// When the program ends instead, or takes too long.
    #[track_caller]
    pub fn start(command: &mut Command, at: &Path) -> Self {
        let text = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut ended = false;
        wait_until("the mount to be ready", || {
            ended = child.try_wait().expect("look at a child").is_some();
            ended || is_mounted(at)
        });
        let mount = Self {
            child: Some(child),
            at: at.to_path_buf(),
            command: text,
        };
        assert!(!ended, "the mount ended at once: {}", mount.finish());
        mount
    }

    /// Where the tree is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Process id of the program.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(child) = &self.child {
            rustix::process::kill_process(rustix::process::Pid::from_child(child), signal)
                .expect("signal a child");
        }
    }

    /// Ends it as a service manager does; what it printed.
    #[track_caller]
    pub fn stop(self) -> Ran {
        self.signal(rustix::process::Signal::TERM);
        self.finish()
    }

    /// Waits for its end; what it printed.
    #[track_caller]
    pub fn finish(mut self) -> Ran {
        let child = self.child.take().expect("taken only here and at the end");
        Ran::new(
            std::mem::take(&mut self.command),
            child.wait_with_output().expect("wait for a child"),
        )
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        let _ = child.wait();
        if is_mounted(&self.at) {
            let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
            let _ = Command::new("fusermount3")
                .args(["-u", "-z", "-q"])
                .arg(&self.at)
                .status();
        }
    }
}
