//! Checking the members of a gzip stream apart from inflating it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use zlib_rs::crc32::crc32;

/// What is wrong with a member whose checksum is not the one it states.
pub(super) const DIFFERENT: &str = "the data does not have the CRC-32 that follows it";

/// Where a member ends.
struct MemberEnd {
    /// Its number, 1 for the first.
    member: u64,
    /// Bytes inflated until there.
    at: u64,
    /// CRC-32 of what it inflated to, as it states.
    crc32: u32,
}

/// Who compares what a member inflates to with the CRC-32 behind it.
pub(super) enum Check {
    /// The decoder, which has come to this.
    Here(u32),
    /// A [`Checksums`], which is told where members end.
    Apart(Ends),
}

/// The other end of a [`Checksums`].
pub(super) struct Ends(Sender<MemberEnd>);

impl Ends {
    /// A member that is not empty ends.
    pub(super) fn note(&self, member: u64, at: u64, crc32: u32) {
        // If nobody checks, somebody has stopped.
        let _ = self.0.send(MemberEnd { member, at, crc32 });
    }
}

/// Compares what the members of a gzip stream inflate to with the CRC-32 behind each, in another thread than the one
/// that inflates: that has no time to lose. What is not gzip has no members, and nothing to compare.
pub struct Checksums {
    /// Members that have ended; `None` if there are none.
    ends: Option<Receiver<MemberEnd>>,
    /// The next of them, once it is known.
    next: Option<MemberEnd>,
    /// Bytes seen.
    at: u64,
    /// CRC-32 of the member so far.
    crc32: u32,
    failed: Option<io::Error>,
}

impl Checksums {
    /// For a stream without members.
    pub(super) fn none() -> Self {
        Self {
            ends: None,
            next: None,
            at: 0,
            crc32: 0,
            failed: None,
        }
    }

    /// For a gzip stream, and what its decoder needs.
    pub(super) fn new() -> (Self, Ends) {
        let (sender, ends) = channel();
        let checksums = Self {
            ends: Some(ends),
            ..Self::none()
        };
        (checksums, Ends(sender))
    }

    /// Takes the inflated bytes that follow. They were read, so it is known of every member that ends before the last of
    /// them.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.ends.is_some() {
            self.end_members();
            let left = self.next.as_ref().map(|end| end.at - self.at);
            let left = left.and_then(|left| usize::try_from(left).ok());
            let (member, rest) = bytes.split_at(left.unwrap_or(usize::MAX).min(bytes.len()));
            self.crc32 = crc32(self.crc32, member);
            self.at += member.len() as u64;
            bytes = rest;
        }
    }

    /// Compares what ends where the bytes seen so far do.
    fn end_members(&mut self) {
        let Some(ends) = &self.ends else {
            return;
        };
        loop {
            self.next = self.next.take().or_else(|| ends.try_recv().ok());
            let Some(end) = self.next.take_if(|end| end.at <= self.at) else {
                return;
            };
            if end.crc32 != self.crc32 && self.failed.is_none() {
                self.failed = Some(corrupt(end.member, end.at, DIFFERENT));
            }
            self.crc32 = 0;
        }
    }

    /// After all bytes were read to the end of the stream.
    ///
    /// # Errors
    /// Which member does not have its CRC-32.
    pub fn finish(mut self) -> io::Result<()> {
        self.end_members();
        self.failed.map_or(Ok(()), Err)
    }
}

/// The error for gzip data that cannot be right.
pub(super) fn corrupt(member: u64, done: u64, what: &str) -> io::Error {
    let text =
        format!("the gzip data is corrupt in member {member} after {done} inflated bytes: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
