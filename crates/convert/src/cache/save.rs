//! Writing a build cache: it is read anew, records are added behind those that are there, all else stays.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use image::{Descriptor, Digest, Index, Manifest, Platform, Source, Target, media};
use progress::Cancel;

use super::{
    CacheError, Content, Fresh, OpenCache, is_for, manifests, read, source_layer, version, write,
};
use crate::dictionary::each;
use crate::manifest::Converted;

/// Content of the configuration of a cache image: there is nothing to configure.
const CONFIG: &[u8] = b"{}";

/// Where the layers of a conversion came from, and where their blobs are.
pub(crate) struct Made<'a> {
    pub images: &'a [Converted],
    pub source: &'a Source,
    /// The new image, or another one in the same place.
    pub blobs: &'a Source,
}

/// What became of the records of a conversion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Written.
    pub new: usize,
    /// Left out: the cache is full.
    pub no_room: usize,
}

/// One manifest of the cache.
struct Page {
    /// Its entry in the index; none yet if it is new.
    entry: Option<usize>,
    platform: Platform,
    manifest: Manifest,
}

impl OpenCache {
    /// Adds the layers of a conversion.
    ///
    /// # Errors
    /// What keeps the cache from being read or written; it is then as it was.
    pub(crate) fn save(&self, made: &Made<'_>, cancel: &Cancel) -> Result<Saved, CacheError> {
        let fresh = made.images.iter().any(|image| !image.records.is_empty());
        if self.broken || !fresh {
            return Ok(Saved::default());
        }
        let (mut index, mut pages) = self.read_again()?;
        let target = self.cache.place.target()?;
        let mut saved = Saved::default();
        for image in made.images {
            let Some(platform) = &image.descriptor.platform else {
                continue;
            };
            let page = page(&mut index, &mut pages, platform);
            let added = self.add(page, image, made, &target, cancel)?;
            saved.new += added.new;
            saved.no_room += added.no_room;
        }
        if saved.new != 0 {
            self.put(index, pages, &target)?;
        }
        Ok(saved)
    }

    /// The cache as it is now: others may have written it since the conversion began.
    fn read_again(&self) -> Result<(Index, Vec<Page>), CacheError> {
        let Some(source) = self.cache.place.source()? else {
            return Ok((new_index(), Vec::new()));
        };
        match manifests(&source)? {
            Content::Other(what) => Err(format!("there is {what} now").into()),
            Content::Cache(index, manifests) => {
                let pages = manifests.into_iter().enumerate();
                let pages = pages.filter_map(|(number, (entry, manifest))| {
                    Some(Page {
                        entry: Some(number),
                        platform: entry.platform?,
                        manifest,
                    })
                });
                Ok((index, pages.collect()))
            }
        }
    }

    /// Adds the layers of one image to its page.
    fn add(
        &self,
        page: &mut Page,
        image: &Converted,
        made: &Made<'_>,
        target: &Target,
        cancel: &Cancel,
    ) -> Result<Saved, CacheError> {
        let manifest = &mut page.manifest;
        if version(manifest) != Some(&*self.cache.version) {
            manifest.layers.clear();
            let version = self.cache.version.clone();
            manifest.annotate(image::nydus::ANNOTATION_CACHE_VERSION, version);
        }
        let fresh = missing(&image.records, &manifest.layers, target)?;
        if fresh.is_empty() {
            return Ok(Saved::default());
        }
        // A registry takes no manifest whose blobs are gone; and what was found to be wrong makes room.
        let keys: HashSet<Digest> = fresh.iter().map(|fresh| fresh.key.digest()).collect();
        manifest
            .layers
            .retain(|blob| read(blob).is_none_or(|(key, _)| !keys.contains(&key)));
        let gone = gone(&manifest.layers, target, cancel)?;
        manifest.layers.retain(|blob| !gone.contains(&blob.digest));
        manifest.layers.truncate(self.cache.max_records);
        let room = self.cache.max_records - manifest.layers.len();
        for fresh in fresh.iter().take(room) {
            let blob = image::nydus::blob_descriptor(fresh.record.blob, fresh.record.size);
            target.copy(made.blobs, &blob, cancel)?;
            // Others believe that a named source layer can be fetched from the cache's repository.
            let named = fresh.alone
                && target
                    .take_over(made.source, &fresh.layer, cancel)
                    .unwrap_or(false);
            manifest.layers.push(write(fresh, named));
        }
        let new = room.min(fresh.len());
        Ok(Saved {
            new,
            no_room: fresh.len() - new,
        })
    }

    /// Writes pages and index, and sets the tag.
    fn put(&self, mut index: Index, pages: Vec<Page>, target: &Target) -> Result<(), CacheError> {
        for page in pages {
            target.put(CONFIG, media::OCI_CONFIG)?;
            let bytes = page.manifest.to_json();
            let put = target.put_document(&bytes, &page.manifest.media_type)?;
            match page.entry {
                Some(number) => {
                    let entry = &mut index.manifests[number];
                    (entry.media_type, entry.digest, entry.size) =
                        (put.media_type, put.digest, put.size);
                }
                None => {
                    let mut entry = put;
                    entry.platform = Some(page.platform);
                    index.manifests.push(entry);
                }
            }
        }
        let root = target.put_document(&index.to_json(), &index.media_type)?;
        target.clone().commit(&root)?;
        Ok(())
    }
}

/// The page of a platform, which is made if there is none.
fn page<'a>(index: &mut Index, pages: &'a mut Vec<Page>, platform: &Platform) -> &'a mut Page {
    let known = pages.iter().position(|page| match page.entry {
        Some(number) => is_for(&index.manifests[number], platform),
        None => page.platform.fits(platform),
    });
    let number = known.unwrap_or_else(|| {
        pages.push(Page {
            entry: None,
            platform: platform.clone(),
            manifest: new_manifest(),
        });
        pages.len() - 1
    });
    &mut pages[number]
}

/// The layers that there is no such record of yet, each once. Of a layer that was converted although there is one, what the
/// record names may be gone.
fn missing<'a>(
    fresh: &'a [Fresh],
    known: &[Descriptor],
    target: &Target,
) -> Result<Vec<&'a Fresh>, CacheError> {
    let (mut missing, mut seen) = (Vec::new(), HashSet::new());
    for fresh in fresh {
        let key = fresh.key.digest();
        if !seen.insert(key) {
            continue;
        }
        let same = known
            .iter()
            .find(|blob| read(blob).is_some_and(|known| known == (key, fresh.record.clone())));
        let there = match same {
            None => false,
            Some(_) if fresh.cached => true,
            Some(blob) => is_whole(blob, target)?,
        };
        if !there {
            missing.push(fresh);
        }
    }
    Ok(missing)
}

/// Whether the blob of a record is there, and its source layer if it names one.
fn is_whole(blob: &Descriptor, target: &Target) -> Result<bool, CacheError> {
    let layer = source_layer(blob);
    Ok(target.look_for(&blob.digest)? == Some(blob.size)
        && match layer {
            Some(layer) => target.look_for(&layer)?.is_some(),
            None => true,
        })
}

/// The blobs that are not there any more.
fn gone(
    blobs: &[Descriptor],
    target: &Target,
    cancel: &Cancel,
) -> Result<HashSet<Digest>, CacheError> {
    let gone = Mutex::new(HashSet::new());
    each(blobs.iter(), cancel, |blob| {
        if target.look_for(&blob.digest)? != Some(blob.size) {
            let mut gone = gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.insert(blob.digest);
        }
        Ok(())
    })?;
    Ok(gone.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn new_index() -> Index {
    Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.to_owned(),
        manifests: Vec::new(),
        annotations: None,
        other: serde_json::Map::new(),
    }
}

fn new_manifest() -> Manifest {
    let config = Descriptor::new(media::OCI_CONFIG, Digest::of(CONFIG), CONFIG.len() as u64);
    Manifest {
        schema_version: 2,
        media_type: media::OCI_MANIFEST.to_owned(),
        config,
        layers: Vec::new(),
        annotations: None,
        other: serde_json::Map::new(),
    }
}
