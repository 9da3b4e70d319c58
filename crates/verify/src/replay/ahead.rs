//! Reads ahead in a thread of its own, so that inflating goes on while the bytes are looked at.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Bytes handed over at a time.
const PART: usize = 256 << 10;
/// Parts that wait at most.
const PARTS: usize = 4;

/// A reader whose bytes come from another thread.
pub(crate) struct ReadAhead {
    parts: Receiver<io::Result<Vec<u8>>>,
    /// Takes used parts back.
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

impl ReadAhead {
    /// Starts to read `inner`. The thread ends with the stream, with its first error, or soon after this is dropped.
    pub(crate) fn new(inner: Box<dyn Read + Send>) -> io::Result<Self> {
        let (send, parts) = sync_channel(PARTS);
        let (used, spare) = channel();
        std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || pump(inner, &send, &spare))?;
        Ok(Self {
            parts,
            used,
            current: Vec::new(),
            position: 0,
            ended: false,
        })
    }

    /// Makes the next part current; false at the end.
    fn next_part(&mut self) -> io::Result<bool> {
        while self.position == self.current.len() && !self.ended {
            match self.parts.recv() {
                Ok(part) => {
                    let used = std::mem::replace(
                        &mut self.current,
                        part.inspect_err(|_| self.ended = true)?,
                    );
                    self.position = 0;
                    // The other thread may have ended; then nobody needs the part.
                    let _ = self.used.send(used);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(self.position < self.current.len())
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.next_part()? {
            return Ok(0);
        }
        let part = self.current.get(self.position..).unwrap_or_default();
        let len = part.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), part.get(..len)) {
            to.copy_from_slice(from);
        }
        self.position += len;
        Ok(len)
    }
}

fn pump(
    mut inner: Box<dyn Read + Send>,
    parts: &SyncSender<io::Result<Vec<u8>>>,
    spare: &Receiver<Vec<u8>>,
) {
    loop {
        let mut part = spare.try_recv().unwrap_or_default();
        part.resize(PART, 0);
        let result = fill(&mut *inner, &mut part).map(|len| part.truncate(len));
        let last = result.is_err() || part.is_empty();
        if parts.send(result.map(|()| part)).is_err() || last {
            return;
        }
    }
}

/// Fills as much of `part` as the stream has.
fn fill(inner: &mut dyn Read, part: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(free) = part.get_mut(filled..).filter(|free| !free.is_empty()) {
        match inner.read(free) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_errors_arrive_in_order() {
        let data: Vec<u8> = (0..3 * PART + 17).map(|i| (i % 251) as u8).collect();
        let mut out = Vec::new();
        ReadAhead::new(Box::new(io::Cursor::new(data.clone())))
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        assert!(out == data);

        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut reader = ReadAhead::new(Box::new(io::Cursor::new(data).chain(Broken))).unwrap();
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }

    #[test]
    fn a_reader_may_be_dropped_early() {
        let mut reader = ReadAhead::new(Box::new(io::repeat(7))).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
    }
}
