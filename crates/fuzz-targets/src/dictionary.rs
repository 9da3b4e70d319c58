//! What lies in the directory of a chunk dictionary.

use std::sync::LazyLock;

use builder::BuildOptions;
use chunkdict_store::{Import, Store};
use rafs_format::{Compressor, Version};

use crate::{Target, sample};

/// Any bytes as a snapshot: what is loaded is what was written, and all that is told of it can be.
pub const SNAPSHOT: Target = Target {
    name: "snapshot",
    run: |input| chunkdict_store::fuzzing::snapshot(&DIR.path().join("snapshot"), input),
    samples: || {
        [Version::V6, Version::V5]
            .map(|version| files(version).0)
            .to_vec()
    },
    changes: 5000,
};

/// Any JSON as the catalogue of a dictionary.
pub const CATALOGUE: Target = Target {
    name: "catalogue",
    run: chunkdict_store::fuzzing::catalogue,
    samples: || vec![files(Version::V6).1],
    changes: 5000,
};

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("there is a directory for temporary files"));

/// The snapshot and the catalogue, without its first line, of a dictionary of two images, one of which was taken out once.
fn files(version: Version) -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let images = [(true, 1), (false, 2)].map(|(aligned_chunk, number)| {
        let options = BuildOptions {
            aligned_chunk,
            compressor: Compressor::Lz4Block,
            ..sample::options_of(version)
        };
        let (layer, _) = sample::native_layer_with(&options);
        let bootstrap = builder::encode(&layer.image).expect("the sample can be encoded");
        Import::new(
            &format!("host/app:{number}"),
            [number; 32],
            bootstrap,
            &Default::default(),
        )
        .expect("the sample can be taken up")
    });
    let made = "a dictionary can be made";
    let store = Store::create(dir.path()).expect(made);
    let mut writer = store.writer(&Default::default()).expect(made);
    writer.add(images.to_vec()).expect(made);
    drop(writer);
    let (snapshot, _) = store.snapshot().expect(made);
    let name: String = snapshot
        .id()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let snapshot = std::fs::read(dir.path().join("snapshots").join(name)).expect(made);
    let catalogue = std::fs::read(dir.path().join("catalogue")).expect(made);
    let line = catalogue
        .iter()
        .position(|&byte| byte == b'\n')
        .expect("it has a first line");
    (snapshot, catalogue[line + 1..].to_vec())
}
