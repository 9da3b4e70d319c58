//! Gzip of any number of members, strict about what follows them.

use std::io::{self, BufRead, Read};

use zlib_rs::crc32::crc32;
use zlib_rs::{Inflate, InflateFlush, Status};

use super::checksums::{self, Check};

/// Largest window as a power of two.
const WINDOW: u8 = 15;
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The method deflate.
const DEFLATE: u8 = 8;
/// Length of what follows a member's data: the CRC-32 of what it inflates to, and its length modulo 2^32.
const TRAILER: usize = 8;
/// Calls without progress that the decoder may make, for it stops at the end of each block: it holds less than 64 bits,
/// and no block is shorter than three.
const STALLS_MAX: u32 = 64;

/// Looks on while a stream is inflated.
pub(super) trait Watch {
    /// Output of the file from which on the decoder is to stop at the end of each block. To stop costs time, for the
    /// decoder saves its window then. That a block ends exactly there may go unseen.
    fn blocks_from(&self) -> u64;

    /// Bytes of input that yield nothing: headers and padding.
    fn skipped(&mut self, len: usize);

    /// The data of a member begins here.
    fn member(&mut self);

    /// `input` became `output`; `block_end` if a block is known to end there.
    fn inflated(&mut self, input: &[u8], output: &[u8], block_end: bool);
}

impl Watch for () {
    fn blocks_from(&self) -> u64 {
        u64::MAX
    }

    fn skipped(&mut self, _: usize) {}

    fn member(&mut self) {}

    fn inflated(&mut self, _: &[u8], _: &[u8], _: bool) {}
}

enum State {
    /// In the header of a member.
    Header(Header),
    /// In the data of a member.
    Member,
    /// Behind the data of a member.
    Trailer,
    /// Behind a whole member.
    Between,
    /// At the end of the stream.
    End,
}

/// Inflates member after member. Lengths of all members are checked, and checksums unless that is done apart.
///
/// The decoder is for bare deflate data and serves all members. One for gzip could not be used again, and to make one for
/// each of many thousand members costs more time than to inflate them, and in fragments much memory.
pub(super) struct Reader<R, W = ()> {
    input: R,
    watch: W,
    state: State,
    inflate: Box<Inflate>,
    check: Check,
    /// Members begun.
    member: u64,
    /// Bytes inflated.
    done: u64,
    /// Calls without progress, one after another.
    stalls: u32,
}

impl<R: BufRead, W: Watch> Reader<R, W> {
    pub(super) fn new(input: R, watch: W, check: Check) -> Self {
        Self {
            input,
            watch,
            state: State::Header(Header::default()),
            inflate: Box::new(Inflate::new(false, WINDOW)),
            check,
            member: 1,
            done: 0,
            stalls: 0,
        }
    }

    /// The next byte of the input, and that it yields nothing.
    fn byte(&mut self) -> io::Result<u8> {
        let Some(&byte) = self.input.fill_buf()?.first() else {
            return Err(self.truncated());
        };
        self.input.consume(1);
        self.watch.skipped(1);
        Ok(byte)
    }

    fn header(&mut self, mut header: Header) -> io::Result<()> {
        loop {
            let byte = self.byte()?;
            match header.ends_with(byte) {
                Ok(false) => {}
                Ok(true) => break,
                Err(what) => return Err(self.corrupt(what)),
            }
        }
        self.inflate.reset(false);
        if let Check::Here(checksum) = &mut self.check {
            *checksum = 0;
        }
        self.watch.member();
        self.state = State::Member;
        Ok(())
    }

    fn trailer(&mut self) -> io::Result<()> {
        let mut trailer = [0; TRAILER];
        for byte in &mut trailer {
            *byte = self.byte()?;
        }
        let expected = u64::from_le_bytes(trailer);
        // The length is that modulo 2^32.
        let (checksum, length) = (expected as u32, (expected >> 32) as u32);
        match &self.check {
            Check::Here(actual) if checksum != *actual => {
                return Err(self.corrupt(checksums::DIFFERENT));
            }
            Check::Here(_) => {}
            // Nobody comes to look at what gives no bytes, and notes of that would be without number.
            Check::Apart(_) if self.inflate.total_out() == 0 => {
                if checksum != 0 {
                    return Err(self.corrupt(checksums::DIFFERENT));
                }
            }
            Check::Apart(ends) => ends.note(self.member, self.done, checksum),
        }
        if length != self.inflate.total_out() as u32 {
            return Err(self.corrupt("the data does not have the length that follows it"));
        }
        self.state = State::Between;
        Ok(())
    }

    /// What was noted.
    pub(super) fn into_watch(self) -> W {
        self.watch
    }

    /// What stands behind a member: another one, zeros to the end, or nothing.
    fn next_member(&mut self) -> io::Result<()> {
        match self.input.fill_buf()?.first() {
            None => self.state = State::End,
            Some(&byte) if byte == MAGIC[0] => {
                self.member += 1;
                self.state = State::Header(Header::default());
            }
            Some(_) => {
                self.zeros_to_end()?;
                self.state = State::End;
            }
        }
        Ok(())
    }

    fn zeros_to_end(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                return Ok(());
            }
            if bytes.iter().any(|&b| b != 0) {
                return Err(
                    self.corrupt("it is followed by bytes that are neither gzip nor zero padding")
                );
            }
            let n = bytes.len();
            self.input.consume(n);
            self.watch.skipped(n);
        }
    }

    fn corrupt(&self, what: &str) -> io::Error {
        checksums::corrupt(self.member, self.done, what)
    }

    fn truncated(&self) -> io::Error {
        let text = format!(
            "the gzip data is truncated: it ends in member {} after {} inflated bytes",
            self.member, self.done
        );
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }
}

impl<R: BufRead, W: Watch> Read for Reader<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.state {
                State::End => return Ok(0),
                State::Between => {
                    self.next_member()?;
                    continue;
                }
                State::Header(header) => {
                    let header = std::mem::take(header);
                    self.header(header)?;
                    continue;
                }
                State::Trailer => {
                    self.trailer()?;
                    continue;
                }
                State::Member => {}
            }
            let apart = self.watch.blocks_from().saturating_sub(self.done);
            let blocks = apart == 0;
            let (flush, room) = if blocks {
                (InflateFlush::Block, buf.len())
            } else {
                let apart = usize::try_from(apart).unwrap_or(usize::MAX);
                (InflateFlush::NoFlush, buf.len().min(apart))
            };
            let buf = &mut buf[..room];
            let inflate = &mut self.inflate;
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let result = inflate.decompress(input, buf, flush);
            // Both differences are at most the lengths of the slices just given.
            let consumed = (inflate.total_in() - before_in) as usize;
            let produced = (inflate.total_out() - before_out) as usize;
            // With room and input left there is no other reason to stop.
            let stopped = matches!(result, Ok(Status::Ok | Status::BufError))
                && consumed < input.len()
                && produced < buf.len();
            self.watch
                .inflated(&input[..consumed], &buf[..produced], blocks && stopped);
            self.input.consume(consumed);
            if let Check::Here(checksum) = &mut self.check {
                *checksum = crc32(*checksum, &buf[..produced]);
            }
            self.done += produced as u64;
            let stalled = consumed == 0 && produced == 0;
            self.stalls = if stalled { self.stalls + 1 } else { 0 };
            match result {
                Err(error) => {
                    let text = inflate.error_message().unwrap_or(error.as_str());
                    return Err(self.corrupt(text));
                }
                Ok(Status::StreamEnd) => self.state = State::Trailer,
                Ok(_) if ended && produced == 0 => return Err(self.truncated()),
                Ok(_) if stalled && (!blocks || self.stalls > STALLS_MAX) => {
                    return Err(self.corrupt("the decoder makes no progress"));
                }
                Ok(_) => {}
            }
            if produced > 0 {
                return Ok(produced);
            }
        }
    }
}

/// Follows a gzip header (RFC 1952) to its end.
#[derive(Default)]
struct Header {
    /// Bytes of the part so far.
    at: u32,
    /// Parts that are still to come.
    flags: u8,
    /// Length of the part, where it has one.
    len: u32,
    fixed: bool,
    /// CRC-32 of the header so far.
    checksum: u32,
}

impl Header {
    const CHECKSUM: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0b1110_0000;
    const FIXED: u32 = 10;

    /// Whether the header ends with this byte; an error if it is none.
    fn ends_with(&mut self, byte: u8) -> Result<bool, &'static str> {
        self.at += 1;
        let (part, done) = if !self.fixed {
            self.fixed_part(byte)?;
            self.fixed = self.at == Self::FIXED;
            (0, self.fixed)
        } else if self.flags & Self::EXTRA != 0 {
            match self.at {
                1 => self.len = 2 + u32::from(byte),
                2 => self.len += u32::from(byte) << 8,
                _ => {}
            }
            (Self::EXTRA, self.at >= 2 && self.at == self.len)
        } else if self.flags & Self::NAME != 0 {
            self.at = 0;
            (Self::NAME, byte == 0)
        } else if self.flags & Self::COMMENT != 0 {
            self.at = 0;
            (Self::COMMENT, byte == 0)
        } else {
            // The lower half of the CRC-32, in little-endian order. It does not cover itself.
            let expected = self.checksum.to_le_bytes();
            if Some(&byte) != expected.get(self.at as usize - 1) {
                return Err("the header does not have the CRC that it states");
            }
            let done = self.at == 2;
            return Ok(done);
        };
        self.checksum = crc32(self.checksum, &[byte]);
        if done {
            self.at = 0;
            self.flags &= !part;
        }
        Ok(done && self.flags == 0)
    }

    /// Checks a byte of the part that every header has.
    fn fixed_part(&mut self, byte: u8) -> Result<(), &'static str> {
        match self.at {
            1 | 2 if byte != MAGIC[self.at as usize - 1] => Err("there is no gzip header"),
            3 if byte != DEFLATE => Err("the method is not deflate"),
            4 if byte & Self::RESERVED != 0 => Err("the header has unknown flags"),
            4 => {
                self.flags = byte & (Self::CHECKSUM | Self::EXTRA | Self::NAME | Self::COMMENT);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
