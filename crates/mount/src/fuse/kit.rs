//! What the two processes of a FUSE mount say and hand to one another.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::flight::Flights;
use super::wire;
use crate::mountpoint::{Mountpoint, Place};
use crate::overlay::Upper;
use crate::program::Program;
use crate::{Error, channel, device};

/// Stands before every letter; another version of the program may be on the other side.
const VERSION: u8 = 3;

/// All that goes on when a process of a mount dies.
#[derive(Debug)]
pub(crate) struct Kit {
    /// The connection to the kernel.
    pub(super) device: OwnedFd,
    /// The kernel's first request on it.
    pub(super) init: Vec<u8>,
    /// What the first server noted of the image, for those after it.
    pub(super) record: OwnedFd,
    /// Memory of the [`super::Flights`].
    pub(super) flights: OwnedFd,
    pub(super) place: Place,
    /// The directory for changes, with the lock that all processes of the mount hold.
    pub(super) upper: Option<Upper>,
    /// How to start a server.
    pub(super) program: Program,
    /// Process id of the keeper who sent it.
    pub(super) keeper: u32,
}

/// What is said over the socket between keeper and server.
#[derive(Debug)]
pub(super) enum Letter {
    /// To a server: nothing is mounted yet, and this is what is known of the image, if anything is.
    Begin(Option<OwnedFd>),
    /// To a server or a keeper: this is the mount.
    Kit(Kit),
    /// To the keeper: the image is open, with its cache in this directory and this to be noted of it.
    Prepared(PathBuf, OwnedFd),
    /// To the keeper: requests are answered, and this is where users see the mount.
    Ready(Place),
    /// To the keeper: the mount has ended.
    Over,
    /// To the server: the keeper got this signal.
    Signal(i32),
    /// To the server: another program takes its place.
    Retire,
    /// To a keeper, by the program before it in the same process: the mount, the socket to the server, and the server's
    /// process id if it is a child.
    Succeed(Kit, OwnedFd, Option<u32>),
}

impl Kit {
    /// Mounts a new connection on the directory `path`, or where overlayfs finds it. Also what keeps others from mounting
    /// on `path`, if the mount is not yet to be seen there.
    pub(crate) fn mount(
        path: &Path,
        upper: Option<&Path>,
        program: Program,
        record: OwnedFd,
    ) -> Result<(Self, Option<File>), Error> {
        let failed = |source| Error::Session {
            path: path.to_owned(),
            source,
        };
        let flights = Flights::create().map_err(failed)?;
        let mut mountpoint = Mountpoint::prepare(path, upper)?;
        let device = device::attach(&mountpoint.place.at)?;
        mountpoint.attached(path)?;
        let init = wire::read_init(&device).map_err(failed)?;
        let (place, upper, turn) = mountpoint.release();
        let kit = Self {
            device,
            init,
            record,
            flights,
            place,
            upper,
            program,
            keeper: std::process::id(),
        };
        Ok((kit, turn))
    }

    fn fields(&self) -> Vec<Vec<u8>> {
        let upper = self.upper.as_ref().map(|upper| bytes(upper.dir()));
        let mut fields = place_fields(&self.place);
        fields.extend([
            self.init.clone(),
            upper.unwrap_or_default(),
            self.keeper.to_le_bytes().to_vec(),
            bytes(&self.program.directory),
        ]);
        let arguments = self.program.arguments.iter();
        fields.extend(arguments.map(|argument| argument.as_bytes().to_vec()));
        fields
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let lock = self.upper.as_ref().map(|upper| upper.lock().as_fd());
        let all = [
            self.device.as_fd(),
            self.record.as_fd(),
            self.flights.as_fd(),
        ];
        all.into_iter().chain(lock).collect()
    }

    fn of(fields: Vec<Vec<u8>>, mut all: impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let (device, record, flights) = (all.next()?, all.next()?, all.next()?);
        let mut fields = fields.into_iter();
        let place = place_of(&mut fields)?;
        let init = fields.next()?;
        let upper = match fields.next()? {
            none if none.is_empty() => None,
            dir => Some(Upper::handed_over(path(dir), all.next()?)),
        };
        let keeper = u32::from_le_bytes(fields.next()?.try_into().ok()?);
        let directory = path(fields.next()?);
        Some(Self {
            device,
            init,
            record,
            flights,
            upper,
            place,
            program: Program {
                arguments: fields.map(OsString::from_vec).collect(),
                directory,
            },
            keeper,
        })
    }

    /// The same with descriptors of its own.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            device: self.device.try_clone()?,
            init: self.init.clone(),
            record: self.record.try_clone()?,
            flights: self.flights.try_clone()?,
            place: self.place.clone(),
            upper: self.upper.as_ref().map(Upper::try_clone).transpose()?,
            program: self.program.clone(),
            keeper: self.keeper,
        })
    }
}

impl Letter {
    fn parts(&self) -> (u8, Vec<Vec<u8>>, Vec<BorrowedFd<'_>>) {
        let none = Vec::new;
        match self {
            Self::Begin(record) => (1, vec![], record.iter().map(AsFd::as_fd).collect()),
            Self::Kit(kit) => (2, kit.fields(), kit.descriptors()),
            Self::Prepared(cache, record) => (3, vec![bytes(cache)], vec![record.as_fd()]),
            Self::Ready(place) => (4, place_fields(place), none()),
            Self::Over => (5, vec![], none()),
            Self::Signal(number) => (6, vec![number.to_le_bytes().to_vec()], none()),
            Self::Retire => (7, vec![], none()),
            Self::Succeed(kit, socket, child) => {
                let mut fields = vec![child.unwrap_or_default().to_le_bytes().to_vec()];
                fields.extend(kit.fields());
                let mut all = vec![socket.as_fd()];
                all.extend(kit.descriptors());
                (8, fields, all)
            }
        }
    }

    fn of(tag: u8, mut fields: Vec<Vec<u8>>, all: Vec<OwnedFd>) -> Option<Self> {
        let mut all = all.into_iter();
        Some(match tag {
            1 => Self::Begin(all.next()),
            2 => Self::Kit(Kit::of(fields, all)?),
            3 => Self::Prepared(path(fields.pop()?), all.next()?),
            4 => Self::Ready(place_of(&mut fields.into_iter())?),
            5 => Self::Over,
            6 => Self::Signal(i32::from_le_bytes(fields.pop()?.try_into().ok()?)),
            7 => Self::Retire,
            8 if !fields.is_empty() => {
                let child = u32::from_le_bytes(fields.remove(0).try_into().ok()?);
                let socket = all.next()?;
                let kit = Kit::of(fields, all)?;
                Self::Succeed(kit, socket, Some(child).filter(|&child| child != 0))
            }
            _ => return None,
        })
    }

    pub(super) fn send(&self, socket: impl AsFd) -> io::Result<()> {
        let (tag, fields, descriptors) = self.parts();
        let mut text = vec![VERSION, tag];
        for field in fields {
            let len = u32::try_from(field.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            text.extend_from_slice(&len.to_le_bytes());
            text.extend_from_slice(&field);
        }
        channel::send_all(socket, &text, &descriptors)
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// When the other side is gone, or is none of ours.
    pub(super) fn receive(socket: impl AsFd) -> io::Result<Self> {
        let (text, descriptors) = channel::receive_all(socket)?;
        let parse = || match text.as_slice() {
            [VERSION, tag, rest @ ..] => Self::of(*tag, split(rest)?, descriptors),
            _ => None,
        };
        parse().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no such letter"))
    }
}

fn place_fields(place: &Place) -> Vec<Vec<u8>> {
    let device = place.device.clone().unwrap_or_default();
    vec![
        bytes(&place.path),
        bytes(&place.at),
        device.into_bytes(),
        vec![u8::from(place.made)],
    ]
}

fn place_of(fields: &mut impl Iterator<Item = Vec<u8>>) -> Option<Place> {
    let (path, at) = (path(fields.next()?), path(fields.next()?));
    let device = String::from_utf8(fields.next()?).ok()?;
    Some(Place {
        path,
        at,
        device: Some(device).filter(|device| !device.is_empty()),
        made: fields.next()? == [1],
    })
}

fn split(mut text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut fields = Vec::new();
    while !text.is_empty() {
        let (len, rest) = text.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        fields.push(field.to_vec());
        text = rest;
    }
    Some(fields)
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rustix::net::SendFlags;

    use super::*;

    fn place() -> Place {
        Place {
            path: "/a b".into(),
            at: "/changes/lower".into(),
            device: Some("0:7".to_owned()),
            made: true,
        }
    }

    fn kit() -> Kit {
        let (device, record) = channel::pair().unwrap();
        Kit {
            flights: record.try_clone().unwrap(),
            device,
            init: vec![1, 0, 255],
            record,
            place: place(),
            upper: None,
            program: Program {
                arguments: vec!["mount".into(), OsString::from_vec(vec![0xff, b'\n'])],
                directory: "/".into(),
            },
            keeper: 77,
        }
    }

    fn passed(letter: &Letter) -> Letter {
        let (here, there) = channel::pair().unwrap();
        letter.send(&here).unwrap();
        Letter::receive(&there).unwrap()
    }

    #[test]
    fn every_letter_arrives() {
        let same = |left: &Letter, right: &Letter| {
            let (tag, fields, descriptors) = left.parts();
            let (other_tag, other_fields, others) = right.parts();
            assert_eq!((tag, fields), (other_tag, other_fields));
            assert_eq!(descriptors.len(), others.len());
        };
        let (socket, _) = channel::pair().unwrap();
        let all = [
            Letter::Begin(None),
            Letter::Begin(Some(kit().record)),
            Letter::Kit(kit()),
            Letter::Kit(Kit {
                upper: Some(Upper::handed_over("/changes".into(), kit().record)),
                ..kit()
            }),
            Letter::Prepared("/cache".into(), kit().record),
            Letter::Ready(place()),
            Letter::Over,
            Letter::Signal(15),
            Letter::Retire,
            Letter::Succeed(kit(), socket.try_clone().unwrap(), Some(9)),
            Letter::Succeed(kit(), socket, None),
        ];
        for letter in all {
            same(&letter, &passed(&letter));
        }
        let Letter::Kit(received) = passed(&Letter::Kit(kit())) else {
            panic!("a kit was sent");
        };
        assert_eq!(received.place, kit().place);
        assert_eq!(received.program, kit().program);
        assert_eq!(received.keeper, 77);
    }

    #[test]
    fn what_is_no_letter_is_refused() {
        for text in [
            &[VERSION + 1, 1][..],
            &[VERSION, 0],
            &[VERSION, 2],
            &[VERSION, 4],
            &[VERSION, 6, 4, 0, 0, 0, 1],
            &[VERSION, 6, 255, 255, 255, 255],
            &[VERSION, 8],
        ] {
            let (here, there) = channel::pair().unwrap();
            let mut head = 0_u32.to_le_bytes().to_vec();
            head.extend_from_slice(text);
            rustix::net::send(&here, &head, SendFlags::empty()).unwrap();
            assert!(Letter::receive(&there).is_err(), "{text:?}");
        }
        let (here, there) = channel::pair().unwrap();
        drop(here);
        assert!(Letter::receive(&there).is_err());
    }
}
