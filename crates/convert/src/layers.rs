//! All layers of an image, side by side.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use builder::{BuildOptions, Dedup, Turn};
use image::{Descriptor, Digest};

use crate::error::LayerError;
use crate::layer::{self, ConvertedLayer, Places};
use crate::{DedupScope, Error};

/// Layers that differ, in manifest order, and for each layer of the manifest which one it is.
pub(crate) struct Distinct<'a> {
    pub layers: Vec<(&'a Descriptor, Digest)>,
    pub positions: Vec<usize>,
}

/// Finds the layers that occur more than once. Both slices have the same length.
pub(crate) fn distinct<'a>(layers: &'a [Descriptor], diff_ids: &[Digest]) -> Distinct<'a> {
    let mut known: HashMap<(Digest, Digest), usize> = HashMap::new();
    let mut out = Distinct {
        layers: Vec::new(),
        positions: Vec::new(),
    };
    for (layer, &diff_id) in std::iter::zip(layers, diff_ids) {
        let position = *known.entry((layer.digest, diff_id)).or_insert_with(|| {
            out.layers.push((layer, diff_id));
            out.layers.len() - 1
        });
        out.positions.push(position);
    }
    out
}

/// Converts layers; they start in their order and come back in it. `lanes` are converted at the same time. The first
/// failure stops the others.
pub(crate) fn convert(
    places: &Places<'_>,
    layers: &[(&Descriptor, Digest)],
    options: &BuildOptions,
    dedup: DedupScope,
    lanes: usize,
) -> Result<Vec<ConvertedLayer>, Error> {
    let options = BuildOptions {
        cancel: options.cancel.child(),
        ..options.clone()
    };
    let turns: Vec<Dedup> = match dedup {
        DedupScope::Layer => layers.iter().map(|_| Dedup::Layer).collect(),
        DedupScope::Image => Turn::for_layers(layers.len())
            .into_iter()
            .map(Dedup::Image)
            .collect(),
    };
    let queue = Mutex::new(layers.iter().zip(turns).enumerate());
    let results: Mutex<Vec<Option<Result<ConvertedLayer, Error>>>> =
        Mutex::new(layers.iter().map(|_| None).collect());
    let work = || {
        while !options.cancel.is_cancelled() {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, ((descriptor, diff_id), turn))) = next else {
                return;
            };
            let result =
                layer::convert(places, descriptor, *diff_id, &options, turn).map_err(|source| {
                    match source {
                        LayerError::Build(builder::Error::DictionaryBlobs(worth)) => {
                            let own = layers.len();
                            Error::TooManyBlobs { own, worth }
                        }
                        source => Error::Layer {
                            digest: descriptor.digest,
                            source: Box::new(source),
                        },
                    }
                });
            if result.is_err() {
                options.cancel.cancel();
            }
            results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..lanes.min(layers.len()) {
            scope.spawn(work);
        }
    });
    collect(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// All layers, or the failure that the others are consequences of.
fn collect(
    results: Vec<Option<Result<ConvertedLayer, Error>>>,
) -> Result<Vec<ConvertedLayer>, Error> {
    let (mut layers, mut failure) = (Vec::with_capacity(results.len()), None::<Error>);
    for result in results {
        match result.unwrap_or(Err(Error::Cancelled)) {
            Ok(layer) => layers.push(layer),
            Err(error)
                if failure
                    .as_ref()
                    .is_none_or(|known| known.is_consequence() && !error.is_consequence()) =>
            {
                failure = Some(error);
            }
            Err(_) => {}
        }
    }
    match failure {
        None => Ok(layers),
        Some(error) if error.is_consequence() => Err(Error::Cancelled),
        Some(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_occurs_twice_is_one() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let layers = [a, b, a].map(|digest| Descriptor::new("t", digest, 1));
        let found = distinct(&layers, &[a, b, a]);
        assert_eq!(found.layers.len(), 2);
        assert_eq!(found.positions, [0, 1, 0]);
        // The same blob under another diff id cannot be right, and is found out when it is converted.
        assert_eq!(distinct(&layers, &[a, b, b]).positions, [0, 1, 2]);
    }
}
