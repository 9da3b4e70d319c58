//! Indexes: what makes an image that nobody converted readable in pieces. An index is an image by reference, as
//! [`ConvertOptions::reference`] makes it, without the original layers; it refers to the image that it is of.
//!
//! Indexes that this user has made lie in a directory: an OCI layout, `images`, where they have a tag that is the digest of the
//! image's manifest and the version of what makes indexes; the journal of what layers were described; and locks. One of them
//! whoever makes an index holds, so that two who want the same make it once; another all who use it ([`lease`]). Who has both
//! may remove the index ([`keep`]).

mod keep;
mod lease;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use image::{
    Descriptor, Digest, Location, Manifest, Node, PlatformChoice, Source, Target, layout_images,
    media, nydus,
};
use progress::{Cancel, Progress};
use rafs_format::Compressor;

pub use keep::KeptIndex;
pub use lease::Lease;

use crate::toc;
use crate::{ChunkCache, ConvertOptions, Error, convert_image};

/// Changes whenever indexes made before are not to be used any more.
const VERSION: u32 = 1;
/// How often it is looked whether somebody else is done.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Where the indexes of this machine are.
#[derive(Debug, Clone)]
pub struct IndexStore {
    dir: PathBuf,
}

/// An index, and where it lies. Nobody removes one that was made on this machine as long as this value or its lease is there.
#[derive(Clone)]
pub struct ImageIndex {
    /// The place with its documents, its bootstrap and its blobs, but not with the original layers.
    pub source: Source,
    /// Its manifest.
    pub manifest: Manifest,
    /// What keeps it, where others may remove it and this process may keep them from it.
    pub lease: Option<Lease>,
}

impl IndexStore {
    /// The store in `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The store of those who have their chunks in the cache directory `dir`.
    pub fn beside(dir: &Path) -> Self {
        Self::new(dir.join("index"))
    }

    /// The place of an index that was found before, for reading.
    ///
    /// # Errors
    /// None that depends on what is there.
    pub fn source(&self, index: &Manifest) -> Result<Source, Error> {
        let json = index.to_json();
        let root = Descriptor::new(
            index.media_type.clone(),
            Digest::of(&json),
            json.len() as u64,
        );
        Ok(Source::in_layout(&self.images(), root)?)
    }

    /// The index of the image whose manifest is `image`, if there is one and all of it is there and sound. All of it is read
    /// to tell, once after each boot of the machine and whenever its files are others.
    pub fn find(&self, image: &Digest) -> Option<ImageIndex> {
        self.look(image, |error| {
            tracing::warn!("the index of {image} is damaged and is not used: {error}");
        })
    }

    /// As [`find`](Self::find). What is wrong with a damaged one is for `say` to say.
    fn look(&self, image: &Digest, say: impl FnOnce(image::Error)) -> Option<ImageIndex> {
        // First: what is looked at is to stay.
        let lease = self.lease(image);
        let found = Source::open(&self.location(image)).ok()?;
        let Ok(Node::Manifest(manifest)) = found.node(found.root()) else {
            return None;
        };
        if subject(&manifest) != Some(*image) {
            return None;
        }
        let parts = || manifest.layers.iter().chain([&manifest.config]);
        let note = self.note(parts())?;
        let is_known = lease.as_ref().and_then(Lease::note) == Some(note.clone());
        if !is_known {
            let verified = parts().try_for_each(|part| found.verify_blob(part));
            verified.map_err(say).ok()?;
            if let Some(lease) = &lease {
                lease.put_note(&note);
            }
        }
        Some(ImageIndex {
            source: found,
            manifest: *manifest,
            lease,
        })
    }

    /// Keeps the index of an image from being removed. `None` where that can't be, as where nobody may write.
    pub fn lease(&self, image: &Digest) -> Option<Lease> {
        Lease::take(&self.use_file(image)).ok()
    }

    /// What is to be noted of files that are sound: which they are, and the boot in which they were read. `None` if one is not
    /// there, or has another size.
    fn note<'a>(&self, parts: impl Iterator<Item = &'a Descriptor>) -> Option<Vec<u8>> {
        let boot = fs::read("/proc/sys/kernel/random/boot_id");
        // Where the system does not tell, no two notes are the same.
        let mut note = boot.unwrap_or_else(|_| format!("{:?}\n", SystemTime::now()).into_bytes());
        for part in parts {
            let path = self.images().join("blobs/sha256").join(part.digest.hex());
            let file = fs::metadata(path).ok()?;
            let changed = (file.ctime(), file.ctime_nsec());
            writeln!(note, "{} {} {changed:?}", part.digest, file.ino()).ok()?;
            if file.len() != part.size {
                return None;
            }
        }
        Some(note)
    }

    /// Makes the index of the image whose manifest is `image` in one pass over its layers, unless there is one by then. The
    /// chunks of layers that can be read in pieces go to `chunks` as they pass by.
    ///
    /// # Errors
    /// As [`convert_image`]; [`Error::Index`] if the directory cannot be used.
    pub fn make(
        &self,
        source: &Source,
        (image, manifest): (&Descriptor, &Manifest),
        chunks: Option<ChunkCache>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<ImageIndex, Error> {
        let _only = self.lock(&image.digest, cancel)?;
        // Whoever has looked before has said what is wrong.
        if let Some(index) = self.look(&image.digest, drop) {
            return Ok(index);
        }
        self.mend();
        let original = source.at(Descriptor::new(
            image.media_type.clone(),
            image.digest,
            image.size,
        ))?;
        let layers = manifest.layers.iter().map(|layer| layer.digest);
        let target = Target::open(&self.location(&image.digest))?.leaving(layers);
        let defaults = options();
        let options = ConvertOptions {
            chunk_size: match manifest.layers.iter().any(toc::is_pinned) {
                true => toc::CHUNK_SIZE,
                false => defaults.chunk_size,
            },
            extended: true,
            chunk_cache: chunks,
            journal: Some(self.dir.join("journal")),
            // What cannot be read in pieces is read from here alone.
            compressor: Compressor::Lz4Block,
            ..defaults
        };
        convert_image(&original, target, None, &options, progress, cancel)?;
        self.find(&image.digest)
            .ok_or_else(|| self.unusable(io::ErrorKind::NotFound.into()))
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// What whoever makes the index of an image locks.
    fn make_file(&self, image: &Digest) -> PathBuf {
        self.dir.join("locks").join(image.hex())
    }

    /// What all who use the index of an image lock.
    fn use_file(&self, image: &Digest) -> PathBuf {
        self.dir.join("locks").join(format!("{}.use", image.hex()))
    }

    fn location(&self, image: &Digest) -> Location {
        Location::OciLayout {
            dir: self.images(),
            tag: Some(format!("{}-v{VERSION}", image.hex())),
        }
    }

    /// Waits until nobody else makes the index of the image, or the work is to stop.
    fn lock(&self, image: &Digest, cancel: &Cancel) -> Result<File, Error> {
        let dir = fs::create_dir_all(self.dir.join("locks"));
        let file = dir.and_then(|()| File::create(self.make_file(image)));
        let file = file.map_err(|source| self.unusable(source))?;
        loop {
            cancel.check()?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL),
                Err(TryLockError::Error(source)) => return Err(self.unusable(source)),
            }
        }
    }

    /// Removes a list of indexes that can't be read: it would be in the way of every index to come.
    fn mend(&self) {
        if let Err(error) = layout_images(&self.images()) {
            tracing::warn!(
                "the indexes in {} are made anew: {error}",
                self.dir.display()
            );
            // If it stays, whoever writes to the list says so.
            let _ = fs::remove_file(self.images().join("index.json"));
        }
    }

    fn unusable(&self, source: io::Error) -> Error {
        Error::Index {
            dir: self.dir.clone(),
            source,
        }
    }
}

impl ImageIndex {
    /// The index `digest` of the image `image`, which lies beside the image in `source`.
    ///
    /// # Errors
    /// If there is none, or it is no index, or that of another image.
    pub fn pinned(source: &Source, image: &Digest, digest: &Digest) -> Result<Self, Error> {
        let any = Descriptor::new(media::OCI_MANIFEST, *digest, 0);
        let size = source.store().document(&any)?.size();
        let root = Descriptor { size, ..any };
        let source = source.at(root.clone())?;
        let invalid = |reason: String| image::Error::Document {
            what: format!("manifest {digest}"),
            reason,
        };
        let Node::Manifest(manifest) = source.node(&root)? else {
            return Err(invalid("it is no manifest".to_owned()).into());
        };
        if !nydus::is_nydus(&manifest) {
            return Err(
                invalid("it is no index: its last layer is no bootstrap".to_owned()).into(),
            );
        }
        if subject(&manifest) != Some(*image) {
            let reason = match subject(&manifest) {
                Some(other) => format!("it is the index of {other}, not of {image}"),
                None => "it does not say which image it is the index of".to_owned(),
            };
            return Err(invalid(reason).into());
        }
        Ok(Self {
            source,
            manifest: *manifest,
            lease: None,
        })
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> &Digest {
        &self.source.root().digest
    }

    /// Writes the index to wherever `target` does.
    ///
    /// # Errors
    /// [`Error`]; the target then has no new tag.
    pub fn copy(&self, target: Target, cancel: &Cancel) -> Result<(), Error> {
        let layers = self.manifest.layers.iter();
        for blob in layers.chain([&self.manifest.config]) {
            target.copy(&self.source, blob, cancel)?;
        }
        let root = self.source.root();
        target.copy_document(&self.source, root)?;
        cancel.check()?;
        Ok(target.commit(&Descriptor::new(
            root.media_type.clone(),
            root.digest,
            root.size,
        ))?)
    }
}

/// What all indexes are made with.
fn options() -> ConvertOptions {
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    ConvertOptions {
        platform: PlatformChoice::All,
        reference: true,
        referrer: true,
        oci: true,
        prefetch: Vec::new(),
        ..ConvertOptions::new(threads)
    }
}

/// The manifest that an index says it is of.
pub fn subject(index: &Manifest) -> Option<Digest> {
    let subject = index.other.get("subject")?.get("digest")?;
    subject.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_the_index_of_another_can_be_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let store = IndexStore::new(dir.path());
        let image = Digest::of(b"image");
        let other = store.lock(&image, &Cancel::default()).unwrap();
        let cancel = Cancel::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| store.lock(&image, &cancel));
            thread::sleep(2 * LOCK_POLL);
            assert!(!waiting.is_finished());
            cancel.cancel();
            thread::sleep(20 * LOCK_POLL);
            // Else it would never end.
            let stopped = waiting.is_finished();
            drop(other);
            let error = waiting.join().unwrap().err();
            assert!(
                stopped && matches!(error, Some(Error::Cancelled)),
                "{error:?}"
            );
        });
        store.lock(&image, &Cancel::default()).unwrap();
    }
}
