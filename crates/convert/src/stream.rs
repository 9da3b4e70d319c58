//! A layer's bytes from the source to whoever reads its tar: fetched and verified by one thread, inflated by a second,
//! digested by a third.

use std::io::Read;
use std::thread::{Scope, ScopedJoinHandle};

use image::{Digest, Hasher};
use progress::Cancel;

use crate::error::LayerError;
use crate::piece::{Message, Pipe, pipe, pump};

/// Compressed bytes that go from thread to thread at a time.
const FETCHED: usize = 256 << 10;
/// Inflated bytes that go from thread to thread at a time.
const INFLATED: usize = 512 << 10;

/// The inflated tar of a layer.
pub(crate) struct LayerStream<'scope> {
    /// To be read to the end, or dropped.
    pub tar: Pipe,
    /// What the bytes add up to.
    pub diff_id: DiffId<'scope>,
}

/// The digest of a stream that is read elsewhere.
pub(crate) struct DiffId<'scope>(ScopedJoinHandle<'scope, Option<Digest>>);

impl DiffId<'_> {
    /// The digest, once the stream has been read to its end.
    pub(crate) fn wait(self) -> Result<Digest, LayerError> {
        self.0.join().ok().flatten().ok_or(LayerError::Stopped)
    }
}

/// Starts the threads that turn the stored bytes of a layer into its tar.
pub(crate) fn open<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stored: impl Read + Send + 'scope,
    cancel: &Cancel,
) -> LayerStream<'scope> {
    let (fetched, stored_pieces) = pipe();
    let (to_reader, tar) = pipe();
    let (to_hasher, hashed) = pipe();
    let cancel_fetching = cancel.clone();
    scope.spawn(move || pump(stored, FETCHED, &[fetched], &cancel_fetching));
    let cancel = cancel.clone();
    scope.spawn(move || {
        let stored = Pipe::new(stored_pieces);
        match layer::detecting(stored).and_then(|(kind, stored)| layer::decompress(stored, kind)) {
            Ok(tar) => pump(tar, INFLATED, &[to_reader, to_hasher], &cancel),
            Err(error) => {
                // A reader that is gone needs no error.
                let _ = to_reader.send(Message::Failed(error));
            }
        }
    });
    let digest = scope.spawn(move || {
        let mut hasher = Hasher::new();
        loop {
            match hashed.recv().ok()? {
                Message::Piece(piece) => hasher.update((*piece).as_ref()),
                Message::End => return Some(hasher.finish()),
                Message::Failed(_) => return None,
            }
        }
    });
    LayerStream {
        tar: Pipe::new(tar),
        diff_id: DiffId(digest),
    }
}
