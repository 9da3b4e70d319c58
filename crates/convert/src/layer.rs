//! One layer: from its stored bytes to a blob in the target and a tree in memory.

use std::io::Read;

use builder::{BuildOptions, ChunkTable, Dedup};
use image::{Descriptor, Digest, Source, Target};
use progress::Progress;
use tree::Image;

use crate::cache::OpenCache;
use crate::error::LayerError;
use crate::journal::{Journal, Key, Record};
use crate::reference;
use crate::reuse::{self, Origin};
use crate::rewind::Rewind;
use crate::{ChunkCache, ChunkDictionary, TOTAL};
use crate::{stream, toc};

/// How often a layer is converted again when the target loses what was written of its blob.
const AGAIN: u32 = 2;

/// A layer that was converted.
#[derive(Debug)]
pub(crate) struct ConvertedLayer {
    /// Its tree, with its blob and chunks.
    pub image: Image,
    /// What it is in the target.
    pub blob: Blob,
    /// Who had converted it before, if somebody had.
    pub reused: Option<Origin>,
    /// What to remember of it; `None` if it can't be used again.
    pub record: Option<(Key, Record)>,
}

/// A blob in the target.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunk table; `None` without chunks.
    pub table: Option<ChunkTable>,
    /// The layer that has the data, if the blob only describes it.
    pub original: Option<Digest>,
}

/// Where layers come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    pub source: &'a Source,
    pub target: &'a Target,
    /// Where blobs go instead of the target, if they do.
    pub backend: Option<&'a Target>,
    pub journal: Option<&'a Journal>,
    pub cache: Option<&'a OpenCache>,
    pub dictionary: Option<&'a ChunkDictionary>,
    /// Whether layers are described where that can be, not converted.
    pub reference: bool,
    /// Whether they are in ways that deployed runtimes do not know, too.
    pub extended: bool,
    /// Where chunks of described layers are kept while they pass by.
    pub chunk_cache: Option<&'a ChunkCache>,
    pub progress: &'a dyn Progress,
}

impl Places<'_> {
    /// Where blobs go.
    pub(crate) fn blobs(&self) -> &Target {
        self.backend.unwrap_or(self.target)
    }
}

/// Converts a layer. A damaged source is told from what damage does to those who read it: its digest is the error.
pub(crate) fn convert(
    places: &Places<'_>,
    descriptor: &Descriptor,
    diff_id: Digest,
    options: &BuildOptions,
    dedup: Dedup,
) -> Result<ConvertedLayer, LayerError> {
    let mut options = options;
    let without_helpers;
    if places.extended && toc::is_pinned(descriptor) {
        // Files that only help readers of eStargz are not in its table of contents, and so in no tree of such a layer.
        without_helpers = toc::without_helpers(options);
        options = &without_helpers;
    }
    let task = format!("layer {}", &descriptor.digest.hex()[..12]);
    places.progress.started(&task, Some(descriptor.size));
    // What a layer shares with others depends on them, too.
    let key = matches!(dedup, Dedup::Layer).then(|| {
        let dictionary = places.dictionary.map(ChunkDictionary::id);
        let key = Key::new(descriptor, diff_id, options, dictionary);
        match places.reference {
            true if places.extended => key.of_reference().of_reference(),
            true => key.of_reference(),
            false => key,
        }
    });
    let found = key.as_ref();
    if let Some(layer) = found.and_then(|key| reuse::find(places, descriptor, key, options)) {
        reference::take_along(places, descriptor, &layer, options)?;
        places.progress.advanced(&task, descriptor.size);
        places.progress.advanced(TOTAL, descriptor.size);
        let summary = match layer.reused {
            Some(Origin::Cache) => "taken from the build cache",
            _ => "converted by an earlier run",
        };
        places.progress.finished(&task, summary);
        return Ok(layer);
    }
    // The turn of a layer that shares chunks with others comes but once.
    let (mut again, mut turn) = match dedup {
        Dedup::Layer => (AGAIN, None),
        turn => (0, Some(turn)),
    };
    let (mut layer, bootstrap) = loop {
        let dedup = turn.take().unwrap_or(Dedup::Layer);
        match build(places, &task, descriptor, diff_id, options, dedup) {
            Ok(built) => break built,
            Err(error) if options.cancel.is_cancelled() => return Err(error),
            Err(error) if again > 0 && error.is_lost() => {
                tracing::warn!("layer {} is converted again: {error}", descriptor.digest);
                again -= 1;
                places.progress.started(&task, Some(descriptor.size));
            }
            Err(error) if error.is_of_target() => return Err(error),
            Err(error) => {
                places.source.verify_blob(descriptor)?;
                return Err(error);
            }
        }
    };
    let record = bootstrap.map(|digest| Record::new(layer.blob.digest, layer.blob.size, digest));
    layer.record = key.zip(record);
    if let (Some(journal), Some((key, record))) = (places.journal, &layer.record)
        && let Err(error) = journal.note(key, record)
    {
        tracing::debug!("the journal cannot be written: {error}");
    }
    reference::take_along(places, descriptor, &layer, options)?;
    let summary = format!(
        "blob {}, {} bytes",
        &layer.blob.digest.hex()[..12],
        layer.blob.size
    );
    places.progress.finished(&task, &summary);
    Ok(layer)
}

fn build(
    places: &Places<'_>,
    task: &str,
    descriptor: &Descriptor,
    diff_id: Digest,
    options: &BuildOptions,
    dedup: Dedup,
) -> Result<(ConvertedLayer, Option<Digest>), LayerError> {
    if places.extended && toc::is_pinned(descriptor) {
        match toc::build(places, descriptor, options) {
            Err(error) if !options.cancel.is_cancelled() => {
                let (layer, why) = (descriptor.digest, crate::error::causes(&error));
                tracing::info!(
                    "layer {layer} is read to its end, for its table of contents is of no use: {why}"
                );
            }
            done => return done.map(|layer| (layer, None)),
        }
    }
    let mut begun = None;
    if places.reference && (places.extended || !reference::is_zstd(descriptor)) {
        let mut stored = Rewind::new(open(places, task, descriptor)?);
        match reference::build(places, &mut stored, descriptor, diff_id, options) {
            Err(error) if reference::is_unfit(&error) => {
                let (layer, why) = (descriptor.digest, crate::error::causes(&error));
                tracing::info!("layer {layer} is converted, it can't be read in pieces: {why}");
                begun = stored.again();
                if begun.is_none() {
                    places.progress.started(task, Some(descriptor.size));
                }
            }
            done => return done,
        }
    }
    let stored: Box<dyn Read + Send + '_> = match begun {
        Some(stored) => Box::new(stored),
        None => Box::new(open(places, task, descriptor)?),
    };
    let mut writer = places.blobs().blob_writer()?;
    let (built, actual) = std::thread::scope(|scope| {
        let stream = stream::open(scope, stored, descriptor.digest, &options.cancel);
        let built = builder::build_tar(stream.tar, &mut writer, options, dedup)?;
        Ok::<_, LayerError>((built, stream.diff_id.wait()?))
    })?;
    if actual != diff_id {
        return Err(LayerError::DiffId {
            expected: diff_id,
            actual,
        });
    }
    let digest = Digest::from(built.blob_digest);
    let size = writer.finish(digest)?;
    let layer = ConvertedLayer {
        image: built.image,
        blob: Blob {
            digest,
            size,
            table: built.table,
            original: None,
        },
        reused: None,
        record: None,
    };
    Ok((layer, built.bootstrap_digest.map(Digest::from)))
}

/// The stored bytes of a layer; reports what is read.
pub(crate) fn open<'a>(
    places: &Places<'a>,
    task: &'a str,
    descriptor: &Descriptor,
) -> Result<impl Read + Send + use<'a>, LayerError> {
    Ok(Counted {
        inner: places.source.open_blob(descriptor)?,
        progress: places.progress,
        task,
    })
}

/// Reports what is read through it.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
    task: &'a str,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.progress.advanced(self.task, got as u64);
        self.progress.advanced(TOTAL, got as u64);
        Ok(got)
    }
}
