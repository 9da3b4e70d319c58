//! Layers as tar streams: built, written out again and read back they are the same trees with the same data.
#![allow(clippy::unwrap_used)]

#[path = "common/trees.rs"]
mod trees;

use std::io;
use std::sync::{Arc, Mutex};

use builder::{BlobKey, Budget, BuildOptions, Dedup, Encryption, build_tar, load_image};
use export::{Error, TarSummary, write_tar};
use progress::Cancel;
use proptest::collection::vec;
use proptest::prelude::*;
use rafs_format::{Bootstrap, Compressor, Digester, Version};
use storage::{
    BlobReader, ChunkStore, LoadedBootstrap, NamedSource, StoreOptions, extract_bootstrap,
};
use testkit::tar::{Entry, Sparse, Tar, flag};
use testkit::{noise, prose, shared_or_skip};
use tree::{Content, Inode, InodeId, mode};

use trees::{Contents, trees};

fn options() -> BuildOptions {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    BuildOptions {
        chunk_size: 0x1_0000,
        ..BuildOptions::new(Arc::new(pool.unwrap()), Budget::new(8 << 20))
    }
}

fn build(tar: &[u8]) -> Vec<u8> {
    build_with(tar, &options())
}

fn build_with(tar: &[u8], options: &BuildOptions) -> Vec<u8> {
    let mut blob = Vec::new();
    build_tar(tar, &mut blob, options, Dedup::Layer).unwrap();
    blob
}

/// Both versions with every compressor and digester.
fn kinds() -> Vec<BuildOptions> {
    let mut kinds = Vec::new();
    for version in [Version::V5, Version::V6] {
        for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
            for digester in [Digester::Blake3, Digester::Sha256] {
                kinds.push(BuildOptions {
                    version,
                    blob_toc: version == Version::V6,
                    compressor,
                    digester,
                    ..options()
                });
            }
        }
    }
    kinds
}

/// One of all kinds, with what else makes a difference to how chunks are stored.
fn kind() -> impl Strategy<Value = BuildOptions> {
    (
        0..kinds().len(),
        0..4_usize,
        any::<Option<([u8; 32], [u8; 16])>>(),
        any::<bool>(),
    )
        .prop_map(|(kind, batch, key, aligned_chunk)| {
            let kind = kinds().swap_remove(kind);
            if kind.version == Version::V5 {
                return BuildOptions {
                    aligned_chunk,
                    ..kind
                };
            }
            BuildOptions {
                batch_size: [0, 0x1000, 0x4000, 0x1_0000][batch],
                encryption: key.map(|(key, iv)| Encryption::Key(BlobKey::new(key, iv))),
                ..kind
            }
        })
}

/// The bootstrap of a native layer of either version, in the form that readers have.
fn parse(blob: &[u8]) -> Bootstrap<Vec<u8>> {
    let bytes = extract_bootstrap(&blob.to_vec()).unwrap();
    LoadedBootstrap::from_bytes(bytes).unwrap().bootstrap
}

/// The native layer `blob` as a tar stream; `reader` serves its chunks.
fn unpack(blob: &[u8], reader: Arc<dyn BlobReader>) -> Result<(Vec<u8>, TarSummary), Error> {
    let mut bootstrap = parse(blob);
    let image = load_image(&bootstrap).unwrap();
    let mut source = NamedSource::new(None);
    for info in bootstrap.blobs_mut() {
        if reader.size() == info.data_size() {
            info.cut_to_data();
        }
        source.insert(info.id.as_str(), Arc::clone(&reader));
    }
    let options = StoreOptions {
        recent: 1 << 20,
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(&bootstrap, Arc::new(source), options).unwrap();
    let mut out = Vec::new();
    let summary = write_tar(&image, &store, &mut out, &Cancel::default())?;
    Ok((out, summary))
}

fn unpack_whole(blob: &[u8]) -> Vec<u8> {
    unpack(blob, Arc::new(blob.to_vec())).unwrap().0
}

#[test]
fn layers_of_corner_cases_come_out_as_they_went_in() {
    for (number, tar) in testkit::corner::image().layers.iter().enumerate() {
        let out = unpack_whole(&build(tar));
        let [before, after] = trees([tar, &out]);
        assert!(before == after, "layer {number} differs");
        let again = unpack_whole(&build(&out));
        assert!(
            again == out,
            "layer {number}: the stream depends on its source's order"
        );
    }
}

#[test]
fn golden_layers_come_out_as_their_sources() {
    let Some(shared) = shared_or_skip("golden_layers_come_out_as_their_sources") else {
        return;
    };
    let golden = shared.join("golden");
    for (name, source) in [
        ("v6-zstd", "lower"),
        ("v6-none", "lower"),
        ("v6-lz4-sha256", "lower"),
        ("v6-zstd-64k", "lower"),
        ("v6-batch", "lower"),
        ("v6-encrypt", "lower"),
        ("v6-upper", "upper"),
    ] {
        let out = unpack_whole(&std::fs::read(golden.join(format!("{name}.blob"))).unwrap());
        let tar = std::fs::read(golden.join(format!("{source}.tar"))).unwrap();
        let [mut before, after] = trees([&tar, &out]);
        // The deployed builder knows no implied directories: they have entries of their own.
        for id in 1..before.len() as u32 {
            before.inode_mut(InodeId(id)).implied = false;
        }
        assert!(before == after, "{name} differs from {source}.tar");
    }
}

/// A blob that notes where it is read.
struct Noting(Vec<u8>, Mutex<Vec<(u64, usize)>>);

impl BlobReader for Noting {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.lock().unwrap().push((offset, buf.len()));
        self.0.read_exact_at(buf, offset)
    }

    fn size(&self) -> u64 {
        self.0.size()
    }
}

#[test]
fn a_blob_is_read_once_and_front_to_back() {
    let mut tar = Tar::new();
    // Stored in an order that is not that of the names.
    for number in (0..60_u64).rev() {
        let size = 5000 * number as usize;
        tar.add(Entry::file(
            format!("{}/{number}", number % 7),
            noise(number, size),
        ));
    }
    let blob = build(&tar.finish());
    let reader = Arc::new(Noting(blob.clone(), Mutex::default()));
    unpack(&blob, Arc::clone(&reader) as Arc<dyn BlobReader>).unwrap();
    let reads = reader.1.lock().unwrap().clone();
    // The first read is that of the chunk table at the end.
    let mut end = 0;
    for &(offset, len) in &reads[1..] {
        assert!(offset >= end, "{offset} after {end}: {reads:?}");
        end = offset + len as u64;
    }
    assert!(reads.len() < 60, "{} reads", reads.len());
}

#[test]
fn the_chunk_data_alone_will_do() {
    let mut tar = Tar::new();
    tar.add(Entry::file("a", prose(1, 300_000)));
    tar.add(Entry::file("b", noise(2, 70_000)));
    let blob = build(&tar.finish());
    let bootstrap = Bootstrap::parse(extract_bootstrap(&blob).unwrap()).unwrap();
    let size = bootstrap.blobs()[0].data_size() as usize;
    let (out, _) = unpack(&blob, Arc::new(blob[..size].to_vec())).unwrap();
    assert!(out == unpack_whole(&blob));
}

#[test]
fn a_damaged_chunk_names_its_file() {
    let mut tar = Tar::new();
    tar.add(Entry::file("dir/whole", noise(1, 100_000)));
    tar.add(Entry::file("dir/broken", noise(2, 200_000)));
    let blob = build(&tar.finish());
    let mut damaged = blob.clone();
    damaged[150_000] ^= 1;
    let error = unpack(&blob, Arc::new(damaged)).unwrap_err();
    assert!(
        matches!(&error, Error::Read { path, .. } if path == b"dir/broken"),
        "{error}"
    );
}

#[test]
fn a_large_file_of_one_chunk_repeated_reads_it_once() {
    let mut tar = Tar::new();
    tar.add(Entry::file("zeros", vec![0; 40 << 20]));
    tar.add(Entry::file("end", "x"));
    let blob = build(&tar.finish());
    let reader = Arc::new(Noting(blob.clone(), Mutex::default()));
    let (out, summary) = unpack(&blob, Arc::clone(&reader) as Arc<dyn BlobReader>).unwrap();
    assert_eq!(summary.data, (40 << 20) + 1);
    assert!(out.len() > 40 << 20);
    assert!(reader.1.lock().unwrap().len() <= 3);
}

#[test]
fn sockets_are_left_out_and_told() {
    let blob = build(&Tar::new().finish());
    let bootstrap = Bootstrap::parse(extract_bootstrap(&blob).unwrap()).unwrap();
    let mut image = load_image(&bootstrap).unwrap();
    let id = image.tree.add(Inode {
        mode: mode::SOCKET | 0o600,
        content: Content::Special,
        ..Inode::implied_directory()
    });
    let root = image.tree.entries_mut(InodeId::ROOT).unwrap();
    root.insert((*b"sock").into(), id);
    let store = ChunkStore::open(
        &bootstrap,
        Arc::new(NamedSource::new(None)),
        StoreOptions::default(),
    );
    let mut out = Vec::new();
    let summary = write_tar(&image, &store.unwrap(), &mut out, &Cancel::default()).unwrap();
    assert_eq!(summary.sockets, [b"sock".to_vec()]);
    assert_eq!(out.len(), 1024);
}

/// What a random entry is.
#[derive(Debug, Clone)]
struct Random {
    /// Of 1 to 255 bytes.
    name: Vec<u8>,
    /// Which type, and where it lies.
    kind: u8,
    /// Its size, owners and more.
    number: u32,
    seconds: i64,
    nanos: u32,
    /// Whether long names and large numbers are written as GNU tar does it.
    gnu: bool,
}

fn random() -> impl Strategy<Value = Random> {
    let simple = prop_oneof![Just(b'a'), Just(0xff), Just(b' '), Just(b'-')];
    let any_byte = any::<u8>().prop_filter("legal in a name", |byte| *byte != 0 && *byte != b'/');
    let name = prop_oneof![vec(simple, 1..130), vec(any_byte, 1..=255)];
    let name = name.prop_filter("names something else", |name| {
        name != b"." && name != b".." && !name.starts_with(b".wh.")
    });
    let seconds = prop_oneof![
        -5_000_000_000..5_000_000_000_i64,
        // What is as far away as can be written down.
        -(1 << 62)..1_i64 << 62,
    ];
    let numbers = (0..10_u8, any::<u32>(), seconds, 0..1_000_000_000_u32);
    (name, numbers, any::<bool>()).prop_map(|(name, (kind, number, seconds, nanos), gnu)| Random {
        name,
        kind,
        number,
        seconds,
        nanos,
        gnu,
    })
}

/// Pieces of a sparse file, whole blocks and then an end, and its size.
fn pieces(number: u32) -> (u64, Vec<(u64, Vec<u8>)>) {
    let count = u64::from(number % 31);
    let step = 512 * u64::from(number % 97 + 2);
    let piece = |at: u64| {
        let size = if at + 1 == count { 300 } else { 512 };
        (at * step, noise(at + u64::from(number), size))
    };
    // Now and then data is the end of it.
    let hole = u64::from(number % 3) * 40_000;
    let end = (count.saturating_sub(1) * step) + 300 * count.min(1);
    (end + hole, (0..count).map(piece).collect())
}

fn random_tar(entries: Vec<Random>) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut last: Option<Vec<u8>> = None;
    for random in entries {
        let Random { kind, number, .. } = random;
        let below = |dir: &str| [dir.as_bytes(), b"/", &random.name].concat();
        let small = number % 150_000;
        let mut entry = match kind {
            0 => Entry::directory(below("d")),
            1 => Entry::symlink(below("l"), vec![b'x'; small as usize % 300 + 1]),
            2 => Entry::device(below("c"), flag::CHARACTER, number % 4096, number >> 12),
            3 => Entry::fifo(below("p")),
            4 if last.is_some() => Entry::hard(below("h"), last.clone().unwrap()),
            5 => Entry::file(below("d"), prose(u64::from(number % 5), small as usize)),
            6 => Entry::file(
                below("f"),
                prose(u64::from(number % 5), small as usize % 5000),
            ),
            7 => Entry::file(below("f/h"), noise(number.into(), small as usize % 25)),
            8 => Entry::file(below("s"), b""),
            _ => Entry::file(below("f/g"), noise(number.into(), small as usize)),
        };
        entry = entry
            .mode(number % 0o10000)
            .owner(number.into(), (!number).into());
        entry.gnu = random.gnu;
        let sign = if random.seconds < 0 { "-" } else { "" };
        let (seconds, nanos) = (random.seconds.unsigned_abs(), random.nanos);
        entry = entry.pax("mtime", format!("{sign}{seconds}.{nanos:09}").as_bytes());
        if number % 3 == 0 && kind != 4 {
            entry = entry.xattr("user.a", noise(number.into(), small as usize % 99));
            entry = entry.xattr("security.b", b"");
        }
        if number % 7 == 0 && kind != 4 {
            // As much as there is room for.
            let longest = format!("user.{}", "n".repeat(250));
            entry = entry.xattr(&longest, noise(number.into(), usize::from(u16::MAX)));
        }
        if kind != 0 && kind != 4 {
            last = Some(entry.path.clone());
        }
        if kind == 8 {
            let (size, pieces) = pieces(number);
            let dialects = [Sparse::Gnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10];
            tar.sparse(entry, dialects[number as usize % 4], size, &pieces);
        } else {
            tar.add(entry);
        }
    }
    tar.finish()
}

/// Builds the layer in this way and compares what comes out.
fn assert_comes_out(tar: &[u8], options: &BuildOptions) -> Result<(), TestCaseError> {
    let blob = build_with(tar, options);
    let loaded = LoadedBootstrap::from_bytes(extract_bootstrap(&blob).unwrap()).unwrap();
    loaded.check().unwrap();
    prop_assert_eq!(loaded.v5.is_some(), options.version == Version::V5);
    let out = unpack_whole(&blob);
    let [before, after] = trees([tar, &out]);
    prop_assert_eq!(before, after);
    Ok(())
}

/// Whether there is such a layer: a name over another may make a link's target a directory.
fn is_a_layer(tar: &[u8]) -> bool {
    let mut contents = Contents::default();
    layer::read_tree(tar, &mut contents, &layer::Options::default()).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_layers_come_out_as_they_went_in(entries in vec(random(), 0..25), options in kind()) {
        let tar = random_tar(entries);
        prop_assume!(is_a_layer(&tar));
        assert_comes_out(&tar, &options)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn each_version_compressor_and_digester_gives_random_layers_back(entries in vec(random(), 25..40)) {
        let tar = random_tar(entries);
        prop_assume!(is_a_layer(&tar));
        for options in kinds() {
            assert_comes_out(&tar, &options)?;
        }
    }
}
