//! Images that the deployed builder made of known layers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{assert_verified, check, file, layers};
use rafs_format::Compressor;
use rafs_format::blob_meta::{HEADER_SIZE, Header};
use storage::{BlobReader, NamedSource};
use verify::{Files, Outcome, Rule, Side};

fn bare(path: &Path, blobs: Option<&Path>) -> Side {
    Side::bare(path, blobs).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
}

#[test]
fn images_of_one_layer_equal_it() {
    let Some(shared) = testkit::shared_or_skip("images_of_one_layer_equal_it") else {
        return;
    };
    let golden = shared.join("golden");
    let lower = layers(&[file(&golden.join("lower.tar"))]);
    let zipped = layers(&[file(&golden.join("lower.tar.gz"))]);
    for name in [
        "v6-zstd",
        "v6-lz4-sha256",
        "v6-none",
        "v6-zstd-64k",
        "v6-batch",
        "v6-encrypt",
    ] {
        let target = bare(&golden.join(format!("{name}.blob")), None);
        for source in [&lower, &zipped] {
            let report = check(Some(source), &target);
            println!("{name}\n{report}");
            assert_verified(&report);
            assert_eq!(report.rule(Rule::Data).unwrap().outcome, Outcome::Passed);
            assert!(
                report.counts.chunks_read > 0 && report.counts.chunks_read == report.counts.chunks
            );
        }
    }
}

#[test]
fn a_merged_image_equals_its_layers() {
    let Some(shared) = testkit::shared_or_skip("a_merged_image_equals_its_layers") else {
        return;
    };
    let golden = shared.join("golden");
    let source = layers(&[
        file(&golden.join("lower.tar")),
        file(&golden.join("upper.tar")),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let mut target = bare(&golden.join("merged/v6.boot"), Some(dir.path()));
    for name in ["v6-zstd", "v6-upper"] {
        let blob = file(&golden.join(format!("{name}.blob")));
        std::fs::write(
            dir.path()
                .join(testkit::sha256(&blob).trim_start_matches("sha256:")),
            blob,
        )
        .unwrap();
    }
    let report = check(Some(&source), &target);
    println!("{report}");
    assert_verified(&report);
    assert_eq!(
        report
            .rules
            .iter()
            .filter(|rule| rule.outcome == Outcome::Passed)
            .count(),
        3
    );

    let alone = check(None, &target);
    assert_verified(&alone);
    assert_eq!(
        alone.rule(Rule::Filesystem).unwrap().outcome,
        Outcome::Skipped
    );

    let Files::Rafs { blobs, .. } = &mut target.files else {
        panic!("a bootstrap")
    };
    *blobs = None;
    assert_eq!(
        check(Some(&source), &target)
            .rule(Rule::Data)
            .unwrap()
            .outcome,
        Outcome::Skipped
    );
}

#[test]
fn the_wrong_source_is_told_apart() {
    let Some(shared) = testkit::shared_or_skip("the_wrong_source_is_told_apart") else {
        return;
    };
    let golden = shared.join("golden");
    let source = layers(&[file(&golden.join("upper.tar"))]);
    let report = check(Some(&source), &bare(&golden.join("v6-zstd.blob"), None));
    println!("{report}");
    assert!(!report.verified);
    assert!(report.differences.total > 10);
}

#[test]
fn two_images_of_one_layer_are_equal() {
    let Some(shared) = testkit::shared_or_skip("two_images_of_one_layer_are_equal") else {
        return;
    };
    let golden = shared.join("golden");
    let [zstd, none, upper] = ["v6-zstd", "v6-none", "v6-upper"]
        .map(|name| bare(&golden.join(format!("{name}.blob")), None));
    assert_verified(&check(Some(&zstd), &none));
    assert!(!check(Some(&zstd), &upper).verified);
    let tars = [file(&golden.join("lower.tar"))];
    assert_verified(&check(Some(&none), &layers(&tars)));
    assert_verified(&check(Some(&layers(&tars)), &layers(&tars)));
}

#[test]
fn any_damaged_byte_of_the_data_is_found() {
    let Some(shared) = testkit::shared_or_skip("any_damaged_byte_of_the_data_is_found") else {
        return;
    };
    let golden = shared.join("golden");
    let bytes = file(&golden.join("v6-zstd.blob"));
    let side = bare(&golden.join("v6-zstd.blob"), None);
    let Files::Rafs { bootstrap, .. } = &side.files else {
        panic!("a bootstrap")
    };
    let info = &bootstrap.blobs()[0];
    let data = usize::try_from(info.data_size()).unwrap();
    for at in [0, data / 3, data - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        let mut blobs = NamedSource::new(None);
        blobs.insert(info.id.as_str(), Arc::new(damaged));
        let target = Side {
            name: "damaged".to_owned(),
            document: None,
            files: Files::Rafs {
                bootstrap: Arc::clone(bootstrap),
                blobs: Some(Arc::new(blobs)),
            },
        };
        let report = check(None, &target);
        assert_eq!(
            report.rule(Rule::Data).unwrap().problem_count,
            1,
            "{report}"
        );
        assert_eq!(
            report.rule(Rule::Bootstrap).unwrap().outcome,
            Outcome::Passed,
            "{report}"
        );
    }
}

#[test]
fn images_cut_otherwise_are_compared_but_for_contents() {
    let Some(shared) =
        testkit::shared_or_skip("images_cut_otherwise_are_compared_but_for_contents")
    else {
        return;
    };
    let golden = shared.join("golden");
    let [whole, small, upper] = ["v6-zstd", "v6-zstd-64k", "v6-upper"]
        .map(|name| bare(&golden.join(format!("{name}.blob")), None));
    let report = check(Some(&whole), &small);
    let rule = report.rule(Rule::Filesystem).unwrap();
    assert_eq!(
        (rule.outcome, rule.problem_count),
        (Outcome::Failed, 1),
        "{report}"
    );
    assert!(rule.problems[0].contains("65536"), "{report}");
    assert_eq!(report.differences.total, 0, "{report}");
    assert!(check(Some(&upper), &small).differences.total > 0);
}

/// Where the chunk table of a blob of many gigabytes begins.
const TABLE_AT: u64 = 6 << 30;

/// A blob of any claimed size, of which nobody may ask for more than a batch can have.
struct Claimed {
    blob: Vec<u8>,
    /// The chunk table and its header, at [`TABLE_AT`].
    table: Vec<u8>,
    most: AtomicUsize,
}

struct Served(Arc<Claimed>);

impl BlobReader for Served {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.most.fetch_max(buf.len(), Ordering::Relaxed);
        assert!(buf.len() <= 64 << 20, "{} bytes at once", buf.len());
        for (at, byte) in (offset..).zip(buf) {
            let (part, at) = match at.checked_sub(TABLE_AT) {
                Some(at) => (&self.0.table, at),
                None => (&self.0.blob, at),
            };
            let at = usize::try_from(at).unwrap();
            *byte = part.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        // It is not digested: the blob of bare files has no name to hold it to.
        TABLE_AT + self.0.table.len() as u64
    }
}

#[test]
fn the_stored_size_of_a_batch_is_bounded_before_it_is_read() {
    let Some(shared) =
        testkit::shared_or_skip("the_stored_size_of_a_batch_is_bounded_before_it_is_read")
    else {
        return;
    };
    let path = shared.join("golden/v6-batch.blob");
    let blob = file(&path);
    let mut bootstrap = storage::load_bootstrap(&path).unwrap().bootstrap;
    let info = &mut bootstrap.blobs_mut()[0];
    // The chunk table goes to the end, uncompressed, with a first batch of nearly 4 GiB.
    let stored = usize::try_from(info.meta_offset).unwrap();
    let end = stored + usize::try_from(info.meta_compressed_size).unwrap();
    let mut table = vec![0; usize::try_from(info.meta_uncompressed_size).unwrap()];
    codec::decompress(info.meta_compressor, &blob[stored..end], &mut table).unwrap();
    let header = blob[end..end + HEADER_SIZE].try_into().unwrap();
    let mut header = Header::parse(&header).unwrap();
    let context = usize::try_from(header.contexts_offset).unwrap();
    table[context..context + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    info.meta_offset = TABLE_AT;
    info.compressed_size = TABLE_AT;
    info.meta_compressor = Compressor::None;
    info.meta_compressed_size = info.meta_uncompressed_size;
    header.offset = info.meta_offset;
    header.compressor = info.meta_compressor;
    header.compressed_size = info.meta_compressed_size;
    table.extend(header.encode());
    let id = info.id.to_string();
    let claimed = Arc::new(Claimed {
        blob,
        table,
        most: AtomicUsize::new(0),
    });
    let mut blobs = NamedSource::new(None);
    blobs.insert(id, Arc::new(Served(Arc::clone(&claimed))));
    let side = Side {
        name: "hostile".to_owned(),
        document: None,
        files: Files::Rafs {
            bootstrap: Arc::new(bootstrap.into()),
            blobs: Some(Arc::new(blobs)),
        },
    };
    let report = check(None, &side);
    assert!(!report.verified, "{report}");
    let tables = report.rule(Rule::Bootstrap).unwrap();
    assert!(
        format!("{report}").contains("larger than the format allows"),
        "{report}"
    );
    assert_eq!(tables.outcome, Outcome::Failed, "{report}");
    assert!(claimed.most.load(Ordering::Relaxed) > 0);
}
