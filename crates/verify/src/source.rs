//! Replays all layers of an image, several at a time, and lays them under one another as they are done.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use layer::piece::read_ahead;
use progress::{Cancel, Progress};

use crate::model::FileTree;
use crate::replay::stream::{Chunking, LayerError, replay};
use crate::replay::{Layer, Stack};
use crate::side::LayerFile;

/// Inflated bytes that go from one thread to another at a time.
const PIECE: usize = 256 << 10;

/// Why the layers of an image cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer}")]
pub struct ReplayError {
    /// The layer.
    pub layer: String,
    /// What is wrong with it.
    pub source: LayerError,
}

/// How layers are replayed.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) chunking: Chunking,
    /// What of a layer counts.
    pub(crate) options: &'a layer::Options,
    /// Layers that are read side by side.
    pub(crate) threads: NonZeroUsize,
    pub(crate) cancel: &'a Cancel,
    pub(crate) progress: &'a dyn Progress,
}

/// The files of an image of `layers`, lowest first.
pub(crate) fn replay_image(
    layers: &[LayerFile],
    context: Context<'_>,
) -> Result<FileTree, ReplayError> {
    let next = AtomicUsize::new(0);
    let mut stack = Stack::new();
    std::thread::scope(|scope| {
        let (send, done) = channel();
        for _ in 0..context.threads.get().min(layers.len()) {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                // Top layer first.
                while let Some(depth) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&depth| depth < layers.len())
                {
                    let file = &layers[layers.len() - 1 - depth];
                    let result = replay_file(file, context).map_err(|source| ReplayError {
                        layer: file.name.clone(),
                        source,
                    });
                    if send.send((depth, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting: BTreeMap<usize, Layer> = BTreeMap::new();
        let mut laid = 0;
        for (depth, result) in done {
            // After an error nobody listens any more, so the other threads end with their current layer.
            waiting.insert(depth, result?);
            while let Some(layer) = waiting.remove(&laid) {
                stack.lay_under(&layer);
                laid += 1;
            }
        }
        Ok(())
    })?;
    Ok(stack.finish())
}

fn replay_file(file: &LayerFile, context: Context<'_>) -> Result<Layer, LayerError> {
    context.progress.started(&file.name, Some(file.size));
    let (compression, stored) = layer::detecting(file.open()?)?;
    let stream = read_ahead(layer::decompress(stored, compression)?, PIECE)?;
    let counting = Counting {
        inner: stream,
        file,
        progress: context.progress,
        seen: 0,
    };
    let layer = replay(counting, context.chunking, context.options, context.cancel)?;
    context
        .progress
        .finished(&file.name, &format!("{} inodes", layer.tree.inodes.len()));
    Ok(layer)
}

/// Reports progress. Only uncompressed bytes are seen here, so the stored size is the least that can be said.
struct Counting<'a, R> {
    inner: R,
    file: &'a LayerFile,
    progress: &'a dyn Progress,
    seen: u64,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        let before = self.seen.min(self.file.size);
        self.seen += got as u64;
        let advanced = self.seen.min(self.file.size) - before;
        if advanced > 0 {
            self.progress.advanced(&self.file.name, advanced);
        }
        Ok(got)
    }
}
