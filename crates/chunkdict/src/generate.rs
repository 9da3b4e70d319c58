//! One dictionary of many images, as an image that every reader takes: `/BLOB/ROW` is the chunk of that row of that blob.
//!
//! Taken are the chunks that at least two of the images have (all chunks, if there is but one image): what only one
//! version of an image has is not likely to come again. Of the blobs that hold these chunks those are named that add the
//! most bytes to what the ones before them hold, of equals the one with the lowest id, as long as the format has room
//! for another one. The order of the images has no say in it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use rafs_format::{BLOBS_MAX, BlobFeatures, BlobId, BlobInfo, ChunkRecord, Compressor};
use tree::{ChunkId, Content, Image, Inode, InodeId, Tree, mode};

use crate::{ChunkKey, Difference, Kind, is_usable};

/// An image to take chunks of.
#[derive(Debug, Clone)]
pub struct Source {
    /// What it is called. Two of the same name count as one image.
    pub name: String,
    /// Its blobs, their ids complete, and chunks. Files are of no account.
    pub image: Image,
}

/// A dictionary of several images.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The dictionary.
    pub image: Image,
    /// Chunks in it, by content.
    pub chunks: usize,
    /// Bytes of file data in them.
    pub bytes: u64,
    /// Chunks that are worth it and lie in blobs that there was no room for.
    pub left_out: usize,
}

/// Why images are no dictionary together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// There is no image.
    #[error("there is no image to make a chunk dictionary of")]
    NoImage,
    /// Images of different kinds.
    #[error(
        "{first} has {what} {ours}, {second} has {theirs}: make a chunk dictionary of images that are alike"
    )]
    Differ {
        /// The image that the other one is compared with.
        first: String,
        /// The other one.
        second: String,
        /// In what they differ.
        what: &'static str,
        /// Of the first one.
        ours: String,
        /// Of the other one.
        theirs: String,
    },
    /// Two images tell different things of one chunk of one blob.
    #[error(
        "{name} contradicts another image about chunk {row} of blob {blob}: one of the two is damaged; leave it out"
    )]
    Contradiction {
        /// The image that was read later.
        name: String,
        /// The blob.
        blob: BlobId,
        /// Row of the chunk in the blob's chunk table.
        row: u32,
    },
}

/// A blob and those of its chunks that some image has.
struct Blob {
    info: BlobInfo,
    /// By row, which is where it is in the blob, too.
    rows: BTreeMap<u32, ChunkRecord>,
}

/// How many images have a chunk.
#[derive(Clone, Copy)]
struct Holders {
    count: u32,
    /// Number of the name that was counted last.
    last: usize,
}

/// Makes a dictionary of images that are alike.
///
/// # Errors
/// [`GenerateError`]
pub fn generate(mut sources: Vec<Source>) -> Result<Generated, GenerateError> {
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    let first = sources.first().ok_or(GenerateError::NoImage)?;
    let kind = kind_of(&first.image);
    for source in &sources {
        alike(first, source)?;
    }
    let mut blobs = BTreeMap::new();
    let mut holders = HashMap::new();
    let (mut names, mut last) = (0, None);
    for Source { name, image } in sources {
        if last.as_ref() != Some(&name) {
            names += 1;
        }
        collect(&name, names, image, &mut blobs, &mut holders)?;
        last = Some(name);
    }
    let least = names.min(2) as u32;
    for blob in blobs.values_mut() {
        let worth = |record: &ChunkRecord| holders[&ChunkKey::from(record)].count >= least;
        blob.rows.retain(|_, record| worth(record));
    }
    holders.retain(|_, holders| holders.count >= least);
    let wanted = holders.len();
    let chosen = choose(blobs.into_values().collect());
    let mut known: HashMap<ChunkKey, ()> = HashMap::with_capacity(wanted);
    let records = chosen.iter().flat_map(|blob| blob.rows.values());
    known.extend(records.map(|record| (ChunkKey::from(record), ())));
    Ok(Generated {
        chunks: known.len(),
        bytes: known.keys().map(|key| u64::from(key.size)).sum(),
        left_out: wanted - known.len(),
        image: image(&kind, chosen),
    })
}

/// Adds the chunks of an image that others can use, too.
fn collect(
    name: &str,
    number: usize,
    image: Image,
    blobs: &mut BTreeMap<BlobId, Blob>,
    holders: &mut HashMap<ChunkKey, Holders>,
) -> Result<(), GenerateError> {
    for record in image.chunks {
        let Some(info) = image.blobs.get(record.blob_index as usize) else {
            continue;
        };
        if !is_usable(info) {
            continue;
        }
        let blob = blobs.entry(info.id.clone()).or_insert_with(|| Blob {
            info: info.clone(),
            rows: BTreeMap::new(),
        });
        // What differs from image to image and says nothing of the chunk.
        let record = ChunkRecord {
            blob_index: 0,
            file_offset: 0,
            ..record
        };
        match blob.rows.entry(record.index) {
            Entry::Vacant(row) => drop(row.insert(record)),
            Entry::Occupied(known) if *known.get() == record => {}
            Entry::Occupied(_) => {
                return Err(GenerateError::Contradiction {
                    name: name.to_owned(),
                    blob: info.id.clone(),
                    row: record.index,
                });
            }
        }
        let holders = holders
            .entry(ChunkKey::from(&record))
            .or_insert(Holders { count: 0, last: 0 });
        if holders.last != number {
            *holders = Holders {
                count: holders.count + 1,
                last: number,
            };
        }
    }
    Ok(())
}

/// The blobs that are worth it, in the order of their ids. `blobs` are in that order.
fn choose(blobs: Vec<Blob>) -> Vec<Blob> {
    let mut missing: HashMap<ChunkKey, bool> = HashMap::new();
    for record in blobs.iter().flat_map(|blob| blob.rows.values()) {
        missing.insert(ChunkKey::from(record), true);
    }
    let mut chosen = vec![false; blobs.len()];
    for _ in 0..BLOBS_MAX {
        let mut best = (0, 0);
        for (number, blob) in blobs.iter().enumerate() {
            if chosen[number] {
                continue;
            }
            let keys = blob.rows.values().map(ChunkKey::from);
            let adds = keys
                .filter(|key| missing[key])
                .map(|key| u64::from(key.size));
            let adds: u64 = adds.sum();
            if adds > best.0 {
                best = (adds, number);
            }
        }
        if best.0 == 0 {
            break;
        }
        chosen[best.1] = true;
        for record in blobs[best.1].rows.values() {
            missing.insert(ChunkKey::from(record), false);
        }
    }
    let pairs = blobs.into_iter().zip(chosen);
    pairs
        .filter_map(|(blob, chosen)| chosen.then_some(blob))
        .collect()
}

/// What all chunks of an image have in common; blobs say themselves how theirs are stored.
fn kind_of(image: &Image) -> Kind {
    Kind {
        version: image.version,
        digester: image.digester,
        compressor: Compressor::None,
        chunk_size: image.chunk_size,
    }
}

/// Sees to it that two images are of one kind.
fn alike(first: &Source, second: &Source) -> Result<(), GenerateError> {
    match kind_of(&first.image).difference(&kind_of(&second.image)) {
        None => Ok(()),
        Some(Difference { what, ours, theirs }) => Err(GenerateError::Differ {
            first: first.name.clone(),
            second: second.name.clone(),
            what,
            ours,
            theirs,
        }),
    }
}

/// An image of these chunks, each a file.
fn image(kind: &Kind, chosen: Vec<Blob>) -> Image {
    let mut tree = Tree::new();
    let root = directory();
    *tree.inode_mut(InodeId::ROOT) = root;
    let (mut blobs, mut chunks) = (Vec::new(), Vec::new());
    for (index, Blob { info, rows }) in (0_u32..).zip(chosen) {
        let mut names = BTreeMap::new();
        for (row, record) in rows {
            let id = ChunkId(chunks.len() as u32);
            chunks.push(ChunkRecord {
                blob_index: index,
                ..record
            });
            let file = Inode {
                mode: mode::REGULAR | 0o444,
                content: Content::Regular {
                    size: u64::from(record.uncompressed_size),
                    chunks: Box::new([id]),
                },
                ..directory()
            };
            // Rows in the order of their numbers.
            names.insert(format!("{row:08}").into_bytes().into(), tree.add(file));
        }
        let inode = tree.add(Inode {
            content: Content::Directory(names),
            ..directory()
        });
        let name = info.id.as_str().as_bytes().into();
        if let Some(entries) = tree.entries_mut(InodeId::ROOT) {
            entries.insert(name, inode);
        }
        blobs.push(BlobInfo {
            index,
            // It is so in a layer's own bootstrap only.
            features: info.features - BlobFeatures::INLINED_FS_META,
            ..info
        });
    }
    Image {
        version: kind.version,
        tree,
        compressor: blobs
            .first()
            .map_or(Compressor::None, |blob| blob.compressor),
        blobs,
        chunks,
        chunk_size: kind.chunk_size,
        prefetch: Vec::new(),
        digester: kind.digester,
        explicit_owners: true,
        tarfs: false,
    }
}

fn directory() -> Inode {
    Inode {
        implied: false,
        ..Inode::implied_directory()
    }
}

#[cfg(test)]
mod tests {
    use rafs_format::{ChunkFlags, Digester, Version};

    use super::*;

    /// An image of one blob with chunks of such contents and sizes.
    fn source(name: &str, blob: &str, chunks: &[(u8, u32)]) -> Source {
        let kind = Kind {
            version: Version::V6,
            digester: Digester::Blake3,
            compressor: Compressor::Zstd,
            chunk_size: 1 << 20,
        };
        let mut image = image(&kind, Vec::new());
        let id = BlobId::new(blob).unwrap();
        let info = BlobInfo::new(id, 1 << 20, Compressor::Zstd, Digester::Blake3);
        image.blobs.push(info);
        for (index, &(content, size)) in (0..).zip(chunks) {
            image.chunks.push(ChunkRecord {
                digest: [content; 32],
                blob_index: 0,
                flags: ChunkFlags::COMPRESSED,
                compressed_size: size / 2,
                uncompressed_size: size,
                compressed_offset: 0,
                uncompressed_offset: u64::from(index) << 20,
                file_offset: 7,
                index,
                crc32: 0,
            });
        }
        Source {
            name: name.to_owned(),
            image,
        }
    }

    fn contents(made: &Generated) -> Vec<(&str, u8)> {
        let blobs = &made.image.blobs;
        let chunks = made.image.chunks.iter();
        chunks
            .map(|chunk| {
                (
                    blobs[chunk.blob_index as usize].id.as_str(),
                    chunk.digest[0],
                )
            })
            .collect()
    }

    #[test]
    fn what_two_images_have_is_taken_from_as_few_blobs_as_do() {
        let one = source("one:1", "a", &[(1, 100), (2, 100), (3, 100)]);
        let two = source("two:1", "b", &[(9, 100), (3, 100), (2, 100)]);
        let three = source("three:1", "c", &[(3, 100)]);
        let made = generate(vec![one.clone(), two.clone(), three.clone()]).unwrap();
        assert_eq!(contents(&made), [("a", 2), ("a", 3)]);
        assert_eq!((made.chunks, made.bytes, made.left_out), (2, 200, 0));
        let again = generate(vec![three, two, one]).unwrap();
        assert_eq!(contents(&again), contents(&made));
        assert_eq!(again.image.tree, made.image.tree);
    }

    #[test]
    fn one_image_is_taken_as_a_whole() {
        let one = source("one:1", "a", &[(1, 100), (2, 100)]);
        let made = generate(vec![one.clone(), one]).unwrap();
        assert_eq!(contents(&made), [("a", 1), ("a", 2)]);
        assert!(matches!(generate(Vec::new()), Err(GenerateError::NoImage)));
    }

    #[test]
    fn of_too_many_blobs_the_ones_with_the_most_bytes_stay() {
        let many = |name: &str| {
            let mut all = source(name, "x", &[]);
            all.image.blobs.clear();
            for index in 0..=BLOBS_MAX as u32 {
                let of = source(name, &format!("{index:03}"), &[(0, 50 + index)]);
                let blob = of.image.blobs.into_iter().next().unwrap();
                all.image.blobs.push(BlobInfo { index, ..blob });
                let record = of.image.chunks[0];
                all.image.chunks.push(ChunkRecord {
                    blob_index: index,
                    ..record
                });
            }
            all
        };
        let made = generate(vec![many("one:1"), many("two:1")]).unwrap();
        assert_eq!(made.image.blobs.len(), BLOBS_MAX);
        assert_eq!(made.image.blobs[0].id.as_str(), "001");
        assert_eq!(made.left_out, 1);
    }

    #[test]
    fn images_that_do_not_fit_together_are_refused() {
        let one = source("one:1", "a", &[(1, 100)]);
        let mut other = source("two:1", "b", &[(1, 100)]);
        other.image.chunk_size = 4096;
        let error = generate(vec![one.clone(), other]).unwrap_err().to_string();
        assert!(
            error.contains("one:1 has chunk size 0x100000, two:1 has 0x1000"),
            "{error}"
        );
        let liar = source("two:1", "a", &[(2, 100)]);
        let error = generate(vec![one, liar]).unwrap_err().to_string();
        assert!(error.contains("chunk 0 of blob a"), "{error}");
    }
}
