//! All that a guardian holds, and how it comes to the next one and to a filler.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use storage::{BlobFiles, HandedOver, Words};
use sys::fanotify::Group;

use super::channel;
use crate::Error;
use crate::program::Program;
use crate::record;

/// Stands before every kit; another version of the program may be on the other side.
const VERSION: u8 = 2;
/// The hidden command that is a guardian.
pub(super) const GUARD: &str = "guard";
/// See the module.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) group: Group,
    /// Memory of the [`super::table::Table`].
    pub(super) table: OwnedFd,
    /// The two ends of the socket between guardian and filler. Who holds which changes, they stay.
    pub(super) guardian_end: OwnedFd,
    pub(super) filler_end: OwnedFd,
    /// The file of the bootstrap, of which the kernel mounts.
    pub(super) image: File,
    /// Reads an end of file once the filler is gone.
    pub(super) alive: OwnedFd,
    pub(super) cache: HandedOver,
    pub(super) program: Program,
    /// What the first filler noted of the image, for those after it.
    pub(super) record: OwnedFd,
    pub(super) role: Role,
    /// Whether the image was mounted when the kit was sent.
    pub(super) mounted: bool,
}

/// What a guardian is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Answer the kernel.
    Duty,
    /// Wait for the other one to die.
    Standby,
    /// The same, and then start a filler of its own program in place of the one there is.
    Successor,
}

impl Role {
    fn of(byte: u8) -> Option<Self> {
        let all = [Self::Duty, Self::Standby, Self::Successor];
        all.into_iter().find(|&role| role as u8 == byte)
    }
}

/// Descriptors before those of the cache.
const FIXED: usize = 8;

impl Kit {
    /// Starts a guardian with this kit, and waits until it is ready. The socket to it breaks when it dies.
    pub(super) fn start_guardian(
        &self,
        program: &str,
        role: Role,
        mounted: bool,
        stderr: Stdio,
    ) -> io::Result<(Child, OwnedFd)> {
        let (ours, theirs) = channel::pair()?;
        let child = Command::new(program)
            .arg(GUARD)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()?;
        let mut text = vec![VERSION, role as u8, u8::from(mounted)];
        text.extend_from_slice(self.program.directory.as_os_str().as_bytes());
        for argument in &self.program.arguments {
            text.push(0);
            text.extend_from_slice(argument.as_bytes());
        }
        let mut all = vec![
            self.group.as_fd(),
            self.table.as_fd(),
            self.guardian_end.as_fd(),
            self.filler_end.as_fd(),
            self.image.as_fd(),
            self.alive.as_fd(),
            self.cache.lock.as_fd(),
            self.record.as_fd(),
        ];
        all.extend(self.cache_files());
        channel::send_all(&ours, &text, &all)?;
        match channel::Message::receive(&ours, true)? {
            Some(channel::Message::Ready) => Ok((child, ours)),
            _ => Err(io::Error::other("the guardian did not come up")),
        }
    }

    /// In a guardian: what it was started with.
    pub(super) fn receive(socket: impl AsFd) -> io::Result<Self> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "this is no kit of a guardian");
        let (text, mut all) = channel::receive_all(socket)?;
        let ([version, role, mounted], words) = text.split_first_chunk::<3>().ok_or_else(broken)?;
        if *version != VERSION {
            return Err(broken());
        }
        let mut words = words
            .split(|&byte| byte == 0)
            .map(|word| OsString::from_vec(word.to_vec()));
        let directory = words.next().map(PathBuf::from).unwrap_or_default();
        if all.len() < FIXED {
            return Err(broken());
        }
        let files = all.split_off(FIXED);
        let fixed: [OwnedFd; FIXED] = all.try_into().map_err(|_| broken())?;
        let [
            group,
            table,
            guardian_end,
            filler_end,
            image,
            alive,
            lock,
            record,
        ] = fixed;
        Ok(Self {
            group: group.into(),
            table,
            guardian_end,
            filler_end,
            image: image.into(),
            alive,
            record,
            cache: HandedOver {
                lock: lock.into(),
                blobs: blob_files(files)?,
            },
            program: Program {
                arguments: words.collect(),
                directory,
            },
            role: Role::of(*role).ok_or_else(broken)?,
            mounted: *mounted != 0,
        })
    }

    /// Starts a filler in place of one that died. It holds `alive` as long as it lives.
    pub(super) fn start_filler(&self, alive: OwnedFd) -> io::Result<Child> {
        let (ours, theirs) = channel::pair()?;
        let child = self.program.start(theirs)?;
        let mut all = vec![
            self.filler_end.as_fd(),
            alive.as_fd(),
            self.cache.lock.as_fd(),
            self.record.as_fd(),
        ];
        all.extend(self.cache_files());
        channel::send_all(&ours, b"", &all)?;
        Ok(child)
    }

    fn cache_files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.cache
            .blobs
            .iter()
            .flat_map(|blob| [blob.data.as_fd(), blob.map.as_fd()])
    }
}

/// What a filler gets from the guardian that started it.
#[derive(Debug)]
pub struct Resumed {
    /// The cache that the dead filler left.
    pub cache: HandedOver,
    pub(super) socket: OwnedFd,
    pub(super) alive: OwnedFd,
    memory: OwnedFd,
}

impl Resumed {
    /// Where the dead filler counted.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn words(&self) -> io::Result<Words> {
        record::words(&self.memory)
    }

    /// Receives it over the standard input, and what the first filler noted of the image.
    ///
    /// # Errors
    /// When no guardian started this process.
    pub fn from_stdin() -> Result<(Self, Vec<u8>), Error> {
        let receive = || {
            let (_, mut all) = channel::receive_all(io::stdin())?;
            let broken = || io::Error::from(io::ErrorKind::InvalidData);
            if all.len() < 4 {
                return Err(broken());
            }
            let files = all.split_off(4);
            let fixed: [OwnedFd; 4] = all.try_into().map_err(|_| broken())?;
            let [socket, alive, lock, noted] = fixed;
            let resumed = Self {
                cache: HandedOver {
                    lock: lock.into(),
                    blobs: blob_files(files)?,
                },
                socket,
                alive,
                memory: noted,
            };
            let record = record::read(&resumed.memory)?;
            Ok((resumed, record))
        };
        receive().map_err(|source| Error::System {
            what: "taking over from a process that served the mount",
            source,
        })
    }
}

fn blob_files(files: Vec<OwnedFd>) -> io::Result<Vec<BlobFiles>> {
    let mut blobs = Vec::with_capacity(files.len() / 2);
    let mut files = files.into_iter();
    while let Some(data) = files.next() {
        let map = files.next().ok_or(io::ErrorKind::InvalidData)?;
        blobs.push(BlobFiles {
            data: data.into(),
            map: map.into(),
        });
    }
    Ok(blobs)
}
