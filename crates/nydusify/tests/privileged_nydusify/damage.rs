//! Damaged images and full disks: an error each time, never wrong data, nothing left behind.

use std::path::{Path, PathBuf};

use testkit::fixture::busybox_expect;
use testkit::run::{output, run};

use crate::support::*;

/// Layer blobs of the image in a layout with one tag, the bootstrap layer last.
fn layers(layout: &Path) -> Vec<PathBuf> {
    let blob = |digest: &serde_json::Value| {
        layout
            .join("blobs")
            .join(digest.as_str().unwrap().replace(':', "/"))
    };
    let json = |path: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let manifest = json(blob(
        &json(layout.join("index.json"))["manifests"][0]["digest"],
    ));
    manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| blob(&layer["digest"]))
        .collect()
}

/// Each file either reads as it should or not at all.
fn assert_no_wrong_data(root: &Path) -> usize {
    let mut unreadable = 0;
    let found = testkit::scan::scan(root).unwrap();
    for (path, want) in &busybox_expect().entries {
        match (&want.sha256, &found[path].sha256) {
            (Some(want), Some(Ok(have))) => {
                assert_eq!(have, want, "wrong data in {}", path.escape_ascii())
            }
            (Some(_), Some(Err(error))) => {
                assert!(
                    error.contains("Input/output error"),
                    "{}: {error}",
                    path.escape_ascii()
                );
                unreadable += 1;
            }
            _ => {}
        }
    }
    unreadable
}

#[test]
fn privileged_flipped_bytes_of_blobs_are_errors_and_never_wrong_data() {
    let Some(place) =
        Place::new("privileged_flipped_bytes_of_blobs_are_errors_and_never_wrong_data")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let blobs = layers(&place.path("nydus"));
    let mut unreadable = 0;
    for blob in &blobs[..blobs.len() - 1] {
        let sound = std::fs::read(blob).unwrap();
        for part in 0..6 {
            let mut bytes = sound.clone();
            let at = (bytes.len() * part / 6 + part).min(bytes.len() - 1);
            bytes[at] ^= 0x10;
            std::fs::write(blob, &bytes).unwrap();
            let _ = std::fs::remove_dir_all(place.path("cache"));
            // Damage of what a mount needs at once (the chunk table) may be noticed as early as that.
            let mut command = place.mount_command(&target);
            let mount = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                testkit::run::Mount::start(command.arg("--no-prefetch"), &place.path("root"))
            }));
            if let Ok(mount) = mount {
                unreadable += assert_no_wrong_data(mount.path());
                mount.stop().ok();
            }
        }
        std::fs::write(blob, &sound).unwrap();
    }
    assert!(unreadable > 0, "some of the flips hit a chunk");
}

#[test]
fn privileged_a_flipped_byte_of_the_bootstrap_layer_is_refused() {
    let Some(place) = Place::new("privileged_a_flipped_byte_of_the_bootstrap_layer_is_refused")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let layer = layers(&place.path("nydus")).pop().unwrap();
    let sound = std::fs::read(&layer).unwrap();
    for part in 0..8 {
        let mut bytes = sound.clone();
        bytes[(sound.len() - 1) * part / 7] ^= 0x10;
        std::fs::write(&layer, &bytes).unwrap();
        let name = layer.file_name().unwrap().to_str().unwrap();
        let mut command = place.mount_command(&target);
        output(&mut command).exits(1).fails_with(&[name]);
        assert!(!testkit::run::is_mounted(&place.path("root")));
    }
}

#[test]
fn privileged_a_cache_without_its_map_is_filled_anew() {
    let Some(place) = Place::new("privileged_a_cache_without_its_map_is_filled_anew") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    assert_equal(&busybox_expect().compare(mount.path()));
    mount.stop().ok();
    // A cache file that lost its data altogether, its map with it.
    for entry in std::fs::read_dir(place.path("cache")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".blob.map") {
            std::fs::write(entry.path(), b"").unwrap();
        }
    }
    let mount = place.mount(&target, &["--no-prefetch"]);
    assert_equal(&busybox_expect().compare(mount.path()));
    mount.stop().ok();
}

#[test]
fn privileged_a_lost_blob_is_an_error_and_the_rest_still_reads() {
    let Some(place) = Place::new("privileged_a_lost_blob_is_an_error_and_the_rest_still_reads")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let blobs = layers(&place.path("nydus"));
    std::fs::remove_file(&blobs[0]).unwrap();
    let ran = {
        let mut command = place.mount_command(&target);
        command.arg("--no-prefetch");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            testkit::run::Mount::start(&mut command, &place.path("root"))
        }))
    };
    if let Ok(mount) = ran {
        assert!(std::fs::read(mount.path().join("bin/busybox")).is_err());
        assert_no_wrong_data(mount.path());
        mount.stop().ok();
    } else {
        let name = blobs[0].file_name().unwrap().to_str().unwrap().to_owned();
        let ran = output(place.mount_command(&target).arg("--no-prefetch"));
        ran.exits(1).fails_with(&[&name]);
    }
}

#[test]
fn privileged_a_full_disk_leaves_no_tag() {
    let Some(place) = Place::new("privileged_a_full_disk_leaves_no_tag") else {
        return;
    };
    let small = place.directory("small");
    let options = std::ffi::CString::new("size=512k").unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &small, "tmpfs", flags, Some(options.as_c_str())).unwrap();
    let unmounted = scopeguard(&small);
    for target in ["oci:DIR/layout:v6", "oci-archive:DIR/archive.tar:v6"] {
        let target = target.replace("DIR", small.to_str().unwrap());
        let ran = run(
            NYDUSIFY,
            ["convert", "--source", &fixture(), "--target", &target],
        );
        ran.exits(1).fails_with(&["No space left"]);
        assert!(!small.join("archive.tar").exists());
        let index = std::fs::read_to_string(small.join("layout/index.json")).unwrap_or_default();
        assert!(!index.contains("v6"), "{index}");
        for (path, file) in testkit::scan::scan(&small).unwrap() {
            let path = String::from_utf8(path).unwrap();
            let name = path.rsplit('/').next().unwrap();
            let complete = file
                .sha256
                .as_ref()
                .is_none_or(|digest| digest.as_deref() == Ok(name));
            assert!(
                complete || name == "oci-layout" || name == "index.json",
                "{path} was left behind"
            );
        }
    }
    drop(unmounted);
}

/// Unmounts a path in the end.
fn scopeguard(path: &Path) -> impl Drop {
    struct Guard(PathBuf);
    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    Guard(path.to_path_buf())
}
