//! The first process of the namespaces: it makes the image its root, starts the program, and collects all that ends.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::user::Identity;
use crate::{Error, Program, files, privileges, root};

/// Where programs are looked for if nobody says so.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What it says when the image is its root.
pub(crate) const READY: &[u8] = b"r";
/// What the runner answers once the mounts are this process's alone.
pub(crate) const GO: &[u8] = b"g";
/// How it ends when the runner is gone: as if that had been killed.
const ORPHAN: i32 = 128 + 9;

/// What the runner says first, on one line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub program: Program,
    /// Where the image is mounted.
    pub root: PathBuf,
    /// Where further files are.
    pub given: PathBuf,
}

/// Does what the runner says that listens at `socket`, as the first process of a new PID namespace; the exit status of the
/// program, 128 + signal if one ended it.
///
/// # Errors
/// When the program could not be started.
pub fn inside(socket: &Path) -> Result<u8, Error> {
    let talk = || Error::system("talk with the process that started this one");
    let stream = UnixStream::connect(socket).map_err(talk())?;
    let mut answers = stream.try_clone().map_err(talk())?;
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).map_err(talk())?;
    let order: Order =
        serde_json::from_slice(&line).map_err(|error| talk()(io::Error::other(error)))?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(Error::system("make namespaces"))?;
    root::enter(&order.root, &order.given)?;
    rustix::system::sethostname(order.program.hostname.as_bytes())
        .map_err(Error::system("set the name of the machine"))?;
    answers.write_all(READY).map_err(talk())?;
    // Before, the runner has the mounts as well, and they might outlive all of us.
    stream.read_exact(&mut [0]).map_err(talk())?;

    let child = start(order.program)?;
    let pid = Pid::from_child(&child);
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(Error::system("watch the program"))?;
    thread::spawn(move || pass_on(stream, &handle));
    wait_for(pid).map_err(Error::system("wait for the program"))
}

/// Passes signals on, each a byte. When there can be no more, it ends this process, and with it all others.
fn pass_on(mut stream: BufReader<UnixStream>, program: &OwnedFd) {
    let mut number = [0];
    while stream.read_exact(&mut number).is_ok() {
        if let Some(signal) = Signal::from_named_raw(number[0].into()) {
            // It may have ended just now.
            let _ = rustix::process::pidfd_send_signal(program, signal);
        }
    }
    std::process::exit(ORPHAN);
}

/// Collects processes until the program has ended.
fn wait_for(program: Pid) -> io::Result<u8> {
    loop {
        let ended = rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::empty()))?;
        match ended {
            Some((pid, status)) if pid == program => return Ok(code(status)),
            _ => {}
        }
    }
}

fn code(status: WaitStatus) -> u8 {
    let code = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or(u8::MAX.into()),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Starts the program, from a thread whose privileges are its.
fn start(program: Program) -> Result<Child, Error> {
    let thread = thread::spawn(move || {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let user = program.user.as_deref().unwrap_or_default();
        let identity = Identity::find(user, &read("/etc/passwd"), &read("/etc/group"))?;
        let mut arguments = program.arguments.iter();
        let name = arguments.next().ok_or(Error::NoCommand)?;
        let directory = program.directory.as_deref().unwrap_or(Path::new("/"));
        let directory = Path::new("/").join(directory);
        fs::create_dir_all(&directory)
            .map_err(Error::system(format!("make {}", directory.display())))?;
        let mut command = Command::new(name);
        command
            .args(arguments)
            .env_clear()
            .envs(environment(&program, &identity))
            .current_dir(directory);
        privileges::become_user(&identity)?;
        command.spawn().map_err(|source| Error::Start {
            program: PathBuf::from(name),
            source,
        })
    });
    thread.join().unwrap_or_else(|_| {
        Err(Error::system("start a thread")(io::Error::other(
            "it broke",
        )))
    })
}

fn environment(program: &Program, identity: &Identity) -> Vec<(String, String)> {
    let home = identity.home.display().to_string();
    let own = [
        ("PATH", PATH),
        ("HOME", &home),
        ("HOSTNAME", &program.hostname),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let given = program.environment.iter().filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    });
    own.into_iter().chain(given).collect()
}

/// What an order is made of.
pub(crate) fn prepare(program: &Program, root: &Path, given: &Path) -> io::Result<Vec<u8>> {
    files::write(given, &program.hostname)?;
    let order = Order {
        program: program.clone(),
        root: root.to_owned(),
        given: given.to_owned(),
    };
    let mut line = serde_json::to_vec(&order)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::HashMap;

    use super::*;

    #[test]
    fn later_variables_count_and_missing_ones_are_added() {
        let program = Program {
            environment: ["A=1", "PATH=/bin", "A=2=3", "odd", "=x"]
                .map(str::to_owned)
                .to_vec(),
            hostname: "box".to_owned(),
            ..Program::default()
        };
        let identity = Identity::find("", "", "").unwrap();
        let variables: HashMap<_, _> = environment(&program, &identity).into_iter().collect();
        let expected = [
            ("A", "2=3"),
            ("PATH", "/bin"),
            ("HOME", "/"),
            ("HOSTNAME", "box"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(variables, HashMap::from(expected));
    }

    #[test]
    fn an_order_is_one_line_whatever_is_in_it() {
        use std::os::unix::ffi::OsStringExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            arguments: vec![
                "a\nb".into(),
                std::ffi::OsString::from_vec(vec![0xff, b'\n']),
            ],
            ..Program::default()
        };
        let line = prepare(&program, Path::new("/r"), dir.path()).unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let order: Order = serde_json::from_slice(&line).unwrap();
        assert_eq!(order.program, program);
    }
}
