//! The thread that writes a trace.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rafs_format::Bootstrap;

use crate::ChunkId;
use crate::format::{Event, FILE_MAX};
use crate::names::Names;
use crate::recorder::Raw;

/// Bytes that are written at once, if that many wait.
const BATCH: usize = 64 << 10;

/// What the times of a trace are counted from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub base: Instant,
    /// Time since the mount began at that moment.
    pub offset: Duration,
}

impl Clock {
    fn at(&self, instant: Instant) -> u64 {
        micros(self.offset + instant.saturating_duration_since(self.base))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// See the module.
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes of the file.
    size: u64,
    clock: Clock,
    dropped: Arc<AtomicU64>,
    /// How many of them the trace says.
    said: u64,
    lines: Vec<u8>,
}

impl Writer {
    pub fn new(
        path: PathBuf,
        file: File,
        size: u64,
        clock: Clock,
        dropped: Arc<AtomicU64>,
    ) -> Self {
        Self {
            path,
            file,
            size,
            clock,
            dropped,
            said: 0,
            lines: Vec::new(),
        }
    }

    /// Writes until nobody records any more. What is written is whole lines, and soon: the process may be killed.
    pub fn run(mut self, bootstrap: &Bootstrap<Vec<u8>>, events: &Receiver<Raw>) {
        let names = Names::of(bootstrap);
        while let Ok(event) = events.recv() {
            self.add(&names, event);
            while self.lines.len() < BATCH
                && let Ok(event) = events.try_recv()
            {
                self.add(&names, event);
            }
            let count = self.dropped.load(Ordering::Relaxed);
            if count != self.said {
                self.said = count;
                let at = self.clock.at(Instant::now());
                self.line(&Event::Dropped { at, count });
            }
            self.size = self.size.saturating_add(self.lines.len() as u64);
            if self.size > FILE_MAX {
                let (path, most) = (self.path.display(), FILE_MAX >> 20);
                tracing::warn!("trace {path}: it has {most} MiB, no more is recorded");
                return;
            }
            if let Err(error) = self.file.write_all(&self.lines) {
                let path = self.path.display();
                tracing::warn!("trace {path}: no more is recorded: {error}");
                return;
            }
            self.lines.clear();
        }
    }

    fn line(&mut self, event: &Event) {
        // Writing to memory can't fail.
        if serde_json::to_writer(&mut self.lines, event).is_ok() {
            self.lines.push(b'\n');
        }
    }

    fn add(&mut self, names: &Names<'_>, event: Raw) {
        let clock = self.clock;
        match event {
            Raw::Serving(mode) => self.line(&Event::Serving {
                at: clock.at(Instant::now()),
                mode: mode.to_owned(),
                process: std::process::id(),
            }),
            Raw::Read {
                nid,
                range,
                began,
                took,
            } => self.line(&Event::Read {
                at: clock.at(began),
                took: micros(took),
                file: names.path(nid),
                offset: range.start,
                size: range.end.saturating_sub(range.start),
                chunks: names.chunks_of(nid, &range),
            }),
            Raw::Fill {
                blob,
                range,
                began,
                took,
            } => self.fill(names, blob, &range, (clock.at(began), micros(took))),
            Raw::Fetch(fetch) => self.line(&Event::Fetch {
                at: clock.at(fetch.began),
                waited: micros(fetch.waited),
                took: micros(fetch.took),
                number: fetch.number,
                purpose: fetch.purpose.into(),
                blob: u32::try_from(fetch.blob).unwrap_or(u32::MAX),
                offset: fetch.range.start,
                size: fetch.range.end.saturating_sub(fetch.range.start),
                failed: fetch.failed,
            }),
            Raw::Chunk(chunk) => {
                let id = ChunkId(u32::try_from(chunk.blob).unwrap_or(u32::MAX), chunk.index);
                let (file, offset) = match names.file_of(id) {
                    Some((nid, offset)) => (names.path(nid), offset),
                    None => (String::new(), 0),
                };
                self.line(&Event::Chunk {
                    at: clock.at(chunk.began),
                    took: micros(chunk.took),
                    fetch: chunk.fetch,
                    chunk: id,
                    size: chunk.size.into(),
                    stored: chunk.stored_size.into(),
                    file,
                    offset,
                });
            }
        }
    }

    /// The kernel reads cache files, so its reads are of blobs. Each file of which one has a chunk was read, as far as can be
    /// told; a chunk that several files have is that of one of them.
    fn fill(&mut self, names: &Names<'_>, blob: u32, range: &Range<u64>, (at, took): (u64, u64)) {
        let mut reads: Vec<(rafs_format::Nid, Range<u64>, Vec<ChunkId>)> = Vec::new();
        for (chunk, size) in names.chunks_in(blob, range) {
            let Some((nid, offset)) = names.file_of(chunk) else {
                continue;
            };
            let end = offset.saturating_add(size);
            match reads.last_mut() {
                Some((last, bytes, chunks)) if *last == nid && bytes.end == offset => {
                    bytes.end = end;
                    chunks.push(chunk);
                }
                _ => reads.push((nid, offset..end, vec![chunk])),
            }
        }
        for (nid, bytes, chunks) in reads {
            self.line(&Event::Read {
                at,
                took,
                file: names.path(nid),
                offset: bytes.start,
                size: bytes.end - bytes.start,
                chunks,
            });
        }
    }
}
