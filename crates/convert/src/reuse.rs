//! One lookup over two stores: what a layer was converted to before, by the journal of this user or by the build cache.
//!
//! Whatever a record says, a layer is used again only if its blob is there and the bootstrap in the blob's tail is the one
//! of the record and such as these options make; else it is converted.

use std::collections::HashMap;

use bootstrap::Parsed;
use builder::{BuildOptions, ChunkTable};
use chunkdict::{ChunkKey, Dictionary, is_usable};
use image::{Descriptor, nydus};
use rafs_format::BlobId;
use storage::BlobReader;
use tree::Image;

use crate::cache::{CacheRecord, OpenCache};
use crate::error::causes;
use crate::journal::{Key, Record};
use crate::layer::{Blob, ConvertedLayer, Places};
use crate::reference;

type Unusable = Box<dyn std::error::Error + Send + Sync>;

/// Which store knew a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A conversion by this user to the same place.
    Journal,
    /// The build cache.
    Cache,
}

/// The layer as an earlier conversion made it, its blob in place.
pub(crate) fn find(
    places: &Places<'_>,
    layer: &Descriptor,
    key: &Key,
    options: &BuildOptions,
) -> Option<ConvertedLayer> {
    let noted = places.journal.and_then(|journal| journal.find(key));
    noted
        .and_then(|record| from_target(places, layer, key, &record, options))
        .or_else(|| from_cache(places, places.cache?, layer, key, options))
}

/// The layer of a record whose blob is in the target.
fn from_target(
    places: &Places<'_>,
    layer: &Descriptor,
    key: &Key,
    record: &Record,
    options: &BuildOptions,
) -> Option<ConvertedLayer> {
    let target = places.blobs();
    let take = || match target.contains(&record.blob, record.size)? {
        true => {
            let blob = target.blob(&record.blob, record.size)?;
            load(
                places,
                &*blob,
                layer,
                (key, record),
                options,
                Origin::Journal,
            )
            .map(Some)
        }
        false => Ok(None),
    };
    take().unwrap_or_else(|error: Unusable| {
        let cause = causes(&*error);
        tracing::debug!("blob {} is converted again: {cause}", record.blob);
        None
    })
}

/// The layer of the cache's record, its blob brought into the target.
fn from_cache(
    places: &Places<'_>,
    cache: &OpenCache,
    descriptor: &Descriptor,
    key: &Key,
    options: &BuildOptions,
) -> Option<ConvertedLayer> {
    let (name, layer) = (cache.name(), &descriptor.digest);
    let Some(known) = cache.find(key) else {
        if cache.knows(layer) {
            tracing::info!(
                "layer {layer} is in the build cache {name} as converted by others or with other options"
            );
        }
        return None;
    };
    let loaded = bring(places, cache, known, (descriptor, key), options);
    match loaded {
        Ok(found) => {
            cache.trust();
            Some(found)
        }
        Err(_) if options.cancel.is_cancelled() => None,
        Err(error) => {
            let cause = causes(&*error);
            tracing::warn!(
                "layer {layer} is converted, for its record in the build cache {name} is not usable: {cause}"
            );
            None
        }
    }
}

fn bring(
    places: &Places<'_>,
    cache: &OpenCache,
    known: &CacheRecord,
    (original, key): (&Descriptor, &Key),
    options: &BuildOptions,
) -> Result<ConvertedLayer, Unusable> {
    let source = cache.source().ok_or("the cache has no blobs")?;
    let record = &known.record;
    if let Some(layer) = &known.layer {
        source.blob(layer, None)?;
    }
    let blob = source.blob(&record.blob, None)?;
    if blob.size() != record.size {
        let (size, want) = (blob.size(), record.size);
        return Err(format!("blob {} has {size} bytes, not {want}", record.blob).into());
    }
    let layer = load(
        places,
        &*blob,
        original,
        (key, record),
        options,
        Origin::Cache,
    )?;
    let descriptor = nydus::blob_descriptor(record.blob, record.size);
    places.blobs().copy(source, &descriptor, &options.cancel)?;
    Ok(layer)
}

/// Reads a layer back from its blob.
fn load(
    places: &Places<'_>,
    blob: &dyn BlobReader,
    layer: &Descriptor,
    (key, record): (&Key, &Record),
    options: &BuildOptions,
    origin: Origin,
) -> Result<ConvertedLayer, Unusable> {
    let bootstrap = storage::extract_bootstrap(blob)?;
    if image::Digest::of(&bootstrap) != record.bootstrap {
        return Err(format!("blob {} has another bootstrap", record.blob).into());
    }
    let mut image = Parsed::parse(bootstrap)?.load()?;
    if places.reference
        && let Some(described) = reference::load(&mut image, blob, layer, record, options)?
    {
        return Ok(ConvertedLayer {
            image,
            blob: described,
            reused: Some(origin),
            record: Some((key.clone(), record.clone())),
        });
    }
    if let Some(what) = difference(&image, record.size, options) {
        return Err(format!("blob {} has {what} than these options make", record.blob).into());
    }
    let mut table = None;
    // A bootstrap inside a blob leaves the blob's id open.
    let own = image.blobs.iter_mut().find(|info| info.id.is_placeholder());
    if let Some(info) = own {
        info.id = BlobId::new(record.blob.hex()).ok_or("a digest makes no blob id")?;
        if info.has_chunk_table() {
            let (rows, header) = storage::read_chunk_table(info, blob)?;
            table = Some(ChunkTable {
                table: rows,
                header: header.to_vec(),
            });
        }
    }
    Ok(ConvertedLayer {
        image,
        blob: Blob {
            digest: record.blob,
            size: record.size,
            table,
            original: None,
        },
        reused: Some(origin),
        record: Some((key.clone(), record.clone())),
    })
}

/// In what a layer's bootstrap, its blob's id still open, differs from what a build with these options can make. Its blob
/// has `size` bytes.
fn difference(image: &Image, size: u64, options: &BuildOptions) -> Option<&'static str> {
    let header = [
        (image.version == options.version, "another RAFS version"),
        (image.chunk_size == options.chunk_size, "another chunk size"),
        (image.compressor == options.compressor, "another compressor"),
        (image.digester == options.digester, "another digester"),
        (
            image.explicit_owners == options.explicit_owners && !image.tarfs,
            "inodes of another kind",
        ),
    ];
    if let Some((_, what)) = header.iter().find(|(same, _)| !same) {
        return Some(what);
    }
    let (own, foreign): (Vec<_>, Vec<_>) = image
        .blobs
        .iter()
        .partition(|info| info.id.is_placeholder());
    match own[..] {
        [] => {}
        [one] if one.compressed_size <= size && is_plain(one, options) => {}
        _ => return Some("a blob of another kind"),
    }
    if foreign.is_empty() {
        return None;
    }
    let known = options
        .dictionary
        .as_deref()
        .is_some_and(|dictionary| is_of(image, dictionary));
    (!known).then_some("chunks of other blobs")
}

/// Whether a layer's own blob is of the kind that a build with these options makes.
fn is_plain(own: &rafs_format::BlobInfo, options: &BuildOptions) -> bool {
    let named = rafs_format::BlobInfo {
        id: BlobId::new("own").expect("a name without separators"),
        ..own.clone()
    };
    is_usable(&named)
        && own.chunk_size == options.chunk_size
        && own.compressor == options.compressor
        && own.digester == options.digester
}

/// Whether all chunks in blobs of others are where the dictionary has them.
fn is_of(image: &Image, dictionary: &Dictionary) -> bool {
    let positions: HashMap<&BlobId, u32> = (0..)
        .zip(dictionary.blobs())
        .map(|(at, blob)| (&blob.id, at))
        .collect();
    let at: Vec<Option<u32>> = image
        .blobs
        .iter()
        .map(|info| positions.get(&info.id).copied())
        .collect();
    let known =
        |info: &rafs_format::BlobInfo| info.id.is_placeholder() || positions.contains_key(&info.id);
    image.blobs.iter().all(known)
        && image.chunks.iter().all(|chunk| {
            let blob = chunk.blob_index as usize;
            match (image.blobs.get(blob), at.get(blob)) {
                (Some(info), _) if info.id.is_placeholder() => true,
                (Some(_), Some(Some(at))) => dictionary
                    .at(&ChunkKey::from(chunk), *at, chunk.index)
                    .is_some_and(|known| {
                        (known.compressed_offset, known.compressed_size)
                            == (chunk.compressed_offset, chunk.compressed_size)
                            && known.uncompressed_offset == chunk.uncompressed_offset
                    }),
                _ => false,
            }
        })
}
