//! What serves requests and reads what others say, for the fuzz targets; no part of the interface.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use fuser::INodeNo;
use rafs_format::{Bootstrap, Nid};
use storage::ChunkStore;

use super::{RafsFs, Scratch};
use crate::fuse::Flights;
use crate::metrics::Samples;
use crate::mountinfo;
use crate::stats::Counters;

/// Bytes of a read.
const READ: u32 = 128 << 10;

/// Asks a file system of this image all that a kernel could, whatever inode it is about, and what leads to none. The image need not be
/// sound.
pub fn serve(bootstrap: Arc<Bootstrap<Vec<u8>>>, store: Arc<ChunkStore>, slots: u64) {
    let counters = Arc::new(Counters::begin(store.words()));
    let keeper = Arc::new(AtomicU32::new(0));
    let flights = Flights::create().and_then(|memory| Flights::map(&memory));
    let flights = flights.expect("memory can be had");
    let fs = RafsFs::new(bootstrap, store, counters, keeper, flights, None);
    let mut scratch = Scratch::default();
    let numbers = (0..slots).map(Nid).chain([Nid(u64::MAX >> 1)]);
    for ino in numbers
        .map(|nid| fs.numbers.ino(nid))
        .chain([INodeNo::ROOT])
    {
        let Ok(attr) = fs.attr(ino) else { continue };
        let _ = fs.target(ino);
        let _ = fs.xattr(ino, b"user.a");
        let _ = fs.xattr_names(ino);
        let mut names = Vec::new();
        let _ = fs.list(ino, 0, |_, _, _, name| {
            names.push(name.to_owned());
            names.len() >= 100
        });
        let _ = fs.list(ino, i64::MAX as u64, |_, _, _, _| false);
        for name in &names {
            let _ = fs.find(ino, name.as_encoded_bytes());
        }
        for offset in [
            0,
            attr.size / 2,
            attr.size.saturating_sub(1),
            i64::MAX as u64,
        ] {
            if let Ok(len) = fs.read_file(ino, offset, READ, &mut scratch) {
                assert!(len as u64 <= attr.size.saturating_sub(offset));
            }
        }
    }
}

/// Any text as the figures of a mount.
pub fn figures(text: &str) {
    let samples = Samples::parse(text);
    for sample in samples.iter() {
        let _ = samples.sum(&sample.name);
        let name = sample.name.strip_suffix("_bucket");
        let _ = samples.quantile(name.unwrap_or_default(), 0.5);
    }
}

/// Any bytes as the table of mounts.
pub fn mounts(table: &[u8]) {
    let lines = table.split(|&byte| byte == b'\n');
    lines.for_each(|line| drop(mountinfo::parse_line(line)));
}
