//! What samples are made of.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use builder::{Budget, BuildOptions, BuiltLayer, Dedup};
use rafs_format::{Bootstrap, ChunkPointer, Version};
use storage::{BlobSource, ChunkStore, StoreOptions};
use testkit::tar::{Entry, Sparse, Tar, flag};

/// The bytes to look at: those of the input as they are, or behind a first byte of 0 changes to `sample`, three bytes
/// each: an offset and a value.
pub fn changed<'a>(sample: &[u8], input: &'a [u8]) -> Cow<'a, [u8]> {
    let [0, changes @ ..] = input else {
        return input.into();
    };
    let mut bytes = sample.to_vec();
    for change in changes.as_chunks::<3>().0 {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes.into()
}

/// Options of a small build with one thread.
pub fn options() -> BuildOptions {
    static POOL: LazyLock<Arc<rayon::ThreadPool>> = LazyLock::new(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        Arc::new(pool.build().expect("a thread can be started"))
    });
    BuildOptions {
        chunk_size: 0x1000,
        layer: layer::Options {
            max_inodes: 20_000,
            ..layer::Options::default()
        },
        ..BuildOptions::new(Arc::clone(&POOL), Budget::new(1 << 20))
    }
}

/// Something of everything that a layer can have, but sparse files.
pub fn entries() -> Vec<Entry> {
    vec![
        Entry::directory("usr/").mode(0o1755).owner(1 << 30, 7),
        Entry::file("usr/file", testkit::prose(1, 4500)).xattr("user.a", "b"),
        Entry::file("usr/small", "small").mode(0o4755),
        Entry::hard("usr/hard", "usr/file"),
        Entry::symlink("lib", "usr/lib"),
        Entry::file("lib/through", "a link").pax("mtime", "1.5"),
        Entry::device("null", flag::CHARACTER, 1, 3),
        Entry::fifo("fifo").in_gnu_format(),
        Entry::file("usr/.wh.gone", ""),
        Entry::file("usr/.wh..wh..opq", ""),
        Entry::file("n".repeat(120), "").in_gnu_format(),
    ]
}

/// Small tars: a hard link and its target, each of the other [`entries`], and sparse files of all dialects.
pub fn tars() -> Vec<Vec<u8>> {
    let mut tars: Vec<Tar> = entries()
        .into_iter()
        .filter(|entry| !entry.path.starts_with(b"usr/hard"))
        .map(|entry| {
            let mut tar = Tar::new();
            tar.add(entry);
            tar
        })
        .collect();
    let mut links = Tar::new();
    links
        .add(Entry::symlink("a", "b/../c"))
        .add(Entry::symlink("c", "/a"))
        .add(Entry::file("a/below", "x"))
        .add(Entry::hard("../h", "./a"));
    tars.push(links);
    for dialect in [Sparse::Gnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        let segments = [(512, vec![1; 512]), (2048, vec![2; 100])];
        let mut tar = Tar::new();
        tar.sparse(Entry::file("s", ""), dialect, 3000, &segments);
        tars.push(tar);
    }
    tars.iter().map(Tar::finish).collect()
}

/// The same for a version, in which there may be no table of contents.
pub fn options_of(version: Version) -> BuildOptions {
    BuildOptions {
        version,
        blob_toc: version == Version::V6,
        ..options()
    }
}

/// A store without a cache, with one thread.
pub fn store(bootstrap: &Bootstrap<Vec<u8>>, source: Arc<dyn BlobSource>) -> ChunkStore {
    let options = StoreOptions {
        threads: 1,
        ..StoreOptions::default()
    };
    ChunkStore::open(bootstrap, source, options).expect("the image is sound")
}

/// All chunks of an image.
pub fn pointers(bootstrap: &Bootstrap<Vec<u8>>) -> Vec<ChunkPointer> {
    let records = bootstrap.chunk_table().filter_map(Result::ok);
    let pointers = records.map(|record| ChunkPointer {
        blob_index: record.blob_index,
        index: record.index,
        uncompressed_offset: record.uncompressed_offset,
    });
    pointers.collect()
}

/// A native layer with table of contents, and its blob.
pub fn native_layer() -> (BuiltLayer, Vec<u8>) {
    native_layer_with(&options())
}

/// The same with other options.
pub fn native_layer_with(options: &BuildOptions) -> (BuiltLayer, Vec<u8>) {
    let mut tar = Tar::new();
    for entry in entries() {
        tar.add(entry);
    }
    let mut blob = Vec::new();
    let layer = builder::build_tar(&tar.finish()[..], &mut blob, options, Dedup::Layer);
    (layer.expect("the sample can be built"), blob)
}
