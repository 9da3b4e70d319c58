//! `chunkdict generate`: one chunk dictionary of many images.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use builder::encode;
use chunkdict::{Source, generate};
use clap::{Args, CommandFactory as _, Subcommand};
use inspect::CommandReport;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use storage::load_bootstrap;

use crate::args::{Cli, PrefetchPolicy};
use crate::blobs::Config;
use crate::interrupt::Interrupt;
use crate::{output, prefetch, report};

#[derive(Debug, Args)]
pub struct Chunkdict {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a dictionary of the chunks that at least two images have
    Generate(Generate),
}

#[derive(Debug, Args)]
struct Generate {
    /// Bootstraps of the images, each in a directory NAME:TAG
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<PathBuf>,
    /// Accepted for compatibility: chunks are compared in memory, no database is written
    #[arg(
        long,
        value_name = "URL",
        default_value = "sqlite:///home/runner/output/database.db",
        hide_default_value = true
    )]
    database: String,
    /// Write the dictionary to FILE
    #[arg(
        short = 'B',
        long,
        value_name = "FILE",
        required_unless_present = "blob_dir"
    )]
    bootstrap: Option<PathBuf>,
    /// Write the dictionary into DIR, named by its digest
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,
    /// Read paths from stdin; there is nothing to fetch first in a dictionary
    #[arg(long, value_enum, default_value = "none")]
    prefetch_policy: PrefetchPolicy,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    /// Configuration of a daemon; checked, and of no effect: bootstraps tell all
    #[arg(short = 'C', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name the blobs of the dictionary in the log
    #[arg(short = 'v', long)]
    verbose: bool,
}

pub fn run(args: &Chunkdict, interrupt: &Interrupt) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::Generate(args)) => run_generate(args, interrupt),
        None => {
            let mut cli = Cli::command();
            // The usage then names the program, too.
            cli.build();
            let usage = cli.find_subcommand_mut("chunkdict");
            println!(
                "{}",
                usage.context("there is such a command")?.render_usage()
            );
            Ok(())
        }
    }
}

fn run_generate(args: &Generate, interrupt: &Interrupt) -> anyhow::Result<()> {
    check_database(&args.database)?;
    if let Some(path) = &args.config {
        Config::read(path)?;
    }
    let names: Vec<String> = args
        .sources
        .iter()
        .map(|path| name(path))
        .collect::<Result<_, _>>()?;
    if let (None, Some(dir)) = (&args.bootstrap, &args.blob_dir) {
        output::check_dir("--blob-dir", dir)?;
    }
    output::check_places([args.bootstrap.as_ref(), args.output_json.as_ref()])?;
    prefetch::read(args.prefetch_policy)?;
    let start = Instant::now();
    let mut sources = Vec::with_capacity(names.len());
    for (name, path) in names.into_iter().zip(&args.sources) {
        interrupt.cancel.check()?;
        let loaded = load_bootstrap(path)?;
        let failed = || format!("{} is not valid", path.display());
        loaded.check().with_context(failed)?;
        let image = loaded.image().with_context(failed)?;
        sources.push(Source { name, image });
    }
    let loaded = start.elapsed().as_secs_f64();
    let made = generate(sources)?;
    let image = &made.image;
    tracing::info!(
        "chunk dictionary: {} chunks of {} bytes in {} blobs",
        made.chunks,
        made.bytes,
        image.blobs.len()
    );
    if made.left_out != 0 {
        tracing::warn!(
            "{} more chunks lie in blobs that there was no room for",
            made.left_out
        );
    }
    let bootstrap = encode(image).context("cannot encode the chunk dictionary")?;
    let path = match (&args.bootstrap, &args.blob_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(dir)) => dir.join(hex::encode(Sha256::digest(&bootstrap))),
        (None, None) => bail!("there is no place for the bootstrap"),
    };
    let blobs: Vec<String> = image.blobs.iter().map(|blob| blob.id.to_string()).collect();
    if args.verbose {
        blobs.iter().for_each(|id| tracing::info!("blob {id}"));
    }
    let times = [
        ("load_tree_from_bootstrap", loaded),
        ("total_build", start.elapsed().as_secs_f64()),
    ];
    let events = Map::from_iter([
        ("dedup_chunks".to_owned(), Value::from(made.chunks)),
        (
            "dedup_uncompressed_size".to_owned(),
            Value::from(made.bytes),
        ),
    ]);
    let report = CommandReport::new(Some(&path), image.version, blobs, image.compressor)
        .trace(times, events);
    interrupt.cancel.check()?;
    let written = output::begin(&path, &bootstrap, &interrupt.unfinished)?;
    let report = report::begin(&report, args.output_json.as_ref(), &interrupt.unfinished)?;
    output::commit_all([(written, path)].into_iter().chain(report))
}

/// The image and its version that a bootstrap is of: the name of its directory.
fn name(path: &Path) -> anyhow::Result<String> {
    let name = path
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .filter(|name| name.contains(':'));
    let name = name.with_context(|| {
        format!(
            "cannot tell the image of {}: it must lie in a directory NAME:TAG",
            path.display()
        )
    })?;
    Ok(name.to_owned())
}

fn check_database(url: &str) -> anyhow::Result<()> {
    let place = url.strip_prefix("sqlite://").unwrap_or_default();
    ensure!(
        place.starts_with(['/', ':']),
        "--database {url:?} is not sqlite:///PATH or sqlite://:memory:"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_of_sqlite_and_absolute() {
        for url in ["sqlite:///a/b.db", "sqlite://:memory:"] {
            check_database(url).unwrap();
        }
        for url in [
            "",
            "sqlite://",
            "sqlite://a.db",
            "sqlite:/a.db",
            "mysql:///a",
            "/a",
        ] {
            check_database(url).unwrap_err();
        }
    }

    #[test]
    fn an_image_is_told_from_the_directory() {
        let of = |path: &str| name(Path::new(path)).ok();
        let want = |name: &str| Some(name.to_owned());
        assert_eq!(of("/w/app:v1/nydus_bootstrap"), want("app:v1"));
        assert_eq!(of("host:5000:team:app:v1/b"), want("host:5000:team:app:v1"));
        assert_eq!(of("/w/app/nydus_bootstrap"), None);
        assert_eq!(of("nydus_bootstrap"), None);
    }
}
