//! Moving a stream of bytes from one thread to others, in pieces whose buffers are used again.
//!
//! Nobody copies a piece: all receivers look at the same bytes, and [`Pipe`] lends them out as its buffer.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use progress::Cancel;

/// Pieces that may wait for each receiver.
const WAITING: usize = 4;

/// A piece of the stream. Its buffer goes back to the sender when the last receiver drops it.
#[derive(Debug)]
pub struct Piece {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // The sender may be gone: then the buffer is, too.
        let _ = self.home.send(std::mem::take(&mut self.bytes));
    }
}

/// What goes through a channel; a channel that closes without `End` or `Failed` was broken.
#[derive(Debug)]
pub enum Message {
    /// The bytes that follow.
    Piece(Arc<Piece>),
    /// There are no more.
    End,
    /// There are no more since reading failed.
    Failed(io::Error),
}

/// A channel for pieces.
pub fn pipe() -> (SyncSender<Message>, Receiver<Message>) {
    sync_channel(WAITING)
}

/// Reads `source` to its end in pieces of `size` bytes, of which only the last may be shorter, and sends each to all
/// `receivers`. An error goes to the first, after a piece of what was read before it. Ends early if a receiver is gone or
/// the work is cancelled.
pub fn pump(
    mut source: impl Read,
    size: usize,
    receivers: &[SyncSender<Message>],
    cancel: &Cancel,
) {
    let (home, returned) = channel::<Vec<u8>>();
    loop {
        if cancel.is_cancelled() {
            return fail(receivers, io::Error::other(progress::Cancelled));
        }
        let mut bytes = returned.try_recv().unwrap_or_else(|_| vec![0; size]);
        bytes.resize(size, 0);
        let (filled, error) = fill(&mut source, &mut bytes);
        bytes.truncate(filled);
        if filled != 0 {
            let piece = Arc::new(Piece {
                bytes,
                home: home.clone(),
            });
            for receiver in receivers {
                if receiver.send(Message::Piece(Arc::clone(&piece))).is_err() {
                    return;
                }
            }
        }
        match error {
            Some(error) => return fail(receivers, error),
            None if filled < size => {
                for receiver in receivers {
                    // A receiver that is gone needs no end.
                    let _ = receiver.send(Message::End);
                }
                return;
            }
            None => {}
        }
    }
}

/// Reads `source` in a thread of its own, ahead of whoever reads what this returns, in pieces of `size` bytes. The thread ends
/// with the stream, with its first error, or soon after the pipe is dropped.
///
/// # Errors
/// When there can't be a thread.
pub fn read_ahead(source: impl Read + Send + 'static, size: usize) -> io::Result<Pipe> {
    let (sender, receiver) = pipe();
    std::thread::Builder::new()
        .name("read-ahead".to_owned())
        .spawn(move || pump(source, size, &[sender], &Cancel::default()))?;
    Ok(Pipe::new(receiver))
}

fn fail(receivers: &[SyncSender<Message>], error: io::Error) {
    if let Some(receiver) = receivers.first() {
        let _ = receiver.send(Message::Failed(error));
    }
}

/// Reads until the buffer is full or the stream ends; what was read before an error counts.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

/// Gives all that comes out of a channel to `take`, piece by piece. Says whether the stream came to its end.
pub fn take_all(receiver: &Receiver<Message>, mut take: impl FnMut(&[u8])) -> bool {
    loop {
        match receiver.recv() {
            Ok(Message::Piece(piece)) => take((*piece).as_ref()),
            Ok(Message::End) => return true,
            Ok(Message::Failed(_)) | Err(_) => return false,
        }
    }
}

/// Reads what comes out of a channel. Its buffer is always the rest of a piece.
#[derive(Debug)]
pub struct Pipe {
    receiver: Receiver<Message>,
    piece: Option<Arc<Piece>>,
    position: usize,
    ended: bool,
}

impl Pipe {
    /// Will read the other end of [`pipe`].
    pub fn new(receiver: Receiver<Message>) -> Self {
        Self {
            receiver,
            piece: None,
            position: 0,
            ended: false,
        }
    }

    /// The bytes of the piece that were not read.
    fn rest(&self) -> &[u8] {
        let bytes = self.piece.as_ref().map(|piece| &piece.bytes[..]);
        bytes
            .and_then(|bytes| bytes.get(self.position..))
            .unwrap_or_default()
    }
}

impl Pipe {
    /// Sends on all that comes out of the channel, without a copy. Nothing must have been consumed.
    pub fn pass_on(mut self, to: &SyncSender<Message>) {
        let begun = self.piece.take().map(Message::Piece);
        let ended = self.ended.then_some(Message::End);
        for message in begun.into_iter().chain(ended).chain(self.receiver) {
            // A receiver that is gone needs nothing.
            if to.send(message).is_err() {
                return;
            }
        }
    }
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.rest().is_empty() && !self.ended {
            (self.piece, self.position) = (None, 0);
            match self.receiver.recv() {
                Ok(Message::Piece(piece)) => self.piece = Some(piece),
                Ok(Message::End) => self.ended = true,
                Ok(Message::Failed(error)) => return Err(error),
                Err(_) => return Err(io::Error::other("the stage before this one has failed")),
            }
        }
        Ok(self.rest())
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(
        source: impl Read + Send,
        size: usize,
    ) -> (io::Result<Vec<u8>>, io::Result<Vec<u8>>) {
        let ((first, a), (second, b)) = (pipe(), pipe());
        std::thread::scope(|scope| {
            scope.spawn(move || pump(source, size, &[first, second], &Cancel::default()));
            let read = |receiver| {
                let mut out = Vec::new();
                Pipe::new(receiver).read_to_end(&mut out).map(|_| out)
            };
            let other = scope.spawn(move || {
                let mut out = Vec::new();
                let whole = take_all(&b, |bytes| out.extend_from_slice(bytes));
                whole.then_some(out).ok_or(io::ErrorKind::BrokenPipe.into())
            });
            (read(a), other.join().unwrap())
        })
    }

    #[test]
    fn every_receiver_gets_every_byte() {
        for len in [0, 1, 99, 100, 101, 1000, 5000] {
            let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let (a, b) = through(&data[..], 100);
            assert!(a.unwrap() == data && b.unwrap() == data, "{len}");
        }
    }

    #[test]
    fn pieces_are_full_and_lent_out_whole() {
        let (sender, receiver) = pipe();
        let data: Vec<u8> = (0..=255).collect();
        let trickle = data[..3].chain(&data[3..90]).chain(&data[90..]);
        pump(trickle, 100, &[sender], &Cancel::default());
        let mut pipe = Pipe::new(receiver);
        assert_eq!(pipe.fill_buf().unwrap(), &data[..100]);
        pipe.consume(60);
        assert_eq!(pipe.fill_buf().unwrap(), &data[60..100]);
        pipe.consume(40);
        assert_eq!(pipe.fill_buf().unwrap(), &data[100..200]);
        pipe.consume(100);
        assert_eq!(pipe.fill_buf().unwrap(), &data[200..]);
        pipe.consume(56);
        assert!(pipe.fill_buf().unwrap().is_empty());
    }

    #[test]
    fn what_is_passed_on_is_all_of_it() {
        for len in [0, 1, 100, 250] {
            let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let ((first, a), (second, b)) = (pipe(), pipe());
            pump(&data[..], 100, &[first], &Cancel::default());
            let mut pipe = Pipe::new(a);
            let seen = pipe.fill_buf().unwrap().len();
            assert_eq!(seen, len.min(100));
            pipe.pass_on(&second);
            drop(second);
            let mut out = Vec::new();
            Pipe::new(b).read_to_end(&mut out).unwrap();
            assert!(out == data, "{len}");
        }
    }

    #[test]
    fn an_error_reaches_the_first_receiver_and_nobody_takes_the_rest_for_the_whole() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let (a, b) = through((&b"some"[..]).chain(Broken), 100);
        assert_eq!(a.unwrap_err().to_string(), "broken");
        assert!(b.is_err());
    }

    #[test]
    fn what_is_read_ahead_may_be_left() {
        let mut pipe = read_ahead(io::repeat(7), 1000).unwrap();
        pipe.read_exact(&mut [0; 10]).unwrap();
        let data: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        let mut pipe = read_ahead(io::Cursor::new(data.clone()), 100).unwrap();
        pipe.read_to_end(&mut out).unwrap();
        assert_eq!(out, data);
    }

    #[test]
    fn a_receiver_that_goes_away_ends_the_pump() {
        let (sender, receiver) = pipe();
        drop(receiver);
        pump(io::repeat(0), 10, &[sender], &Cancel::default());
    }

    #[test]
    fn cancelling_ends_the_pump() {
        let (sender, receiver) = pipe();
        let cancel = Cancel::default();
        cancel.cancel();
        pump(io::repeat(0), 10, &[sender], &cancel);
        assert!(Pipe::new(receiver).read(&mut [0]).is_err());
    }
}
