//! A target for an image some of whose blobs stay where they are.

use std::collections::HashSet;
use std::sync::Arc;

use progress::Cancel;

use super::{BlobSink, Sink};
use crate::source::Store;
use crate::{Descriptor, Digest, Error};

/// Writes to another sink, and counts some blobs as in place.
pub(super) struct Leaving {
    pub sink: Arc<dyn Sink>,
    pub blobs: HashSet<Digest>,
}

impl Sink for Leaving {
    fn writer(self: Arc<Self>) -> Result<Box<dyn BlobSink>, Error> {
        Arc::clone(&self.sink).writer()
    }

    fn contains(&self, digest: &Digest, size: u64, cancel: &Cancel) -> Result<bool, Error> {
        Ok(self.blobs.contains(digest) || self.sink.contains(digest, size, cancel)?)
    }

    fn put_document(self: Arc<Self>, bytes: &[u8], descriptor: &Descriptor) -> Result<(), Error> {
        Arc::clone(&self.sink).put_document(bytes, descriptor)
    }

    fn adopt(&self, source: &dyn Store, descriptor: &Descriptor) -> Result<bool, Error> {
        self.sink.adopt(source, descriptor)
    }

    fn store(self: Arc<Self>) -> Arc<dyn Store> {
        Arc::clone(&self.sink).store()
    }

    fn commit(&self, root: &Descriptor) -> Result<(), Error> {
        self.sink.commit(root)
    }

    fn forget_documents(&self) {
        self.sink.forget_documents();
    }

    fn is_sequential(&self) -> bool {
        self.sink.is_sequential()
    }

    fn buffered(&self) -> usize {
        self.sink.buffered()
    }
}
