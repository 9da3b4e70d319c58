//! The chunk dictionary: what importing, opening and looking up cost, and a conversion of which all chunks are known.

mod known;
mod synthetic;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use chunkdict::{ChunkIndex, ChunkKey};
use chunkdict_store::{Import, Store};
use rayon::prelude::*;

use crate::floor::cores;
use crate::input::Input;
use crate::report;
use crate::scenario::{Programs, Row};

/// Lookups of one measurement and thread.
const LOOKUPS: usize = 2_000_000;
/// Chunks that are looked up at once: those of a job with 1 MiB of files that have 16 KiB each.
const JOB: usize = 64;
/// The target of lookups per second and core.
const LOOKUPS_WANTED: f64 = 2e6;

/// What a dictionary of a number of chunks takes.
struct Figures {
    chunks: u64,
    /// Chunks per second, from bootstraps in files to a dictionary on disk.
    import: f64,
    /// Seconds for one image more.
    more: f64,
    /// Bytes in memory of all chunks.
    memory: u64,
    /// Bytes on disk.
    disk: u64,
    /// Seconds until the first lookup.
    open: f64,
    /// Lookups of chunks that are there, and of others.
    known: Rates,
    unknown: Rates,
}

/// Lookups per second of each core while all are busy.
#[derive(Clone, Copy)]
struct Rates {
    /// As a conversion makes them: the chunks of a job at once.
    together: f64,
    /// One after the other.
    single: f64,
}

/// Measures dictionaries of so many chunks each, and a conversion of `image`.
///
/// # Errors
/// If files cannot be written or a program fails.
pub fn measure(
    programs: &Programs,
    work: &Path,
    sizes: &[u64],
    image: Option<&Input>,
    runs: usize,
    print: bool,
) -> Result<()> {
    let mut all = Vec::new();
    for &chunks in sizes {
        eprintln!("a dictionary of {chunks} chunks");
        let scratch = tempfile::tempdir_in(work)?;
        all.push(of_size(chunks, scratch.path())?);
    }
    let row = match image {
        Some(image) => Some(known::measure(programs, image, work, runs)?),
        None => None,
    };
    let text = text(&all, row.as_ref());
    if print {
        print!("{text}");
        return Ok(());
    }
    report::put(
        &testkit::workspace().join("docs/chunkdict.md"),
        "speed",
        &text,
    )
}

fn of_size(chunks: u64, work: &Path) -> Result<Figures> {
    let images = chunks.div_ceil(synthetic::CHUNKS);
    let files: Vec<PathBuf> = (0..=images)
        .into_par_iter()
        .map(|number| synthetic::write(work, number))
        .collect::<Result<_>>()?;
    let (last, files) = files.split_last().context("no image")?;
    let dir = work.join("dictionary");
    let store = Store::create(&dir)?;

    let (_, seconds) = timed(|| {
        let imports = files.par_iter().map(|file| import(file));
        let imports = imports.collect::<Result<Vec<_>>>()?;
        Ok(store.writer(&Default::default())?.add(imports)?)
    })?;
    let import_rate = chunks as f64 / seconds;
    let (snapshot, open) = timed(|| Ok(Store::open(&dir)?.snapshot()?.0))?;
    let index = snapshot.index();
    let known = lookups(index, |number| synthetic::digest(number % chunks));
    let unknown = lookups(index, |number| synthetic::digest(u64::MAX - number));
    let figures = Figures {
        chunks,
        import: import_rate,
        more: 0.0,
        memory: index.memory() as u64,
        disk: snapshot.file_size(),
        open,
        known,
        unknown,
    };
    drop(snapshot);
    let (_, more) = timed(|| {
        Ok(store
            .writer(&Default::default())?
            .add(vec![import(last)?])?)
    })?;
    Ok(Figures { more, ..figures })
}

fn import(file: &Path) -> Result<Import> {
    let name = file.display().to_string();
    let bytes = std::fs::read(file)?;
    let id = codec::digest(rafs_format::Digester::Sha256, &bytes);
    Ok(Import::new(&name, id, bytes, &Default::default())?)
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let begun = Instant::now();
    let done = work()?;
    Ok((done, begun.elapsed().as_secs_f64()))
}

/// Lookups by all cores at the same time. Keys come in no order, and are made beforehand.
fn lookups(index: &ChunkIndex, digest: impl Fn(u64) -> rafs_format::Digest + Sync) -> Rates {
    let rates = std::thread::scope(|scope| {
        let digest = &digest;
        let threads: Vec<_> = (0..cores() as u64)
            .map(|thread| {
                scope.spawn(move || {
                    let keys: Vec<ChunkKey> = (0..LOOKUPS as u64)
                        .map(|number| ChunkKey {
                            digest: digest(synthetic::mixed(number ^ (thread << 40)) >> 8),
                            size: synthetic::CHUNK,
                        })
                        .collect();
                    rates(index, &keys)
                })
            })
            .collect();
        let rates = threads.into_iter();
        rates
            .map(|thread| thread.join().expect("a lookup does not panic"))
            .collect::<Vec<Rates>>()
    });
    let mean = |rate: fn(&Rates) -> f64| rates.iter().map(rate).sum::<f64>() / rates.len() as f64;
    Rates {
        together: mean(|rates| rates.together),
        single: mean(|rates| rates.single),
    }
}

/// Lookups of one thread.
fn rates(index: &ChunkIndex, keys: &[ChunkKey]) -> Rates {
    let rate = |found: &dyn Fn() -> usize| {
        let begun = Instant::now();
        std::hint::black_box(found());
        keys.len() as f64 / begun.elapsed().as_secs_f64()
    };
    Rates {
        together: rate(&|| {
            let mut found = 0;
            for keys in keys.chunks(JOB) {
                index.all_places(keys, |_, places| found += usize::from(!places.is_empty()));
            }
            found
        }),
        single: rate(&|| {
            let found = keys.iter().filter(|key| index.places(key).next().is_some());
            found.count()
        }),
    }
}

/// The tables in Markdown.
fn text(all: &[Figures], row: Option<&Row>) -> String {
    let mut out = format!(
        "{}\n\n| Chunks | Import, chunks/s | One image of {} chunks more, s | Bytes per chunk in memory | on disk | Open, s | \
         Lookups per s and core, known | unknown | one by one, known | unknown |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        report::machine(),
        synthetic::CHUNKS,
    );
    for one in all {
        let chunks = one.chunks as f64;
        let _ = writeln!(
            out,
            "| {} | {:.0} | {:.2} | {:.1} | {:.1} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} |",
            one.chunks,
            one.import,
            one.more,
            one.memory as f64 / chunks,
            one.disk as f64 / chunks,
            one.open,
            one.known.together,
            one.unknown.together,
            one.known.single,
            one.unknown.single,
        );
        if one.known.together.min(one.unknown.together) < LOOKUPS_WANTED {
            eprintln!(
                "{} chunks: fewer than {LOOKUPS_WANTED:.0} lookups per second and core",
                one.chunks
            );
        }
    }
    if let Some(row) = row {
        let _ = write!(out, "\n{}", report::table(std::slice::from_ref(row)));
    }
    out
}
