//! What the machine itself needs for a conversion: inflate, hashes and compression of that very data, nothing else.
//!
//! *Attainable wall* = max(longest serial stage of the largest layer, core-seconds of all stages / cores). Each stage
//! is timed while every core runs it at once, since a core that shares its caches and clock with a busy one is slower
//! than a core alone, and a conversion keeps all of them busy.

use std::collections::HashSet;
use std::io::{Read, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use codec::Encoder;
use rafs_format::{Compressor, Digester};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::measure::median;

/// Chunk size of the measured conversions, in bytes.
const CHUNK_SIZE: usize = rafs_format::CHUNK_SIZE_DEFAULT as usize;

/// A layer as its source holds it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The file, compressed or not.
    pub path: PathBuf,
    /// Whether a conversion digests the stored bytes as well as the tar (an image's layers yes, a bare tar no).
    pub from_image: bool,
}

/// Core-seconds of each stage for one layer, with all cores busy.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Stages {
    /// SHA-256 of the stored layer.
    pub source_digest: f64,
    /// Decompression of the layer.
    pub inflate: f64,
    /// SHA-256 of the tar.
    pub diff_id: f64,
    /// BLAKE3 and CRC-32C of every chunk.
    pub chunk_digest: f64,
    /// Compression of every distinct chunk.
    pub compress: f64,
    /// SHA-256 of the blob.
    pub blob_digest: f64,
    /// Copying the stored layer out of the page cache and the blob into it. Not part of the floor: it says how much
    /// of what lies above it is the price of files.
    pub file_copies: f64,
}

impl Stages {
    /// All core-seconds.
    pub fn total(&self) -> f64 {
        self.serial().iter().sum::<f64>() + self.chunk_digest + self.compress
    }

    /// The medians, stage by stage.
    pub fn median(rounds: &[Self]) -> Self {
        let each = |get: fn(&Self) -> f64| median(rounds.iter().map(get).collect());
        Self {
            source_digest: each(|s| s.source_digest),
            inflate: each(|s| s.inflate),
            diff_id: each(|s| s.diff_id),
            chunk_digest: each(|s| s.chunk_digest),
            compress: each(|s| s.compress),
            blob_digest: each(|s| s.blob_digest),
            file_copies: each(|s| s.file_copies),
        }
    }

    /// The stages that one layer can't spread over cores.
    fn serial(&self) -> [f64; 4] {
        [
            self.source_digest,
            self.inflate,
            self.diff_id,
            self.blob_digest,
        ]
    }

    /// The longest of the stages that one layer can't spread over cores.
    pub fn longest_serial(&self) -> f64 {
        self.serial().into_iter().fold(0.0, f64::max)
    }
}

/// The attainable wall time of converting `layers`, in seconds, from the stages of each.
pub fn attainable(layers: &[Stages], cores: usize) -> f64 {
    attainable_beside(layers, 0.0, cores)
}

/// The same on a machine on which others take `others` core-seconds meanwhile.
pub fn attainable_beside(layers: &[Stages], others: f64, cores: usize) -> f64 {
    let total: f64 = layers.iter().map(Stages::total).sum::<f64>() + others;
    let serial = layers
        .iter()
        .map(Stages::longest_serial)
        .fold(0.0, f64::max);
    serial.max(total / cores as f64)
}

/// Number of cores that a conversion would use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A layer in memory, ready to be measured.
pub struct Floor {
    layer: Layer,
    compressor: Compressor,
    stored: Vec<u8>,
    tar: Vec<u8>,
    chunks: Vec<Range<usize>>,
    distinct: Vec<Range<usize>>,
    blob: Vec<u8>,
}

impl Floor {
    /// Reads and unpacks the layer.
    pub fn prepare(layer: &Layer, compressor: Compressor) -> Result<Self> {
        let stored =
            std::fs::read(&layer.path).with_context(|| format!("read {}", layer.path.display()))?;
        let mut tar = Vec::new();
        unpacked(std::io::Cursor::new(stored.clone()))?
            .read_to_end(&mut tar)
            .with_context(|| format!("decompress {}", layer.path.display()))?;
        let chunks = chunks(&tar)?;
        let mut seen = HashSet::new();
        let distinct: Vec<Range<usize>> = chunks
            .iter()
            .filter(|c| seen.insert(codec::digest(Digester::Blake3, &tar[(*c).clone()])))
            .cloned()
            .collect();
        let blob = compress(&tar, &distinct, compressor, true)?;
        Ok(Self {
            layer: layer.clone(),
            compressor,
            stored,
            tar,
            chunks,
            distinct,
            blob,
        })
    }

    /// Times every stage once.
    pub fn round(&self) -> Result<Stages> {
        let Self {
            stored,
            tar,
            chunks,
            distinct,
            blob,
            ..
        } = self;
        let compressed = stored.len() < tar.len();
        let mut stages = Stages {
            chunk_digest: on_all_cores(&|| {
                for chunk in chunks {
                    std::hint::black_box(codec::digest(Digester::Blake3, &tar[chunk.clone()]));
                    std::hint::black_box(codec::crc32c(&tar[chunk.clone()]));
                }
                Ok(())
            })?,
            compress: on_all_cores(&|| compress(tar, distinct, self.compressor, false).map(drop))?,
            blob_digest: on_all_cores(&|| sha256(blob))?,
            file_copies: on_all_cores(&|| self.copy_files())?,
            ..Stages::default()
        };
        if compressed {
            stages.inflate = on_all_cores(&|| inflate(stored))?;
        }
        if self.layer.from_image {
            stages.diff_id = on_all_cores(&|| sha256(tar))?;
            if compressed {
                stages.source_digest = on_all_cores(&|| sha256(stored))?;
            }
        }
        Ok(stages)
    }

    fn copy_files(&self) -> Result<()> {
        let mut source = std::fs::File::open(&self.layer.path)?;
        let mut buffer = vec![0; CHUNK_SIZE];
        while source.read(&mut buffer)? != 0 {
            std::hint::black_box(&mut buffer);
        }
        let mut target = tempfile::tempfile()?;
        for piece in self.blob.chunks(CHUNK_SIZE) {
            target.write_all(piece)?;
        }
        Ok(())
    }
}

/// A layer's tar, whatever it is packed with.
pub fn unpacked(stored: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>> {
    let (compression, stream) = layer::detecting(stored)?;
    Ok(layer::decompress(stream, compression)?)
}

/// Runs `work` on every core at once; the mean time of one run, in seconds.
fn on_all_cores(work: &(dyn Fn() -> Result<()> + Sync)) -> Result<f64> {
    let cores = cores();
    thread::scope(|scope| {
        let timed = || -> Result<f64> {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(timed)).collect();
        let times = threads
            .into_iter()
            .map(|t| t.join().expect("a measured stage does not panic"));
        Ok(times.collect::<Result<Vec<f64>>>()?.iter().sum::<f64>() / cores as f64)
    })
}

fn sha256(data: &[u8]) -> Result<()> {
    std::hint::black_box(Sha256::digest(data));
    Ok(())
}

fn inflate(stored: &[u8]) -> Result<()> {
    let mut stream = unpacked(std::io::Cursor::new(stored.to_vec()))?;
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer)? != 0 {
        std::hint::black_box(&mut buffer);
    }
    Ok(())
}

/// Where the chunks of regular files lie in a tar.
fn chunks(tar: &[u8]) -> Result<Vec<Range<usize>>> {
    let mut chunks = Vec::new();
    let mut reader = layer::tar::Reader::new(tar);
    while let Some(entry) = reader.next()? {
        if entry.kind != layer::tar::EntryKind::Regular {
            continue;
        }
        let start = usize::try_from(entry.offset)?;
        let end = start + usize::try_from(entry.size)?;
        chunks.extend(
            (start..end)
                .step_by(CHUNK_SIZE)
                .map(|at| at..end.min(at + CHUNK_SIZE)),
        );
    }
    Ok(chunks)
}

/// Compresses chunks one after another into one buffer, as the blob would hold them if `keep`.
fn compress(
    tar: &[u8],
    chunks: &[Range<usize>],
    compressor: Compressor,
    keep: bool,
) -> Result<Vec<u8>> {
    let mut encoder = Encoder::new(compressor, Encoder::ZSTD_LEVEL_DEFAULT)?;
    let mut out = Vec::with_capacity(2 * CHUNK_SIZE);
    for chunk in chunks {
        if !keep {
            out.clear();
        }
        encoder.encode(&tar[chunk.clone()], &mut out)?;
    }
    Ok(out)
}
