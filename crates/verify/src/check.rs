//! Applies all rules to one or two sides.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use image::nydus::ANNOTATION_REF;
use progress::{Cancel, Cancelled, Progress};
use rafs_format::{Bootstrap, CHUNK_SIZE_DEFAULT, Digester};

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
    let mut rules = vec![manifest::check(source, target)];
    let mut structure = RuleReport::new(Rule::Bootstrap);
    let mut counts = Counts::default();

    let target_tree = read_bootstrap(target, &mut structure, &mut counts);
    let source_tree =
        source.and_then(|source| read_bootstrap(source, &mut structure, &mut Counts::default()));
    let chunking = chunking(target)
        .or(source.and_then(chunking))
        .unwrap_or(DEFAULT_CHUNKING);

    // Layers and blobs are read side by side: one thread inflates while the others decode.
    let sides = || [source, Some(target)].into_iter().flatten();
    let (source_tree, target_tree, passes) = std::thread::scope(|scope| {
        let passes = scope.spawn(|| {
            sides()
                .filter_map(|side| read_blobs(side, &pool, options))
                .collect::<Vec<_>>()
        });
        let replayed = |side: &Side, read: Option<Result<FileTree, ()>>| match (&side.files, read) {
            (_, Some(tree)) => tree.map_err(|()| None),
            (Files::Layers(layers), None) => {
                replay_image(layers, replay_context(chunking, options)).map_err(Some)
            }
            (Files::Rafs { .. }, None) => Err(None),
        };
        let source_tree = source.map(|source| replayed(source, source_tree));
        let target_tree = replayed(target, target_tree);
        (
            source_tree,
            target_tree,
            passes
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    options.cancel.check()?;

    for side in sides() {
        if let Files::Layers(layers) = &side.files {
            counts.layers += layers.len() as u64;
        }
    }
    let mut data = RuleReport::skipped(Rule::Data, "there are no blobs to read");
    for pass in passes {
        structure.absorb(pass.tables);
        counts.chunks_read += pass.chunks;
        counts.bytes_read += pass.bytes;
        data = merge(data, pass.data);
    }
    if is_rafs(target) || source.is_some_and(is_rafs) {
        rules.push(structure);
    } else {
        rules.push(RuleReport::skipped(
            Rule::Bootstrap,
            "there is no bootstrap",
        ));
    }
    let (files, differences) =
        compare_trees(source.zip(source_tree), target, target_tree, &mut counts);
    rules.push(files);
    rules.push(data);
    Ok(Report::new(
        source.map(|side| side.name.clone()),
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

fn chunking(side: &Side) -> Option<Chunking> {
    match &side.files {
        Files::Rafs { bootstrap, .. } => Some(Chunking {
            size: bootstrap.superblock().chunk_size,
            digester: bootstrap.digester(),
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

/// The bootstrap rule as far as no blob is needed, and the tree. `None` for a side of layers.
fn read_bootstrap(
    side: &Side,
    report: &mut RuleReport,
    counts: &mut Counts,
) -> Option<Result<FileTree, ()>> {
    let Files::Rafs { bootstrap, .. } = &side.files else {
        return None;
    };
    match bootstrap.check() {
        Ok(summary) => {
            counts.names = summary.names;
            counts.inodes = summary.inodes;
            counts.chunks = summary.chunks;
            let blobs = bootstrap.blobs().len();
            let note = format!(
                "{} names, {} inodes, {} chunks, {blobs} blobs",
                summary.names, summary.inodes, summary.chunks
            );
            report.note = note;
        }
        Err(error) => {
            report.problem(format!("{}: {}", side.name, chain(&error)));
            return Some(Err(()));
        }
    }
    if let Some(document) = &side.document {
        check_blob_ids(side, document, bootstrap, report);
    }
    let tree = bootstrap::read(bootstrap);
    Some(tree.map_err(|error| report.problem(format!("{}: {}", side.name, chain(&error)))))
}

/// Each blob that the bootstrap names has to be a layer of the manifest.
fn check_blob_ids(
    side: &Side,
    document: &Document,
    bootstrap: &Arc<Bootstrap<Vec<u8>>>,
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
                "{}: blob {} of the bootstrap is not among the layers",
                side.name, info.id
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
    Some(data::check(bootstrap, &**blobs, context))
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

type Replayed = Result<FileTree, Option<source::ReplayError>>;

/// The file system rule.
fn compare_trees(
    source: Option<(&Side, Replayed)>,
    target: &Side,
    target_tree: Replayed,
    counts: &mut Counts,
) -> (RuleReport, Differences) {
    let mut report = RuleReport::new(Rule::Filesystem);
    let mut usable = |side: &Side, tree: Replayed| match tree {
        Ok(tree) => Some(tree),
        Err(Some(error)) => {
            report.problem(format!("{}: {}", side.name, chain(&error)));
            None
        }
        Err(None) => None,
    };
    let target_tree = usable(target, target_tree);
    if let (Some(tree), Files::Layers(_)) = (&target_tree, &target.files) {
        counts.names = tree.nodes.len() as u64;
        counts.inodes = tree.inodes.len() as u64;
    }
    let (source, source_tree) = match source {
        Some((source, tree)) => (Some(source), usable(source, tree)),
        None => (None, None),
    };
    let mut differences = Differences::default();
    match (source, source_tree, target_tree) {
        (None, ..) => {
            if report.outcome == Outcome::Passed {
                report =
                    RuleReport::skipped(Rule::Filesystem, "there is no source to compare with");
            }
        }
        (Some(_), Some(old), Some(new)) if is_undigested(&old) || is_undigested(&new) => {
            report.problem("the bootstrap has no chunk digests, so contents cannot be compared");
        }
        (Some(source), Some(_), Some(_))
            if chunking(source)
                .is_some_and(|old| chunking(target).is_some_and(|new| old != new)) =>
        {
            report.problem("source and target cut their files into different chunks, so contents cannot be compared yet");
        }
        (Some(_), Some(old), Some(new)) => {
            differences = compare(&old, &new);
            report.note = format!("{} names compared", counts.names);
            if differences.total > 0 {
                report.outcome = Outcome::Failed;
                report
                    .note
                    .push_str(&format!(", {} differences", differences.total));
            }
        }
        _ => {
            report.outcome = Outcome::Failed;
            report.note = "one side cannot be read, so nothing was compared".to_owned();
        }
    }
    (report, differences)
}

/// Whether any chunk lacks a digest: images of that kind cannot be proven.
fn is_undigested(tree: &FileTree) -> bool {
    matches!(&tree.contents, Contents::Rows { table, .. } if table.contains(&[0; 32]))
}
