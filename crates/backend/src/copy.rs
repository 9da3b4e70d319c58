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

#[cfg(test)]
mod tests {
    use registry::{Client, Settings};
    use testkit::bucket::Bucket as Store;

    use super::*;
    use crate::bucket::Limits;
    use crate::config::{Config, Place};

    #[test]
    fn an_object_beyond_the_limit_is_copied_in_parts() {
        for store in [Store::s3(), Store::oss()] {
            let config = Config::parse(store.kind().parse().unwrap(), &store.config("p/")).unwrap();
            let Place::Bucket(config) = config.place else {
                panic!("a bucket was asked for");
            };
            let mut bucket =
                Bucket::new(&config, &Client::new(Settings::default()).unwrap(), None).unwrap();
            bucket.limits = Limits {
                part: 1,
                copy: 5 << 20,
            };
            let bucket = Arc::new(bucket);
            let bytes = testkit::noise(1, (10 << 20) + 1);
            bucket.put("p/from", bytes.clone().into()).unwrap();
            bucket.copy("p/from", "p/to", bytes.len() as u64).unwrap();
            assert!(store.objects()["p/to"] == bytes);
            let copies = store.requests();
            let copies = copies.iter().filter(|line| line.contains("partNumber="));
            assert_eq!(copies.count(), 3);

            // A copy that fails gives its upload up.
            let error = bucket
                .copy("p/none", "p/other", bytes.len() as u64)
                .unwrap_err();
            assert!(error.to_string().contains("404"), "{error}");
            assert_eq!((store.objects().len(), store.uploads()), (2, 0));
        }
    }
}
