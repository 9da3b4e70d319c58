//! A layer's bytes from the source to whoever reads its tar: fetched and verified by one thread, inflated by a second,
//! digested by a third. Of a layer that is not compressed the source's digest is that of the tar: it is computed once.

use std::io::{self, BufRead as _, Read};
use std::sync::mpsc::channel;
use std::thread::{Scope, ScopedJoinHandle};

use image::{Digest, Hasher};
use layer::Compression;
use layer::piece::{Message, Pipe, pipe, pump, take_all};
use progress::Cancel;

use crate::error::LayerError;

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
pub(crate) struct DiffId<'scope>(ScopedJoinHandle<'scope, Option<io::Result<Digest>>>);

impl DiffId<'_> {
    /// The digest, once the stream has been read to its end; an error if the stream turns out to be damaged.
    pub(crate) fn wait(self) -> Result<Digest, LayerError> {
        let digest = self.0.join().ok().flatten().ok_or(LayerError::Stopped)?;
        Ok(digest.map_err(builder::Error::Cut)?)
    }
}

/// Starts the threads that turn the stored bytes of a layer into its tar. `stored` has the digest `digest`, or fails at
/// its end.
pub(crate) fn open<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stored: impl Read + Send + 'scope,
    digest: Digest,
    cancel: &Cancel,
) -> LayerStream<'scope> {
    let (fetched, stored_pieces) = pipe();
    let (to_reader, tar) = pipe();
    let (to_hasher, hashed) = pipe();
    let (give_checksums, checksums) = channel();
    let cancel_fetching = cancel.clone();
    scope.spawn(move || pump(stored, FETCHED, &[fetched], &cancel_fetching));
    let cancel = cancel.clone();
    scope.spawn(move || {
        let mut stored = Pipe::new(stored_pieces);
        // The first piece is a full one: it has all the bytes that tell.
        let kind = stored.fill_buf().map(layer::detect);
        // If the hasher is gone, so is the reader.
        if let Ok(Compression::None) = kind {
            let _ = give_checksums.send(None);
            return stored.pass_on(&to_reader);
        }
        match kind.and_then(|kind| layer::decompress_apart(stored, kind)) {
            Ok((tar, checksums)) => {
                let _ = give_checksums.send(Some(checksums));
                pump(tar, INFLATED, &[to_reader, to_hasher], &cancel);
            }
            Err(error) => {
                // A reader that is gone needs no error.
                let _ = to_reader.send(Message::Failed(error));
            }
        }
    });
    let digest = scope.spawn(move || {
        let Some(mut checksums) = checksums.recv().ok()? else {
            return Some(Ok(digest));
        };
        let mut hasher = Hasher::new();
        let whole = take_all(&hashed, |bytes| {
            hasher.update(bytes);
            checksums.update(bytes);
        });
        whole.then(|| checksums.finish().map(|()| hasher.finish()))
    });
    LayerStream {
        tar: Pipe::new(tar),
        diff_id: DiffId(digest),
    }
}
