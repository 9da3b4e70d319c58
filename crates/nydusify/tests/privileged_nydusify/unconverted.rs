//! Images that nobody converted, mounted: by an index that is made while their layers are read once.

use std::path::Path;

use rustix::process::Signal;
use serde_json::json;
use testkit::estargz::estargz;
use testkit::expect::{compare, compare_trees, compare_with_stack};
use testkit::layout::{Flavour, Layer, Layout, Packing, layer_files};
use testkit::oracle::Stack;
use testkit::registry::Registry;
use testkit::run::{Mount, is_mounted, output, run};
use testkit::tar::{Entry, Sparse, Tar};
use testkit::{noise, prose, sha256, shared_or_skip};

use crate::support::*;

/// A layout `source` with the image `all`, whose layers are stored in every way that there is. Its reference.
fn every_way(place: &Place) -> String {
    let tar = |entries: &[Entry]| {
        let mut tar = Tar::new();
        for entry in entries {
            tar.add(entry.clone());
        }
        tar.finish()
    };
    let lowest = tar(&[
        Entry::directory("data/").mode(0o750),
        Entry::file("data/prose", prose(1, 3_000_000)),
        Entry::file("data/gone", prose(2, 70_000)),
        Entry::file("top", "hidden by an upper layer"),
    ]);
    let members = tar(&[
        Entry::file("data/.wh.gone", b""),
        Entry::file("data/members", prose(3, 500_000)),
        Entry::hard("data/same", "data/members"),
    ]);
    let plain = tar(&[
        Entry::file("plain", noise(4, 2_500_000)),
        Entry::symlink("link", "data/members"),
    ]);
    let frames = tar(&[
        Entry::file("zstd/frames", prose(5, 2_000_000)),
        Entry::file("zstd/little", b"a few bytes\n"),
        Entry::file("zstd/again", prose(5, 2_000_000)),
    ]);
    let frame = tar(&[Entry::file("zstd/frame", noise(6, 20 << 20))]);
    // A conversion takes it for a file like any other, an index by the table of contents does not know it.
    let helper_gone = tar(&[Entry::file(".wh.stargz.index.json", b"")]);
    let small = tar(&[Entry::file("zstd/small", prose(7, 90_000))]);
    let mut holes = Tar::new();
    let segments = [(0, prose(11, 4096)), (1 << 20, b"end".to_vec())];
    holes.sparse(Entry::file("holes", b""), Sparse::Gnu, 3 << 20, &segments);
    let star = [
        Entry::directory("star/"),
        Entry::file("star/large", prose(8, 5 << 20)),
        Entry::file("star/small", prose(9, 120_000)).owner(7, 8),
        Entry::file("top", prose(10, 1000)),
    ];
    let star = estargz(&star, 4 << 20);
    let mut inflated = Vec::new();
    let mut inflate = flate2::read::MultiGzDecoder::new(&star.blob[..]);
    std::io::copy(&mut inflate, &mut inflated).unwrap();
    let toc = json!({"containerd.io/snapshot/stargz/toc.digest": format!("sha256:{}", sha256(&star.toc))});
    let star = Layer {
        bytes: star.blob,
        ..Layer::new(&inflated, Packing::Gzip)
    };
    let layers = [
        Layer::new(&lowest, Packing::Gzip),
        Layer::new(&members, Packing::GzipMembers),
        Layer::new(&plain, Packing::None),
        Layer::new(&frames, Packing::ZstdFrames),
        Layer::new(&frame, Packing::Zstd),
        Layer::new(&small, Packing::Zstd),
        Layer::new(&holes.finish(), Packing::Gzip),
        star,
        Layer::new(&helper_gone, Packing::Gzip),
    ];
    let source = place.path("source");
    let mut layout = Layout::create(&source);
    let image = layout.manifest_with(&layers, Flavour::Oci, |manifest, _| {
        manifest["layers"][7]["annotations"] = toc;
    });
    layout.tag(&image, "all");
    place.oci("source", "all")
}

/// Puts the image of [`every_way`] into a registry; its name there.
fn pushed(place: &Place, registry: &Registry) -> String {
    every_way(place);
    registry.push_layout(&place.path("source"), "all", "app", "1");
    format!("{}/app:1", registry.host())
}

/// Mounts an image at the directory `name` of the place.
#[track_caller]
fn mount_at(place: &Place, name: &str, image: &str, cache: &str, options: &[&str]) -> Mount {
    Mount::start(
        &mut command_at(place, name, image, cache, options),
        &place.path(name),
    )
}

fn command_at(
    place: &Place,
    name: &str,
    image: &str,
    cache: &str,
    options: &[&str],
) -> std::process::Command {
    let mut command = std::process::Command::new(NYDUSIFY);
    command.args(["mount", "--target", image, "--mount-path"]);
    command.arg(place.directory(name));
    command.arg("--cache-dir").arg(place.path(cache));
    command.args(options);
    command
}

/// Bytes of layers that the registry has sent.
fn sent(registry: &Registry, layout: &Path) -> u64 {
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let layers: Vec<String> = blobs
        .map(|blob| blob.unwrap().file_name().into_string().unwrap())
        .collect();
    let requests = registry.requests().into_iter();
    let of_layers = requests.filter(|request| {
        request.path.contains("/blobs/") && layers.iter().any(|hex| request.path.contains(hex))
    });
    of_layers.map(|request| request.sent).sum()
}

/// In both modes, cold and again: the tree and the data are those of the converted image, and the second mount reads no
/// layer, for what passed by is in the cache.
#[test]
fn privileged_an_image_that_nobody_converted_equals_the_converted_one() {
    const NAME: &str = "privileged_an_image_that_nobody_converted_equals_the_converted_one";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let registry = Registry::new();
    let image = pushed(&place, &registry);
    let converted = place.converted(&place.oci("source", "all"), &[]);
    let converted = place.mount(&converted, &[]);
    for mode in modes(NAME, &place) {
        let cache = format!("cache-{mode}");
        registry.forget_requests();
        let mount = mount_at(&place, "plain", &image, &cache, &["--mode", mode]);
        assert_equal(&compare_trees(converted.path(), mount.path()));
        let whole = stored(&place.path("source/blobs/sha256"));
        let first = sent(&registry, &place.path("source"));
        assert!(
            first < whole + whole / 20,
            "{first} bytes of {whole} were sent"
        );
        let ran = mount.stop().ok();
        assert!(ran.stderr.contains("nobody converted"), "{ran}");

        registry.forget_requests();
        let mount = mount_at(&place, "plain", &image, &cache, &["--mode", mode]);
        assert_equal(&compare_trees(converted.path(), mount.path()));
        let ran = mount.stop().ok();
        assert!(!ran.stderr.contains("nobody converted"), "{ran}");
        // Of the eStargz layer nothing but its table of contents was read before.
        let again = sent(&registry, &place.path("source"));
        assert!(
            again < whole / 20,
            "{again} bytes of {whole} were sent again"
        );
    }
    converted.stop().ok();
}

/// What the cache lost is read from the layers by the index alone.
#[test]
fn privileged_layers_are_read_in_pieces_by_the_index() {
    const NAME: &str = "privileged_layers_are_read_in_pieces_by_the_index";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = every_way(&place);
    let converted = place.converted(&image, &[]);
    let converted = place.mount(&converted, &[]);
    for mode in modes(NAME, &place) {
        let options = ["--mode", mode, "--no-prefetch"];
        mount_at(&place, "plain", &image, "cache-plain", &options)
            .stop()
            .ok();
        drop_chunks(&place.path("cache-plain"));
        let mount = mount_at(&place, "plain", &image, "cache-plain", &options);
        assert_equal(&compare_trees(converted.path(), mount.path()));
        mount.stop().ok();
    }
    converted.stop().ok();
}

#[test]
fn privileged_an_index_that_is_pinned_makes_the_pass_needless() {
    const NAME: &str = "privileged_an_index_that_is_pinned_makes_the_pass_needless";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let mut large = Tar::new();
    large.add(Entry::file("first", prose(1, 50_000)));
    for number in 0..24 {
        large.add(Entry::file(
            format!("f{number:02}"),
            noise(number + 2, 2 << 20),
        ));
    }
    let source = place.path("source");
    let mut layout = Layout::create(&source);
    let layer = Layer::new(&large.finish(), Packing::Gzip);
    let whole = layer.bytes.len() as u64;
    let image = layout.manifest(&[layer], Flavour::Oci);
    layout.tag(&image, "large");
    let registry = Registry::new();
    registry.push_layout(&source, "large", "app", "1");
    let image = format!("{}/app:1", registry.host());
    let cache = place.path("cache-of-another");
    let index = ["index", &image, "--push", "--cache-dir"];
    let ran = run(NYDUSIFY, index.iter().chain(&[cache.to_str().unwrap()])).ok();
    let digest = ran.stdout.trim().to_owned();
    registry.forget_requests();
    for mode in modes(NAME, &place) {
        let cache = format!("cache-{mode}");
        let options = ["--index-digest", &digest, "--mode", mode];
        let mount = mount_at(&place, "plain", &image, &cache, &options);
        let first = std::fs::read(mount.path().join("first")).unwrap();
        assert!(first == prose(1, 50_000));
        let requests = registry.requests().into_iter();
        let all: u64 = requests.map(|request| request.sent).sum();
        assert!(
            all < whole / 10,
            "{all} bytes were sent, the layer has {whole}"
        );
        let last = std::fs::read(mount.path().join("f23")).unwrap();
        assert!(last == noise(25, 2 << 20));
        mount.stop().ok();
        registry.forget_requests();
    }
    // The index of another image, and none at all, are refused.
    let mut tar = Tar::new();
    tar.add(Entry::file("other", b"other"));
    let other = layout.manifest(&[Layer::new(&tar.finish(), Packing::Gzip)], Flavour::Oci);
    layout.tag(&other, "other");
    registry.push_layout(&source, "other", "app", "2");
    let other = format!("{}/app:2", registry.host());
    let pinned = ["--index-digest", &digest];
    output(&mut command_at(&place, "plain", &other, "cache-o", &pinned))
        .fails_with(&["it is the index of", &digest]);
    let none = format!("sha256:{}", "0".repeat(64));
    let pinned = ["--index-digest", &none];
    output(&mut command_at(&place, "plain", &other, "cache-o", &pinned)).fails_with(&[&none]);
}

/// A layer that is not what it was when the index was made gives errors, never other bytes.
#[test]
fn privileged_a_layer_that_changed_after_it_was_indexed_is_found() {
    const NAME: &str = "privileged_a_layer_that_changed_after_it_was_indexed_is_found";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = every_way(&place);
    mount_at(&place, "plain", &image, "cache-plain", &[])
        .stop()
        .ok();
    drop_chunks(&place.path("cache-plain"));
    let mount = mount_at(&place, "plain", &image, "cache-plain", &["--no-prefetch"]);
    for blob in std::fs::read_dir(place.path("source/blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if bytes.len() > 50_000 {
            let middle = bytes.len() / 2;
            bytes[middle..].iter_mut().for_each(|byte| *byte ^= 0x55);
            // In place: the mount has the file open.
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        }
    }
    let error = std::fs::read(mount.path().join("data/prose")).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    let plain = std::fs::read(mount.path().join("plain"));
    assert!(plain.is_err());
    let ran = mount.stop().ok();
    assert!(ran.stderr.contains("digest"), "{ran}");
}

#[test]
fn privileged_a_corrupt_layer_is_named_and_leaves_no_mount() {
    const NAME: &str = "privileged_a_corrupt_layer_is_named_and_leaves_no_mount";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let mut tar = Tar::new();
    tar.add(Entry::file("file", prose(1, 3_000_000)));
    let source = place.path("source");
    let mut layout = Layout::create(&source);
    let layer = Layer::new(&tar.finish(), Packing::Gzip);
    let digest = sha256(&layer.bytes);
    let image = layout.manifest(&[layer], Flavour::Oci);
    layout.tag(&image, "latest");
    let blob = source.join("blobs/sha256").join(&digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let image = place.oci("source", "latest");
    output(&mut command_at(&place, "plain", &image, "cache-plain", &[]))
        .fails_with(&["cannot index", &digest]);
    assert!(!is_mounted(&place.path("plain")));
    let left = files_below(&place.path("cache-plain"));
    let whole = left.iter().filter(|path| path.contains("blob"));
    assert_eq!(whole.count(), 0, "{left:?}");
}

/// Killed at any moment of the pass: the next mount is right, and nothing of the first is left.
#[test]
fn privileged_a_pass_may_be_killed_at_any_moment() {
    const NAME: &str = "privileged_a_pass_may_be_killed_at_any_moment";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = every_way(&place);
    let converted = place.converted(&image, &[]);
    let converted = place.mount(&converted, &[]);
    for round in 0..6_u64 {
        let mut command = std::process::Command::new(NYDUSIFY);
        command.args(["index", &image, "--cache-dir"]);
        let mut child = command.arg(place.path("cache-plain")).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3 + round * 17));
        send(child.id().try_into().unwrap(), Signal::KILL);
        child.wait().unwrap();
    }
    let mut mounting = command_at(&place, "plain", &image, "cache-plain", &[]);
    let mut child = mounting.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    let servers = children(child.id());
    for id in servers.into_iter().chain([child.id().try_into().unwrap()]) {
        send(id, Signal::KILL);
    }
    child.wait().unwrap();
    if is_mounted(&place.path("plain")) {
        run(NYDUSIFY, ["umount", place.path("plain").to_str().unwrap()]);
    }
    let mount = mount_at(&place, "plain", &image, "cache-plain", &[]);
    assert_equal(&compare_trees(converted.path(), mount.path()));
    mount.stop().ok();
    converted.stop().ok();
    let left = files_below(&place.path("cache-plain"));
    let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let unfinished = left.iter().map(name);
    let unfinished = unfinished.filter(|name| name.starts_with('.'));
    assert_eq!(unfinished.count(), 0, "{left:?}");
}

/// Ctrl-C while the layers are read for the first time ends the command as everywhere, and leaves nothing behind.
#[test]
fn privileged_a_pass_is_interrupted_cleanly() {
    const NAME: &str = "privileged_a_pass_is_interrupted_cleanly";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let mut tar = Tar::new();
    for number in 0..64 {
        tar.add(Entry::file(format!("f{number}"), noise(number, 2 << 20)));
    }
    testkit::layout::write(&place.path("source"), &[tar.finish()], Packing::Gzip);
    let image = place.oci("source", "latest");
    for mode in modes(NAME, &place) {
        let options = ["--mode", mode];
        let mut mounting = command_at(&place, "plain", &image, "cache-plain", &options);
        let mut child = mounting.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        send(child.id().try_into().unwrap(), Signal::INT);
        let code = testkit::run::code(child.wait().unwrap());
        assert_eq!(code, 130, "{mode}");
        assert!(!is_mounted(&place.path("plain")));
        let left = files_below(&place.path("cache-plain"));
        let whole = left.iter().filter(|path| path.contains("/.new-"));
        assert_eq!(whole.count(), 0, "{left:?}");
    }
}

#[test]
fn privileged_a_program_of_an_image_that_nobody_converted_runs() {
    const NAME: &str = "privileged_a_program_of_an_image_that_nobody_converted_runs";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let cache = place.path("cache");
    let words = ["/bin/busybox", "echo", "it runs"];
    for _ in 0..2 {
        let image = fixture();
        let run_it = ["run", &image, "--cache-dir", cache.to_str().unwrap(), "--"];
        run(NYDUSIFY, run_it.iter().chain(&words))
            .ok()
            .says(&["it runs"]);
    }
}

/// An index stays as long as it is used, whichever process serves; one that is gone nevertheless is made again.
#[test]
fn privileged_an_index_that_is_mounted_is_not_removed() {
    const NAME: &str = "privileged_an_index_that_is_mounted_is_not_removed";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = every_way(&place);
    let cache = |words: &[&str]| {
        let mut command = std::process::Command::new(NYDUSIFY);
        command.arg("cache").args(words).args(["--output", "json"]);
        let ran = output(command.arg("--cache-dir").arg(place.path("cache-plain"))).ok();
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    for mode in modes(NAME, &place) {
        let mount = mount_at(&place, "plain", &image, "cache-plain", &["--mode", mode]);
        let right = || {
            let path = mount.path().join("data/prose");
            assert!(std::fs::read(path).unwrap() == prose(1, 3_000_000));
            let path = mount.path().join("zstd/frame");
            assert!(std::fs::read(path).unwrap() == noise(6, 20 << 20));
        };
        right();
        let usage = cache(&["du"]);
        assert_eq!(usage["indexes"], 1, "{usage}");
        assert_eq!(usage["indexes_in_use"], 1, "{usage}");
        // The copy of a layer that can be read in no other way.
        assert!(
            usage["index_disk_bytes"].as_u64().unwrap() > 20 << 20,
            "{usage}"
        );
        let pruned = cache(&["prune", "--all"]);
        assert_eq!(pruned["removed_indexes"].as_array().unwrap().len(), 0);
        right();
        if mode == "fuse" {
            // Nobody has it when the server dies, and who comes next finds it gone.
            let index = place.path("cache-plain/index");
            std::fs::rename(&index, place.path("taken")).unwrap();
            for server in children(mount.id()) {
                send(server, Signal::KILL);
            }
            // The kernel has the data of these files still.
            let begun = std::time::Instant::now();
            while cache(&["du"])["indexes_in_use"] != 1 {
                assert!(begun.elapsed().as_secs() < 60, "it is not made again");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            right();
            std::fs::remove_dir_all(place.path("taken")).unwrap();
        }
        mount.stop().ok();
        let of = |list: &serde_json::Value| {
            let rows = list.as_array().unwrap().iter();
            rows.filter(|row| row["image"].is_string())
                .cloned()
                .collect::<Vec<_>>()
        };
        let listed = of(&cache(&["ls"]));
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["in_use"], false);
        let verified = of(&cache(&["verify"]));
        assert_eq!(verified[0]["image"], listed[0]["image"]);
        assert!(verified[0]["wrong"].is_null(), "{}", verified[0]);
        let dry = cache(&["prune", "--all", "--dry-run"]);
        assert_eq!(dry["removed_indexes"].as_array().unwrap().len(), 1, "{dry}");
        let pruned = cache(&["prune", "--all"]);
        assert_eq!(pruned["removed_indexes"], dry["removed_indexes"]);
        assert_eq!(pruned["left_bytes"], 0, "{pruned}");
        assert_eq!(cache(&["du"])["index_disk_bytes"], 0);
    }
}

/// A cache that may not grow takes what fits; the rest is fetched when it is read.
#[test]
fn privileged_the_pass_keeps_no_more_than_the_cache_may_hold() {
    const NAME: &str = "privileged_the_pass_keeps_no_more_than_the_cache_may_hold";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = every_way(&place);
    let options = ["--cache-size", "2MiB"];
    let mount = mount_at(&place, "plain", &image, "cache-plain", &options);
    let used = stored(&place.path("cache-plain"));
    assert!(used < 4 << 20, "{used}");
    assert!(std::fs::read(mount.path().join("data/prose")).unwrap() == prose(1, 3_000_000));
    mount.stop().ok();
}

/// GNU tar and overlayfs say what the images are.
#[test]
fn privileged_reference_images_that_nobody_converted_equal_their_unpacked_layers() {
    const NAME: &str =
        "privileged_reference_images_that_nobody_converted_equal_their_unpacked_layers";
    let Some(shared) = shared_or_skip(NAME) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let images = shared.join("images");
    for tag in ["base", "python", "app-1", "node"] {
        let stack = Stack::new(&layer_files(&images, tag)).unwrap();
        for mode in modes(NAME, &place) {
            let image = format!("oci:{}:{tag}", images.display());
            let mount = mount_at(&place, "plain", &image, "cache-plain", &["--mode", mode]);
            assert_equal(&compare_with_stack(stack.path(), mount.path()));
            mount.stop().ok();
            std::fs::remove_dir_all(place.path("cache-plain")).unwrap();
        }
    }
    let torture = shared.join("torture");
    for mode in modes(NAME, &place) {
        let image = format!("oci:{}:torture", torture.join("image").display());
        let mount = mount_at(&place, "plain", &image, "cache-plain", &["--mode", mode]);
        assert_equal(&compare(mount.path(), &torture.join("expect.json")));
        mount.stop().ok();
        std::fs::remove_dir_all(place.path("cache-plain")).unwrap();
    }
}

/// Removes all chunks of a cache that nobody uses, and leaves its indexes.
fn drop_chunks(cache: &Path) {
    for path in files_below(cache) {
        if path.contains(".blob.") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// Paths of all files below a directory.
fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}
