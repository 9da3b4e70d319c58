//! The runner's side.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{self, Sender};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::inside::{self, GO, READY};
use crate::{Error, INSIDE, PROGRAM, Program, Space};

/// Signals that the program gets in place of the runner.
const PASSED_ON: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];
/// Those that a terminal sends to all processes in its foreground: the program has got them.
const BY_TERMINAL: [i32; 3] = [SIGINT, SIGQUIT, SIGWINCH];

enum Event {
    /// The image is the root of the first process.
    Ready(UnixStream),
    Signal(i32),
    Ended(io::Result<ExitStatus>),
}

impl Space {
    /// Runs the program in the root directory `root`, within [`Space::directory`], to its end; its exit status, 128 + signal
    /// if one ended it, or what [`Error::code`] says if it could not be started, which has been told on standard error.
    ///
    /// From then on nothing is mounted in the space any more.
    ///
    /// # Errors
    /// When the processes can't be started.
    pub fn run(&self, root: &Path, program: &Program) -> Result<u8, Error> {
        let failed = || Error::system("start the first process");
        let socket = self.directory.join("socket");
        let listener = UnixListener::bind(&socket).map_err(failed())?;
        let order = inside::prepare(program, root, &self.directory).map_err(failed())?;
        let (sender, events) = mpsc::channel();
        let mut signals = Signals::new(PASSED_ON).map_err(failed())?;
        let handle = signals.handle();
        let relay = sender.clone();
        thread::spawn(move || {
            let mut signals = signals.forever();
            signals.all(|signal| relay.send(Event::Signal(signal)).is_ok())
        });
        let relay = sender.clone();
        thread::spawn(move || greet(&listener, &order, &relay));
        let socket = socket.clone();
        thread::spawn(move || sender.send(Event::Ended(first_process(&socket))));

        let mut first = None;
        // Signals that came before there was anybody to pass them on to.
        let mut early = Vec::new();
        while let Ok(event) = events.recv() {
            match event {
                Event::Ready(mut stream) => {
                    self.let_go()
                        .map_err(Error::system("let go of the mounts"))?;
                    // Should it be gone, its end comes next.
                    let _ = stream.write_all(&[GO, &early].concat());
                    first = Some(stream);
                }
                Event::Signal(signal) => {
                    let byte = u8::try_from(signal).unwrap_or_default();
                    match &mut first {
                        _ if BY_TERMINAL.contains(&signal) && in_foreground() => {}
                        Some(stream) => drop(stream.write_all(&[byte])),
                        None => early.push(byte),
                    }
                }
                Event::Ended(status) => {
                    handle.close();
                    // The first process may have died before it was ready.
                    let _ = self.let_go();
                    let status = status.map_err(failed())?;
                    let code = status.code().or(status.signal().map(|signal| 128 + signal));
                    return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125));
                }
            }
        }
        Err(failed()(io::Error::from(io::ErrorKind::BrokenPipe)))
    }
}

/// Tells the first process what to do, and waits until it is ready.
fn greet(listener: &UnixListener, order: &[u8], relay: &Sender<Event>) {
    let greet = || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(order)?;
        let mut answer = [0; READY.len()];
        stream.read_exact(&mut answer)?;
        Ok::<_, io::Error>(stream)
    };
    // If it fails, so does the process, and its end is an event of its own.
    if let Ok(stream) = greet() {
        let _ = relay.send(Event::Ready(stream));
    }
}

/// Starts the first process of a new PID namespace, which only this thread's children are in, and waits for it.
fn first_process(socket: &Path) -> io::Result<ExitStatus> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    Command::new(PROGRAM).arg(INSIDE).arg(socket).status()
}

/// Whether the terminal sends its signals to this process group.
fn in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| {
        rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
    })
}
