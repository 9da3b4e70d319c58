//! The files of a directory whose data lies elsewhere: an image of their own, whose chunks point into blobs that exist.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::path::Path;

use rafs_format::{
    BLOBS_MAX, BlobFeatures, BlobId, BlobInfo, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, CHUNKS_PER_BLOB_MAX,
    ChunkFlags, ChunkRecord, Compressor, Digest, Version,
};
use tree::{ChunkId, Content, Image, InodeId, Tree, Whiteouts};

use crate::attributes::{Attributes, ExternalFile};
use crate::directory::{self, Part};
use crate::{BuildOptions, Error, tail};

/// An image of external files, complete but for what is said of it in a blob.
#[derive(Debug)]
pub struct ExternalImage {
    /// The tree of the external files and the directories on the way, and the blobs in the order of their indexes. In v6
    /// they have no chunk tables before they are written.
    pub image: Image,
}

/// The blob that goes with an external image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExternalBlob {
    /// SHA-256 of the blob file.
    pub digest: Digest,
    /// Its size in bytes; 0 if nothing was written.
    pub size: u64,
}

impl ExternalImage {
    /// Scans a directory for the files that `attributes` call external. Their data is not read.
    ///
    /// The image's chunk size is that of the files with checksums; where there are none, the smallest that a file of several
    /// chunks asks for, or that of the build.
    ///
    /// # Errors
    /// [`Error::External`] for a file whose attributes leave out or contradict something; what a scan can meet.
    pub fn scan(
        root: &Path,
        whiteouts: Whiteouts,
        attributes: &Attributes,
        options: &BuildOptions,
    ) -> Result<Self, Error> {
        let (mut tree, files) =
            directory::scan(root, whiteouts, Part::External(attributes), options)?;
        let mut places: Vec<(InodeId, Place<'_>)> = Vec::with_capacity(files.len());
        let mut done = vec![false; tree.len()];
        for file in &files {
            if std::mem::replace(&mut done[file.id.0 as usize], true) {
                continue;
            }
            let Some(said) = attributes.get(&file.path) else {
                continue;
            };
            if let Some(place) = Place::new(said, &mut tree, file)? {
                places.push((file.id, place));
            }
        }
        let chunk_size = chunk_size(&places, options)?;
        let blobs = blobs(&places, chunk_size, options)?;
        let mut image = Image {
            version: options.version,
            tree,
            blobs,
            chunks: Vec::new(),
            chunk_size,
            prefetch: Vec::new(),
            compressor: Compressor::None,
            digester: options.digester,
            explicit_owners: options.explicit_owners,
            tarfs: false,
        };
        enter(&mut image, &places)?;
        Ok(Self { image })
    }

    /// Whether a blob has to be written for readers to find the chunks.
    pub fn needs_blob(&self, options: &BuildOptions) -> bool {
        options.inline_meta || (options.version == Version::V6 && !self.image.blobs.is_empty())
    }

    /// Writes the blob: in v6 the tables of the chunks of all external blobs, then what the options ask for.
    ///
    /// # Errors
    /// [`Error`]; `out` then holds a useless part of a blob.
    pub fn write(
        &mut self,
        out: impl Write,
        options: &BuildOptions,
    ) -> Result<ExternalBlob, Error> {
        let finished = tail::finish_external(out, &mut self.image, options)?;
        Ok(ExternalBlob {
            digest: finished.digest,
            size: finished.size,
        })
    }
}

/// Where the data of one file lies.
struct Place<'a> {
    path: &'a [u8],
    blob_index: u32,
    blob_id: &'a BlobId,
    blob_size: u64,
    offset: u64,
    size: u64,
    /// Size of the pieces that the line is about.
    piece: u64,
    crcs: &'a [u32],
}

impl<'a> Place<'a> {
    /// `None` for an empty file. A file that is an empty one in the directory gets the size that is said of it.
    fn new(
        said: &'a ExternalFile,
        tree: &mut Tree,
        file: &'a directory::Name,
    ) -> Result<Option<Self>, Error> {
        let path = &file.path;
        let wrong = |what: String| error(path, Some(said.line), what);
        let Content::Regular { size, .. } = &mut tree.inode_mut(file.id).content else {
            return Ok(None);
        };
        match said.file_size {
            Some(own) if *size == 0 => *size = own,
            Some(own) if *size != own => {
                return Err(wrong(format!(
                    "file_size is {own}, the file in the directory has {size} bytes"
                )));
            }
            _ => {}
        }
        let size = *size;
        if size == 0 {
            return Ok(None);
        }
        let missing = |name: &str| wrong(format!("{name} is missing"));
        let place = Self {
            path,
            blob_index: said.blob_index.ok_or_else(|| missing("blob_index"))?,
            blob_id: said.blob_id.as_ref().ok_or_else(|| missing("blob_id"))?,
            blob_size: said.blob_size.ok_or_else(|| missing("compressed_size"))?,
            offset: said
                .offset
                .ok_or_else(|| missing("chunk_0_compressed_offset"))?,
            size,
            piece: said.chunk_size.ok_or_else(|| missing("chunk_size"))?,
            crcs: &said.crcs,
        };
        let end = place.offset.checked_add(size);
        if end.is_none_or(|end| end > place.blob_size) {
            return Err(wrong(format!(
                "{size} bytes from {} on end beyond the {} bytes of the blob",
                place.offset, place.blob_size
            )));
        }
        let pieces = size.div_ceil(place.piece);
        if !said.crcs.is_empty() && said.crcs.len() as u64 != pieces {
            return Err(wrong(format!(
                "there are {} crcs, {size} bytes in pieces of {} need {pieces}",
                said.crcs.len(),
                place.piece
            )));
        }
        Ok(Some(place))
    }

    fn is_one_piece(&self) -> bool {
        self.size <= self.piece
    }
}

fn error(path: &[u8], line: Option<usize>, what: String) -> Error {
    let line = line.map(|line| format!(" (line {line})"));
    Error::External {
        path: String::from_utf8_lossy(path).into_owned() + &line.unwrap_or_default(),
        what,
    }
}

/// The chunk size of the image: one for all files.
fn chunk_size(places: &[(InodeId, Place<'_>)], options: &BuildOptions) -> Result<u32, Error> {
    // A chunk may have one CRC, so that chunks can neither be cut nor put together where there are some.
    let fixed = places.iter().map(|(_, place)| place).filter(|place| {
        !place.crcs.is_empty() && (!place.is_one_piece() || place.size > u64::from(CHUNK_SIZE_MAX))
    });
    let mut first: Option<&Place<'_>> = None;
    for place in fixed {
        let fits = u32::try_from(place.piece).is_ok_and(|size| {
            size.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size)
        });
        if !fits {
            return Err(error(
                place.path,
                None,
                format!(
                    "its crcs are about pieces of {} bytes, chunks can have a power of two from 4 KiB to 16 MiB: \
                     leave the crcs out, or compute them for smaller pieces",
                    place.piece
                ),
            ));
        }
        match first {
            Some(first) if first.piece != place.piece => {
                return Err(error(
                    place.path,
                    None,
                    format!(
                        "its crcs are about pieces of {} bytes, those of {} about {}; an image has one chunk size: \
                         leave the crcs of one of them out",
                        place.piece,
                        String::from_utf8_lossy(first.path),
                        first.piece
                    ),
                ));
            }
            _ => first = Some(place),
        }
    }
    // A file of one piece with a CRC has to stay one chunk.
    let whole = places.iter().map(|(_, place)| place);
    let whole = whole
        .filter(|place| !place.crcs.is_empty() && place.is_one_piece())
        .max_by_key(|place| place.size);
    let size = match (first, whole) {
        (Some(first), Some(whole)) if whole.size > first.piece => {
            return Err(error(
                whole.path,
                None,
                format!(
                    "its crc is about {} bytes, those of {} about {}; an image has one chunk size: leave the crcs of \
                     one of them out",
                    whole.size,
                    String::from_utf8_lossy(first.path),
                    first.piece
                ),
            ));
        }
        (Some(first), _) => first.piece,
        (None, _) => {
            let larger = places.iter().filter(|(_, place)| !place.is_one_piece());
            let asked = larger.map(|(_, place)| place.piece).min();
            let least = whole.map_or(0, |place| place.size.next_power_of_two());
            asked.unwrap_or(options.chunk_size.into()).max(least)
        }
    };
    let size = size.clamp(CHUNK_SIZE_MIN.into(), CHUNK_SIZE_MAX.into());
    Ok(1 << size.ilog2())
}

/// The blob table: every index up to the largest must have a file that tells what it is.
fn blobs(
    places: &[(InodeId, Place<'_>)],
    chunk_size: u32,
    options: &BuildOptions,
) -> Result<Vec<BlobInfo>, Error> {
    let mut known: BTreeMap<u32, &Place<'_>> = BTreeMap::new();
    for (_, place) in places {
        match known.entry(place.blob_index) {
            Entry::Vacant(entry) => {
                entry.insert(place);
            }
            Entry::Occupied(entry) => {
                let other = entry.get();
                if (other.blob_id, other.blob_size) != (place.blob_id, place.blob_size) {
                    let other = String::from_utf8_lossy(other.path);
                    let what = format!(
                        "blob {} is another one, or of another size, than for {other}",
                        place.blob_index
                    );
                    return Err(error(place.path, None, what));
                }
            }
        }
    }
    let mut ids = BTreeMap::new();
    let mut blobs = Vec::with_capacity(known.len());
    for ((index, place), expected) in known.into_iter().zip(0..) {
        if index != expected {
            let what = format!("there is no file of blob {expected}, but one of blob {index}");
            return Err(error(place.path, None, what));
        }
        if let Some(other) = ids.insert(place.blob_id, index) {
            let what = format!("blobs {other} and {index} have the same id");
            return Err(error(place.path, None, what));
        }
        let mut features = BlobFeatures::CAP_TAR_TOC | BlobFeatures::EXTERNAL;
        features.set(BlobFeatures::ALIGNED, options.version == Version::V6);
        blobs.push(BlobInfo {
            index,
            features,
            compressed_size: place.blob_size,
            uncompressed_size: place.blob_size,
            ..BlobInfo::new(
                place.blob_id.clone(),
                chunk_size,
                Compressor::None,
                options.digester,
            )
        });
    }
    if blobs.len() > BLOBS_MAX {
        return Err(Error::TooManyBlobs(blobs.len()));
    }
    Ok(blobs)
}

/// Enters the chunks of all files, numbered by their places in the blobs. Those that are the same place are one.
fn enter(image: &mut Image, places: &[(InodeId, Place<'_>)]) -> Result<(), Error> {
    let step = u64::from(image.chunk_size);
    let mut total = 0;
    for (_, place) in places {
        total += place.size.div_ceil(step);
        if total >= u64::from(CHUNKS_PER_BLOB_MAX) {
            return Err(error(
                place.path,
                None,
                "there are more than 2^24 - 1 chunks: ask for larger ones".to_owned(),
            ));
        }
    }
    // Size and CRC by blob and offset, with the file that said so first.
    let mut chunks: BTreeMap<(u32, u64), (u32, Option<u32>, &Place<'_>)> = BTreeMap::new();
    for (_, place) in places {
        for (number, start) in (0..place.size)
            .step_by(image.chunk_size as usize)
            .enumerate()
        {
            let size = (place.size - start).min(step) as u32;
            let crc = place.crcs.get(number).copied();
            let key = (place.blob_index, place.offset + start);
            let known = chunks.entry(key).or_insert((size, crc, place));
            let same = known.0 == size && (crc.is_none() || known.1.is_none() || known.1 == crc);
            if !same {
                return Err(overlap(place, known.2));
            }
            known.1 = known.1.or(crc);
        }
    }
    let mut ids = BTreeMap::new();
    let mut last: Option<(&(u32, u64), u32, &Place<'_>)> = None;
    for (key, &(size, crc, place)) in &chunks {
        let &(blob_index, offset) = key;
        if let Some((&(blob, start), before, other)) = last
            && blob == blob_index
            && start + u64::from(before) > offset
        {
            return Err(overlap(place, other));
        }
        last = Some((key, size, place));
        let info = &mut image.blobs[blob_index as usize];
        // Readers refuse a recorded CRC of 0, so the one chunk in 2^32 that has it goes without.
        let crc = crc.filter(|&crc| crc != 0);
        ids.insert(*key, ChunkId(image.chunks.len() as u32));
        image.chunks.push(ChunkRecord {
            digest: [0; 32],
            blob_index,
            flags: crc.map_or(ChunkFlags::empty(), |_| ChunkFlags::HAS_CRC32),
            compressed_size: size,
            uncompressed_size: size,
            compressed_offset: offset,
            uncompressed_offset: offset,
            file_offset: 0,
            index: info.chunk_count,
            crc32: crc.unwrap_or(0),
        });
        info.chunk_count += 1;
    }
    for (id, place) in places {
        if let Content::Regular { chunks, .. } = &mut image.tree.inode_mut(*id).content {
            let starts = (0..place.size).step_by(step as usize);
            let found = starts.map(|start| ids.get(&(place.blob_index, place.offset + start)));
            *chunks = found.flatten().copied().collect();
        }
    }
    Ok(())
}

fn overlap(place: &Place<'_>, other: &Place<'_>) -> Error {
    let other = String::from_utf8_lossy(other.path);
    let what = format!("its data overlaps that of {other}, or has another crc");
    error(place.path, None, what)
}
