//! The data rule: reads each blob once, front to back, and compares every chunk with its recorded digest.

use std::iter::Peekable;
use std::ops::Range;

use image::Hasher;
use progress::{Cancel, Progress};
use rafs_format::blob_meta::{BlobMeta, Placement, StoredChunk};
use rafs_format::{BlobInfo, Bootstrap, ChunkFlags, ChunkRecord};
use rayon::prelude::*;
use storage::{
    BATCH_SIZE_MAX, BlobSource, ChunkDecoder, DecodedBatch, Forward, KnownChunk, KnownChunks,
    OpenSlice, SLICE_STORED_MAX,
};

use crate::report::{Rule, RuleReport, chain};

/// Stored bytes that are read at a time. Twice this is in memory: one part is read while the other is decoded.
const WINDOW: u64 = 4 << 20;
/// Unused bytes between two chunks that are read rather than skipped.
const GAP: u64 = 128 << 10;

/// What the pass over the blobs found.
pub(crate) struct Outcome {
    /// Disagreements between chunk table and blobs: part of the bootstrap rule.
    pub(crate) tables: RuleReport,
    /// The data rule.
    pub(crate) data: RuleReport,
    /// Chunks decoded.
    pub(crate) chunks: u64,
    /// Uncompressed bytes of these.
    pub(crate) bytes: u64,
}

/// How the pass is done.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) pool: &'a rayon::ThreadPool,
    pub(crate) cancel: &'a Cancel,
    pub(crate) progress: &'a dyn Progress,
    /// Whether blob ids are the SHA-256 of the blob files, because a manifest names them so.
    pub(crate) ids_are_digests: bool,
}

/// Reads all blobs of an image.
pub(crate) fn check(
    bootstrap: &Bootstrap<Vec<u8>>,
    blobs: &dyn BlobSource,
    context: Context<'_>,
) -> Outcome {
    let mut outcome = Outcome {
        tables: RuleReport::new(Rule::Bootstrap),
        data: RuleReport::new(Rule::Data),
        chunks: 0,
        bytes: 0,
    };
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); bootstrap.blobs().len()];
    for (row, record) in (0..).zip(bootstrap.chunk_table()) {
        // Malformed records are found by the bootstrap rule.
        let Ok(record) = record else { continue };
        match rows.get_mut(record.blob_index as usize) {
            Some(rows) => rows.push(row),
            None => outcome.tables.problem(format!(
                "chunk table row {row}: there is no blob {}",
                record.blob_index
            )),
        }
    }
    let tables = match KnownChunks::tables(bootstrap, blobs) {
        Ok(tables) => tables,
        Err(error) => {
            outcome.tables.problem(chain(&error));
            return outcome;
        }
    };
    for ((info, rows), table) in bootstrap.blobs().iter().zip(rows).zip(tables) {
        if context.cancel.is_cancelled() {
            break;
        }
        check_blob(
            bootstrap,
            (info, table),
            &rows,
            blobs,
            context,
            &mut outcome,
        );
    }
    outcome.data.note = format!(
        "{} chunks, {} bytes of {} blobs",
        outcome.chunks,
        outcome.bytes,
        bootstrap.blobs().len()
    );
    outcome
}

fn check_blob(
    bootstrap: &Bootstrap<Vec<u8>>,
    (info, table): (&BlobInfo, Option<BlobMeta>),
    rows: &[u32],
    blobs: &dyn BlobSource,
    context: Context<'_>,
    outcome: &mut Outcome,
) {
    let blob = match blobs.open(info.id.as_str()) {
        Ok(blob) => blob,
        Err(error) => {
            return outcome.data.problem(format!(
                "blob {} cannot be opened: {}",
                info.id,
                chain(&error)
            ));
        }
    };
    let meta = table.map_or_else(|| storage::read_blob_meta_from(info, &*blob, blobs), Ok);
    let opened = meta.and_then(|meta| Ok((meta, ChunkDecoder::new(info)?)));
    let (meta, decoder) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            return outcome
                .data
                .problem(format!("blob {}: {}", info.id, chain(&error)));
        }
    };
    let chunks = plan(bootstrap, info, rows, &meta, &mut outcome.tables);
    context
        .progress
        .started(info.id.as_str(), Some(blob.size()));
    let hasher = context.ids_are_digests.then(Hasher::new);
    let codec = Codec {
        bootstrap,
        info,
        meta: &meta,
        decoder: &decoder,
        blob_size: blob.size(),
    };
    Pass {
        codec,
        blob: Forward::new(blob),
        context,
        hasher,
        position: 0,
        outcome,
    }
    .run(&chunks);
    context.progress.finished(info.id.as_str(), "read");
}

/// A chunk to read, as little of it as the order needs: its records are looked up when its turn comes.
#[derive(Debug, Clone, Copy)]
struct Item {
    /// Where its stored bytes, or those of its batch or slice, begin in the blob.
    offset: u64,
    /// The batch, or slice of a gzip layer, or [`ALONE`].
    group: u32,
    /// Where it begins in its batch or slice.
    start: u32,
    /// Row in the bootstrap's chunk table.
    row: u32,
}

const ALONE: u32 = u32::MAX;

/// The chunks to read, in the order in which they lie. Those about which bootstrap and blob disagree are reported and
/// left out.
fn plan(
    bootstrap: &Bootstrap<Vec<u8>>,
    info: &BlobInfo,
    rows: &[u32],
    meta: &BlobMeta,
    problems: &mut RuleReport,
) -> Vec<Item> {
    let mut items = Vec::with_capacity(rows.len());
    for &row in rows {
        let Some(Ok(record)) = bootstrap.chunk_table().nth(row as usize) else {
            continue;
        };
        let name = || format!("chunk {} of blob {}", record.index, info.id);
        let Some(stored) = meta.chunk(record.index) else {
            problems.problem(format!("{} is not in the blob's chunk table", name()));
            continue;
        };
        if let Some(field) = disagreement(&record, &stored) {
            problems.problem(format!(
                "{}: bootstrap and blob disagree about its {field}",
                name()
            ));
            continue;
        }
        let (offset, group, start) = match stored.placement {
            Placement::Plain => (stored.compressed_offset, ALONE, 0),
            Placement::Batch { index, offset } => {
                let size = meta.batch(index).map_or(0, |batch| batch.compressed_size);
                if size > BATCH_SIZE_MAX {
                    problems.problem(format!(
                        "{}: its batch of {size} stored bytes is larger than the format allows",
                        name()
                    ));
                    continue;
                }
                (stored.compressed_offset, index, offset)
            }
            Placement::Zran { index, offset } => {
                let slice = meta.zran(index);
                let (begin, size) = slice.map_or((0, 0), |slice| (slice.in_offset, slice.in_len));
                if size > SLICE_STORED_MAX {
                    problems.problem(format!(
                        "{}: its slice of {size} bytes of the gzip layer is larger than any builder makes it",
                        name()
                    ));
                    continue;
                }
                (begin, index, offset)
            }
        };
        items.push(Item {
            offset,
            group,
            start,
            row,
        });
    }
    items.sort_unstable_by_key(|item| (item.offset, item.group, item.start, item.row));
    items
}

/// The first field in which the two records of a chunk differ. What a batch or slice hides is not compared.
fn disagreement(record: &ChunkRecord, stored: &StoredChunk) -> Option<&'static str> {
    if record.uncompressed_offset != stored.uncompressed_offset {
        return Some("uncompressed offset");
    }
    if record.uncompressed_size != stored.uncompressed_size {
        return Some("size");
    }
    if !matches!(stored.placement, Placement::Plain) {
        return None;
    }
    if record.compressed_offset != stored.compressed_offset {
        return Some("place");
    }
    if record.compressed_size != stored.compressed_size {
        return Some("stored size");
    }
    (record.flags.contains(ChunkFlags::COMPRESSED) != stored.compressed).then_some("compression")
}

/// Chunks that are decoded together: one, or those members of a batch or slice that are in use.
type Unit<'a> = &'a [Item];

fn units(items: &[Item]) -> impl Iterator<Item = Unit<'_>> {
    items.chunk_by(|a, b| a.group != ALONE && (a.group, a.offset) == (b.group, b.offset))
}

/// What turns the stored bytes of one blob into chunks.
#[derive(Clone, Copy)]
struct Codec<'a> {
    bootstrap: &'a Bootstrap<Vec<u8>>,
    info: &'a BlobInfo,
    meta: &'a BlobMeta,
    decoder: &'a ChunkDecoder,
    blob_size: u64,
}

/// What came out of a unit.
#[derive(Default)]
struct Decoded {
    chunks: u64,
    bytes: u64,
    problems: Vec<String>,
}

impl Codec<'_> {
    fn records(&self, item: &Item) -> Option<(StoredChunk, KnownChunk)> {
        let record = self.bootstrap.chunk_table().nth(item.row as usize)?.ok()?;
        Some((self.meta.chunk(record.index)?, KnownChunk::from(&record)))
    }

    /// The stored bytes of a unit.
    fn range(&self, unit: Unit<'_>) -> Range<u64> {
        let Some(first) = unit.first() else {
            return 0..0;
        };
        let size = self.records(first).map_or(0, |(stored, _)| {
            let (batch, slice) = (self.meta.batch(first.group), self.meta.zran(first.group));
            match stored.placement {
                Placement::Plain => stored.compressed_size,
                Placement::Batch { .. } => batch.map_or(0, |batch| batch.compressed_size),
                Placement::Zran { .. } => slice.map_or(0, |slice| slice.in_len),
            }
        });
        let mut end = first.offset.saturating_add(u64::from(size));
        if self.info.is_estargz() {
            // Stored sizes are upper bounds.
            end = end.min(self.blob_size).max(first.offset);
        }
        first.offset..end
    }

    /// Prepares to take the chunks of a unit, in order, out of its stored bytes.
    fn open<'s>(&'s self, first: &Item, stored: &'s [u8]) -> Result<Source<'s>, String> {
        let Some((record, _)) = self.records(first) else {
            return Ok(Source::Chunk);
        };
        let missing = || "the table of its batch or slice is incomplete".to_owned();
        let source = match record.placement {
            Placement::Plain => return Ok(Source::Chunk),
            Placement::Batch { index, .. } => {
                let context = self.meta.batch(index).ok_or_else(missing)?;
                let batch = self.decoder.batch(&context, record.encrypted, stored);
                batch.map(Source::Batch)
            }
            Placement::Zran { index, .. } => {
                let context = self.meta.zran(index).ok_or_else(missing)?;
                let dictionary = self.meta.dictionary(&context).ok_or_else(missing)?;
                let slice = self.decoder.slice(&context, dictionary, stored);
                slice.map(Source::Slice)
            }
        };
        source.map_err(|error| chain(&error))
    }

    /// Decodes a unit and compares all its chunks.
    fn decode(&self, unit: Unit<'_>, window: &Window<'_>) -> Decoded {
        let mut decoded = Decoded::default();
        let range = self.range(unit);
        let at = |offset: u64| usize::try_from(offset - window.offset).ok();
        let (Some(first), Some(stored)) = (
            unit.first(),
            at(range.start)
                .zip(at(range.end))
                .and_then(|(start, end)| window.bytes.get(start..end)),
        ) else {
            decoded.problems.push(format!(
                "blob {}: the bytes at {:#x} were not read",
                self.info.id, range.start
            ));
            return decoded;
        };
        let mut source = self.open(first, stored);
        for (record, known) in unit.iter().filter_map(|item| self.records(item)) {
            let result = match &mut source {
                Ok(source) => source.take(self.decoder, (&record, &known), stored),
                Err(error) => Err(error.clone()),
            };
            decoded.chunks += 1;
            decoded.bytes += u64::from(known.size);
            if let Err(error) = result {
                let (index, id) = (known.index, &self.info.id);
                decoded.problems.push(format!(
                    "chunk {index} of blob {id} at {:#x}: {error}",
                    range.start
                ));
            }
        }
        decoded
    }
}

/// What chunks come out of.
enum Source<'a> {
    Chunk,
    Batch(DecodedBatch<'a>),
    Slice(OpenSlice<'a>),
}

impl Source<'_> {
    /// Decodes and compares the next chunk.
    fn take(
        &mut self,
        decoder: &ChunkDecoder,
        (record, known): (&StoredChunk, &KnownChunk),
        stored: &[u8],
    ) -> Result<(), String> {
        let chunk = match self {
            Self::Chunk => decoder.chunk(record, known, stored),
            Self::Batch(batch) => batch.member(record, known),
            Self::Slice(slice) => slice.member(record, known),
        };
        chunk.map(drop).map_err(|error| chain(&error))
    }
}

/// One pass over a blob.
struct Pass<'a> {
    codec: Codec<'a>,
    blob: Forward,
    context: Context<'a>,
    hasher: Option<Hasher>,
    /// What has been read or skipped.
    position: u64,
    outcome: &'a mut Outcome,
}

/// A run of units, and the bytes that they lie in.
struct Window<'a> {
    offset: u64,
    bytes: Vec<u8>,
    units: Vec<Unit<'a>>,
}

impl Pass<'_> {
    /// Decodes one window while the next is read.
    fn run(&mut self, items: &[Item]) {
        let codec = self.codec;
        let mut ahead = units(items).peekable();
        let mut current = self.next_window(&mut ahead);
        while let Some(window) = current {
            if self.context.cancel.is_cancelled() {
                return;
            }
            let decode = || -> Vec<Decoded> {
                window
                    .units
                    .par_iter()
                    .map(|unit| codec.decode(unit, &window))
                    .collect()
            };
            let (next, decoded) = self
                .context
                .pool
                .install(|| rayon::join(|| self.next_window(&mut ahead), decode));
            for decoded in decoded {
                self.outcome.chunks += decoded.chunks;
                self.outcome.bytes += decoded.bytes;
                decoded
                    .problems
                    .into_iter()
                    .for_each(|problem| self.problem(problem));
            }
            current = next;
        }
        self.read_rest();
    }

    fn problem(&mut self, problem: String) {
        self.outcome.data.problem(problem);
    }

    /// Reads the next units; `None` when there are no more.
    fn next_window<'u>(
        &mut self,
        ahead: &mut Peekable<impl Iterator<Item = Unit<'u>>>,
    ) -> Option<Window<'u>> {
        loop {
            let first = ahead.next()?;
            let Range { start, mut end } = self.codec.range(first);
            let mut units = vec![first];
            while let Some(unit) = ahead.next_if(|unit| {
                let range = self.codec.range(unit);
                range.end.saturating_sub(start) <= WINDOW && range.start <= end.saturating_add(GAP)
            }) {
                end = end.max(self.codec.range(unit).end);
                units.push(unit);
            }
            match self.read(start..end) {
                Ok(bytes) => {
                    return Some(Window {
                        offset: start,
                        bytes,
                        units,
                    });
                }
                Err(error) => {
                    let chunks: usize = units.iter().map(|unit| unit.len()).sum();
                    let id = &self.codec.info.id;
                    let error = chain(&error);
                    self.problem(format!("blob {id}: {chunks} chunks at bytes {start:#x} to {end:#x} cannot be read: {error}"));
                }
            }
        }
    }

    fn read(&mut self, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        if range.end > self.blob.size() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.pass_over(range.start)?;
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        self.blob.read_exact_at(&mut bytes, range.start)?;
        if let Some(hasher) = &mut self.hasher {
            let seen = usize::try_from(self.position - range.start).unwrap_or(usize::MAX);
            hasher.update(bytes.get(seen..).unwrap_or_default());
        }
        self.advance(range.end);
        Ok(bytes)
    }

    fn advance(&mut self, end: u64) {
        let end = end.max(self.position);
        self.context
            .progress
            .advanced(self.codec.info.id.as_str(), end - self.position);
        self.position = end;
    }

    /// Goes on to `end`; bytes that no chunk needs are only read to be digested.
    fn pass_over(&mut self, end: u64) -> std::io::Result<()> {
        if let Some(hasher) = &mut self.hasher {
            let mut buffer = [0; 64 << 10];
            let mut position = self.position;
            while position < end {
                let want = usize::try_from(end - position)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let part = buffer.get_mut(..want).unwrap_or_default();
                self.blob.read_exact_at(part, position)?;
                hasher.update(part);
                position += want as u64;
            }
        }
        self.advance(end);
        Ok(())
    }

    /// Reads what follows the last chunk, and compares the digest of the whole blob with its name.
    fn read_rest(&mut self) {
        let id = &self.codec.info.id;
        if let Err(error) = self.pass_over(self.blob.size()) {
            self.problem(format!("blob {id} cannot be read: {}", chain(&error)));
        } else if let Some(hasher) = self.hasher.take() {
            let actual = hasher.finish().hex();
            if actual != id.as_str() {
                self.problem(format!(
                    "blob {id} is corrupt: its bytes have SHA-256 {actual}"
                ));
            }
        }
    }
}
