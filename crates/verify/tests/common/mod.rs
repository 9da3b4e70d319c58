//! What the integration tests share.
#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::io::{Cursor, Read as _};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use builder::{Budget, BuildOptions, Dedup};
use image::{Location, PlatformChoice, Source};
use progress::{Cancel, Silent};
use rafs_format::Bootstrap;
use verify::{Files, LayerFile, Options, Outcome, Report, Side};

/// A side of layers in memory, lowest first.
pub fn layers(tars: &[Vec<u8>]) -> Side {
    let layer = |tar: &Vec<u8>| {
        let tar = Arc::new(tar.clone());
        LayerFile::new("layer", tar.len() as u64, move || {
            Ok(Box::new(Cursor::new(Vec::clone(&tar))))
        })
    };
    Side {
        name: "layers".to_owned(),
        document: None,
        files: Files::Layers(tars.iter().map(layer).collect()),
    }
}

pub fn file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn check(source: Option<&Side>, target: &Side) -> Report {
    check_with(source, target, layer::Options::default())
}

pub fn check_with(source: Option<&Side>, target: &Side, layers: layer::Options) -> Report {
    let cancel = Cancel::default();
    let threads = NonZeroUsize::new(2).unwrap();
    verify::check(
        source,
        target,
        &Options {
            threads,
            layers,
            cancel: &cancel,
            progress: &Silent,
        },
    )
    .unwrap()
}

pub fn build_options() -> BuildOptions {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    BuildOptions {
        level: 1,
        chunk_size: 0x4000,
        ..BuildOptions::new(Arc::new(pool), Budget::new(64 << 20))
    }
}

/// Converts layers, lowest first: the merged image and its blobs.
pub fn build(tars: &[Vec<u8>], options: &BuildOptions) -> (tree::Image, Vec<Vec<u8>>) {
    let mut blobs = Vec::new();
    let mut images = Vec::new();
    for tar in tars {
        let mut blob = Vec::new();
        images.push(
            builder::build_tar(&tar[..], &mut blob, options, Dedup::Layer)
                .unwrap()
                .image,
        );
        blobs.push(blob);
    }
    (builder::merge(images).unwrap(), blobs)
}

/// An image and its blobs in memory, as a side without documents.
pub fn target(image: &tree::Image, blobs: Vec<Vec<u8>>) -> Side {
    let bootstrap = Bootstrap::parse(builder::encode_v6(image).unwrap()).unwrap();
    let mut source = storage::NamedSource::new(None);
    for blob in blobs {
        source.insert(testkit::sha256(&blob), Arc::new(blob));
    }
    Side {
        name: "built".to_owned(),
        document: None,
        files: Files::Rafs {
            bootstrap: Arc::new(bootstrap.into()),
            blobs: Some(Arc::new(source)),
        },
    }
}

/// The uncompressed layers of a reference image.
pub fn image_tars(shared: &Path, layout: &str, tag: &str) -> Vec<Vec<u8>> {
    let location = Location::OciLayout {
        dir: shared.join(layout),
        tag: Some(tag.to_owned()),
    };
    let source = Arc::new(Source::open(&location).unwrap());
    let (_, manifest) = source.manifests(&PlatformChoice::All).unwrap().remove(0);
    let side = Side::image(&source, tag, manifest).unwrap();
    let Files::Layers(layers) = &side.files else {
        panic!("an image of layers")
    };
    let unpacked = |layer: &LayerFile| {
        let (kind, stored) = layer::detecting(layer.open().unwrap()).unwrap();
        let mut tar = Vec::new();
        layer::decompress(stored, kind)
            .unwrap()
            .read_to_end(&mut tar)
            .unwrap();
        tar
    };
    layers.iter().map(unpacked).collect()
}

pub fn assert_verified(report: &Report) {
    assert!(report.verified, "{report}");
    assert_eq!(report.differences.total, 0, "{report}");
    assert!(
        report
            .rules
            .iter()
            .all(|rule| rule.outcome != Outcome::Failed)
    );
}
