//! The chunk dictionary of a conversion: chunks of other images, and the blobs that hold them.
//!
//! Chunks are looked up in memory; this is about the blobs. Before any work those are left out that are neither in the
//! target nor where the dictionary came from. Those that an image really uses are brought into the target before its
//! manifest is written, and looked at again right before the end. If one is gone by then, the conversion starts again
//! without it.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use bootstrap::Parsed;
use builder::BuildOptions;
use chunkdict::{Dictionary, is_usable};
use chunkdict_store::{Catalogue, Snapshot};
use image::{Descriptor, Digest, PlatformChoice, Source, Target, nydus};
use progress::Cancel;
use rafs_format::{BlobId, Compressor, Digester, Version};
use tree::Image;

use crate::shelf::bare_path;
use crate::{ConvertOptions, Error, Shelf};

/// Blobs that are asked for at the same time.
const LANES: usize = 8;
/// Why a dictionary cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DictionaryError {
    /// It is made of other chunks than the conversion makes.
    #[error(
        "chunk dictionary {name} has {what} {theirs}, the conversion {ours}: convert with {theirs}, or without it"
    )]
    Other {
        /// The dictionary.
        name: String,
        /// In what they differ.
        what: &'static str,
        /// Of the dictionary.
        theirs: String,
        /// Of the conversion.
        ours: String,
    },
    /// There is no Nydus image.
    #[error("chunk dictionary {name} holds no Nydus image; convert it first")]
    NoImage {
        /// The dictionary.
        name: String,
    },
    /// The image cannot be read.
    #[error("cannot read the chunk dictionary {name}")]
    Image {
        /// The dictionary.
        name: String,
        /// Why not.
        source: Box<image::Error>,
    },
    /// The bootstrap is malformed.
    #[error("chunk dictionary {name} is no RAFS bootstrap")]
    Format {
        /// The dictionary.
        name: String,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// The bootstrap cannot be decoded.
    #[error("cannot decode the chunk dictionary {name}")]
    Decode {
        /// The dictionary.
        name: String,
        /// What is wrong.
        source: Box<bootstrap::Error>,
    },
    /// A bare bootstrap cannot be read.
    #[error("cannot read {name}")]
    Bootstrap {
        /// Its name in the dictionary.
        name: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A dictionary on disk is of no use, or an image cannot be taken up into it.
    #[error(transparent)]
    Store(chunkdict_store::Error),
    /// Images are no dictionary together.
    #[error(transparent)]
    Generate(chunkdict::GenerateError),
    /// A dictionary cannot be written as a bootstrap.
    #[error("cannot encode the chunk dictionary")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No image lists a blob that one of them uses.
    #[error(
        "blob {0} is listed by no image: a chunk dictionary needs images that list their blobs"
    )]
    Unlisted(BlobId),
}

/// Chunks of other images that a conversion need not store again.
#[derive(Clone)]
pub struct ChunkDictionary {
    name: String,
    kinds: Vec<Kind>,
    chunks: Arc<Dictionary>,
    /// What its content is known by.
    id: Digest,
    /// Where its blobs can be taken from.
    homes: Homes,
    /// Sizes of the blob files in bytes, as far as they are known.
    sizes: HashMap<Digest, u64>,
    /// Shortest run of chunks that is taken from it.
    min_run: NonZeroU32,
    /// Held as long as the conversion goes on.
    _lease: Option<Arc<Snapshot>>,
}

/// Where blobs of a dictionary can be taken from.
#[derive(Clone, Default)]
struct Homes {
    sources: Vec<Source>,
    /// Positions of the sources that have a blob; `None` if each may have any.
    known: Option<Arc<HashMap<Digest, Vec<usize>>>>,
}

impl Homes {
    /// Those that may have a blob, in their order.
    fn of(&self, digest: &Digest) -> impl Iterator<Item = &Source> {
        let all = || (0..self.sources.len()).collect();
        let positions: Vec<usize> = match &self.known {
            None => all(),
            Some(known) => known.get(digest).cloned().unwrap_or_default(),
        };
        positions
            .into_iter()
            .filter_map(|position| self.sources.get(position))
    }
}

/// What all chunks that can be shared have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    version: Version,
    digester: Digester,
    chunk_size: u32,
    /// Compressors of the blobs.
    compressors: Vec<Compressor>,
}

impl std::fmt::Debug for ChunkDictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkDictionary")
            .field("name", &self.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl ChunkDictionary {
    /// Chunks in a row that make a request into another blob worth it, unless something else is asked for.
    pub const MIN_RUN: NonZeroU32 = NonZeroU32::MIN.saturating_add(3);

    /// A dictionary of the chunks of a bootstrap. Its blobs must be where the conversion writes to.
    ///
    /// # Errors
    /// [`DictionaryError`]
    pub fn from_bootstrap(name: &str, bootstrap: Vec<u8>) -> Result<Self, DictionaryError> {
        Self::new(name, vec![bootstrap], Homes::default(), HashMap::new())
    }

    /// A dictionary of the chunks of a Nydus image: of all chosen platforms, if it is an index.
    ///
    /// # Errors
    /// [`DictionaryError`]
    pub fn from_image(
        name: &str,
        source: &Source,
        choice: &PlatformChoice,
    ) -> Result<Self, DictionaryError> {
        let failed = |source| DictionaryError::Image {
            name: name.to_owned(),
            source: Box::new(source),
        };
        let (mut bootstraps, mut sizes) = (Vec::new(), HashMap::new());
        for selected in source.select(choice).map_err(failed)? {
            let manifest = &selected.manifest;
            if selected.attestation || !nydus::is_nydus(manifest) {
                continue;
            }
            bootstraps.push(nydus::read_bootstrap(source, manifest).map_err(failed)?);
            sizes.extend(
                manifest
                    .layers
                    .iter()
                    .map(|layer| (layer.digest, layer.size)),
            );
        }
        let homes = Homes {
            sources: vec![source.clone()],
            known: None,
        };
        Self::new(name, bootstraps, homes, sizes)
    }

    /// The dictionary of a snapshot, called `name`, whose blobs can be taken from where the images of its catalogue lie.
    /// The snapshot is held as long as the dictionary is.
    ///
    /// # Errors
    /// What keeps it open whether a place is there.
    pub fn from_snapshot(
        name: &str,
        snapshot: Snapshot,
        catalogue: &Catalogue,
        shelf: &dyn Shelf,
    ) -> Result<Self, DictionaryError> {
        let mut sources = Vec::new();
        let mut known: HashMap<Digest, Vec<usize>> = HashMap::new();
        let mut sizes = HashMap::new();
        for entry in &catalogue.images {
            if bare_path(&entry.name).is_some() {
                // A bootstrap does not say where its blobs are: in the target, or nowhere.
                continue;
            }
            let place = shelf.place(&entry.name);
            let place = place.map_err(|source| DictionaryError::Image {
                name: entry.name.clone(),
                source: Box::new(source),
            })?;
            let Some(place) = place else {
                tracing::warn!("{} of the chunk dictionary {name} is gone", entry.title());
                continue;
            };
            for held in snapshot
                .image(&entry.id)
                .into_iter()
                .flat_map(|image| &image.blobs)
            {
                let blob = snapshot.blobs().get(held.blob as usize);
                let Some(digest) = blob.and_then(|blob| Digest::from_hex(blob.id.as_str())) else {
                    continue;
                };
                known.entry(digest).or_default().push(sources.len());
                if held.size != 0 {
                    sizes.insert(digest, held.size);
                }
            }
            sources.push(place);
        }
        let kind = snapshot.kind();
        Ok(Self {
            name: name.to_owned(),
            kinds: vec![Kind {
                version: kind.version,
                digester: kind.digester,
                chunk_size: kind.chunk_size,
                compressors: vec![kind.compressor],
            }],
            chunks: Arc::new(snapshot.dictionary()),
            id: snapshot.id().into(),
            homes: Homes {
                sources,
                known: Some(Arc::new(known)),
            },
            sizes,
            min_run: Self::MIN_RUN,
            _lease: Some(Arc::new(snapshot)),
        })
    }

    fn new(
        name: &str,
        bootstraps: Vec<Vec<u8>>,
        homes: Homes,
        sizes: HashMap<Digest, u64>,
    ) -> Result<Self, DictionaryError> {
        if bootstraps.is_empty() {
            let name = name.to_owned();
            return Err(DictionaryError::NoImage { name });
        }
        let mut digests = String::new();
        let mut images = Vec::with_capacity(bootstraps.len());
        for bytes in bootstraps {
            digests.push_str(&Digest::of(&bytes).hex());
            let parsed = Parsed::parse(bytes).map_err(|source| DictionaryError::Format {
                name: name.to_owned(),
                source,
            })?;
            images.push(parsed.load().map_err(|source| DictionaryError::Decode {
                name: name.to_owned(),
                source: Box::new(source),
            })?);
        }
        let kinds = images.iter().map(Kind::of).collect();
        Ok(Self {
            name: name.to_owned(),
            kinds,
            chunks: Arc::new(join(images)),
            id: Digest::of(digests.as_bytes()),
            homes,
            sizes,
            min_run: Self::MIN_RUN,
            _lease: None,
        })
    }

    /// The same dictionary, of which only runs of at least that many chunks are taken.
    #[must_use]
    pub fn with_min_run(self, min_run: NonZeroU32) -> Self {
        Self { min_run, ..self }
    }

    /// Whether a conversion with these options makes chunks that can be in the dictionary.
    ///
    /// # Errors
    /// [`DictionaryError::Other`] naming the first difference.
    pub fn check(&self, options: &ConvertOptions) -> Result<(), DictionaryError> {
        for kind in &self.kinds {
            self.same("RAFS version", kind.version, options.version)?;
            self.same("digester", kind.digester, Digester::Blake3)?;
            self.same("chunk size", kind.chunk_size, options.chunk_size)?;
            for &compressor in &kind.compressors {
                self.same("compressor", compressor, options.compressor)?;
            }
        }
        Ok(())
    }

    fn same<T: PartialEq + ToString>(
        &self,
        what: &'static str,
        theirs: T,
        ours: T,
    ) -> Result<(), DictionaryError> {
        if theirs == ours {
            return Ok(());
        }
        Err(DictionaryError::Other {
            name: self.name.clone(),
            what,
            theirs: theirs.to_string(),
            ours: ours.to_string(),
        })
    }

    /// The chunks.
    pub(crate) fn chunks(&self) -> &Dictionary {
        &self.chunks
    }

    /// Makes a build use it.
    pub(crate) fn apply(&self, build: &mut BuildOptions) {
        build.dictionary = Some(Arc::clone(&self.chunks));
        build.dictionary_run = Some(self.min_run);
    }

    /// What a layer's blob depends on besides its source and options.
    pub(crate) fn id(&self) -> Digest {
        self.id
    }

    /// The dictionary without some of its blobs.
    #[must_use]
    pub(crate) fn without(&self, gone: &BTreeSet<BlobId>) -> Self {
        if gone.is_empty() {
            return self.clone();
        }
        let mut text = self.id.hex();
        for id in gone {
            text.push(' ');
            text.push_str(id.as_str());
        }
        Self {
            chunks: Arc::new(self.chunks.retain(|blob| !gone.contains(&blob.id))),
            id: Digest::of(text.as_bytes()),
            ..self.clone()
        }
    }

    /// The dictionary with the `most` blobs that are worth most, by `worth` in bytes, then the lowest id.
    #[must_use]
    pub(crate) fn limited(&self, most: usize, worth: &HashMap<BlobId, u64>) -> Self {
        let mut blobs: Vec<_> = self.chunks.blobs().iter().map(|blob| &blob.id).collect();
        blobs.sort_by_key(|id| (u64::MAX - worth.get(id).copied().unwrap_or(0), *id));
        self.without(&blobs.into_iter().skip(most).cloned().collect())
    }

    /// The dictionary without the blobs that are neither in `target` nor where it came from.
    pub(crate) fn present(&self, target: &Target, cancel: &Cancel) -> Result<Self, Error> {
        let known = Mutex::new((self.sizes.clone(), BTreeSet::new()));
        let blobs = self.chunks.blobs().iter().map(|blob| &blob.id);
        each(blobs, cancel, |id| {
            let found = match Digest::from_hex(id.as_str()) {
                None => None,
                Some(digest) => self.find(target, &digest)?.map(|size| (digest, size)),
            };
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Some((digest, size)) => drop(known.0.insert(digest, size)),
                None => drop(known.1.insert(id.clone())),
            }
            Ok(())
        })?;
        let (sizes, gone) = known.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !gone.is_empty() {
            tracing::warn!(
                "{} of {} blobs of the chunk dictionary {} are gone and not used: {}",
                gone.len(),
                self.chunks.blobs().len(),
                self.name,
                names(&gone)
            );
        }
        Ok(Self {
            sizes,
            ..self.without(&gone)
        })
    }

    /// The size of a blob where it is in place, or where it can be taken from.
    fn find(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, Error> {
        if let Some(size) = target.look_for(digest)? {
            return Ok(Some(size));
        }
        for home in self.homes.of(digest) {
            match home.blob(digest, None) {
                Ok(blob) => return Ok(Some(blob.size())),
                Err(image::Error::MissingBlob { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Brings blobs into `target`: there already, taken over, or copied. Gives their descriptors.
    ///
    /// # Errors
    /// [`Error::DictionaryGone`] with those that can't be had any more.
    pub(crate) fn secure(
        &self,
        blobs: &[BlobId],
        target: &Target,
        cancel: &Cancel,
    ) -> Result<Vec<Descriptor>, Error> {
        let (mut descriptors, mut gone) = (Vec::with_capacity(blobs.len()), BTreeSet::new());
        for id in blobs {
            let digest = Digest::from_hex(id.as_str());
            let known = digest.and_then(|digest| Some((digest, *self.sizes.get(&digest)?)));
            let Some((digest, size)) = known else {
                gone.insert(id.clone());
                continue;
            };
            let descriptor = nydus::blob_descriptor(digest, size);
            if self.bring(&descriptor, target, cancel)? {
                descriptors.push(descriptor);
            } else {
                gone.insert(id.clone());
            }
        }
        match gone.is_empty() {
            true => Ok(descriptors),
            false => Err(Error::DictionaryGone(gone)),
        }
    }

    fn bring(
        &self,
        descriptor: &Descriptor,
        target: &Target,
        cancel: &Cancel,
    ) -> Result<bool, Error> {
        if target.look_for(&descriptor.digest)? == Some(descriptor.size) {
            return Ok(true);
        }
        for home in self.homes.of(&descriptor.digest) {
            match target.copy(home, descriptor, cancel) {
                Ok(()) => return Ok(true),
                Err(image::Error::Cancelled(cancelled)) => return Err(cancelled.into()),
                // A read that fails since the blob is gone says so in many ways.
                Err(error) => match home.blob(&descriptor.digest, None) {
                    Err(image::Error::MissingBlob { .. }) => {}
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(false)
    }
}

/// Looks whether blobs of a dictionary are still in place.
///
/// # Errors
/// [`Error::DictionaryGone`] with those that are not.
pub(crate) fn look_again(
    blobs: &[Descriptor],
    target: &Target,
    cancel: &Cancel,
) -> Result<(), Error> {
    let gone = Mutex::new(BTreeSet::new());
    each(blobs.iter(), cancel, |blob| {
        if target.look_for(&blob.digest)? != Some(blob.size)
            && let Some(id) = BlobId::new(blob.digest.hex())
        {
            gone.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id);
        }
        Ok(())
    })?;
    let gone = gone.into_inner().unwrap_or_else(PoisonError::into_inner);
    match gone.is_empty() {
        true => Ok(()),
        false => Err(Error::DictionaryGone(gone)),
    }
}

/// Blob ids as a message has them.
pub(crate) fn names(ids: &BTreeSet<BlobId>) -> String {
    const SHOWN: usize = 3;
    let mut text: Vec<&str> = ids.iter().take(SHOWN).map(BlobId::as_str).collect();
    if ids.len() > SHOWN {
        text.push("...");
    }
    text.join(", ")
}

/// Does something for each item, several at the same time. The first failure is the result.
pub(crate) fn each<T: Send>(
    items: impl Iterator<Item = T> + Send,
    cancel: &Cancel,
    work: impl Fn(T) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let items = Mutex::new(items);
    let failure = Mutex::new(None);
    let lane = || {
        while !cancel.is_cancelled() {
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { return };
            let failed = failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some();
            if failed {
                return;
            }
            if let Err(error) = work(item) {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(lane);
        }
    });
    cancel.check()?;
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Kind {
    fn of(image: &Image) -> Self {
        let usable = image.blobs.iter().filter(|blob| is_usable(blob));
        let mut compressors: Vec<Compressor> = usable.map(|blob| blob.compressor).collect();
        compressors.dedup();
        if compressors.is_empty() && !image.blobs.is_empty() {
            // Nothing of it can be used, and how it is stored may be why.
            compressors.push(image.compressor);
        }
        Self {
            version: image.version,
            digester: image.digester,
            chunk_size: image.chunk_size,
            compressors,
        }
    }
}

/// The chunks of images that may share blobs.
fn join(images: Vec<Image>) -> Dictionary {
    let (mut blobs, mut chunks) = (Vec::new(), Vec::new());
    let mut positions: HashMap<BlobId, u32> = HashMap::new();
    for image in images {
        let mut of: Vec<Option<u32>> = Vec::with_capacity(image.blobs.len());
        for blob in image.blobs {
            of.push(is_usable(&blob).then(|| {
                *positions.entry(blob.id.clone()).or_insert_with(|| {
                    blobs.push(blob);
                    blobs.len() as u32 - 1
                })
            }));
        }
        for mut chunk in image.chunks {
            if let Some(Some(position)) = of.get(chunk.blob_index as usize) {
                chunk.blob_index = *position;
                chunks.push(chunk);
            }
        }
    }
    // What several images have of one blob is known once.
    chunks.sort_by_key(|chunk| (chunk.blob_index, chunk.index));
    chunks.dedup_by_key(|chunk| (chunk.blob_index, chunk.index));
    Dictionary::new(blobs, chunks)
}
