//! Bootstraps of every kind that is read, sound and with flipped bytes.

use rafs_format::Bootstrap;
use testkit::fixture::bootstraps;

use crate::support::*;

#[test]
fn every_kind_of_bootstrap_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let all = bootstraps();
    assert!(all.len() >= 10);
    for (name, bytes) in all {
        let path = dir.path().join(&name);
        std::fs::write(&path, bytes).unwrap();
        nydus_image(["check", text(&path)]).ok();
        let ran = nydus_image(["inspect", text(&path), "--request", "blobs"]).ok();
        let blobs: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let count = if name.contains("merged") || name.contains("dict") {
            2
        } else {
            1
        };
        assert_eq!(blobs.as_array().unwrap().len(), count, "{name}");
    }
}

/// A flipped byte is found, or it is one that nothing relies on; never a crash, never an endless loop.
#[test]
fn flipped_bytes_are_refused_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot");
    let mut refused = 0;
    for (name, sound) in bootstraps()
        .into_iter()
        .filter(|(name, _)| name == "v6-merged" || name == "v6-upper")
    {
        // The superblock and the tables densely, the rest in strides.
        let dense = (1024..1200).step_by(5).chain((4096..4608).step_by(13));
        for at in dense.chain((0..sound.len()).step_by(sound.len() / 50 + 1)) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, &bytes).unwrap();
            let ran = nydus_image(["check", text(&path)]);
            // The library is the judge, and the program says what it says.
            let sound = Bootstrap::parse(bytes).is_ok_and(|bootstrap| bootstrap.check().is_ok());
            let code = i32::from(!sound);
            assert!(ran.code == code, "byte {at} of {name}: {ran}");
            if ran.code == 1 {
                refused += 1;
                assert!(
                    ran.stderr.contains(text(&path)) || ran.stderr.contains("boot"),
                    "no name: {ran}"
                );
            }
        }
        for length in [
            0,
            1,
            1023,
            1024,
            1100,
            4095,
            4096,
            sound.len() / 2,
            sound.len() - 1,
        ] {
            std::fs::write(&path, &sound[..length]).unwrap();
            nydus_image(["check", text(&path)]).exits(1);
        }
    }
    // The rest hit times, owners, names and padding, which any value fits.
    assert!(refused > 60, "only {refused} of the flips were found");
}

#[test]
fn a_v5_superblock_of_zeros_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot");
    let mut bytes = vec![0; 8192];
    bytes[..4].copy_from_slice(b"SFAR");
    std::fs::write(&path, bytes).unwrap();
    nydus_image(["check", text(&path)]).exits(1);
}
