//! A layer over an image that exists: the result is the bootstrap of both.

use std::fmt::Display;
use std::sync::Arc;

use chunkdict::Dictionary;
use rafs_format::{BlobFeatures, Version};
use tree::{Image, Whiteouts};

use crate::prefetch::resolve_prefetch;
use crate::{BuildOptions, Error};

/// The image below the layer that is built.
#[derive(Debug, Clone)]
pub struct Parent {
    /// The image. Its blobs keep their places in the blob table, whether files still use them or not.
    pub image: Image,
    /// What entries of the layer hide files of the image. The image's own entries never do.
    pub whiteouts: Whiteouts,
}

/// Blobs whose chunks have no digests to know them by.
const WITHOUT_DIGESTS: BlobFeatures = BlobFeatures::TARFS.union(BlobFeatures::EXTERNAL);

impl Parent {
    /// The options of a build that knows the image's chunks: behind those of a dictionary, if there is one.
    ///
    /// # Errors
    /// [`Error::Parent`] for an image that differs from the build in what one image can have one of only.
    pub(crate) fn known_to(&self, options: &BuildOptions) -> Result<BuildOptions, Error> {
        self.check(options)?;
        let mut dictionary = match &options.dictionary {
            Some(dictionary) => Dictionary::clone(dictionary),
            None => Dictionary::default(),
        };
        let known = |chunk: &&rafs_format::ChunkRecord| {
            let blob = self.image.blobs.get(chunk.blob_index as usize);
            blob.is_some_and(|blob| {
                blob.digester == options.digester && !blob.features.intersects(WITHOUT_DIGESTS)
            })
        };
        let chunks = self.image.chunks.iter().filter(known).copied();
        dictionary.extend(&self.image.blobs, chunks);
        Ok(BuildOptions {
            dictionary: Some(Arc::new(dictionary)),
            ..options.clone()
        })
    }

    fn check(&self, options: &BuildOptions) -> Result<(), Error> {
        let image = &self.image;
        same("RAFS version", image.version, options.version)?;
        same("tarfs mode", image.tarfs, false)?;
        same("chunk size", image.chunk_size, options.chunk_size)?;
        same(
            "explicit owners",
            image.explicit_owners,
            options.explicit_owners,
        )?;
        if image.version == Version::V5 {
            // The superblock names one of each for all blobs.
            same("digester", image.digester, options.digester)?;
            let compressor = image.blobs.first().map(|blob| blob.compressor);
            same(
                "compressor",
                compressor.unwrap_or(options.compressor),
                options.compressor,
            )?;
        }
        Ok(())
    }

    /// Lays the image under a layer. Returns both as one, and the new index of the layer's own blob.
    pub(crate) fn under(
        &self,
        layer: Image,
        own: Option<usize>,
        prefetch: &[Vec<u8>],
    ) -> Result<(Image, Option<usize>), Error> {
        let mut image = self.image.clone();
        for blob in &mut image.blobs {
            // Its id is final, not one that is to be replaced by a file name.
            blob.features -= BlobFeatures::INLINED_FS_META;
        }
        tree::overlay_with(&mut image, layer, self.whiteouts)?;
        image.prefetch = resolve_prefetch(&image.tree, prefetch);
        // The one without an id is the one that is being written.
        let own = own.and_then(|_| {
            let open = |blob: &rafs_format::BlobInfo| blob.id.is_placeholder();
            image.blobs.iter().rposition(open)
        });
        Ok((image, own))
    }
}

fn same<T: PartialEq + Display>(what: &'static str, parent: T, build: T) -> Result<(), Error> {
    if parent == build {
        return Ok(());
    }
    Err(Error::Parent {
        what,
        parent: parent.to_string(),
        build: build.to_string(),
    })
}
