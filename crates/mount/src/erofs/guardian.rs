//! The processes that answer the kernel.
//!
//! When the last descriptor of a fanotify group is closed, the kernel lets readers have whatever the file holds: zeros
//! where nothing was fetched yet. So the group is held by two guardians that do next to nothing: they know no image
//! and no network. One reads the kernel's events and passes them to the filler, which has the chunk store; the other
//! waits for the first to die. Whichever process dies, another one starts it again:
//!
//! * the filler: the guardian starts a new one and passes it what still waits;
//! * the guardian on duty: the other takes its place, finds what waits in the shared table, and starts a new other;
//! * the other: the one on duty starts a new one.
//!
//! On `SIGUSR2`, the program of whoever sent it takes their place. The guardian on duty starts the other one of that
//! program and leaves; that one takes over as if it had died, and has the filler leave and starts a new one.
//!
//! If both guardians are killed at the same moment, nobody is left to hold the group. That can't be helped with today's
//! kernels.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM};
use sys::fanotify::Answer;

use super::bits::Bits;
use super::channel::{self, ALL_BLOBS, Message};
use super::kit::{Kit, Role};
use super::table::{ROWS, Table, Waiting};
use crate::Error;
use crate::program::PROGRAM;
use crate::serve::Signals;

/// How long a reader waits at most while there is no filler that could serve it.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Fillers that may die over one request before it is refused.
const TRIES: u32 = 5;
/// How often it looks again for what no descriptor tells.
const TICK: Duration = Duration::from_secs(1);
/// Events taken at a time, so that answers get their turn.
const BURST: usize = 64;
/// What the guardian on duty says to the other one.
const NEW_ALIVE: &[u8] = b"alive";
const OVER: &[u8] = b"over";

/// Is a guardian until nobody has the image mounted any more. `socket` leads to whoever started this process.
///
/// # Errors
/// When it was started by nobody, or can't do its work; the other guardian then starts another one.
pub fn guard(socket: OwnedFd) -> Result<(), Error> {
    let failed = |source| Error::System {
        what: "guarding a mount",
        source,
    };
    prepare().map_err(failed)?;
    let successors = Signals::of_successors()?;
    let kit = Kit::receive(&socket).map_err(failed)?;
    if kit.role != Role::Duty {
        Message::Ready.send(&socket, true).map_err(failed)?;
        return stand_by(kit, &socket, successors).map_err(failed);
    }
    let mut duty = Duty::begin(kit, successors, false).map_err(failed)?;
    Message::Ready.send(&socket, true).map_err(failed)?;
    drop(socket);
    duty.run().map_err(failed)
}

/// No signal of a terminal, a service manager or a lack of memory ends it, short of SIGKILL.
fn prepare() -> io::Result<()> {
    // It may lead a session already, and then it is what it should be.
    let _ = rustix::process::setsid();
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE] {
        signal_hook::flag::register(signal, ignored.clone())?;
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Each waiting reader costs a descriptor; with few of them more readers wait in the kernel.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    std::env::set_current_dir("/")
}

/// Waits until the guardian on duty dies, or says that there is nothing left to guard.
fn stand_by(mut kit: Kit, socket: &OwnedFd, successors: Signals) -> io::Result<()> {
    loop {
        match channel::receive_all(socket) {
            Ok((text, mut descriptors)) if text == NEW_ALIVE && !descriptors.is_empty() => {
                kit.alive = descriptors.swap_remove(0);
                kit.mounted = true;
            }
            Ok((text, _)) if text == OVER => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    if kit.role == Role::Standby {
        tracing::warn!("a guardian of a mount died: another one takes its place");
    }
    Duty::begin(kit, successors, true)?.run()
}

/// A guardian on duty.
struct Duty {
    kit: Kit,
    table: Table,
    /// By device and inode of the cache file.
    blobs: HashMap<(u64, u64), u32>,
    bits: Vec<Bits>,
    /// Events that are not with the filler yet.
    unsent: VecDeque<usize>,
    /// By row: what this process alone knows of a waiting event.
    notes: Vec<Option<Note>>,
    /// Descriptors that only keep the numbers of a dead guardian's events from being used again, and those that had
    /// been used by this process before.
    reserved: Vec<OwnedFd>,
    standby: Option<(Child, OwnedFd)>,
    filler: Option<Child>,
    filler_alive: bool,
    /// When to start a filler again.
    restart: Option<Instant>,
    /// Fillers that died one soon after the other.
    deaths: u32,
    started: Instant,
    /// The filler was asked to end, and no other is wanted.
    leaving: bool,
    mounts: File,
    /// Whether to look each [`TICK`] whether the image is still mounted anywhere.
    watch: bool,
    over: bool,
    successors: Signals,
    /// The filler makes room for one of another program.
    renewing: bool,
    /// A guardian of another program takes over.
    superseded: bool,
}

/// A waiting event.
struct Note {
    since: Instant,
    tries: u32,
    /// Whether a filler knows of it.
    sent: bool,
    /// Its descriptor, which keeps its number from being used again; none if a dead guardian had it.
    _file: Option<OwnedFd>,
}

impl Duty {
    fn begin(kit: Kit, successors: Signals, take_over: bool) -> io::Result<Self> {
        let table = Table::map(&kit.table)?;
        let mut blobs = HashMap::new();
        let mut bits = Vec::new();
        for (blob, index) in kit.cache.blobs.iter().zip(0..) {
            let metadata = blob.data.metadata()?;
            blobs.insert((metadata.dev(), metadata.ino()), index);
            bits.push(Bits::new(metadata.len()));
        }
        let mut duty = Self {
            table,
            blobs,
            bits,
            unsent: VecDeque::new(),
            notes: (0..ROWS).map(|_| None).collect(),
            reserved: Vec::new(),
            standby: None,
            filler: None,
            filler_alive: true,
            restart: None,
            deaths: 0,
            started: Instant::now(),
            leaving: false,
            mounts: File::open("/proc/self/mountinfo")?,
            watch: take_over,
            over: false,
            successors,
            renewing: false,
            superseded: false,
            kit,
        };
        if take_over {
            // The word that it is mounted may have reached the dead one alone.
            duty.kit.mounted |= !matches!(sys::is_open_elsewhere(&duty.kit.image), Ok(false));
            for number in duty.table.take_over() {
                // Taken already, by something that stays open as long as this does: then no event gets it either.
                if let Ok(descriptor) = rustix::io::fcntl_dupfd_cloexec(&duty.kit.table, number) {
                    duty.reserved.push(descriptor);
                }
            }
            let waiting: Vec<Waiting> = duty.table.all().collect();
            for Waiting { row, .. } in waiting {
                duty.note(row, None);
            }
        }
        if duty.kit.role == Role::Successor {
            duty.renewing = Message::Retire.send(&duty.kit.guardian_end, false).is_ok();
        }
        duty.start_standby();
        if duty.standby.is_none() && !take_over {
            return Err(io::Error::other("the second guardian did not come up"));
        }
        Ok(duty)
    }

    fn run(&mut self) -> io::Result<()> {
        while !self.over {
            self.wait()?;
            if self.filler_alive && is_broken(&self.kit.alive) {
                // Its last words count: that it leaves for good may be among them.
                self.take_answers()?;
                self.filler_died();
            }
            self.take_answers()?;
            self.take_events()?;
            if self.restart.is_some_and(|at| at <= Instant::now()) {
                self.start_filler();
            }
            self.send_unsent()?;
            self.refuse_late();
            self.check_standby();
            self.check_mounted();
            self.make_room();
            if self.superseded {
                return Ok(());
            }
        }
        super::place::remove(&self.kit.cache.lock);
        let _ = Message::Over.send(&self.kit.guardian_end, false);
        if let Some((_, socket)) = &self.standby {
            let _ = channel::send_all(socket, OVER, &[]);
        }
        Ok(())
    }

    /// Waits until there is anything to do.
    fn wait(&mut self) -> io::Result<()> {
        let free = self.table.free_row().is_some();
        let backlog = !self.unsent.is_empty() && self.filler_alive;
        let busy = self.notes.iter().any(Option::is_some);
        let mut polled = Vec::with_capacity(6);
        let end = PollFlags::IN
            | if backlog {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
        polled.push(PollFd::new(&self.kit.guardian_end, end));
        polled.push(PollFd::new(&self.mounts, PollFlags::PRI));
        let mounts_at = polled.len() - 1;
        polled.push(PollFd::new(&self.successors, PollFlags::IN));
        if free {
            polled.push(PollFd::new(&self.kit.group, PollFlags::IN));
        }
        if self.filler_alive {
            polled.push(PollFd::new(&self.kit.alive, PollFlags::IN));
        }
        if let Some((_, socket)) = &self.standby {
            polled.push(PollFd::new(socket, PollFlags::IN));
        }
        let tick = self.watch || busy || self.restart.is_some() || self.standby.is_none();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: if self.restart.is_some() {
                50_000_000
            } else {
                999_999_999
            },
        };
        match rustix::event::poll(&mut polled, tick.then_some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if polled[mounts_at].revents().contains(PollFlags::PRI) {
            self.watch = true;
        }
        Ok(())
    }

    fn note(&mut self, row: usize, file: Option<OwnedFd>) {
        if let Some(note) = self.notes.get_mut(row) {
            *note = Some(Note {
                since: Instant::now(),
                tries: 0,
                sent: false,
                _file: file,
            });
            self.unsent.push_back(row);
        }
    }

    /// Takes what the kernel asks.
    fn take_events(&mut self) -> io::Result<()> {
        for _ in 0..BURST {
            let Some(row) = self.table.free_row() else {
                return Ok(());
            };
            let Some((waiting, file)) = self.table.read(&self.kit.group, row)? else {
                return Ok(());
            };
            let key = rustix::fs::fstat(&file).map(|stat| (stat.st_dev, stat.st_ino));
            let blob = key.ok().and_then(|key| self.blobs.get(&key).copied());
            let (Some(blob), Some(range)) = (blob, &waiting.event.range) else {
                self.answer(&waiting, Answer::IoError);
                drop(file);
                continue;
            };
            self.table.set_blob(row, blob);
            if self
                .bits
                .get(blob as usize)
                .is_some_and(|bits| bits.contains(range))
            {
                self.answer(&waiting, Answer::Allow);
                drop(file);
            } else if self.leaving {
                self.answer(&waiting, Answer::IoError);
                drop(file);
            } else {
                self.note(row, Some(file));
            }
        }
        Ok(())
    }

    /// Answers an event. Its row is free before its number can be used again.
    fn answer(&mut self, waiting: &Waiting, answer: Answer) {
        // Its reader may be gone.
        let _ = self.kit.group.answer(waiting.event.number, answer);
        self.table.free(waiting.row);
        if let Some(note) = self.notes.get_mut(waiting.row) {
            *note = None;
        }
    }

    /// Takes what the filler says.
    fn take_answers(&mut self) -> io::Result<()> {
        loop {
            let message = match Message::receive(&self.kit.guardian_end, false) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            match message {
                Message::Filled { id, start, end } => {
                    let Some(waiting) = self.table.find(id) else {
                        continue;
                    };
                    let good = start..end;
                    if let Some(bits) = waiting
                        .blob
                        .and_then(|blob| self.bits.get_mut(blob as usize))
                    {
                        bits.add(&good);
                    }
                    let wanted = waiting.event.range.clone().unwrap_or(0..u64::MAX);
                    let enough = good.start <= wanted.start && wanted.end <= good.end;
                    self.answer(
                        &waiting,
                        if enough {
                            Answer::Allow
                        } else {
                            Answer::IoError
                        },
                    );
                }
                Message::Failed { id } => {
                    if let Some(waiting) = self.table.find(id) {
                        self.answer(&waiting, Answer::IoError);
                    }
                }
                Message::Complete { blob } => {
                    let at = blob as usize;
                    if let (Some(files), Some(bits)) =
                        (self.kit.cache.blobs.get(at), self.bits.get_mut(at))
                    {
                        bits.add(&(0..u64::MAX));
                        // It may have had no mark.
                        let _ = self.kit.group.unmark(&files.data);
                    }
                }
                Message::Distrust => self.bits.iter_mut().for_each(Bits::clear),
                Message::Mounted => self.kit.mounted = true,
                Message::Leave => {
                    self.leaving = true;
                    let waiting: Vec<Waiting> = self.table.all().collect();
                    for waiting in waiting {
                        self.answer(&waiting, Answer::IoError);
                    }
                    self.watch = true;
                }
                Message::Fill { .. } | Message::Over | Message::Ready | Message::Retire => {}
            }
        }
    }

    /// Passes on what waits.
    fn send_unsent(&mut self) -> io::Result<()> {
        while self.filler_alive
            && let Some(&row) = self.unsent.front()
        {
            let waiting = self
                .table
                .waiting(row)
                .filter(|_| self.notes[row].is_some());
            let Some(waiting) = waiting else {
                self.unsent.pop_front();
                continue;
            };
            let Some(range) = waiting.event.range.clone() else {
                self.unsent.pop_front();
                self.answer(&waiting, Answer::IoError);
                continue;
            };
            let fill = Message::Fill {
                id: waiting.id,
                blob: waiting.blob.unwrap_or(ALL_BLOBS),
                start: range.start,
                end: range.end,
            };
            match fill.send(&self.kit.guardian_end, false) {
                Ok(()) => {
                    self.unsent.pop_front();
                    if let Some(note) = &mut self.notes[row] {
                        note.sent = true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn filler_died(&mut self) {
        self.filler_alive = false;
        if let Some(mut filler) = self.filler.take() {
            let _ = filler.wait();
        }
        if self.leaving || !self.kit.mounted {
            self.watch = true;
            self.restart = None;
            return;
        }
        if !std::mem::take(&mut self.renewing) {
            tracing::warn!(
                "the process that fetches data for a mount died: another one takes its place"
            );
        }
        if self.started.elapsed() > Duration::from_secs(10) {
            self.deaths = 0;
        }
        let pause = Duration::from_millis(100 << self.deaths.min(6));
        let pause = if self.deaths == 0 {
            Duration::ZERO
        } else {
            pause
        };
        self.deaths = self.deaths.saturating_add(1);
        self.restart = Some(Instant::now() + pause);
        let rows: Vec<usize> = (0..ROWS).filter(|&row| self.notes[row].is_some()).collect();
        self.unsent.clear();
        for row in rows {
            let Some(note) = self.notes.get_mut(row).and_then(Option::as_mut) else {
                continue;
            };
            note.tries += u32::from(std::mem::take(&mut note.sent));
            if note.tries >= TRIES {
                if let Some(waiting) = self.table.waiting(row) {
                    self.answer(&waiting, Answer::IoError);
                }
            } else {
                self.unsent.push_back(row);
            }
        }
    }

    fn start_filler(&mut self) {
        self.restart = None;
        self.started = Instant::now();
        let start = || {
            let (here, there) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            if let Some((_, socket)) = &self.standby {
                // If it died just now, the next one gets the descriptor with its kit.
                let _ = channel::send_all(socket, NEW_ALIVE, &[here.as_fd()]);
            }
            Ok((here, self.kit.start_filler(there)))
        };
        let started: io::Result<_> = start();
        match started {
            Ok((here, child)) => {
                let before = std::mem::replace(&mut self.kit.alive, here);
                self.keep(before);
                match child {
                    Ok(child) => {
                        self.filler = Some(child);
                        self.filler_alive = true;
                    }
                    Err(error) => self.retry(&error),
                }
            }
            Err(error) => self.retry(&error),
        }
    }

    fn retry(&mut self, error: &io::Error) {
        tracing::error!("cannot start the process that fetches data for a mount: {error}");
        self.restart = Some(Instant::now() + TICK);
    }

    /// Keeps a descriptor's number in use as long as a dead guardian's events may be named by it.
    fn keep(&mut self, descriptor: OwnedFd) {
        if !self.reserved.is_empty() {
            self.reserved.push(descriptor);
        }
    }

    /// Refuses what has waited too long, and lets numbers go that no dead guardian's event has.
    fn refuse_late(&mut self) {
        let late = |note: &Option<Note>| {
            note.as_ref()
                .is_some_and(|note| note.since.elapsed() > PATIENCE)
        };
        let rows: Vec<usize> = (0..ROWS).filter(|&row| late(&self.notes[row])).collect();
        for row in rows {
            if let Some(waiting) = self.table.waiting(row) {
                self.answer(&waiting, Answer::IoError);
            }
        }
        let inherited =
            |note: &Option<Note>| note.as_ref().is_some_and(|note| note._file.is_none());
        if !self.reserved.is_empty() && !self.notes.iter().any(inherited) {
            self.reserved.clear();
        }
    }

    fn check_standby(&mut self) {
        let dead = self
            .standby
            .as_ref()
            .is_some_and(|(_, socket)| is_broken(socket));
        if dead && let Some((mut child, socket)) = self.standby.take() {
            tracing::warn!("a guardian of a mount died: another one takes its place");
            let _ = child.wait();
            self.keep(socket);
        }
        if self.standby.is_none() {
            self.start_standby();
        }
    }

    fn start_standby(&mut self) {
        let started =
            self.kit
                .start_guardian(PROGRAM, Role::Standby, self.kit.mounted, Stdio::inherit());
        match started {
            Ok(standby) => self.standby = Some(standby),
            Err(error) => tracing::error!("cannot start a second guardian of a mount: {error}"),
        }
    }

    /// Has the program of a process that asked for it take over.
    fn make_room(&mut self) {
        let sent = self.successors.take();
        // If there are too many, one of them will do.
        let sender = sent.iter().find_map(|sent| sent.sender);
        let Some(sender) = sender.filter(|_| self.kit.mounted) else {
            return;
        };
        let start = || {
            let program = File::open(format!("/proc/{sender}/exe"))?;
            let path = format!("/proc/self/fd/{}", program.as_raw_fd());
            self.kit
                .start_guardian(&path, Role::Successor, true, Stdio::inherit())
        };
        match start() {
            Ok(successor) => {
                if let Some((mut child, socket)) = self.standby.replace(successor) {
                    let _ = channel::send_all(&socket, OVER, &[]);
                    let _ = child.wait();
                }
                self.superseded = true;
            }
            Err(error) => {
                tracing::error!("process {sender} can't take over a mount: {error}");
            }
        }
    }

    /// Ends when nobody has the image mounted: not here, and not in any other namespace.
    fn check_mounted(&mut self) {
        let coming = !self.kit.mounted && self.filler_alive;
        if !self.watch || coming {
            return;
        }
        match sys::is_open_elsewhere(&self.kit.image) {
            Ok(false) => self.over = true,
            // Looked at again at the next tick, or change of the mount table.
            Ok(true) | Err(_) => {
                self.watch =
                    self.leaving || !self.filler_alive || !super::is_mounted_here(&self.kit.image)
            }
        }
    }
}

/// Whether the other side of a pipe or socket that never says anything is closed.
fn is_broken(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(rustix::event::poll(&mut polled, Some(&none)), Ok(1))
}
