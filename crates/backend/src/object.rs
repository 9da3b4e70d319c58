//! Reading an object.

use std::io::{self, Read};
use std::sync::Arc;

use registry::Exchange;
use reqwest::Method;
use storage::BlobReader;

use crate::bucket::{Ask, Bucket};

/// An object that is read at random, by ranges, or as a stream.
pub(crate) struct Object {
    bucket: Arc<Bucket>,
    exchange: Exchange,
    size: u64,
}

impl Object {
    pub(crate) fn new(bucket: Arc<Bucket>, name: &str, size: u64) -> Self {
        Self {
            exchange: bucket.exchange("read", Ask::new(Method::GET, name)),
            bucket,
            size,
        }
    }
}

impl BlobReader for Object {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self
            .bucket
            .client
            .read_object(&self.exchange, offset, buf)?)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn stream(self: Arc<Self>, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let client = &self.bucket.client;
        let stream = client.stream_object(self.exchange.clone(), self.size, offset)?;
        Ok(Box::new(stream))
    }
}
