//! What the tests here share.

use std::io::{Read as _, Write as _};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use backend::{Backend, Config, Kind};
use image::{Digest, Error, Target};
use registry::{Client, Settings};
use storage::BlobReader;
use testkit::bucket::Bucket;

/// More than two parts.
pub const LARGE: usize = (17 << 20) + 5;

/// Settings with which faults pass fast.
pub fn settings() -> Settings {
    Settings {
        retry_delay: Duration::from_millis(5),
        seed: Some(1),
        ..Settings::default()
    }
}

/// A backend in a bucket.
pub fn open(bucket: &Bucket, prefix: &str) -> Backend {
    open_config(bucket.kind(), &bucket.config(prefix))
}

/// The backend of a configuration.
pub fn open_config(kind: &str, json: &str) -> Backend {
    let config = Config::parse(Kind::from_str(kind).unwrap(), json).unwrap();
    Backend::open(&config, &Client::new(settings()).unwrap()).unwrap()
}

/// Writes a blob in pieces of odd sizes.
pub fn write(target: &Target, bytes: &[u8]) -> Result<u64, Error> {
    let mut writer = target.blob_writer()?;
    for piece in bytes.chunks(1_000_003) {
        writer
            .write_all(piece)
            .map_err(|error| error.downcast::<Error>().unwrap())?;
    }
    writer.finish(Digest::of(bytes))
}

/// All bytes as a stream from `offset` on.
pub fn stream(blob: Arc<dyn BlobReader>, offset: u64) -> Vec<u8> {
    let mut out = Vec::new();
    blob.stream(offset).unwrap().read_to_end(&mut out).unwrap();
    out
}
