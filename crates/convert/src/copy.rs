//! Copying images as they are, from any place to any other.

mod archive;
pub(crate) mod gather;
mod report;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::Add;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use image::nydus::{self, ANNOTATION_REF};
use image::{
    Arrival, Descriptor, Digest, Index, Manifest, Node, PlatformChoice, Selected, Source, Target,
    media,
};
use progress::{Cancel, Progress};

use crate::{Error, TOTAL, unplaced};

pub use archive::open_archive;
pub use report::CopyReport;

/// Options of a copy.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Which images of an index.
    pub platform: PlatformChoice,
    /// Blobs that are copied at the same time.
    pub lanes: NonZeroUsize,
}

impl CopyOptions {
    /// Blobs that are copied at the same time when nothing is asked for.
    pub const LANES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);
}

/// Copies the chosen images of `source` to wherever `target` writes. An index of which everything is chosen stays what
/// it is, byte by byte; a single image that is left is the result itself; else there is a new index over the chosen
/// ones. Blobs that the target has, or can take over where they are, are not moved. Blobs that lie in the source's
/// backend become part of the copy, whose manifest then lists them. The tag comes last.
///
/// # Errors
/// [`Error`]; the target then has no new tag and no unfinished file.
pub fn copy_image(
    source: &Source,
    target: Target,
    options: &CopyOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<CopyReport, Error> {
    let result = copy(source, target, options, progress, cancel);
    // Whatever fails once the work is to stop does so because of that.
    result.map_err(|error| match cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => error,
    })
}

fn copy(
    source: &Source,
    target: Target,
    options: &CopyOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<CopyReport, Error> {
    let begun = Instant::now();
    let selected = source.select(&options.platform)?;
    let gathered = selected
        .iter()
        .map(|image| gather::gather(source, image))
        .collect::<Result<Vec<_>, _>>()?;
    let originals = selected
        .iter()
        .map(|image| originals(source, &image.manifest))
        .collect::<Result<Vec<_>, _>>()?;
    let listed = selected
        .iter()
        .zip(&gathered)
        .flat_map(|(image, gathered)| {
            // Another configuration takes the place of this one.
            let config = gathered.is_none().then_some(&image.manifest.config);
            config.into_iter().chain(&image.manifest.layers)
        });
    let blobs = distinct(listed.chain(originals.iter().flatten()));
    let outside = distinct(gathered.iter().flatten().flat_map(|image| &image.blobs));
    let size = blobs.iter().chain(&outside).map(|blob| blob.size).sum();
    progress.started(TOTAL, Some(size));
    let work = Work {
        source,
        target: &target,
        progress,
        total: true,
        cancel,
    };
    let mut moved = work.copy_blobs(&blobs, options.lanes)?;
    if let Some(backend) = source.at_backend() {
        let work = Work {
            source: &backend,
            ..work
        };
        moved = moved + work.copy_blobs(&outside, options.lanes)?;
    }
    let entry = |(image, gathered): (&Selected, Option<gather::Gathered>)| {
        let before = image.descriptor.clone();
        Ok::<_, Error>(match gathered {
            Some(new) => Entry {
                descriptor: new.put(before, &target)?,
                new: true,
            },
            None => Entry {
                descriptor: before,
                new: false,
            },
        })
    };
    let entries = selected.iter().zip(gathered).map(entry);
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let plan = Plan::new(source, &options.platform, &entries)?;
    for document in &plan.documents {
        cancel.check()?;
        target.copy_document(source, document)?;
    }
    let root = match plan.index {
        Some(index) => target.put_document(&index.to_json(), &index.media_type)?,
        None => plan.root,
    };
    cancel.check()?;
    target.commit(&root)?;
    progress.finished(TOTAL, &format!("{size} bytes"));
    Ok(CopyReport::new(
        &root,
        selected.len(),
        size,
        moved,
        begun.elapsed(),
    ))
}

/// An image of the copy.
struct Entry {
    descriptor: Descriptor,
    /// It is not as it was, and written already.
    new: bool,
}

/// The documents of a copy.
struct Plan {
    /// Those that stay as they are, children before parents.
    documents: Vec<Descriptor>,
    /// An index that is made anew.
    index: Option<Index>,
    /// What the tag leads to, if it is none of that kind.
    root: Descriptor,
}

impl Plan {
    fn new(source: &Source, choice: &PlatformChoice, entries: &[Entry]) -> Result<Self, Error> {
        let chosen: Vec<Descriptor> = entries
            .iter()
            .map(|entry| entry.descriptor.clone())
            .collect();
        let unchanged = entries.iter().all(|entry| !entry.new);
        let mut documents: Vec<Descriptor> = entries
            .iter()
            .filter(|entry| !entry.new)
            .map(|entry| entry.descriptor.clone())
            .collect();
        let as_it_is = |documents: Vec<Descriptor>, root: &Descriptor| Self {
            documents,
            index: None,
            root: unplaced(root),
        };
        Ok(match (source.node(source.root())?, &chosen[..]) {
            (Node::Index(_), _) if *choice == PlatformChoice::All && unchanged => {
                let mut documents = Vec::new();
                collect(source, source.root(), &mut documents)?;
                as_it_is(documents, source.root())
            }
            (_, [one]) => as_it_is(documents, one),
            (Node::Index(index), _) if index.manifests == chosen => {
                documents.push(source.root().clone());
                as_it_is(documents, source.root())
            }
            (Node::Index(mut index), _) => {
                index.manifests = chosen;
                Self {
                    documents,
                    index: Some(index),
                    root: source.root().clone(),
                }
            }
            (Node::Manifest(_), _) => return Err(Error::NoImage),
        })
    }
}

/// The documents under `root`, itself last. Its indexes nest no deeper than those that images are chosen from.
fn collect(
    source: &Source,
    root: &Descriptor,
    documents: &mut Vec<Descriptor>,
) -> Result<(), Error> {
    if documents.iter().any(|known| known.digest == root.digest) {
        return Ok(());
    }
    if media::document(&root.media_type, &root.digest.to_string())? == media::Document::Index
        && let Node::Index(index) = source.node(root)?
    {
        for entry in &index.manifests {
            collect(source, entry, documents)?;
        }
    }
    documents.push(root.clone());
    Ok(())
}

/// The layers that layers of `manifest` only describe: the data lies in these, which the manifest does not list.
fn originals(source: &Source, manifest: &Manifest) -> Result<Vec<Descriptor>, Error> {
    let named = manifest.layers.iter().filter_map(|layer| {
        let annotation = layer.annotations.as_ref()?.get(ANNOTATION_REF)?;
        annotation.parse::<Digest>().ok()
    });
    let missing = named.filter(|digest| manifest.layers.iter().all(|l| l.digest != *digest));
    missing
        .map(|digest| {
            let size = source.blob(&digest, None)?.size();
            let kind = nydus::layer_media_type(&manifest.media_type);
            Ok(Descriptor::new(kind, digest, size))
        })
        .collect()
}

/// Blobs, each once. Layers that may not be distributed stay where their addresses say.
fn distinct<'a>(blobs: impl Iterator<Item = &'a Descriptor>) -> Vec<&'a Descriptor> {
    let mut seen: HashSet<(Digest, u64)> = HashSet::new();
    blobs
        .filter(|blob| !is_elsewhere(blob) && seen.insert((blob.digest, blob.size)))
        .collect()
}

fn is_elsewhere(blob: &Descriptor) -> bool {
    let kind = &blob.media_type;
    (kind.contains(".foreign.") || kind.contains(".nondistributable."))
        && blob.other.contains_key("urls")
}

/// What became of the blobs of a copy: how many, and their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moved {
    pub copied: (usize, u64),
    pub adopted: (usize, u64),
    pub present: (usize, u64),
}

/// What copies of blobs share.
pub(crate) struct Work<'a> {
    pub source: &'a Source,
    pub target: &'a Target,
    pub progress: &'a dyn Progress,
    /// Whether the blobs count for the sum of all tasks.
    pub total: bool,
    pub cancel: &'a Cancel,
}

impl Work<'_> {
    /// Copies blobs, up to `lanes` at the same time. The first failure stops the others.
    pub(crate) fn copy_blobs(
        &self,
        blobs: &[&Descriptor],
        lanes: NonZeroUsize,
    ) -> Result<Moved, Error> {
        let cancel = self.cancel.child();
        let queue = Mutex::new(blobs.iter());
        let outcome: Mutex<Result<Moved, Error>> = Mutex::new(Ok(Moved::default()));
        let lane = || {
            while !cancel.is_cancelled() {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(blob) = next else { return };
                let result = self.copy_blob(blob, &cancel);
                let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                match (&mut *outcome, result) {
                    (Ok(moved), Ok(arrival)) => moved.note(arrival, blob.size),
                    (Ok(_), Err(error)) => {
                        *outcome = Err(error.into());
                        cancel.cancel();
                    }
                    // The first failure is the reason; others may be its consequences.
                    (Err(_), _) => {}
                }
            }
        };
        let lanes = match self.target.is_sequential() {
            true => 1,
            false => lanes.get().min(blobs.len()),
        };
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(lane);
            }
        });
        self.cancel.check()?;
        outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy_blob(&self, blob: &Descriptor, cancel: &Cancel) -> Result<Arrival, image::Error> {
        let task = format!("blob {}", &blob.digest.hex()[..12]);
        self.progress.started(&task, Some(blob.size));
        let advanced = |bytes| {
            self.progress.advanced(&task, bytes);
            if self.total {
                self.progress.advanced(TOTAL, bytes);
            }
        };
        let arrival = self
            .target
            .copy_with(self.source, blob, cancel, &advanced)?;
        let summary = match arrival {
            Arrival::Copied => "copied",
            Arrival::Adopted => "mounted from the other repository",
            Arrival::Present => "there already",
        };
        if arrival != Arrival::Copied {
            advanced(blob.size);
        }
        self.progress.finished(&task, summary);
        Ok(arrival)
    }
}

impl Add for Moved {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let sum = |a: (usize, u64), b: (usize, u64)| (a.0 + b.0, a.1 + b.1);
        Self {
            copied: sum(self.copied, other.copied),
            adopted: sum(self.adopted, other.adopted),
            present: sum(self.present, other.present),
        }
    }
}

impl Moved {
    fn note(&mut self, arrival: Arrival, size: u64) {
        let (count, bytes) = match arrival {
            Arrival::Copied => &mut self.copied,
            Arrival::Adopted => &mut self.adopted,
            Arrival::Present => &mut self.present,
        };
        *count += 1;
        *bytes += size;
    }
}
