//! Gzip of any number of members, strict about what follows them.

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};

/// Largest window, as a power of two.
const WINDOW: u8 = 15;
const MAGIC: u8 = 0x1f;

enum State {
    /// In a member that was begun.
    Member(Box<Decompress>),
    /// Behind a whole member.
    Between,
    /// At the end of the stream.
    End,
}

/// Inflates member after member. Checksums and lengths of all members are checked.
pub(super) struct Reader<R> {
    input: R,
    state: State,
    /// Members begun.
    member: u64,
    /// Bytes inflated.
    done: u64,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        let mut reader = Self {
            input,
            state: State::End,
            member: 0,
            done: 0,
        };
        reader.begin();
        reader
    }

    fn begin(&mut self) {
        self.member += 1;
        self.state = State::Member(Box::new(Decompress::new_gzip(WINDOW)));
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

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let inflate = match &mut self.state {
                State::End => return Ok(0),
                State::Between => {
                    self.next_member()?;
                    continue;
                }
                State::Member(inflate) => inflate,
            };
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let result = inflate.decompress(input, buf, FlushDecompress::None);
            // Both differences are at most the lengths of the slices just given.
            let consumed = (inflate.total_in() - before_in) as usize;
            let produced = (inflate.total_out() - before_out) as usize;
            self.input.consume(consumed);
            self.done += produced as u64;
            match result {
                Err(error) => {
                    return Err(self.corrupt(error.message().unwrap_or("not a valid stream")));
                }
                Ok(Status::StreamEnd) => self.state = State::Between,
                Ok(_) if ended && produced == 0 => return Err(self.truncated()),
                Ok(_) if consumed == 0 && produced == 0 => {
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
