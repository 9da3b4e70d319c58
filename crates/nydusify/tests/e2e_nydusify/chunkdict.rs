//! `nydusify chunkdict`, and `convert --chunk-dict DIR`.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::bucket::Bucket;
use testkit::layout::{self, Packing};
use testkit::noise;
use testkit::run::{Ran, run};
use testkit::tar::{Entry, Tar};

use crate::support::*;

const MIB: usize = 1 << 20;

/// Converts an image with a file for each number to `oci:nydus:TAG`, and gives that name.
fn nydus(place: &Place, tag: &str, parts: &[u64]) -> String {
    let target = place.oci("nydus", tag);
    convert(&plain(place, tag, parts), &target, &[]).ok();
    target
}

fn plain(place: &Place, name: &str, parts: &[u64]) -> String {
    let mut tar = Tar::new();
    for part in parts {
        tar.add(Entry::file(format!("{part}"), noise(*part, MIB / 4)));
    }
    layout::write(&place.path(name), &[tar.finish()], Packing::Gzip);
    format!("oci:{}", place.path(name).display())
}

fn dictionary(place: &Place) -> String {
    place.path("dict").display().to_string()
}

#[track_caller]
fn chunkdict(place: &Place, command: &str, more: &[&str]) -> Ran {
    let dict = dictionary(place);
    let words = ["chunkdict", command, "--dict", &dict];
    run(NYDUSIFY, words.iter().chain(more))
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

fn snapshot(place: &Place) -> String {
    let listed = json(&chunkdict(place, "ls", &["--output", "json"]).ok());
    listed["snapshot"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_dictionary_from_its_first_image_to_its_last() {
    let place = Place::new();
    chunkdict(&place, "ls", &[])
        .exits(1)
        .fails_with(&["is no chunk dictionary"]);
    let one = nydus(&place, "one", &[1, 2, 3, 4, 5]);
    let two = nydus(&place, "two", &[3, 4, 5, 6, 7]);
    chunkdict(&place, "add", &[&one, &two])
        .ok()
        .says(&["images:    2", "chunks:    10 (0 before)"]);
    chunkdict(&place, "ls", &[])
        .ok()
        .says(&["present", "nydus:one", "nydus:two"]);
    let stat = json(&chunkdict(&place, "stat", &["--output", "json"]).ok());
    assert_eq!(stat["schema"], "nydusify-chunkdict-stat/1");
    assert_eq!(stat["shared"][0]["common"]["bytes"], 3 * MIB / 4);
    assert_eq!(stat["images"][0]["own"]["chunks"], 2);
    assert_eq!(
        (&stat["distinct"]["chunks"], &stat["places"]["chunks"]),
        (&7.into(), &10.into())
    );
    chunkdict(&place, "stat", &[])
        .ok()
        .says(&["60.0%", "1+2", "786432"]);

    // A third image of what both have.
    let third = plain(&place, "three", &[1, 2, 3, 6, 7, 9]);
    let target = place.oci("other", "t");
    let dict = dictionary(&place);
    let ran = convert(
        &third,
        &target,
        &["--chunk-dict", &dict, "--dict-min-run", "1", "--check"],
    )
    .ok();
    assert!(
        ran.stderr.contains("1310720 against the dictionary"),
        "{ran}"
    );
    check(&third, &target).ok();
    // The new image is of the same blobs, and of one more.
    chunkdict(&place, "add", &[&target])
        .ok()
        .says(&["chunks:    11 (10 before)"]);
    chunkdict(&place, "rm", &[&target]).ok();
    let digest = "0".repeat(64);
    chunkdict(&place, "query", &[&digest])
        .exits(1)
        .says(&["unknown"]);
    chunkdict(&place, "query", &["xyz"])
        .exits(2)
        .fails_with(&["64 lowercase"]);
    chunkdict(&place, "verify", &["--data"])
        .ok()
        .says(&["ok", "all 2 images are there"]);

    // Out, and forgotten.
    chunkdict(&place, "rm", &["nowhere:1"])
        .exits(1)
        .fails_with(&["no image"]);
    chunkdict(&place, "rm", &[&two]).ok();
    chunkdict(&place, "ls", &[]).ok().says(&["removed"]);
    chunkdict(&place, "gc", &[])
        .ok()
        .says(&["kept", "grace period"]);
    chunkdict(&place, "gc", &["--grace-period", "0s"])
        .ok()
        .says(&["forgot", "deleted 0 old snapshots"]);
    let stat = json(&chunkdict(&place, "stat", &["--output", "json"]).ok());
    assert_eq!(
        (&stat["places"]["chunks"], &stat["shared"]),
        (&5.into(), &Value::Array(vec![]))
    );
    chunkdict(&place, "rm", &[&one]).ok();
    chunkdict(&place, "stat", &[])
        .exits(1)
        .fails_with(&["is empty"]);
}

#[test]
fn damage_is_told_and_mended_of_the_images() {
    let place = Place::new();
    let one = nydus(&place, "one", &[1, 2, 3]);
    let two = nydus(&place, "two", &[3, 4]);
    chunkdict(&place, "add", &[&two, &one]).ok();
    let id = snapshot(&place);
    let file = place.path("dict/snapshots").join(&id);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let dict = dictionary(&place);
    let source = plain(&place, "three", &[1]);
    let target = place.oci("other", "t");
    convert(&source, &target, &["--chunk-dict", &dict])
        .exits(1)
        .fails_with(&["damaged", "rebuild"]);
    assert!(!place.path("other").exists());
    chunkdict(&place, "add", &[&one])
        .exits(1)
        .fails_with(&["damaged"]);
    chunkdict(&place, "rebuild", &[])
        .ok()
        .says(&["the same as before"]);
    assert_eq!(snapshot(&place), id);
    convert(
        &source,
        &target,
        &["--chunk-dict", &dict, "--dict-min-run", "1"],
    )
    .ok();
    // An image that is gone is said, and is not in it any more.
    std::fs::remove_dir_all(place.path("nydus")).unwrap();
    chunkdict(&place, "verify", &[]).exits(1).says(&[
        "FAILED",
        "the image is gone",
        "2 of 2 images",
    ]);
    chunkdict(&place, "ls", &[]).ok().says(&["absent"]);
    chunkdict(&place, "gc", &["--grace-period", "0s"])
        .ok()
        .says(&["forgot", "nydus:one", "nydus:two"]);
    // A source that is no directory is no dictionary, an empty directory neither.
    std::fs::create_dir(place.path("empty")).unwrap();
    let empty = place.path("empty").display().to_string();
    convert(&source, &target, &["--chunk-dict", &empty])
        .exits(1)
        .fails_with(&["is no chunk dictionary"]);
}

#[test]
fn two_add_at_once_and_one_is_killed() {
    let place = Place::new();
    let images: Vec<String> = (0..4)
        .map(|n| nydus(&place, &format!("v{n}"), &[1, n + 10]))
        .collect();
    let start = |words: &[&str]| {
        let mut command = Command::new(NYDUSIFY);
        command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let dict = dictionary(&place);
    let add = |image: &str| start(&["chunkdict", "add", "--dict", &dict, image]);
    let mut children: Vec<_> = images.iter().map(|image| add(image)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let id = snapshot(&place);
    for delay in [1, 5, 20, 50] {
        let mut child = add(&images[0]);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(snapshot(&place), id);
    }
    // A conversion that is killed lets go of its lease.
    let source = plain(&place, "next", &[1, 10, 11, 12, 99]);
    let target = place.oci("other", "t");
    let mut child = start(&[
        "convert",
        "--source",
        &source,
        "--target",
        &target,
        "--chunk-dict",
        &dict,
    ]);
    std::thread::sleep(Duration::from_millis(30));
    child.kill().unwrap();
    child.wait().unwrap();
    chunkdict(&place, "rm", &[&images[3]]).ok();
    let ran = chunkdict(&place, "gc", &["--grace-period", "0s"]).ok();
    assert!(
        ran.stdout.contains("forgot") && !ran.stdout.contains("kept"),
        "{ran}"
    );
    let files = std::fs::read_dir(place.path("dict/snapshots")).unwrap();
    assert_eq!(files.count(), 1);
    convert(&source, &target, &["--chunk-dict", &dict, "--check"]).ok();
}

#[test]
fn a_generated_dictionary_is_an_image_and_serves_as_one() {
    let place = Place::new();
    let one = nydus(&place, "one", &[1, 2, 3, 4, 5]);
    let two = nydus(&place, "two", &[3, 4, 5, 6]);
    let generate = |sources: &str, tag: &str| {
        let target = place.oci("dictionaries", tag);
        let words = [
            "chunkdict",
            "generate",
            "--sources",
            sources,
            "--target",
            &target,
        ];
        run(NYDUSIFY, words).ok();
        digest(&place.path("dictionaries"), tag)
    };
    let first = generate(&format!("{one},{two}"), "a");
    assert_eq!(first, generate(&format!("{two},{one}"), "b"));
    let manifest = manifest(&place.path("dictionaries"), "a");
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2, "a blob and the bootstrap");
    assert_eq!(
        layers[1]["mediaType"],
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    );
    let source = plain(&place, "three", &[3, 4, 5, 8]);
    let name = format!("bootstrap:registry:{}", place.oci("dictionaries", "a"));
    let target = place.oci("other", "t");
    let ran = convert(
        &source,
        &target,
        &["--chunk-dict", &name, "--dict-min-run", "1", "--check"],
    )
    .ok();
    assert!(
        ran.stderr.contains("786432 against the dictionary"),
        "{ran}"
    );
    // The directory gives the same dictionary as a bare bootstrap.
    chunkdict(&place, "add", &[&one, &two]).ok();
    let file = place.path("dict.boot").display().to_string();
    chunkdict(&place, "export", &["--bootstrap", &file]).ok();
    let name = format!("bootstrap:local:{file}");
    let target = place.oci("dictionaries", "c");
    let ran = convert(
        &source,
        &target,
        &["--chunk-dict", &name, "--dict-min-run", "1", "--check"],
    )
    .ok();
    assert!(
        ran.stderr.contains("786432 against the dictionary"),
        "{ran}"
    );
    let plain = format!("{one},{source}");
    let words = [
        "chunkdict",
        "generate",
        "--sources",
        &plain,
        "--target",
        &target,
    ];
    run(NYDUSIFY, words)
        .exits(1)
        .fails_with(&["holds no Nydus image"]);
}

#[test]
fn a_dictionary_is_generated_of_images_whose_blobs_lie_in_a_backend() {
    let place = Place::new();
    let bucket = Bucket::s3();
    let (kind, config) = (bucket.kind(), bucket.config("images/"));
    let backend = ["--backend-type", kind, "--backend-config", &config];
    let images = [("one", &[1, 2, 3, 4, 5][..]), ("two", &[3, 4, 5, 6])];
    let outside = images.map(|(tag, parts)| {
        let target = place.oci("outside", tag);
        convert(&plain(&place, tag, parts), &target, &backend).ok();
        target
    });
    let generate = |sources: &[String], layout: &str, more: &[&str]| {
        let (sources, target) = (sources.join(","), place.oci(layout, "d"));
        let words = ["chunkdict", "generate", "--sources", &sources];
        let at = ["--target", &target];
        run(NYDUSIFY, words.iter().chain(&at).chain(more))
    };
    generate(&outside, "dictionary", &backend).ok();
    // The same dictionary as of the images that list their blobs, and a whole image like it.
    let inside = images.map(|(tag, parts)| nydus(&place, tag, parts));
    generate(&inside, "same", &[]).ok();
    let made = digest(&place.path("dictionary"), "d");
    assert_eq!(made, digest(&place.path("same"), "d"));
    let layers = manifest(&place.path("dictionary"), "d")["layers"].clone();
    let blob = layers[0]["digest"].as_str().unwrap().replace(':', "/");
    let blob = std::fs::read(place.path("dictionary/blobs").join(blob)).unwrap();
    let name = format!("images/{}", testkit::sha256(&blob));
    assert!(bucket.objects().contains_key(&name));
    let source = plain(&place, "three", &[3, 4, 5, 8]);
    let dictionary = format!("bootstrap:registry:{}", place.oci("dictionary", "d"));
    let target = place.oci("other", "t");
    let options = ["--chunk-dict", &dictionary, "--dict-min-run", "1"];
    convert(&source, &target, &options)
        .ok()
        .says(&["786432 against the dictionary"]);
    check(&source, &target).ok();

    generate(&outside, "nothing", &[])
        .exits(1)
        .fails_with(&["is listed by no image"]);
    let config = bucket.config("elsewhere/");
    let elsewhere = ["--backend-type", kind, "--backend-config", &config];
    generate(&outside, "nothing", &elsewhere)
        .exits(1)
        .fails_with(&["is missing from"]);
    assert_clean(&place.path("nothing"), "d");
}

/// The bootstrap of an image in a layout, as a file.
fn bootstrap(place: &Place, layout: &str, tag: &str) -> String {
    let manifest = manifest(&place.path(layout), tag);
    let layer = manifest["layers"].as_array().unwrap().last().unwrap();
    let layer = layer["digest"].as_str().unwrap().replace(':', "/");
    let bytes = std::fs::read(place.path(layout).join("blobs").join(layer)).unwrap();
    let mut archive = Vec::new();
    std::io::copy(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut archive).unwrap();
    // A directory, then the file's header.
    let size = std::str::from_utf8(&archive[512 + 124..][..11]).unwrap();
    let size = usize::from_str_radix(size, 8).unwrap();
    let path = place.path(&format!("{tag}.boot")).display().to_string();
    std::fs::write(&path, &archive[1024..][..size]).unwrap();
    path
}

#[test]
fn bare_bootstraps_are_taken_up_together() {
    let place = Place::new();
    let all: [(&str, &[u64]); 3] = [
        ("one", &[1, 2, 3]),
        ("two", &[3, 4]),
        ("three", &[4, 5, 6, 7]),
    ];
    let files = all.map(|(tag, parts)| {
        nydus(&place, tag, parts);
        bootstrap(&place, "nydus", tag)
    });
    let four = nydus(&place, "four", &[7, 8]);
    let [one, two, three] = &files;
    let all = [
        "--bootstrap",
        one,
        "--bootstrap",
        two,
        &four,
        "--bootstrap",
        three,
    ];
    chunkdict(&place, "add", &all)
        .ok()
        .says(&["images:    4", "chunks:    11 (0 before)"]);
    // One snapshot for all of them.
    let files = std::fs::read_dir(place.path("dict/snapshots")).unwrap();
    assert_eq!(files.count(), 1);
    let name = format!("bootstrap:{one}");
    chunkdict(&place, "ls", &[])
        .ok()
        .says(&[&name, "nydus:four"]);
    let id = snapshot(&place);
    chunkdict(&place, "add", &all[..2])
        .ok()
        .says(&["(11 before)"]);
    assert_eq!(snapshot(&place), id, "it was there already");
    chunkdict(&place, "verify", &[])
        .ok()
        .says(&["0 blobs, 3 chunks", "all 4 images are there"]);
    chunkdict(&place, "rebuild", &[])
        .ok()
        .says(&["the same as before"]);

    // Their blobs are taken where they are in the target, and only there.
    let source = plain(&place, "next", &[1, 2, 4, 5, 9]);
    let dict = dictionary(&place);
    let options = ["--chunk-dict", &dict, "--dict-min-run", "1", "--check"];
    convert(&source, &place.oci("nydus", "next"), &options)
        .ok()
        .says(&["1048576 against the dictionary"]);
    check(&source, &place.oci("nydus", "next")).ok();
    convert(&source, &place.oci("other", "next"), &options)
        .ok()
        .says(&["are gone and not used", "0 against the dictionary"]);

    chunkdict(&place, "rm", &[&name]).ok();
    std::fs::remove_file(two).unwrap();
    chunkdict(&place, "verify", &[])
        .exits(1)
        .says(&["the bootstrap is gone", "1 of 3 images"]);
    let gone = place.path("no.boot").display().to_string();
    chunkdict(&place, "add", &["--bootstrap", &gone])
        .exits(1)
        .fails_with(&["cannot read", "no.boot"]);
    chunkdict(&place, "add", &[])
        .exits(2)
        .fails_with(&["<IMAGE>..."]);
}

#[test]
fn bootstraps_of_the_deployed_builder_are_taken_up() {
    let test = "bootstraps_of_the_deployed_builder_are_taken_up";
    let Some(shared) = testkit::shared_or_skip(test) else {
        return;
    };
    for names in [
        &["v5-separate.boot"][..],
        &["v6-separate.boot", "v6-upper.blob", "v6-zstd.blob"],
    ] {
        let place = Place::new();
        let golden = |name: &str| shared.join("golden").join(name).display().to_string();
        let files: Vec<String> = names.iter().map(|name| golden(name)).collect();
        let words: Vec<&str> = files
            .iter()
            .flat_map(|file| ["--bootstrap", file.as_str()])
            .collect();
        let count = format!("images:    {}", names.len());
        chunkdict(&place, "add", &words).ok().says(&[&count]);
        let stat = json(&chunkdict(&place, "stat", &["--output", "json"]).ok());
        assert_ne!(stat["places"]["chunks"], 0, "{stat}");
        chunkdict(&place, "verify", &[]).ok();
    }
}
