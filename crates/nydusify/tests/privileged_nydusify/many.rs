//! Images of many blobs.

use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::run::{output, run};
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// Mounts an image with as many blobs in both modes and reads a file of each.
fn read_all_blobs(name: &str, count: usize) {
    let Some(place) = Place::new(name) else {
        return;
    };
    let tars: Vec<Vec<u8>> = (0..count)
        .map(|number| {
            let mut tar = Tar::new();
            let content = format!("content of layer {number}").repeat(100);
            tar.add(Entry::file(format!("f{number}"), content.as_bytes()));
            tar.finish()
        })
        .collect();
    let layers: Vec<Layer> = tars
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let image = layout.manifest(&layers, Flavour::Oci);
    layout.tag(&image, "latest");
    let target = place.converted(&place.oci("source", "latest"), &[]);
    let root = place.path("root");
    let mut modes = vec!["fuse"];
    let doctor = output(
        std::process::Command::new(NYDUSIFY)
            .args(["doctor", "--output", "json", "--cache-dir"])
            .arg(place.directory("cache")),
    );
    if doctor.stdout.contains(r#""erofs":true"#) {
        modes.push("erofs");
    } else {
        testkit::skip(name, "the kernel can't fill EROFS mounts on demand here");
    }
    for mode in modes {
        let cache = place.path("cache");
        std::fs::remove_dir_all(&cache).unwrap();
        let mut command = place.mount_command(&target);
        output(command.args(["--mode", mode, "--detach", "--no-prefetch"])).ok();
        for number in 0..count {
            let content = std::fs::read_to_string(root.join(format!("f{number}"))).unwrap();
            let expected = format!("content of layer {number}").repeat(100);
            assert!(content == expected, "{mode}: f{number}");
        }
        run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    }
}

#[test]
fn privileged_an_image_of_60_blobs_is_mounted_in_both_modes() {
    read_all_blobs(
        "privileged_an_image_of_60_blobs_is_mounted_in_both_modes",
        60,
    );
}

#[test]
fn privileged_an_image_of_250_blobs_is_mounted_in_both_modes() {
    read_all_blobs(
        "privileged_an_image_of_250_blobs_is_mounted_in_both_modes",
        250,
    );
}
