//! Writing an object whose name is known when its last byte is.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use image::{BlobSink, Digest};
use registry::{Exchange, Incoming, Pending};
use reqwest::Method;
use reqwest::header::ETAG;

use crate::Error;
use crate::bucket::{Ask, Bucket, accept};

/// Most parts that stores take.
pub(crate) const PARTS_MAX: usize = 10_000;
/// From this part on they are larger, so that their number suffices for blobs of hundreds of GiB.
const LARGER_FROM: usize = 5_000;
const LARGER: usize = 8;

/// A blob on its way into a bucket.
pub(crate) struct Upload {
    bucket: Arc<Bucket>,
    force: bool,
    /// The part that fills.
    buffer: Vec<u8>,
    written: u64,
    /// The upload in parts, once there is more than one.
    parts: Option<Parts>,
}

impl Upload {
    /// `force`: an object that is there already is written again.
    pub(crate) fn new(bucket: Arc<Bucket>, force: bool) -> Self {
        Self {
            bucket,
            force,
            buffer: Vec::new(),
            written: 0,
            parts: None,
        }
    }

    /// Size of the part that fills.
    fn part_size(&self) -> usize {
        let done = self.parts.as_ref().map_or(0, |parts| parts.tags.len());
        match done < LARGER_FROM {
            true => self.bucket.limits.part,
            false => self.bucket.limits.part.saturating_mul(LARGER),
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        let parts = match &mut self.parts {
            Some(parts) => parts,
            none => none.insert(Parts::begin(&self.bucket, &self.bucket.temporary())?),
        };
        parts.send(Bytes::from(std::mem::take(&mut self.buffer)))
    }

    fn complete(mut self, digest: &Digest) -> Result<u64, Error> {
        let (bucket, size) = (Arc::clone(&self.bucket), self.written);
        let object = bucket.object(&digest.hex());
        if !self.force && bucket.has(&object, size)? {
            return Ok(size);
        }
        if self.parts.is_none() {
            bucket.put(&object, Bytes::from(std::mem::take(&mut self.buffer)))?;
            return Ok(size);
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        let Some(parts) = self.parts.take() else {
            return Ok(size);
        };
        let temporary = parts.finish(size)?;
        bucket.copy(&temporary.object, &object, size)?;
        Ok(size)
    }
}

impl Write for Upload {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let part = self.part_size();
        if self.buffer.len() >= part {
            self.send()
                .map_err(|error| io::Error::other(image::Error::from(error)))?;
        }
        let length = buf.len().min(part - self.buffer.len());
        self.buffer.extend_from_slice(&buf[..length]);
        self.written += length as u64;
        Ok(length)
    }

    /// Does nothing: parts go out when they are full, and the last when the blob is finished.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for Upload {
    fn finish(self: Box<Self>, digest: Digest) -> Result<u64, image::Error> {
        Ok(self.complete(&digest)?)
    }
}

/// An object that goes when this value does.
pub(crate) struct Temporary {
    bucket: Arc<Bucket>,
    pub(crate) object: String,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.bucket.remove(&self.object);
    }
}

/// An upload in parts; given up when dropped before [`Parts::finish`].
pub(crate) struct Parts {
    bucket: Arc<Bucket>,
    object: String,
    id: String,
    /// Tags of the parts that are there.
    tags: Vec<String>,
    /// The part on the wire.
    pending: Option<(Exchange, Pending)>,
    open: bool,
}

impl Parts {
    pub(crate) fn begin(bucket: &Arc<Bucket>, object: &str) -> Result<Self, Error> {
        let ask = Ask {
            query: vec![("uploads", String::new())],
            ..Ask::new(Method::POST, object)
        };
        let incoming = bucket.ask("begin an upload of", ask)?;
        let text = String::from_utf8_lossy(&incoming.body);
        let id = element(&text, "UploadId").ok_or_else(|| Error::Answer {
            object: format!("object {object} in {bucket}"),
            action: "the beginning of an upload",
            missing: "UploadId",
        })?;
        Ok(Self {
            bucket: Arc::clone(bucket),
            object: object.to_owned(),
            id,
            tags: Vec::new(),
            pending: None,
            open: true,
        })
    }

    /// A request about the next part.
    pub(crate) fn next(&self) -> Result<Ask, Error> {
        if self.tags.len() >= PARTS_MAX {
            return Err(Error::TooLarge {
                object: format!("object {} in {}", self.object, self.bucket),
                parts: PARTS_MAX,
            });
        }
        Ok(Ask {
            query: vec![
                ("partNumber", (self.tags.len() + 1).to_string()),
                ("uploadId", self.id.clone()),
            ],
            ..Ask::new(Method::PUT, &self.object)
        })
    }

    /// Sends a part as soon as the one before is there.
    fn send(&mut self, body: Bytes) -> Result<(), Error> {
        self.settle()?;
        let ask = Ask {
            body,
            ..self.next()?
        };
        let exchange = self.bucket.exchange("write a part of", ask);
        let pending = self.bucket.client.start(exchange.clone());
        self.pending = Some((exchange, pending));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        let Some((exchange, pending)) = self.pending.take() else {
            return Ok(());
        };
        let incoming = accept(&exchange, pending.wait()?)?;
        let tag = tag(&incoming).ok_or_else(|| self.untagged())?;
        self.tags.push(tag);
        Ok(())
    }

    fn untagged(&self) -> Error {
        Error::Answer {
            object: format!("object {} in {}", self.object, self.bucket),
            action: "a part",
            missing: "ETag",
        }
    }

    /// Notes a part that came into being by a copy.
    pub(crate) fn copied(&mut self, incoming: &Incoming) -> Result<(), Error> {
        let text = String::from_utf8_lossy(&incoming.body);
        let tag = element(&text, "ETag").ok_or_else(|| self.untagged())?;
        self.tags.push(tag);
        Ok(())
    }

    /// Puts the parts together to an object of `size` bytes, which is there as long as the value that is returned.
    fn finish(mut self, size: u64) -> Result<Temporary, Error> {
        self.join(size)?;
        Ok(Temporary {
            bucket: Arc::clone(&self.bucket),
            object: std::mem::take(&mut self.object),
        })
    }

    /// Puts the parts together to an object of `size` bytes.
    pub(crate) fn join(&mut self, size: u64) -> Result<(), Error> {
        self.settle()?;
        let parts: String = (1..)
            .zip(&self.tags)
            .map(|(number, tag)| {
                let tag = escape(tag);
                format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>")
            })
            .collect();
        let document = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let ask = Ask {
            query: vec![("uploadId", self.id.clone())],
            headers: vec![("content-type", "application/xml".to_owned())],
            body: document.into(),
            ..Ask::new(Method::POST, &self.object)
        };
        match self.bucket.ask("complete", ask) {
            Ok(_) => {}
            // The answer to an earlier attempt may have been lost.
            Err(Error::Store(registry::Error::NotFound { .. }))
                if self.bucket.has(&self.object, size)? => {}
            Err(error) => return Err(error),
        }
        self.open = false;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let cut = self.pending.take().is_some();
        self.bucket.abandon(&self.object, &self.id);
        if cut {
            // What arrived of a part that was on the wire may have come into being meanwhile.
            let ask = Ask {
                query: vec![("uploadId", self.id.clone())],
                ..Ask::new(Method::DELETE, &self.object)
            };
            let exchange = self.bucket.exchange("delete", ask);
            self.bucket.client.tidy(&exchange, crate::bucket::TIDY);
        }
    }
}

/// The tag of a part, with its quotes.
fn tag(incoming: &Incoming) -> Option<String> {
    Some(incoming.headers.get(ETAG)?.to_str().ok()?.to_owned())
}

/// The text of the first element of a name.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    let content = content
        .replace("&quot;", "\"")
        .replace("&#34;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    Some(content).filter(|content| !content.is_empty())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_and_unescaped() {
        let text = "<?xml?><R xmlns=\"x\"><UploadId>a&amp;b</UploadId><ETag>&quot;1&#34;</ETag><E></E></R>";
        assert_eq!(element(text, "UploadId").unwrap(), "a&b");
        assert_eq!(element(text, "ETag").unwrap(), "\"1\"");
        assert_eq!(element(text, "E"), None);
        assert_eq!(element("<ETag>1", "ETag"), None);
    }
}
