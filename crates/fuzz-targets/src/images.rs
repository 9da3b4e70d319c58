//! Whole images whose bootstraps are anything: what a mount, `inspect`, `unpack` and `chunkdict` do with them.

use std::io;
use std::sync::{Arc, LazyLock};

use builder::Dedup;
use chunkdict_store::Import;
use inspect::Shell;
use progress::Cancel;
use rafs_format::{Nid, Version};
use storage::{ChunkStore, LoadedBootstrap, NamedSource, StoreOptions};
use testkit::tar::Tar;

use crate::sample::changed;
use crate::{Target, sample};

/// Any bytes as a bootstrap behind which there is a blob, or (behind a 5 or a 6, and a 0) a good one of that version with some bytes
/// overwritten. It is served without being checked, looked at, exported, and taken up into a dictionary.
pub const SERVE: Target = Target {
    name: "serve",
    run: |input| {
        if let Some((version, rest)) = input.split_first() {
            let image = if *version == 5 { &V5 } else { &V6 };
            image.serve(&changed(&image.bootstrap, rest));
        }
    },
    samples: || {
        let changes: [&[u8]; 4] = [
            &[0],
            &[0, 0x50, 4, 9],
            &[0, 0, 0x10, 2, 8, 0x10, 0xff],
            &[0, 0, 0x20, 1, 7, 0x30, 0x80, 0, 0x40, 3],
        ];
        let with = |version: u8| changes.map(|change| [&[version], change].concat());
        [with(5), with(6)].concat()
    },
    changes: 1000,
};

static V5: LazyLock<Image> = LazyLock::new(|| Image::new(Version::V5));
static V6: LazyLock<Image> = LazyLock::new(|| Image::new(Version::V6));

/// Files of an image that are exported, in bytes at most.
const EXPORT_MAX: u64 = 1 << 20;

/// What may be asked of any image.
const COMMANDS: [&str; 12] = [
    "stats",
    "blobs",
    "prefetch",
    "ls",
    "stat .",
    "stat usr",
    "cd usr",
    "ls",
    "stat file",
    "chunk 0",
    "icheck 2",
    "cd ..",
];

/// An image of one layer, and its blob.
pub struct Image {
    /// The good bootstrap.
    pub bootstrap: Vec<u8>,
    source: Arc<NamedSource>,
}

impl Image {
    /// A small image of this version that has one of everything.
    pub fn new(version: Version) -> Self {
        let mut tar = Tar::new();
        for entry in sample::entries() {
            tar.add(entry);
        }
        Self::of(&tar.finish(), version).expect("the sample can be built")
    }

    /// The image of a layer.
    ///
    /// # Errors
    /// Whatever keeps it from being built.
    pub fn of(tar: &[u8], version: Version) -> Result<Self, builder::Error> {
        let options = sample::options_of(version);
        let mut blob = Vec::new();
        let layer = builder::build_tar(tar, &mut blob, &options, Dedup::Layer)?;
        let mut source = NamedSource::new(None);
        source.insert(testkit::sha256(&blob), Arc::new(blob));
        Ok(Self {
            bootstrap: builder::encode(&layer.image)?,
            source: Arc::new(source),
        })
    }

    /// Does with such a bootstrap, in place of the image's own, all that can be done with one. Whether it passed the check.
    pub fn serve(&self, bootstrap: &[u8]) -> bool {
        let Ok(loaded) = LoadedBootstrap::from_bytes(bootstrap.to_vec()) else {
            return false;
        };
        let sound = loaded.check().is_ok();
        let out = &mut io::sink();
        let _ = inspect::write_blobs(&loaded, out);
        let _ = inspect::write_files(&loaded, out);
        if let Ok(mut shell) = Shell::new(&loaded) {
            for command in COMMANDS {
                let _ = shell.interact(command, out);
                let _ = shell.request(command, out);
            }
        }
        let _ = Import::new("image", [1; 32], bootstrap.to_vec(), &Default::default());
        let source = Arc::clone(&self.source);
        let options = StoreOptions {
            threads: 1,
            ..StoreOptions::default()
        };
        let Ok(store) = ChunkStore::open(&loaded.bootstrap, source, options) else {
            return sound;
        };
        let store = Arc::new(store);
        if let Ok(image) = loaded.image() {
            let out = &mut Bounded(EXPORT_MAX);
            let _ = export::write_tar(&image, &store, out, &Cancel::default());
        }
        let slots = loaded.bootstrap.data().len() as u64 / Nid::SLOT_SIZE;
        mount::fuzzing::serve(Arc::new(loaded.bootstrap), store, slots);
        sound
    }
}

/// Takes so many bytes and no more: holes make much of little.
struct Bounded(u64);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.0.checked_sub(bytes.len() as u64);
        self.0 = left.ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
