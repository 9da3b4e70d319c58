//! Gzip of any number of members, strict about what follows them.

use std::io::{self, BufRead, Read};

use zlib_rs::{Inflate, InflateFlush, Status};

/// Largest window as a power of two, and that there is a gzip header.
const WINDOW: u8 = 15 + 16;
const MAGIC: u8 = 0x1f;
/// Calls without progress that the decoder may make, for it stops at the end of each block: it holds less than 64 bits,
/// and no block is shorter than three.
const STALLS_MAX: u32 = 64;

/// Looks on while a stream is inflated.
pub(super) trait Watch {
    /// Whether the decoder is to stop at the end of each block.
    const BLOCKS: bool;

    /// Bytes of input that yield nothing: headers and padding.
    fn skipped(&mut self, len: usize);

    /// The data of a member begins here.
    fn member(&mut self);

    /// `input` became `output`; `block_end` if a block is known to end there.
    fn inflated(&mut self, input: &[u8], output: &[u8], block_end: bool);
}

impl Watch for () {
    const BLOCKS: bool = false;

    fn skipped(&mut self, _: usize) {}

    fn member(&mut self) {}

    fn inflated(&mut self, _: &[u8], _: &[u8], _: bool) {}
}

enum State {
    /// In the header of a member, for those who look on.
    Header(Box<Inflate>, Header),
    /// In a member that was begun.
    Member(Box<Inflate>),
    /// Behind a whole member.
    Between,
    /// At the end of the stream.
    End,
}

/// Inflates member after member. Checksums and lengths of all members are checked.
pub(super) struct Reader<R, W = ()> {
    input: R,
    watch: W,
    state: State,
    /// Members begun.
    member: u64,
    /// Bytes inflated.
    done: u64,
    /// Calls without progress, one after another.
    stalls: u32,
}

impl<R: BufRead, W: Watch> Reader<R, W> {
    pub(super) fn new(input: R, watch: W) -> Self {
        let mut reader = Self {
            input,
            watch,
            state: State::End,
            member: 0,
            done: 0,
            stalls: 0,
        };
        reader.begin();
        reader
    }

    fn begin(&mut self) {
        self.member += 1;
        let inflate = Box::new(Inflate::new(true, WINDOW));
        self.state = if W::BLOCKS {
            State::Header(inflate, Header::default())
        } else {
            State::Member(inflate)
        };
    }

    /// Feeds the decoder the header alone, so that it is known where the data begins. Whether it is a good header is
    /// for the decoder to say.
    fn header(&mut self, mut inflate: Box<Inflate>, mut header: Header) -> io::Result<()> {
        loop {
            let Some(&byte) = self.input.fill_buf()?.first() else {
                return Err(self.truncated());
            };
            let result = inflate.decompress(&[byte], &mut [], InflateFlush::Block);
            if let Err(error) = result {
                let text = inflate.error_message().unwrap_or(error.as_str());
                return Err(self.corrupt(text));
            }
            self.input.consume(1);
            self.watch.skipped(1);
            if header.ends_with(byte) {
                self.watch.member();
                self.state = State::Member(inflate);
                return Ok(());
            }
        }
    }

    /// What was noted.
    pub(super) fn into_watch(self) -> W {
        self.watch
    }

    /// What stands behind a member: another one, zeros to the end, or nothing.
    fn next_member(&mut self) -> io::Result<()> {
        match self.input.fill_buf()?.first() {
            None => self.state = State::End,
            Some(&MAGIC) => self.begin(),
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
        let text = format!(
            "the gzip data is corrupt in member {} after {} inflated bytes: {what}",
            self.member, self.done
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
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
        let flush = if W::BLOCKS {
            InflateFlush::Block
        } else {
            InflateFlush::NoFlush
        };
        loop {
            let inflate = match &mut self.state {
                State::End => return Ok(0),
                State::Between => {
                    self.next_member()?;
                    continue;
                }
                State::Header(..) => {
                    let state = std::mem::replace(&mut self.state, State::End);
                    if let State::Header(inflate, header) = state {
                        self.header(inflate, header)?;
                    }
                    continue;
                }
                State::Member(inflate) => inflate,
            };
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
                .inflated(&input[..consumed], &buf[..produced], W::BLOCKS && stopped);
            self.input.consume(consumed);
            self.done += produced as u64;
            let stalled = consumed == 0 && produced == 0;
            self.stalls = if stalled { self.stalls + 1 } else { 0 };
            match result {
                Err(error) => {
                    let text = inflate.error_message().unwrap_or(error.as_str());
                    return Err(self.corrupt(text));
                }
                Ok(Status::StreamEnd) => self.state = State::Between,
                Ok(_) if ended && produced == 0 => return Err(self.truncated()),
                Ok(_) if stalled && (!W::BLOCKS || self.stalls > STALLS_MAX) => {
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
}

impl Header {
    const CHECKSUM: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const FIXED: u32 = 10;

    /// Whether the header ends with this byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        self.at += 1;
        let (part, done) = if !self.fixed {
            if self.at == 4 {
                self.flags = byte & 0b1_1110;
            }
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
            (Self::CHECKSUM, self.at == 2)
        };
        if done {
            self.at = 0;
            self.flags &= !part;
        }
        done && self.flags == 0
    }
}
