//! What a mount reads: blobs, and the files of its cache.

use std::io;
use std::sync::{Arc, LazyLock};

use builder::{BlobKey, BuildOptions, Encryption};
use rafs_format::{Bootstrap, ChunkPointer, Compressor};
use storage::{BlobReader, BlobSource, ChunkStore, StoreOptions};

use crate::blob::Bytes;
use crate::{Target, sample};

/// Any chunk map, and the cached data behind it: whatever an earlier boot of the machine left behind, what is read is
/// what the bootstrap records.
pub const CACHE: Target = Target {
    name: "cache",
    run: |input| PLAIN.read_with(input),
    samples: || vec![PLAIN.fill(), vec![0; 4096]],
    changes: 300,
};

/// Any blob behind a good bootstrap: a read fails, or gives what the bootstrap records. The first byte picks one of
/// [`IMAGES`].
pub const STORE: Target = Target {
    name: "store",
    run: |input| {
        let Some((number, blob)) = input.split_first() else {
            return;
        };
        let image = IMAGES[usize::from(*number) % IMAGES.len()];
        let source = Arc::new(One(Arc::new(Bytes(blob.to_vec()))));
        let options = StoreOptions {
            threads: 1,
            ..StoreOptions::default()
        };
        if let Ok(store) = ChunkStore::open(&image.bootstrap, source, options) {
            for &chunk in &image.chunks {
                // Verified by its type.
                let _ = store.chunk(chunk);
            }
        }
    },
    samples: || {
        let blobs = (0..).zip(IMAGES);
        blobs
            .map(|(number, image)| [&[number], &image.blob.0[..]].concat())
            .collect()
    },
    changes: 1000,
};

static PLAIN: LazyLock<Image> = LazyLock::new(|| Image::new(&sample::options()));
static BATCHED: LazyLock<Image> = LazyLock::new(|| {
    Image::new(&BuildOptions {
        batch_size: 0x1000,
        compressor: Compressor::None,
        ..sample::options()
    })
});
static ENCRYPTED: LazyLock<Image> = LazyLock::new(|| {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    Image::new(&BuildOptions {
        encryption: Some(Encryption::Key(BlobKey::new(key, [7; 16]))),
        compressor: Compressor::Lz4Block,
        ..sample::options()
    })
});
/// Images of every kind of blob.
static IMAGES: [&LazyLock<Image>; 3] = [&PLAIN, &BATCHED, &ENCRYPTED];

struct Image {
    bootstrap: Bootstrap<Vec<u8>>,
    blob: Arc<Bytes>,
    chunks: Vec<ChunkPointer>,
    dir: tempfile::TempDir,
}

/// The one blob, whatever its name.
struct One(Arc<Bytes>);

impl BlobSource for One {
    fn open(&self, _: &str) -> io::Result<Arc<dyn BlobReader>> {
        Ok(Arc::clone(&self.0) as Arc<dyn BlobReader>)
    }
}

impl Image {
    fn new(options: &BuildOptions) -> Self {
        let (layer, blob) = sample::native_layer_with(options);
        let bootstrap = builder::encode(&layer.image).expect("the sample can be encoded");
        let bootstrap = Bootstrap::parse(bootstrap).expect("what was written can be read");
        let chunks = sample::pointers(&bootstrap);
        Self {
            bootstrap,
            blob: Arc::new(Bytes(blob)),
            chunks,
            dir: tempfile::tempdir().expect("there is a directory for temporary files"),
        }
    }

    fn store(&self, boot: &str) -> Result<ChunkStore, storage::Error> {
        let options = StoreOptions {
            cache_dir: Some(self.dir.path().to_owned()),
            boot_id: Some(boot.to_owned()),
            threads: 1,
            ..StoreOptions::default()
        };
        let source = Arc::new(One(Arc::clone(&self.blob)));
        ChunkStore::open(&self.bootstrap, source, options)
    }

    fn read_all(&self, store: &ChunkStore) {
        for &chunk in &self.chunks {
            // Verified by its type; the blob is good, so there is no reason to fail.
            store.chunk(chunk).expect("the chunk is in the blob");
        }
    }

    /// The files of a full cache: the map and the data.
    fn fill(&self) -> Vec<u8> {
        for name in self.names() {
            std::fs::write(self.dir.path().join(name), "").expect("a file can be written");
        }
        let store = self.store("the boot before").expect("the cache is empty");
        self.read_all(&store);
        drop(store);
        let files = self.names().map(|name| {
            std::fs::read(self.dir.path().join(name)).expect("the store made the file")
        });
        files.concat()
    }

    fn names(&self) -> [String; 2] {
        let id = &self.bootstrap.blobs()[0].id;
        [format!("{id}.blob.map"), format!("{id}.blob.data")]
    }

    /// Reads through a cache whose map is the beginning of the input, and the data the rest.
    fn read_with(&self, input: &[u8]) {
        let map = (4096 + 64 * self.chunks.len()).min(input.len());
        let (map, data) = input.split_at(map);
        let mut data = data.to_vec();
        // Another length is told at once.
        data.resize(self.bootstrap.blobs()[0].uncompressed_size as usize, 0);
        for (name, bytes) in self.names().iter().zip([map, &data]) {
            std::fs::write(self.dir.path().join(name), bytes).expect("a file can be written");
        }
        if let Ok(store) = self.store("this boot") {
            self.read_all(&store);
        }
    }
}
