//! Images that nobody converted: they are mounted by an index of their layers, which is made in one pass over them.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use convert::{ChunkCache, ImageIndex, IndexStore, Lease};
use image::nydus::{self, ImageBlobs};
use image::{Descriptor, Digest, Location, Manifest, Source};
use indicatif::{BinaryBytes, MultiProgress};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use storage::{BlobReader, BlobSource, NamedSource};

use super::LazyArgs;
use crate::cache::of_indexes;
use crate::index::push;
use crate::interrupt::Interrupt;
use crate::place::{Places, reference};
use crate::progress::{Mode, renderer};

/// What ends a mount ends the pass before it.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// The index that an image is mounted by.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    manifest: Manifest,
    place: Place,
    /// Keeps it until what it is made of is open.
    #[serde(skip)]
    lease: Option<Lease>,
}

/// Where an index lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    /// Beside the chunk cache: it was made on this machine.
    Here,
    /// Beside the image: its digest was given.
    Image,
}

impl Index {
    /// The index of an image: the one that is asked for by its digest, else one that was made here before, else one that is
    /// made now. It is pushed if that is asked for.
    pub(super) fn of(
        target: &str,
        args: &LazyArgs,
        (places, location): (&Places, &Location),
        source: &Source,
        image: (&Descriptor, &Manifest),
    ) -> Result<Self> {
        if let Some(digest) = &args.index_digest {
            let index = ImageIndex::pinned(source, &image.0.digest, digest);
            let index = index.with_context(|| format!("the index {digest} of {target}"))?;
            return Ok(Self {
                manifest: index.manifest,
                place: Place::Image,
                lease: None,
            });
        }
        let cache = args.cache_path()?;
        let store = of_indexes(Some(&cache))?;
        let index = match store.find(&image.0.digest) {
            Some(index) => index,
            None => {
                let chunks = ChunkCache::new(cache, args.cache_size);
                mention(location, places, args.target_insecure, &image.0.digest);
                make(target, source, image, &store, chunks)?
            }
        };
        if args.push_index {
            let (insecure, interrupt) = (args.target_insecure, Interrupt::watch_along(&SIGNALS));
            let pushed = push(&index, location, places, insecure, interrupt.cancel());
            interrupt.settle(pushed)?;
        }
        Ok(Self {
            manifest: index.manifest,
            place: Place::Here,
            lease: index.lease,
        })
    }

    /// The bootstrap that lies in the index of the image in `source`.
    pub(super) fn bootstrap(&self, args: &LazyArgs, source: &Source) -> Result<Vec<u8>> {
        let source = self.source(args, source)?;
        Ok(nydus::read_bootstrap(&source, &self.manifest)?)
    }

    /// The blobs of the image: what describes its layers, and by way of `around` the layers themselves. An index that was
    /// made here and is gone is made again: a process that takes the place of another one finds it so if it was removed
    /// before it came.
    pub(super) fn blobs(
        &self,
        target: &str,
        args: &LazyArgs,
        source: Source,
        image: (&Descriptor, &Manifest),
        around: impl FnOnce(ImageBlobs) -> Result<Arc<dyn BlobSource>>,
    ) -> Result<Arc<dyn BlobSource>> {
        const GONE: &str = "the index of the image is gone: mount it again";
        let index = self.source(args, &source)?;
        let mut lease = None;
        if self.place == Place::Here {
            let store = of_indexes(Some(&args.cache_path()?))?;
            lease = self.lease.clone();
            lease = lease.or_else(|| store.lease(&image.0.digest));
            if self.described(&index).is_err() {
                let chunks = ChunkCache::new(args.cache_path()?, args.cache_size);
                let made = make(target, &source, image, &store, chunks)?;
                ensure!(made.manifest == self.manifest, GONE);
            }
        }
        let described = self.described(&index).context(GONE)?;
        let mut blobs = NamedSource::new(Some(around(ImageBlobs::new(source, image.1))?));
        for (id, blob) in described {
            blobs.insert(id, blob);
        }
        Ok(Arc::new(Kept {
            blobs,
            _lease: lease,
        }))
    }

    /// What describes the layers, by the names of blobs.
    fn described(&self, index: &Source) -> Result<Vec<(String, Arc<dyn BlobReader>)>> {
        let described = self.manifest.layers.iter();
        let described = described.filter(|layer| layer.media_type == nydus::BLOB_MEDIA_TYPE);
        let open = |layer: &Descriptor| {
            let blob = index.blob(&layer.digest, Some(layer.size))?;
            Ok((layer.digest.hex(), blob))
        };
        described.map(open).collect()
    }

    /// Where the index of the image in `source` lies.
    fn source(&self, args: &LazyArgs, source: &Source) -> Result<Source> {
        match self.place {
            Place::Here => {
                let store = of_indexes(Some(&args.cache_path()?))?;
                Ok(store.source(&self.manifest)?)
            }
            Place::Image => Ok(source.clone()),
        }
    }
}

/// Blobs of an index that nobody removes as long as they are read.
struct Kept {
    blobs: NamedSource,
    _lease: Option<Lease>,
}

impl BlobSource for Kept {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        self.blobs.open(id)
    }
}

/// Says that an index lies beside the image, if one does. Whether it is good only the user can know.
fn mention(location: &Location, places: &Places, insecure: bool, image: &Digest) {
    let Location::Registry(name) = location else {
        return;
    };
    let look = || {
        let repository = places.client(insecure)?.repository(&reference(name)?);
        anyhow::Ok(repository.referrers(image)?)
    };
    // It would be but a hint.
    for referrer in look().unwrap_or_default() {
        if referrer.annotation(nydus::ANNOTATION_FS_VERSION).is_some() {
            let digest = referrer.digest;
            tracing::info!(
                "beside {name} lies an index of it: if you trust who put it there, use it with --index-digest {digest}"
            );
        }
    }
}

/// Makes the index of an image, and says so.
fn make(
    target: &str,
    source: &Source,
    image: (&Descriptor, &Manifest),
    store: &IndexStore,
    chunks: ChunkCache,
) -> Result<ImageIndex> {
    let size = image.1.layers.iter().map(|layer| layer.size).sum();
    tracing::info!(
        "nobody converted {target}: its layers ({}) are read once, which makes an index of them",
        BinaryBytes(size)
    );
    let begun = Instant::now();
    let progress = renderer(Mode::Auto, MultiProgress::new());
    let interrupt = Interrupt::watch_along(&SIGNALS);
    let made = store.make(source, image, Some(chunks), &*progress, interrupt.cancel());
    let made = made.with_context(|| format!("cannot index {target}"));
    let index = interrupt.settle(made)?;
    let seconds = begun.elapsed().as_secs_f64();
    tracing::info!("the index is ready after {seconds:.1} s");
    Ok(index)
}
