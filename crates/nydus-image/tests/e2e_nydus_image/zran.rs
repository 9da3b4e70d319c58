//! Images whose chunks stay in a gzip layer, made and read by the real program.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use storage::load_bootstrap;
use testkit::run::make_fifo;
use testkit::shared_or_skip;
use testkit::tar::{Entry, Tar};

use crate::support::*;
use crate::unpack::{assert_same, unpack};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::new(6));
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

fn tar(seed: u64) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::directory("etc/"))
        .add(Entry::file("etc/config", testkit::prose(seed, 3000)))
        .add(Entry::file("text", testkit::prose(seed + 1, 3_000_000)))
        .add(Entry::file("noise", testkit::noise(seed + 2, 2_500_000)))
        .add(Entry::file("again", testkit::noise(seed + 2, 2_500_000)))
        .add(Entry::hard("same", "noise"));
    tar.finish()
}

/// The layer under its id in a directory of blobs, and that id.
fn layer(dir: &Path, bytes: &[u8]) -> (PathBuf, String) {
    let id = testkit::sha256(bytes);
    let path = dir.join(&id);
    std::fs::write(&path, bytes).unwrap();
    (path, id)
}

/// The bootstrap of a layer, the id of the layer, and digest and size of the blob that describes it.
type Source = (PathBuf, String, String, usize);

/// As converters run it.
fn consumer<'a>(kind: &'a str, blob: &'a Path, source: &'a Path) -> Vec<&'a str> {
    let fixed = ["create", "--log-level", "warn", "--type", kind];
    let rest = ["--blob-inline-meta", "--features", "blob-toc", "--blob"];
    let paths = [text(blob), text(source)];
    fixed.into_iter().chain(rest).chain(paths).collect()
}

#[test]
fn the_golden_layer_gives_the_same_tree_and_chunks() {
    let Some(shared) = shared_or_skip("the_golden_layer_gives_the_same_tree_and_chunks") else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    let (source, id) = layer(
        dir.path(),
        &std::fs::read(golden.join("lower.tar.gz")).unwrap(),
    );
    let (blob, json) = (dir.path().join("ref.blob"), dir.path().join("json"));
    let args = consumer("targz-ref", &blob, &source);
    nydus_image(args.into_iter().chain(["-J", text(&json)])).ok();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["blobs"], serde_json::json!([id]));
    assert_eq!(report["compressor"], "gzip");

    let deployed = load_bootstrap(&golden.join("v6-zran.blob")).unwrap();
    let ours = load_bootstrap(&blob).unwrap();
    let (theirs, own) = (&deployed.blobs()[0], &ours.blobs()[0]);
    assert_eq!((&own.id, own.features), (&theirs.id, theirs.features));
    assert_eq!(own.chunk_count, theirs.chunk_count);
    assert_eq!(own.compressed_size, theirs.compressed_size);
    assert_eq!(own.uncompressed_size, theirs.uncompressed_size);
    assert_eq!(own.compressor, theirs.compressor);
    assert_eq!(own.meta_compressor, theirs.meta_compressor);
    let chunks = |image: &storage::LoadedBootstrap| -> Vec<_> {
        let table = image.bootstrap.chunk_table().map(Result::unwrap);
        let facts = table.map(|chunk| {
            let place = (
                chunk.index,
                chunk.uncompressed_offset,
                chunk.uncompressed_size,
            );
            (place, chunk.digest, chunk.crc32, chunk.flags)
        });
        facts.collect()
    };
    assert!(chunks(&ours) == chunks(&deployed));

    // Both are checked with their data and give the source back.
    let expected = std::fs::read(golden.join("lower.tar")).unwrap();
    let copy = dir.path().join("v6-zran.blob");
    std::fs::copy(golden.join("v6-zran.blob"), &copy).unwrap();
    let out = dir.path().join("out.tar");
    for image in [&blob, &copy] {
        nydus_image(["check", "-D", text(dir.path()), text(image)]).ok();
        let got = unpack(&out, &["-B", text(image), "--blob-dir", text(dir.path())]);
        assert_same(&got, &expected, text(image));
        let listed = ["inspect", "-B", text(image), "-R", "blobs"];
        let listed = nydus_image(listed).ok().stdout;
        assert!(listed.contains(&id), "{listed}");
    }
}

#[test]
fn many_members_through_fifos_and_a_plain_tar() {
    let dir = tempfile::tempdir().unwrap();
    let tar = tar(1);
    let members: Vec<u8> = tar.chunks(700_001).flat_map(gzip).collect();
    for (kind, bytes) in [("estargz-ref", &members), ("targz-ref", &tar)] {
        let (source, id) = layer(dir.path(), bytes);
        let blob = dir.path().join(format!("{kind}.blob"));
        nydus_image(consumer(kind, &blob, &source)).ok();

        let (fifo_in, fifo_out) = (dir.path().join("in"), dir.path().join("out"));
        make_fifo(&fifo_in);
        make_fifo(&fifo_out);
        let (from, to) = (source.clone(), fifo_in.clone());
        let feed = thread::spawn(move || std::fs::copy(from, to));
        let from = fifo_out.clone();
        let drain = thread::spawn(move || std::fs::read(from));
        nydus_image(consumer(kind, &fifo_out, &fifo_in)).ok();
        feed.join().unwrap().unwrap();
        let piped = drain.join().unwrap().unwrap();
        assert!(piped == std::fs::read(&blob).unwrap());
        std::fs::remove_file(fifo_in).unwrap();
        std::fs::remove_file(fifo_out).unwrap();

        let out = dir.path().join("out.tar");
        let got = unpack(&out, &["-B", text(&blob), "--blob-dir", text(dir.path())]);
        assert_same(&got, &tar, kind);
        assert_eq!(load_bootstrap(&blob).unwrap().blobs()[0].id.as_str(), id);
    }
}

#[test]
fn a_bootstrap_apart_names_the_blob_with_the_chunk_table() {
    let dir = tempfile::tempdir().unwrap();
    let tar = tar(2);
    let (source, id) = layer(dir.path(), &gzip(&tar));
    let boot = dir.path().join("boot");
    for features in [&[][..], &["--features", "blob-toc"]] {
        let paths = ["-B", text(&boot), "-D", text(dir.path()), text(&source)];
        let args = ["create", "--type", "targz-ref"].into_iter().chain(paths);
        nydus_image(args.chain(features.iter().copied())).ok();
        let loaded = load_bootstrap(&boot).unwrap();
        let info = &loaded.blobs()[0];
        assert_eq!(info.id.as_str(), id);
        let table = dir.path().join(info.table_blob().unwrap().as_str());
        assert_eq!(std::fs::metadata(table).unwrap().len(), info.meta_size);
        let out = dir.path().join("out.tar");
        let got = unpack(&out, &["-B", text(&boot), "--blob-dir", text(dir.path())]);
        assert_same(&got, &tar, "the image");
    }
}

#[test]
fn layers_are_merged_whatever_the_command_line_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources: Vec<Source> = Vec::new();
    for seed in [3, 9] {
        let mut tar = Tar::new();
        tar.add(Entry::file(
            format!("file-{seed}"),
            testkit::prose(seed, 400_000),
        ));
        let (source, id) = layer(dir.path(), &gzip(&tar.finish()));
        let blob = dir.path().join("blob");
        nydus_image(consumer("targz-ref", &blob, &source)).ok();
        let bytes = std::fs::read(&blob).unwrap();
        let digest = testkit::sha256(&bytes);
        // As converters do it: the bootstrap is called as the blob that it comes from.
        let boot = dir.path().join(format!("{digest}.boot"));
        std::fs::write(&boot, bootstrap(&bytes)).unwrap();
        std::fs::rename(blob, dir.path().join(&digest)).unwrap();
        sources.push((boot, id, digest, bytes.len()));
    }
    let list = |item: fn(&Source) -> String| -> String {
        sources.iter().map(item).collect::<Vec<_>>().join(",")
    };
    let ids = list(|source| source.1.clone());
    let digests = list(|source| source.2.clone());
    let sizes = list(|source| source.3.to_string());
    let merged = dir.path().join("merged.boot");
    let named = ["--blob-digests", &digests, "--blob-sizes", &sizes];
    for options in [
        [&["--original-blob-ids", &ids][..], &named].concat(),
        named.to_vec(),
        vec![],
    ] {
        let boots = sources.iter().map(|source| text(&source.0));
        let args = ["merge", "-B", text(&merged)].into_iter().chain(boots);
        nydus_image(args.chain(options.iter().copied())).ok();
        let loaded = load_bootstrap(&merged).unwrap();
        for (info, (_, id, digest, _)) in loaded.blobs().iter().zip(&sources) {
            assert_eq!(info.id.as_str(), id);
            assert_eq!(info.table_blob().unwrap().as_str(), digest);
        }
        nydus_image(["check", "-D", text(dir.path()), text(&merged)]).ok();
        let out = dir.path().join("out.tar");
        let got = unpack(&out, &["-B", text(&merged), "--blob-dir", text(dir.path())]);
        let mut expected = Tar::new();
        for seed in [3, 9] {
            let name = format!("file-{seed}");
            expected.add(Entry::file(&name, testkit::prose(seed, 400_000)));
        }
        assert_same(&got, &expected.finish(), "the merged image");
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let good = gzip(&tar(4));
    let (source, _) = layer(dir.path(), &good);
    let blob = out.path().join("blob");
    for more in [
        &["--blob-id", "x"][..],
        &["--fs-version", "5"],
        &["--batch-size", "0x1000"],
        &["--encrypt"],
        &["--chunk-dict", "x"],
        &["--prefetch-policy", "blob"],
    ] {
        let args = consumer("targz-ref", &blob, &source);
        nydus_image(args.into_iter().chain(more.iter().copied())).exits(2);
    }
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let bad = [
        (&good[..good.len() - 5], "truncated"),
        (&flipped, "corrupt"),
        (&[&good[..], b"more"].concat(), "neither gzip nor zero"),
        (&zstd::encode_all(&tar(4)[..], 1).unwrap(), "zstd"),
    ];
    for (bytes, word) in bad {
        let (source, _) = layer(dir.path(), bytes);
        let ran = nydus_image(consumer("targz-ref", &blob, &source)).exits(1);
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}
