//! Bootstraps of the deployed builder.

use std::collections::HashMap;

use chunkdict_store::{Error, Import};

use rafs_format::Version;

use crate::images::Place;

/// Every bootstrap that has chunks to share is taken up, in either order with the same result, and comes out again.
#[test]
fn bootstraps_of_the_deployed_builder_are_taken_up() {
    let Some(shared) = testkit::shared_or_skip("bootstraps_of_the_deployed_builder_are_taken_up")
    else {
        return;
    };
    let mut taken = [0, 0];
    for path in files(&shared.join("golden")) {
        let name = path.display().to_string();
        let Ok(loaded) = storage::load_bootstrap(&path) else {
            continue;
        };
        let image = loaded.image().unwrap();
        let version = usize::from(image.version == Version::V5);
        let import = match Import::of_image(&name, [1; 32], image, &HashMap::new()) {
            Ok(import) => import,
            Err(Error::NoChunks(_)) => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        let place = Place::new();
        place.add(std::slice::from_ref(&import));
        let snapshot = place.snapshot();
        assert_eq!(snapshot.index().len(), import.chunks(), "{name}");
        let made = snapshot.export().unwrap();
        let encoded = bootstrap::encode(&made.image).unwrap();
        let again = Import::new("export", [1; 32], encoded, &HashMap::new()).unwrap();
        assert_eq!(again.chunks(), import.chunks(), "{name}");
        taken[version] += 1;
    }
    assert!(taken[0] > 3 && taken[1] > 3, "{taken:?}");
}

/// Files that may be bootstraps, or hold one.
fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.extension().unwrap_or_default().to_owned();
        if path.is_file() && ["", "blob", "boot"].iter().any(|one| kind == *one) {
            found.push(path);
        }
    }
    found.sort();
    found
}
