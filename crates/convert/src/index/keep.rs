//! What indexes there are, and removing them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use image::{Digest, Node, Source, layout_images, remove_images};

use super::IndexStore;
use super::lease::Alone;
use crate::Error;

/// An index that was made on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptIndex {
    /// The manifest of the image that it is of.
    pub image: Digest,
    /// Its name in the layout: several versions of what makes indexes may have made one of an image.
    pub(super) tag: String,
    /// Bytes that its files take on the disk. What several indexes have in common is one's alone, of those in use or last used.
    pub disk: u64,
    /// Whether somebody uses or makes it.
    pub in_use: bool,
    /// When it was last used.
    pub last_used: SystemTime,
}

impl IndexStore {
    /// The indexes that there are, those not used for longest first. None if there is no such directory.
    ///
    /// # Errors
    /// [`Error`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<KeptIndex>, Error> {
        let images = self.images();
        let mut found = Vec::new();
        for (names, root) in layout_images(&images)? {
            let blob = |digest: &Digest| images.join("blobs/sha256").join(digest.hex());
            for tag in names {
                let Some(image) = image_of(&tag) else {
                    continue;
                };
                let used = fs::metadata(self.use_file(&image));
                let made = || fs::metadata(blob(&root.digest));
                let last_used = used.or_else(|_| made()).and_then(|file| file.modified());
                let mut parts = vec![root.digest];
                let source = Source::in_layout(&images, root.clone());
                if let Ok(Node::Manifest(manifest)) = source.and_then(|source| source.node(&root)) {
                    parts.push(manifest.config.digest);
                    parts.extend(manifest.layers.iter().map(|layer| layer.digest));
                }
                let index = KeptIndex {
                    image,
                    tag,
                    disk: 0,
                    in_use: self.alone(&image)?.is_none(),
                    last_used: last_used.unwrap_or(SystemTime::UNIX_EPOCH),
                };
                found.push((index, parts));
            }
        }
        found.sort_by(|(a, _), (b, _)| {
            let order = |index: &KeptIndex| (index.in_use, index.last_used);
            order(a).cmp(&order(b)).then_with(|| a.tag.cmp(&b.tag))
        });
        let mut owners = HashMap::new();
        for (number, (_, parts)) in found.iter().enumerate() {
            owners.extend(parts.iter().map(|part| (*part, number)));
        }
        for (part, number) in owners {
            let file = fs::metadata(images.join("blobs/sha256").join(part.hex()));
            found[number].0.disk += file.map_or(0, |file| file.blocks().saturating_mul(512));
        }
        let mut list: Vec<KeptIndex> = found.into_iter().map(|(index, _)| index).collect();
        list.sort_by(|a, b| (a.last_used, &a.tag).cmp(&(b.last_used, &b.tag)));
        Ok(list)
    }

    /// Bytes that the indexes and what is left of others take on the disk.
    ///
    /// # Errors
    /// [`Error::Index`] if the directory cannot be read.
    pub fn disk_usage(&self) -> Result<u64, Error> {
        let unusable = |source| self.unusable(source);
        let entries = match fs::read_dir(self.images().join("blobs/sha256")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(unusable)?,
        };
        let sizes = entries.flatten().map(|entry| {
            let file = entry.metadata();
            file.map_or(0, |file| file.blocks().saturating_mul(512))
        });
        Ok(sizes.sum())
    }

    /// Reads all files of an index to learn whether they are what their names say. Whoever uses an index verifies what it reads
    /// of it, so one that is not sound is of no use, and does no harm.
    ///
    /// # Errors
    /// [`Error`] for the first that is not, or that cannot be read.
    pub fn verify(&self, index: &KeptIndex) -> Result<(), Error> {
        let images = self.images();
        let mut roots = layout_images(&images)?.into_iter();
        let root = roots.find(|(names, _)| names.contains(&index.tag));
        // One that was removed meanwhile is not wrong.
        let Some((_, root)) = root else {
            return Ok(());
        };
        let source = Source::in_layout(&images, root.clone())?;
        if let Node::Manifest(manifest) = source.node(&root)? {
            for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
                source.verify_blob(part)?;
            }
        }
        Ok(())
    }

    /// Removes an index; false if somebody uses or makes it.
    ///
    /// # Errors
    /// [`Error`] if it cannot be removed.
    pub fn remove(&self, index: &KeptIndex) -> Result<bool, Error> {
        let Some((_maker, user)) = self.alone(&index.image)? else {
            return Ok(false);
        };
        remove_images(&self.images(), std::slice::from_ref(&index.tag))?;
        user.remove().map_err(|source| self.unusable(source))?;
        Ok(true)
    }

    /// The locks of whoever makes the index of an image, and of those who use it.
    fn alone(&self, image: &Digest) -> Result<Option<(Alone, Alone)>, Error> {
        let get = |path: &Path| Alone::get(path).map_err(|source| self.unusable(source));
        let Some(maker) = get(&self.make_file(image))? else {
            return Ok(None);
        };
        Ok(get(&self.use_file(image))?.map(|user| (maker, user)))
    }
}

/// The image that a name in the layout is for.
fn image_of(tag: &str) -> Option<Digest> {
    let (hex, version) = tag.split_once("-v")?;
    version.parse::<u32>().ok()?;
    format!("sha256:{hex}").parse().ok()
}
