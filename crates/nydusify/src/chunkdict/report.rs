//! What the commands about dictionaries print.

use std::fmt;

use chunkdict_store::{Amount, Catalogue, Changed, Entry, ImageId, Sharing, Snapshot, Stays};
use convert::Proof;
use rafs_format::{ChunkRecord, Digest};
use serde::Serialize;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Lines of text
    Text,
    /// One JSON document
    Json,
}

/// A digest as it is written.
fn hex(digest: &Digest) -> String {
    image::Digest::from(*digest).hex()
}

/// What `add` did.
pub struct Added {
    pub images: usize,
    pub changed: Changed,
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Changed {
            snapshot,
            before,
            after,
        } = self.changed;
        writeln!(f, "images:    {}", self.images)?;
        writeln!(f, "chunks:    {after} ({before} before)")?;
        writeln!(
            f,
            "snapshot:  {}",
            snapshot.as_ref().map(hex).unwrap_or_default()
        )
    }
}

/// An image of a dictionary.
#[derive(Debug, Serialize)]
struct Image {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    digest: String,
    /// Seconds since 1970.
    added: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<u64>,
}

impl Image {
    fn new(entry: &Entry, removed: Option<u64>) -> Self {
        Self {
            name: entry.name.clone(),
            platform: entry.platform.clone(),
            digest: image::Digest::from(entry.id).to_string(),
            added: entry.added,
            absent: entry.absent,
            removed,
        }
    }
}

/// What `ls` found.
#[derive(Debug, Serialize)]
pub struct Listed {
    schema: &'static str,
    snapshot: Option<String>,
    images: Vec<Image>,
    removed: Vec<Image>,
}

impl Listed {
    pub fn new(catalogue: &Catalogue) -> Self {
        let images = catalogue.images.iter().map(|entry| Image::new(entry, None));
        let removed = catalogue.removed.iter();
        let removed = removed.map(|gone| Image::new(&gone.entry, Some(gone.removed)));
        Self {
            schema: "nydusify-chunkdict-ls/1",
            snapshot: catalogue.snapshot.as_ref().map(hex),
            images: images.collect(),
            removed: removed.collect(),
        }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in self.images.iter().chain(&self.removed) {
            let state = match (image.removed, image.absent) {
                (Some(_), _) => "removed",
                (None, Some(_)) => "absent",
                (None, None) => "present",
            };
            write!(f, "{state:<8} {:.19} {}", image.digest, image.name)?;
            match &image.platform {
                Some(platform) => writeln!(f, " ({platform})")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Chunks, counted.
#[derive(Debug, Clone, Copy, Serialize)]
struct Counted {
    chunks: u64,
    bytes: u64,
    stored_bytes: u64,
}

impl From<Amount> for Counted {
    fn from(amount: Amount) -> Self {
        Self {
            chunks: amount.chunks,
            bytes: amount.bytes,
            stored_bytes: amount.stored,
        }
    }
}

/// What `stat` found.
#[derive(Debug, Serialize)]
pub struct Statistics {
    schema: &'static str,
    snapshot: String,
    fs_version: String,
    digester: String,
    compressor: String,
    chunk_size: u32,
    blobs: usize,
    /// Of the file, and of the chunks in memory, in bytes.
    file_size: u64,
    memory: usize,
    /// Contents, each counted once.
    distinct: Counted,
    /// All places in blobs.
    places: Counted,
    images: Vec<Share>,
    shared: Vec<Pair>,
}

/// An image, and what of it no other one has.
#[derive(Debug, Serialize)]
struct Share {
    digest: String,
    names: Vec<String>,
    all: Counted,
    own: Counted,
}

/// What two images have in common; they are positions in the list of images.
#[derive(Debug, Serialize)]
struct Pair {
    images: (usize, usize),
    common: Counted,
}

impl Statistics {
    pub fn new(snapshot: &Snapshot, catalogue: &Catalogue) -> Self {
        let Sharing {
            images,
            pairs,
            distinct,
            places,
        } = snapshot.sharing();
        let kind = snapshot.kind();
        let names =
            |id: &ImageId| -> Vec<String> { catalogue.names(id).map(Entry::title).collect() };
        // As people look for them: by name.
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|at| names(&images[*at].id));
        let mut positions = vec![0; images.len()];
        for (position, &at) in order.iter().enumerate() {
            positions[at] = position;
        }
        let share = |&at: &usize| Share {
            digest: image::Digest::from(images[at].id).to_string(),
            names: names(&images[at].id),
            all: images[at].all.into(),
            own: images[at].own.into(),
        };
        let mut shared: Vec<Pair> = pairs
            .iter()
            .map(|(&(a, b), amount)| {
                let (a, b) = (positions[a as usize], positions[b as usize]);
                Pair {
                    images: (a.min(b), a.max(b)),
                    common: (*amount).into(),
                }
            })
            .collect();
        shared.sort_by_key(|pair| pair.images);
        Self {
            schema: "nydusify-chunkdict-stat/1",
            snapshot: hex(&snapshot.id()),
            fs_version: kind.version.to_string(),
            digester: kind.digester.to_string(),
            compressor: kind.compressor.to_string(),
            chunk_size: kind.chunk_size,
            blobs: snapshot.blobs().len(),
            file_size: snapshot.file_size(),
            memory: snapshot.index().memory(),
            distinct: distinct.into(),
            places: places.into(),
            images: order.iter().map(share).collect(),
            shared,
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            distinct, places, ..
        } = self;
        writeln!(f, "snapshot:  {}", self.snapshot)?;
        writeln!(
            f,
            "kind:      RAFS {}, {}, {}, chunks of {:#x} bytes",
            self.fs_version, self.digester, self.compressor, self.chunk_size
        )?;
        writeln!(
            f,
            "size:      {} bytes on disk, {} in memory",
            self.file_size, self.memory
        )?;
        writeln!(
            f,
            "contents:  {} chunks, {} bytes ({} stored)",
            distinct.chunks, distinct.bytes, distinct.stored_bytes
        )?;
        writeln!(
            f,
            "blobs:     {} with {} chunks, {} bytes ({} stored)",
            self.blobs, places.chunks, places.bytes, places.stored_bytes
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "{:>3} {:>9} {:>15} {:>15} {:>6}  IMAGE",
            "NO", "CHUNKS", "BYTES", "OWN BYTES", "SHARED"
        )?;
        for (number, image) in (1..).zip(&self.images) {
            writeln!(
                f,
                "{number:>3} {:>9} {:>15} {:>15} {:>6}  {}",
                image.all.chunks,
                image.all.bytes,
                image.own.bytes,
                percent(image.all.bytes - image.own.bytes, image.all.bytes),
                image.names.join(", ")
            )?;
        }
        if self.shared.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:>7} {:>9} {:>15} {:>15}",
            "IMAGES", "CHUNKS", "COMMON BYTES", "OF THEIRS"
        )?;
        for Pair { images, common } in &self.shared {
            let of = |at: usize| percent(common.bytes, self.images[at].all.bytes);
            let pair = format!("{}+{}", images.0 + 1, images.1 + 1);
            let shares = format!("{} + {}", of(images.0), of(images.1));
            writeln!(
                f,
                "{pair:>7} {:>9} {:>15} {shares:>15}",
                common.chunks, common.bytes
            )?;
        }
        Ok(())
    }
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1}%", part as f64 * 100.0 / whole as f64),
    }
}

/// What `query` found.
#[derive(Debug, Serialize)]
pub struct Found {
    schema: &'static str,
    chunks: Vec<Chunk>,
}

#[derive(Debug, Serialize)]
struct Chunk {
    digest: String,
    places: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Place {
    blob: String,
    row: u32,
    size: u32,
    stored_size: u32,
    stored_offset: u64,
    offset: u64,
    images: Vec<String>,
}

impl Found {
    pub fn new(snapshot: &Snapshot, catalogue: &Catalogue, digests: &[Digest]) -> Self {
        let place = |record: ChunkRecord| {
            let has = |image: &&chunkdict_store::SnapshotImage| {
                let mut held = image.blobs.iter();
                held.any(|held| held.blob == record.blob_index && held.has(record.index))
            };
            let images = snapshot.images().iter().filter(has);
            let mut images: Vec<String> = images
                .flat_map(|image| catalogue.names(&image.id).map(Entry::title))
                .collect();
            images.sort();
            Place {
                blob: snapshot.blobs()[record.blob_index as usize].id.to_string(),
                row: record.index,
                size: record.uncompressed_size,
                stored_size: record.compressed_size,
                stored_offset: record.compressed_offset,
                offset: record.uncompressed_offset,
                images,
            }
        };
        let chunk = |digest: &Digest| Chunk {
            digest: hex(digest),
            places: snapshot.index().with_digest(digest).map(place).collect(),
        };
        Self {
            schema: "nydusify-chunkdict-query/1",
            chunks: digests.iter().map(chunk).collect(),
        }
    }

    /// Whether every chunk is known.
    pub fn is_complete(&self) -> bool {
        self.chunks.iter().all(|chunk| !chunk.places.is_empty())
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in &self.chunks {
            writeln!(f, "{}", chunk.digest)?;
            if chunk.places.is_empty() {
                writeln!(f, "  unknown")?;
            }
            for place in &chunk.places {
                writeln!(
                    f,
                    "  blob {}, row {}: {} bytes, {} stored at {:#x}; {}",
                    place.blob,
                    place.row,
                    place.size,
                    place.stored_size,
                    place.stored_offset,
                    place.images.join(", ")
                )?;
            }
        }
        Ok(())
    }
}

/// What `verify` found.
#[derive(Debug, Serialize)]
pub struct Verified {
    schema: &'static str,
    images: Vec<Proved>,
}

#[derive(Debug, Serialize)]
struct Proved {
    name: String,
    absent: bool,
    blobs: usize,
    chunks: usize,
    problems: Vec<String>,
}

impl Verified {
    pub fn new(catalogue: &Catalogue, proofs: &[Proof]) -> Self {
        let proved = |(entry, proof): (&Entry, &Proof)| Proved {
            name: entry.title(),
            absent: proof.absent,
            blobs: proof.blobs,
            chunks: proof.chunks,
            problems: proof.problems.clone(),
        };
        Self {
            schema: "nydusify-chunkdict-verify/1",
            images: catalogue.images.iter().zip(proofs).map(proved).collect(),
        }
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.images.iter().all(|image| image.problems.is_empty())
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.images {
            if image.problems.is_empty() {
                let Proved {
                    name,
                    blobs,
                    chunks,
                    ..
                } = image;
                writeln!(f, "ok      {name}: {blobs} blobs, {chunks} chunks")?;
            }
            for problem in &image.problems {
                writeln!(f, "FAILED  {}: {problem}", image.name)?;
            }
        }
        let wrong = self
            .images
            .iter()
            .filter(|image| !image.problems.is_empty());
        match wrong.count() {
            0 => writeln!(f, "all {} images are there", self.images.len()),
            wrong => writeln!(
                f,
                "{wrong} of {} images are not as they were",
                self.images.len()
            ),
        }
    }
}

/// What `gc` did.
#[derive(Debug, Serialize)]
pub struct Collected {
    schema: &'static str,
    dropped: Vec<Image>,
    kept: Vec<Kept>,
    snapshots: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Kept {
    name: String,
    reason: &'static str,
}

impl Collected {
    pub fn new(collected: &chunkdict_store::Collected) -> Self {
        let kept = collected.kept.iter().map(|(entry, stays)| Kept {
            name: entry.title(),
            reason: match stays {
                Stays::Grace => "the grace period has not passed",
                Stays::Leased => "a conversion uses it",
            },
        });
        Self {
            schema: "nydusify-chunkdict-gc/1",
            dropped: collected
                .dropped
                .iter()
                .map(|entry| Image::new(entry, None))
                .collect(),
            kept: kept.collect(),
            snapshots: collected.snapshots,
            bytes: collected.bytes,
        }
    }
}

impl fmt::Display for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.dropped {
            writeln!(f, "forgot  {}", image.name)?;
        }
        for Kept { name, reason } in &self.kept {
            writeln!(f, "kept    {name}: {reason}")?;
        }
        writeln!(
            f,
            "deleted {} old snapshots, {} bytes",
            self.snapshots, self.bytes
        )
    }
}

/// What `rebuild` did.
pub struct Rebuilt {
    same: bool,
    gone: Vec<String>,
    changed: Changed,
}

impl Rebuilt {
    pub fn new(before: &Catalogue, after: &Catalogue, changed: Changed) -> Self {
        let stayed = |entry: &&Entry| !after.images.contains(entry);
        Self {
            same: before.snapshot == after.snapshot,
            gone: before
                .images
                .iter()
                .filter(stayed)
                .map(Entry::title)
                .collect(),
            changed,
        }
    }
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.gone {
            writeln!(f, "gone      {name}")?;
        }
        writeln!(f, "chunks:    {}", self.changed.after)?;
        let snapshot = self.changed.snapshot.as_ref().map(hex).unwrap_or_default();
        let same = match self.same {
            true => "the same as before",
            false => "another one than before",
        };
        writeln!(f, "snapshot:  {snapshot}, {same}")
    }
}
