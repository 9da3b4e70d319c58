//! Applies all rules to one or two sides.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use image::nydus::ANNOTATION_REF;
use progress::{Cancel, Cancelled, Progress};
use rafs_format::{Bootstrap, CHUNK_SIZE_DEFAULT, Digester};
use storage::LoadedBootstrap;

use crate::compare::compare;
use crate::data;
use crate::model::{Contents, FileTree};
use crate::replay::stream::Chunking;
use crate::report::{Counts, Differences, Outcome, Report, Rule, RuleReport, chain};
use crate::side::{Document, Files, Side};
use crate::source::{self, replay_image};
use crate::{bootstrap, manifest};

/// How a check is done.
pub struct Options<'a> {
    /// Threads for reading layers and for decoding chunks.
    pub threads: NonZeroUsize,
    /// What of the layers counts: the options with which the target was made of them.
    pub layers: layer::Options,
    /// Stops the check.
    pub cancel: &'a Cancel,
    /// Told how far the check is.
    pub progress: &'a dyn Progress,
}

/// Why a check could not be done at all. What is wrong with an image is in the report instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// No threads could be started.
    #[error("cannot start threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Checks `target`, and that it equals `source` if there is one.
///
/// # Errors
/// [`Error`] if the check could not be done; an image that fails it is an `Ok` report that says so.
pub fn check(source: Option<&Side>, target: &Side, options: &Options<'_>) -> Result<Report, Error> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads.get())
        .build()?;
    let sides = || [source, Some(target)].into_iter().flatten();
    let mut structure = RuleReport::new(Rule::Bootstrap);
    let mut files = RuleReport::new(Rule::Filesystem);

    // Layers and blobs are read side by side: one thread inflates while the others decode.
    let (source_tree, target_tree, passes) = std::thread::scope(|scope| {
        let blobs = || {
            sides()
                .filter_map(|side| read_blobs(side, &pool, options))
                .collect()
        };
        let passes = scope.spawn(blobs);
        let chunking = chunking(target)
            .or(source.and_then(chunking))
            .unwrap_or(DEFAULT_CHUNKING);
        let mut load = |side: &Side| match &side.files {
            Files::Rafs { bootstrap, .. } => read_bootstrap(side, bootstrap, &mut structure),
            Files::Layers(layers) => replay_image(layers, replay_context(chunking, options))
                .map_err(|error| files.problem(format!("{}: {}", side.name, chain(&error))))
                .ok(),
        };
        let target_tree = load(target);
        let source_tree = source.filter(|_| target_tree.is_some()).and_then(load);
        let passes: Vec<data::Outcome> = passes
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (source_tree, target_tree, passes)
    });
    options.cancel.check()?;

    let mut counts = counts(sides(), target, target_tree.as_ref());
    let mut data = RuleReport::skipped(Rule::Data, why_no_data(target));
    for pass in passes {
        structure.absorb(pass.tables);
        counts.chunks_read += pass.chunks;
        counts.bytes_read += pass.bytes;
        data = merge(data, pass.data);
    }
    if !sides().any(is_rafs) {
        structure = RuleReport::skipped(Rule::Bootstrap, "the target is not a Nydus image");
    }
    let differences = match source {
        Some(source) => compare_trees((source, source_tree), (target, target_tree), &mut files),
        None if files.outcome == Outcome::Passed => {
            files = RuleReport::skipped(Rule::Filesystem, "there is no source to compare with");
            Differences::default()
        }
        None => Differences::default(),
    };
    let rules = vec![manifest::check(source, target), structure, files, data];
    let source = source.map(|side| side.name.clone());
    Ok(Report::new(
        source,
        target.name.clone(),
        rules,
        differences,
        counts,
    ))
}

const DEFAULT_CHUNKING: Chunking = Chunking {
    size: CHUNK_SIZE_DEFAULT,
    digester: Digester::Blake3,
};

fn is_rafs(side: &Side) -> bool {
    matches!(side.files, Files::Rafs { .. })
}

fn why_no_data(target: &Side) -> &'static str {
    match &target.files {
        Files::Layers(_) => "the target is not a Nydus image",
        Files::Rafs { blobs: None, .. } => "the bootstrap was given alone, without its blobs",
        Files::Rafs { .. } => "there are no blobs to read",
    }
}

fn chunking(side: &Side) -> Option<Chunking> {
    match &side.files {
        Files::Rafs { bootstrap, .. } => Some(Chunking {
            size: bootstrap.bootstrap.superblock().chunk_size,
            digester: bootstrap.bootstrap.digester(),
        }),
        Files::Layers(_) => None,
    }
}

fn replay_context<'a>(chunking: Chunking, options: &'a Options<'_>) -> source::Context<'a> {
    source::Context {
        chunking,
        options: &options.layers,
        threads: options.threads,
        cancel: options.cancel,
        progress: options.progress,
    }
}

/// The bootstrap rule as far as no blob is needed, and the tree if there is a sound one.
fn read_bootstrap(
    side: &Side,
    loaded: &LoadedBootstrap,
    report: &mut RuleReport,
) -> Option<FileTree> {
    let name = &side.name;
    let bootstrap = &loaded.bootstrap;
    let summary = match loaded.check() {
        Ok(summary) => summary,
        Err(error) => {
            report.problem(format!("{name}: {}", chain(&error)));
            return None;
        }
    };
    report.note = format!(
        "{} names, {} inodes, {} chunks, {} blobs",
        summary.names,
        summary.inodes,
        summary.chunks,
        bootstrap.blobs().len()
    );
    if let Some(document) = &side.document {
        check_blob_ids(name, document, bootstrap, report);
    }
    bootstrap::read(bootstrap)
        .map_err(|error| report.problem(format!("{name}: {}", chain(&error))))
        .ok()
}

/// Each blob that the bootstrap names has to be a layer of the manifest.
fn check_blob_ids(
    name: &str,
    document: &Document,
    bootstrap: &Bootstrap<Vec<u8>>,
    report: &mut RuleReport,
) {
    let Some((_, layers)) = document.manifest.layers.split_last() else {
        return;
    };
    let ids: BTreeSet<String> = layers
        .iter()
        .map(|layer| match layer.annotation(ANNOTATION_REF) {
            Some(original) => original.trim_start_matches("sha256:").to_owned(),
            None => layer.digest.hex(),
        })
        .collect();
    if ids.is_empty() {
        // Blobs in an external backend are not listed.
        return;
    }
    for info in bootstrap.blobs() {
        if !ids.contains(info.id.as_str()) {
            report.problem(format!(
                "{name}: blob {} of the bootstrap is not among the layers",
                info.id
            ));
        }
    }
}

fn read_blobs(
    side: &Side,
    pool: &rayon::ThreadPool,
    options: &Options<'_>,
) -> Option<data::Outcome> {
    let Files::Rafs {
        bootstrap,
        blobs: Some(blobs),
    } = &side.files
    else {
        return None;
    };
    let context = data::Context {
        pool,
        cancel: options.cancel,
        progress: options.progress,
        ids_are_digests: side.document.is_some(),
    };
    Some(data::check(&bootstrap.bootstrap, &**blobs, context))
}

/// The data rule over both sides.
fn merge(mut all: RuleReport, one: RuleReport) -> RuleReport {
    if all.outcome == Outcome::Skipped {
        return one;
    }
    all.note = format!("{}; {}", all.note, one.note);
    all.absorb(one);
    all
}

/// How much there is to look at.
fn counts<'a>(
    sides: impl Iterator<Item = &'a Side>,
    target: &Side,
    tree: Option<&FileTree>,
) -> Counts {
    let layers = |side: &Side| match &side.files {
        Files::Layers(layers) => layers.len() as u64,
        Files::Rafs { .. } => 0,
    };
    let chunks = match &target.files {
        Files::Rafs { bootstrap, .. } => bootstrap.bootstrap.chunk_table().len() as u64,
        Files::Layers(_) => 0,
    };
    Counts {
        names: tree.map_or(0, FileTree::names),
        inodes: tree.map_or(0, |tree| tree.inodes.len() as u64),
        chunks,
        layers: sides.map(layers).sum(),
        ..Counts::default()
    }
}

/// The file system rule. A tree that is missing has been reported where it could not be read.
fn compare_trees(
    (source, old): (&Side, Option<FileTree>),
    (target, new): (&Side, Option<FileTree>),
    report: &mut RuleReport,
) -> Differences {
    let (Some(old), Some(new)) = (old, new) else {
        report.outcome = Outcome::Failed;
        "one side cannot be read, so nothing was compared".clone_into(&mut report.note);
        return Differences::default();
    };
    let mut contents = true;
    if is_undigested(&old) || is_undigested(&new) {
        contents = false;
        report.problem("contents cannot be compared: the bootstrap has no digests of its chunks");
    } else if let (Some(old), Some(new)) = (chunking(source), chunking(target))
        && old != new
    {
        contents = false;
        report.problem(format!(
            "contents cannot be compared: the source has chunks of {} bytes with {}, the target of {} bytes with {}; \
             check each against the image they were made from",
            old.size, old.digester, new.size, new.digester
        ));
    }
    let differences = compare(&old, &new, contents);
    report.note = format!("{} names compared", new.names());
    if differences.total > 0 {
        report.outcome = Outcome::Failed;
        report
            .note
            .push_str(&format!(", {} differences", differences.total));
    }
    differences
}

/// Whether any chunk lacks a digest: images of that kind cannot be proven.
fn is_undigested(tree: &FileTree) -> bool {
    matches!(&tree.contents, Contents::Rows { table, .. } if table.contains(&[0; 32]))
}
