//! Every stage that fails ends the build with its own error, and promptly.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use builder::{Dedup, Error, build_tar};
use rafs_format::Compressor;

use crate::{build, busy_tar, bytes, options, options_with};

/// A writer that takes so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(taken)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_ends_the_build_wherever_it_strikes() {
    let tar = busy_tar();
    let (_, blob) = build(&tar, &options());
    for room in [
        0,
        1,
        300_000,
        blob.len() / 2,
        blob.len() - 5000,
        blob.len() - 1,
    ] {
        let error = build_tar(
            &tar[..],
            Full(room),
            &options_with(2, 1 << 20),
            Dedup::Layer,
        )
        .unwrap_err();
        let Error::Write(source) = error else {
            panic!("{error:?}")
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn a_truncated_tar_is_the_layer_s_fault() {
    let tar = busy_tar();
    for len in [600, 5_000_000] {
        let error = build_tar(&tar[..len], io::sink(), &options(), Dedup::Layer).unwrap_err();
        assert!(matches!(error, Error::Layer(_)), "{error:?}");
    }
}

/// A tar that never ends.
struct Endless {
    header: Vec<u8>,
    at: usize,
}

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = match self.header.get(self.at..).filter(|rest| !rest.is_empty()) {
            Some(rest) => rest.len().min(out.len()),
            None => {
                out.copy_from_slice(&bytes(self.at as u64, out.len()));
                out.len()
            }
        };
        if let Some(rest) = self.header.get(self.at..self.at + len) {
            out[..len].copy_from_slice(rest);
        }
        self.at += len;
        Ok(len)
    }
}

#[test]
fn cancelling_ends_the_build_soon() {
    let options = options_with(1, 1 << 20);
    let entry = testkit::tar::Entry::file("f", "");
    let endless = Endless {
        header: testkit::tar::header(&entry, 1 << 32).to_vec(),
        at: 0,
    };
    let cancel = options.cancel.clone();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cancel.cancel();
        Instant::now()
    });
    let error = build_tar(
        io::BufReader::new(endless),
        io::sink(),
        &options,
        Dedup::Layer,
    )
    .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert!(stopper.join().unwrap().elapsed() < Duration::from_secs(2));
}

#[test]
fn impossible_options_are_refused_before_anything_is_read() {
    let mut wrong = [options(), options(), options(), options()];
    wrong[0].chunk_size = 5000;
    wrong[1].chunk_size = 0x200_0000;
    wrong[2].compressor = Compressor::Gzip;
    wrong[3].level = 1000;
    for options in wrong {
        let error = build_tar(
            io::BufReader::new(io::repeat(0)),
            io::sink(),
            &options,
            Dedup::Layer,
        )
        .unwrap_err();
        assert!(
            matches!(error, Error::ChunkSize(_) | Error::Compress(_)),
            "{error:?}"
        );
    }
}
