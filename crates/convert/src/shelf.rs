//! Images that a dictionary is made of: where they are read, and what is taken of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chunkdict_store::{Catalogue, Entry, Import, Snapshot};
use image::{Descriptor, Digest, Manifest, PlatformChoice, Selected, Source, nydus};
use progress::Cancel;
use rafs_format::BlobId;
use storage::load_bootstrap;

use crate::dictionary::each;
use crate::{DictionaryError, Error};

/// Opens images by the names under which a dictionary has them.
pub trait Shelf: Sync {
    /// The image `id` at `name`, or what it is part of; `None` if there is no such image any more.
    ///
    /// # Errors
    /// Whatever keeps it open whether the image is there.
    fn image(&self, name: &str, id: Digest) -> Result<Option<Source>, image::Error>;

    /// The place of `name`, to take blobs from, whether the image is still there or not; `None` if the place is gone.
    ///
    /// # Errors
    /// Whatever keeps it open whether the place is there.
    fn place(&self, name: &str) -> Result<Option<Source>, image::Error>;
}

/// Reads the Nydus images of the chosen platforms at `name`, for a dictionary to take up.
///
/// # Errors
/// [`Error::Dictionary`] if there is none, or one that is of no use; whatever keeps it from being read.
pub fn read_imports(
    name: &str,
    source: &Source,
    choice: &PlatformChoice,
) -> Result<Vec<Import>, Error> {
    let mut imports = Vec::new();
    for image in source.select(choice)? {
        if image.attestation || !nydus::is_nydus(&image.manifest) {
            continue;
        }
        imports.push(read_import(name, source, &image)?);
    }
    match imports.is_empty() {
        true => Err(no_image(name)),
        false => Ok(imports),
    }
}

/// The path in the name of a bare bootstrap, `bootstrap:PATH`: an image without a manifest, whose blobs are wherever they
/// are. `None` for the names of others.
pub fn bare_path(name: &str) -> Option<&Path> {
    name.strip_prefix("bootstrap:").map(Path::new)
}

/// Reads the bootstrap at `path`, or that in a blob, for a dictionary to take up as `name`. It is known by its digest.
///
/// # Errors
/// [`Error::Dictionary`] if it is of no use, or cannot be read.
pub fn read_bare(name: &str, path: &Path) -> Result<Import, Error> {
    type Cause = Box<dyn std::error::Error + Send + Sync>;
    let unread = |source: Cause| DictionaryError::Bootstrap {
        name: name.to_owned(),
        source,
    };
    let loaded = load_bootstrap(path).map_err(|error| unread(error.into()))?;
    loaded.check().map_err(|error| unread(error.into()))?;
    let image = loaded.image().map_err(|error| unread(error.into()))?;
    let id = match &loaded.v5 {
        Some(v5) => Digest::of(v5.data()),
        None => Digest::of(loaded.bootstrap.data()),
    };
    let import = Import::of_image(name, *id.bytes(), image, &HashMap::new());
    Ok(import.map_err(DictionaryError::Store)?)
}

pub(crate) fn no_image(name: &str) -> Error {
    DictionaryError::NoImage {
        name: name.to_owned(),
    }
    .into()
}

/// Reads one image.
fn read_import(name: &str, source: &Source, image: &Selected) -> Result<Import, Error> {
    let bootstrap = nydus::read_bootstrap(source, &image.manifest)?;
    let id = image.descriptor.digest;
    let mut import = Import::new(name, *id.bytes(), bootstrap, &blob_sizes(&image.manifest))
        .map_err(DictionaryError::Store)?;
    let platform = image.descriptor.platform.as_ref();
    import.platform = platform.map(ToString::to_string);
    Ok(import)
}

fn blob_sizes(manifest: &Manifest) -> HashMap<BlobId, u64> {
    let layers = manifest.layers.iter();
    layers
        .filter_map(|layer| Some((BlobId::new(layer.digest.hex())?, layer.size)))
        .collect()
}

/// Reads what several names lead to, several at the same time; gives all of it in the order of the names.
///
/// # Errors
/// The first failure of `read`; [`Error::Cancelled`] inside.
pub fn read_all<E: From<Error> + Send>(
    names: &[String],
    cancel: &Cancel,
    read: &(dyn Fn(&String) -> Result<Vec<Import>, E> + Sync),
) -> Result<Vec<Import>, E> {
    let found = Mutex::new(Vec::new());
    let failed = Mutex::new(None);
    each(names.iter().enumerate(), cancel, |(at, name)| {
        match read(name) {
            Ok(imports) => lock(&found).push((at, imports)),
            Err(error) => {
                lock(&failed).get_or_insert(error);
                // Ends the others; the one that is kept says why.
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    })
    .map_err(|error| lock(&failed).take().unwrap_or_else(|| error.into()))?;
    let mut found = std::mem::take(&mut *lock(&found));
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().flat_map(|(_, imports)| imports).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the images of a catalogue again, several at the same time, for a rebuild. Those that are gone are left out.
///
/// # Errors
/// Whatever keeps an image from being read that is there.
pub fn read_again(
    catalogue: &Catalogue,
    shelf: &dyn Shelf,
    cancel: &Cancel,
) -> Result<Vec<Import>, Error> {
    let imports = Mutex::new(Vec::new());
    each(catalogue.images.iter(), cancel, |entry| {
        if let Some(path) = bare_path(&entry.name) {
            lock(&imports).extend(find_bare(entry, path)?);
        } else if let Some((source, image)) = find(shelf, &entry.name, entry.id.into())? {
            let mut import = read_import(&entry.name, &source, &image)?;
            import.platform.clone_from(&entry.platform);
            lock(&imports).push(import);
        }
        Ok(())
    })?;
    let imports = std::mem::take(&mut *lock(&imports));
    Ok(imports)
}

/// The image `id` at `name`, if it is there.
fn find(shelf: &dyn Shelf, name: &str, id: Digest) -> Result<Option<(Source, Selected)>, Error> {
    let Some(source) = shelf.image(name, id)? else {
        return Ok(None);
    };
    let images = source.select(&PlatformChoice::All)?.into_iter();
    let image = images
        .filter(|image| !image.attestation && nydus::is_nydus(&image.manifest))
        .find(|image| image.descriptor.digest == id);
    Ok(image.map(|image| (source, image)))
}

/// The bootstrap of an entry, if it is still there and the same.
fn find_bare(entry: &Entry, path: &Path) -> Result<Option<Import>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    let import = read_bare(&entry.name, path)?;
    Ok(Some(import).filter(|import| import.id == entry.id))
}

/// What was found out about an image of a dictionary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// What is wrong with it; nothing if all of it is there.
    pub problems: Vec<String>,
    /// Whether the image, or a blob that it needs, is gone.
    pub absent: bool,
    /// Blobs that were looked at.
    pub blobs: usize,
    /// Chunks that were looked at.
    pub chunks: usize,
}

/// Proves that all that a snapshot knows of its images is still there: the manifest of each, a bootstrap that says of every
/// chunk what the snapshot says, and every blob, of the size that it had and with room for its chunks. `data`: blobs
/// are read to their ends, and must be what they are named by. The blobs of bare bootstraps are not looked for: nobody
/// says where they are. Gives what was found, in the catalogue's order.
///
/// # Errors
/// Whatever keeps something from being looked at, as far as that does not tell whether it is there.
pub fn verify_dictionary(
    snapshot: &Snapshot,
    catalogue: &Catalogue,
    shelf: &dyn Shelf,
    data: bool,
    cancel: &Cancel,
) -> Result<Vec<Proof>, Error> {
    let extents = snapshot.extents();
    let proofs = Mutex::new(vec![Proof::default(); catalogue.images.len()]);
    each(
        catalogue.images.iter().enumerate(),
        cancel,
        |(at, entry)| {
            let mut proof = Proof::default();
            if let Some(path) = bare_path(&entry.name) {
                match find_bare(entry, path)? {
                    Some(import) => proof.compare(snapshot, &import),
                    None => proof.note_absent("the bootstrap is gone".to_owned()),
                }
                lock(&proofs)[at] = proof;
                return Ok(());
            }
            match find(shelf, &entry.name, entry.id.into())? {
                Some((source, image)) => {
                    proof.look_at((snapshot, &extents), &entry.name, (&source, &image), data)?;
                }
                None => proof.note_absent("the image is gone".to_owned()),
            }
            lock(&proofs)[at] = proof;
            Ok(())
        },
    )?;
    let proofs = std::mem::take(&mut *lock(&proofs));
    Ok(proofs)
}

impl Proof {
    fn note_absent(&mut self, problem: String) {
        self.problems.push(problem);
        self.absent = true;
    }

    fn compare(&mut self, snapshot: &Snapshot, import: &Import) {
        self.chunks = import.chunks();
        if let Err(error) = snapshot.agrees(import) {
            self.problems.push(error.to_string());
        }
    }

    fn look_at(
        &mut self,
        (snapshot, extents): (&Snapshot, &[u64]),
        name: &str,
        (source, image): (&Source, &Selected),
        data: bool,
    ) -> Result<(), Error> {
        match read_import(name, source, image) {
            Ok(import) => self.compare(snapshot, &import),
            Err(Error::Image(image::Error::MissingBlob { digest, .. })) => {
                self.note_absent(format!("bootstrap layer {digest} is gone"));
                return Ok(());
            }
            Err(
                error @ (Error::Dictionary(_) | Error::Image(image::Error::DigestMismatch { .. })),
            ) => {
                self.problems.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let id = *image.descriptor.digest.bytes();
        for held in snapshot
            .image(&id)
            .into_iter()
            .flat_map(|image| &image.blobs)
        {
            let Some(blob) = snapshot.blobs().get(held.blob as usize) else {
                continue;
            };
            self.blobs += 1;
            let Some(digest) = Digest::from_hex(blob.id.as_str()) else {
                self.note_absent(format!("blob {} has a name that no registry has", blob.id));
                continue;
            };
            let size = match source.blob(&digest, None) {
                Ok(found) => found.size(),
                Err(image::Error::MissingBlob { .. }) => {
                    self.note_absent(format!("blob {digest} is gone"));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let needed = held
                .size
                .max(extents.get(held.blob as usize).copied().unwrap_or(0));
            if (held.size != 0 && size != held.size) || size < needed {
                self.note_absent(format!("blob {digest} has {size} bytes, not {needed}"));
            } else if data
                && let Err(error) =
                    source.verify_blob(&Descriptor::new(nydus::BLOB_MEDIA_TYPE, digest, size))
            {
                match error {
                    image::Error::DigestMismatch { .. } => {
                        self.note_absent(format!("blob {digest} is damaged: {error}"));
                    }
                    error => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}
