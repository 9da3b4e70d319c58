//! Copies inside a bucket.

use std::sync::Arc;

use reqwest::Method;

use crate::Error;
use crate::bucket::{Ask, Bucket};
use crate::upload::Parts;

impl Bucket {
    /// Makes an object of `size` bytes known under another name, too.
    pub(crate) fn copy(self: &Arc<Self>, from: &str, to: &str, size: u64) -> Result<(), Error> {
        let (source, range) = self.copy_source(from);
        if size <= self.limits.copy {
            let ask = Ask {
                headers: vec![source],
                ..Ask::new(Method::PUT, to)
            };
            self.ask("copy to", ask)?;
        } else {
            let mut parts = Parts::begin(self, to)?;
            let mut start = 0;
            while start < size {
                let end = size.min(start.saturating_add(self.limits.copy));
                let ask = Ask {
                    headers: vec![
                        source.clone(),
                        (range, format!("bytes={start}-{}", end - 1)),
                    ],
                    ..parts.next()?
                };
                let incoming = self.ask("copy to", ask)?;
                parts.copied(&incoming)?;
                start = end;
            }
            parts.join(size)?;
        }
        // What was copied is in no digest that a store computes: at least all of it must be there.
        let found = self.size(to)?;
        if found == Some(size) {
            return Ok(());
        }
        let exchange = self.exchange("copy to", Ask::new(Method::HEAD, to));
        Err(exchange.wrong_size(size, found.unwrap_or(0)).into())
    }
}
