//! The process that keeps a FUSE mount: it holds the connection, and starts a server again when one dies.
//!
//! On `SIGUSR2` the program of whoever sent it takes the place of this one. The keeper executes that program in its own
//! process, so that the user's process goes on, and passes it the mount over the standard input; the new keeper asks the
//! server to go and starts one of its own program. Whatever dies meanwhile, the other process still has the mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};
use signal_hook::consts::{SIGUSR1, SIGUSR2};

use super::keep::ToKeep;
use super::kit::{Kit, Letter};
use super::wire;
use crate::mountpoint::Mountpoint;
use crate::program::Program;
use crate::serve::{Sent, Signals};
use crate::{Error, channel, events, record};

/// The hidden command that is a keeper.
pub(super) const KEEP: &str = "keep";
/// Servers that may die one soon after the other.
const DEATHS_MAX: u32 = 5;
/// A server that lived so long did not die of what killed the one before.
const SETTLED: Duration = Duration::from_secs(10);
/// Pause before the second server that died soon is started again; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a server may take to go that was asked to.
const RETIREMENT: Duration = Duration::from_secs(10);

/// What to call once the image is mounted: with the mount point, and with the directory of the cache.
pub(super) type Ready = Box<dyn FnOnce(&Path, &Path) -> io::Result<()> + Send>;

pub(super) fn failed(source: io::Error) -> Error {
    Error::System {
        what: "keeping a mount",
        source,
    }
}

/// Who tells a keeper what to do.
pub(super) enum Orders {
    /// Whoever sends signals to its process.
    Signals(Signals),
    /// The rest of its process.
    Owner(events::Receiver<Sent>),
}

impl Orders {
    fn take(&mut self) -> Vec<Sent> {
        match self {
            Self::Signals(signals) => signals.take(),
            Self::Owner(orders) => orders.take().into_iter().collect(),
        }
    }
}

impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Signals(signals) => signals.as_fd(),
            Self::Owner(orders) => orders.as_fd(),
        }
    }
}

/// A process that serves.
#[derive(Default)]
pub(super) struct Server {
    socket: Option<Arc<OwnedFd>>,
    /// If it is a child of this process.
    child: Option<Pid>,
}

impl Server {
    pub(super) fn new(socket: OwnedFd, child: Option<u32>) -> Self {
        Self {
            socket: Some(Arc::new(socket)),
            child: child.and_then(|id| Pid::from_raw(id.try_into().ok()?)),
        }
    }

    fn say(&self, letter: &Letter) {
        if let Some(socket) = &self.socket {
            // If it is dead, that is noticed elsewhere.
            let _ = letter.send(&**socket);
        }
    }

    fn kill(&self) {
        if let Some(child) = self.child {
            // Not waited for yet, so the number is its own.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
    }

    /// Waits until it is gone; its exit code, if it is known and there is one.
    fn reap(&mut self) -> Option<u8> {
        self.socket = None;
        let child = self.child.take();
        let wait = || rustix::process::waitpid(child, WaitOptions::empty());
        let (_, status) = child.and_then(|_| rustix::io::retry_on_intr(wait).ok().flatten())?;
        u8::try_from(status.exit_status()?).ok()
    }
}

pub(super) struct Keeper {
    /// The mount point as the user named it.
    path: PathBuf,
    /// Directory for changes, if there is to be one.
    upper: Option<PathBuf>,
    program: Program,
    /// What is known of the image before the first server has opened it.
    record: Option<OwnedFd>,
    /// `None` until it is mounted.
    kit: Option<Kit>,
    /// Keeps others from mounting there until users see the mount.
    turn: Option<File>,
    server: Server,
    ready: Option<Ready>,
    cache: PathBuf,
    was_ready: bool,
    /// The server said that the mount has ended.
    over: bool,
    /// The server was asked to make room for another.
    retiring: bool,
    /// When it is killed if it has not.
    late: Option<Instant>,
    /// Signals that asked for the end.
    endings: u32,
    /// Servers that died one soon after the other.
    deaths: u32,
    started: Instant,
}

impl Keeper {
    fn new(path: PathBuf, program: Program) -> Self {
        Self {
            path,
            upper: None,
            program,
            record: None,
            kit: None,
            turn: None,
            server: Server::default(),
            ready: None,
            cache: PathBuf::new(),
            was_ready: false,
            over: false,
            retiring: false,
            late: None,
            endings: 0,
            deaths: 0,
            started: Instant::now(),
        }
    }

    /// One that is to mount what is asked for; it starts the first server.
    pub(super) fn begin(what: ToKeep<'_>, ready: Ready) -> io::Result<Self> {
        let record = what.record.map(record::create_new).transpose()?;
        let mut keeper = Self::new(what.mountpoint.to_owned(), what.program);
        keeper.upper = what.upper.map(Path::to_owned);
        keeper.record = record;
        keeper.ready = Some(ready);
        keeper.start_server()?;
        Ok(keeper)
    }

    /// One for a mount that another process kept.
    pub(super) fn succeeding(kit: Kit, server: Server) -> io::Result<Self> {
        let (path, program) = (kit.place.path.clone(), kit.program.clone());
        if let Some(upper) = &kit.upper {
            upper.sign()?;
        }
        let mut keeper = Self::new(path, program);
        keeper.server = server;
        keeper.kit = Some(kit);
        keeper.was_ready = true;
        Ok(keeper)
    }

    pub(super) fn run(mut self, mut orders: Orders) -> Result<u8, Error> {
        let outcome = loop {
            match self.attend(&mut orders) {
                Ok(None) => {}
                Ok(Some(code)) => break Ok(code),
                Err(error) => break Err(error),
            }
        };
        self.server.kill();
        self.server.reap();
        if !self.over {
            self.take_away();
        }
        outcome
    }

    /// Waits for what happens next, and does what is to be done; the exit code, if that was the end.
    fn attend(&mut self, orders: &mut Orders) -> Result<Option<u8>, Error> {
        let socket = self.server.socket.clone();
        let heard = [Some(orders.as_fd()), socket.as_ref().map(AsFd::as_fd)];
        let left = self
            .late
            .map(|late| late.saturating_duration_since(Instant::now()));
        let [_, spoke] = events::wait(heard, left).map_err(failed)?;
        if self.late.is_some_and(|late| late <= Instant::now()) {
            self.late = None;
            self.server.kill();
        }
        for Sent { signal, sender } in orders.take() {
            match signal {
                SIGUSR1 => self.server.say(&Letter::Signal(signal)),
                SIGUSR2 => self.succeed(sender),
                _ => {
                    if let Some(code) = self.end(signal) {
                        return Ok(Some(code));
                    }
                }
            }
        }
        if let Some(socket) = socket.filter(|_| spoke) {
            match Letter::receive(&*socket) {
                Ok(letter) => self.read(letter)?,
                Err(_) => return self.gone(),
            }
        }
        Ok(None)
    }

    /// The server does all that belongs to an end. One that does not is helped.
    fn end(&mut self, signal: i32) -> Option<u8> {
        self.endings += 1;
        if self.kit.is_none() {
            return Some(u8::try_from(128 + signal).unwrap_or(1));
        }
        if self.endings > 2 {
            return Some(0);
        }
        self.server.say(&Letter::Signal(signal));
        None
    }

    fn read(&mut self, letter: Letter) -> Result<(), Error> {
        match letter {
            Letter::Prepared(cache, record) if self.kit.is_none() => {
                let kit = self.mount(&cache, record)?;
                self.cache = cache;
                let copy = kit.try_clone().map_err(failed)?;
                self.kit = Some(kit);
                self.server.say(&Letter::Kit(copy));
            }
            Letter::Ready(place) => {
                self.was_ready = true;
                self.turn = None;
                if let Some(kit) = &mut self.kit {
                    kit.place = place;
                }
                if let (Some(ready), Some(kit)) = (self.ready.take(), &self.kit) {
                    ready(&kit.place.path, &self.cache).map_err(failed)?;
                }
            }
            Letter::Over => self.over = true,
            _ => {}
        }
        Ok(())
    }

    fn mount(&mut self, cache: &Path, record: OwnedFd) -> Result<Kit, Error> {
        // Servers to come need the cache that was chosen; the last of several flags counts.
        let chosen = ["--cache-dir".into(), cache.into()];
        self.program.arguments.extend(chosen);
        let (kit, turn) = Kit::mount(
            &self.path,
            self.upper.as_deref(),
            self.program.clone(),
            record,
        )?;
        self.turn = turn;
        Ok(kit)
    }

    fn gone(&mut self) -> Result<Option<u8>, Error> {
        let code = self.server.reap();
        self.late = None;
        let Some(kit) = &self.kit else {
            let path = self.path.clone();
            return code.map(Some).ok_or(Error::ServerDied { path });
        };
        if self.over || self.endings > 0 {
            return Ok(Some(code.unwrap_or(0)));
        }
        if !self.was_ready && code.is_some() {
            return Ok(code);
        }
        if wire::is_over(&kit.device) {
            return Ok(Some(0));
        }
        if !std::mem::take(&mut self.retiring) {
            tracing::warn!(
                "{}: the process that serves the mount died: another one takes its place",
                kit.place.path.display()
            );
            self.count_death()?;
        }
        while let Err(error) = self.start_server() {
            tracing::error!("cannot start a process that serves a mount: {error}");
            self.count_death()?;
        }
        Ok(None)
    }

    fn count_death(&mut self) -> Result<(), Error> {
        if self.started.elapsed() > SETTLED {
            self.deaths = 0;
        }
        self.deaths += 1;
        if self.deaths >= DEATHS_MAX {
            return Err(Error::GivenUp {
                path: self.path.clone(),
                deaths: self.deaths,
            });
        }
        if self.deaths > 1 {
            thread::sleep(PAUSE * (1 << (self.deaths - 2)));
        }
        Ok(())
    }

    fn start_server(&mut self) -> io::Result<()> {
        self.started = Instant::now();
        let (ours, theirs) = channel::pair()?;
        let letter = match &self.kit {
            None => Letter::Begin(self.record.take()),
            Some(kit) => {
                let mut kit = kit.try_clone()?;
                kit.keeper = std::process::id();
                Letter::Kit(kit)
            }
        };
        // It is there before the server is: should this process die now, the server has the mount.
        letter.send(&ours)?;
        let child = self.program.start(theirs)?;
        self.server = Server::new(ours, Some(child.id()));
        Ok(())
    }

    /// Has the server make room for another.
    pub(super) fn retire(&mut self) {
        self.retiring = true;
        self.server.say(&Letter::Retire);
        self.late = Some(Instant::now() + RETIREMENT);
    }

    /// Executes the program of the process `sender`, a process id, in place of this one.
    fn succeed(&self, sender: Option<u32>) {
        let (Some(sender), Some(kit), Some(socket)) = (sender, &self.kit, &self.server.socket)
        else {
            return;
        };
        if !self.was_ready {
            return;
        }
        let succeed = || {
            let program = File::open(format!("/proc/{sender}/exe"))?;
            let (ours, theirs) = channel::pair()?;
            let child = self.server.child.map(|child| child.as_raw_nonzero().get());
            let child = child.and_then(|child| u32::try_from(child).ok());
            Letter::Succeed(kit.try_clone()?, socket.try_clone()?, child).send(&ours)?;
            let error = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
                .arg(KEEP)
                .stdin(theirs)
                .exec();
            io::Result::<()>::Err(error)
        };
        if let Err(error) = succeed() {
            let path = kit.place.path.display();
            tracing::error!("{path}: process {sender} can't take over the mount: {error}");
        }
    }

    /// Ends the connection, so that nobody waits, and takes the mount away.
    fn take_away(&mut self) {
        if let Some(kit) = self.kit.take() {
            drop(kit.device);
            drop(Mountpoint::handed_over(kit.place, kit.upper));
        }
    }
}
