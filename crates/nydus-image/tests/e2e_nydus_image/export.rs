//! `export --block`: what lies where on a disk, and what is refused.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use testkit::run::{Ran, make_fifo};
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// A bootstrap whose blobs are in `blobs` under their ids.
struct Image {
    dir: tempfile::TempDir,
    bootstrap: PathBuf,
}

impl Image {
    fn blobs(&self) -> PathBuf {
        self.dir.path().join("blobs")
    }

    /// Builds layers with these options and merges them.
    #[track_caller]
    fn new(layers: &[Vec<u8>], options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = Self {
            bootstrap: dir.path().join("image.boot"),
            dir,
        };
        std::fs::create_dir(image.blobs()).unwrap();
        let mut merge = vec![
            "merge".to_owned(),
            "-B".into(),
            text(&image.bootstrap).into(),
        ];
        for tar in layers {
            let id = testkit::sha256(tar);
            let (source, boot) = (image.blobs().join(&id), image.dir.path().join(&id));
            std::fs::write(&source, tar).unwrap();
            let blob = image.dir.path().join("blob");
            let words = [
                "create",
                "-B",
                text(&boot),
                "-b",
                text(&blob),
                text(&source),
            ];
            nydus_image(words.iter().chain(options)).ok();
            if !options.contains(&"tar-tarfs") {
                std::fs::rename(&blob, &source).unwrap();
            }
            merge.push(text(&boot).to_owned());
        }
        nydus_image(merge).ok();
        image
    }

    fn export(&self, options: &[&str]) -> Ran {
        let (blobs, bootstrap) = (self.blobs(), &self.bootstrap);
        let words = [
            "export",
            "--block",
            "-D",
            text(&blobs),
            "-B",
            text(bootstrap),
        ];
        nydus_image(words.iter().chain(options))
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Changes the bootstrap.
    fn patch(&self, at: usize, bytes: &[u8]) {
        let mut bootstrap = std::fs::read(&self.bootstrap).unwrap();
        bootstrap[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&self.bootstrap, bootstrap).unwrap();
    }
}

fn lower() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file("large", testkit::noise(1, 3_000_001)))
        .add(Entry::file("zeros", vec![0; 2 << 20]))
        .add(Entry::file("goes", testkit::prose(2, 70_000)));
    tar.finish()
}

fn upper() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file(".wh.goes", ""))
        .add(Entry::file("new", testkit::prose(3, 5000)));
    tar.finish()
}

const RAFS: [&str; 6] = [
    "-t",
    "tar-rafs",
    "--chunk-size",
    "0x10000",
    "--whiteout-spec",
    "none",
];
const TARFS: [&str; 2] = ["-t", "tar-tarfs"];

/// First block of each device in the flat address space.
fn mapped(bootstrap: &[u8]) -> Vec<usize> {
    let slots = testkit::oracle::device_slots(bootstrap).len();
    let field = |slot: usize| {
        let at = 1408 + slot * 128 + 68;
        u32::from_le_bytes(bootstrap[at..at + 4].try_into().unwrap()) as usize
    };
    (0..slots).map(field).collect()
}

#[test]
fn tars_lie_whole_at_their_mapped_blocks() {
    let image = Image::new(&[lower(), upper()], &TARFS);
    // The default place and the default log level, as the snapshotter has it.
    let ran = image.export(&[]).ok();
    assert_eq!(ran.stdout, "");
    let path = image.blobs().join("image.boot.disk");
    let disk = std::fs::read(&path).unwrap();
    let bootstrap = std::fs::read(&image.bootstrap).unwrap();
    assert!(disk.starts_with(&bootstrap));
    let places = mapped(&bootstrap);
    let mut end = bootstrap.len();
    for (block, tar) in places.iter().zip([lower(), upper()]) {
        let start = block * 512;
        assert!(disk[end..start].iter().all(|&byte| byte == 0));
        assert!(disk[start..].starts_with(&tar));
        end = start + tar.len();
    }
    assert_eq!(disk.len(), end);
    let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        allocated < disk.len() as u64 - (2 << 20) + (64 << 10),
        "{allocated} of {} bytes are no hole",
        disk.len()
    );
}

#[test]
fn chunks_lie_at_their_blocks_and_unused_ones_are_left_out() {
    let image = Image::new(&[lower(), upper()], &RAFS);
    let out = image.dir.path().join("disk");
    image.export(&["-O", text(&out)]).ok();
    let disk = std::fs::read(&out).unwrap();
    let bootstrap = std::fs::read(&image.bootstrap).unwrap();
    assert!(disk.starts_with(&bootstrap));
    let places = mapped(&bootstrap);
    assert_eq!(places.len(), 2);
    // The files of a layer follow one another, each chunk at the next block; equal chunks lie there once.
    let at = |blob: usize, offset: usize| &disk[places[blob] * 4096 + offset..];
    let large = testkit::noise(1, 3_000_001);
    assert!(at(0, 0).starts_with(&large));
    let zeros = large.len().next_multiple_of(4096);
    let goes = zeros + 0x10000;
    assert!(at(0, zeros)[..0x10000].iter().all(|&byte| byte == 0));
    // The upper layer hides it.
    assert!(
        disk[places[0] * 4096 + goes..places[1] * 4096]
            .iter()
            .all(|&byte| byte == 0)
    );
    assert!(at(1, 0).starts_with(&testkit::prose(3, 5000)));
    assert_eq!(disk.len(), places[1] * 4096 + 8192);
    for threads in ["1", "32"] {
        image.export(&["-O", text(&out), "--threads", threads]).ok();
        assert!(std::fs::read(&out).unwrap() == disk, "{threads} threads");
    }
}

#[test]
fn the_line_about_dm_verity_is_all_of_the_output() {
    for (options, block_size) in [(&TARFS[..], 512_u64), (&RAFS[..], 4096)] {
        let image = Image::new(&[lower(), upper()], options);
        let out = image.dir.path().join("disk");
        image.export(&["-O", text(&out)]).ok();
        let plain = std::fs::read(&out).unwrap();
        let ran = image.export(&["-O", text(&out), "--verity"]).ok();
        let disk = std::fs::read(&out).unwrap();
        assert!(disk.starts_with(&plain));
        let size = plain.len() as u64;
        let (blocks, offset) = (size / block_size, size.next_multiple_of(4096));
        let head = format!(
            "dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size={block_size} \
             --hash-block-size=4096 --data-blocks {blocks} --hash-offset {offset} "
        );
        let root = ran.stdout.strip_prefix(&head).unwrap();
        let top = &disk[offset as usize..][..4096];
        assert_eq!(root, format!("{}\n", testkit::sha256(top)));
    }
}

#[test]
fn an_entry_of_a_blob_cache_names_both_bootstrap_and_blobs() {
    let image = Image::new(&[lower()], &RAFS);
    let (config, out) = (
        image.dir.path().join("entry"),
        image.dir.path().join("disk"),
    );
    let (blobs, bootstrap) = (image.blobs(), &image.bootstrap);
    let entry = format!(
        r#"{{"type":"bootstrap","id":"i","domain_id":"d","config_v2":{{"version":2,"id":"f","backend":{{
        "type":"localfs","localfs":{{"dir":"{}"}}}},"metadata_path":"{}"}}}}"#,
        text(&blobs),
        text(bootstrap)
    );
    std::fs::write(&config, &entry).unwrap();
    let words = ["export", "--block", "-C", text(&config)];
    nydus_image(words.iter().chain(&["-O", text(&out)])).ok();
    let theirs = std::fs::read(&out).unwrap();
    image.export(&["-O", text(&out)]).ok();
    assert!(std::fs::read(&out).unwrap() == theirs);
    std::fs::write(&config, entry.replace("metadata_path", "path")).unwrap();
    nydus_image(words.iter().chain(&["-O", text(&out)]))
        .exits(1)
        .fails_with(&["names no bootstrap"]);
    // There is no directory that the disk could go to.
    nydus_image(words).exits(2).fails_with(&["--output"]);
    nydus_image(["export", "-B", text(bootstrap), "-D", text(&blobs)])
        .exits(2)
        .fails_with(&["--block"]);
    nydus_image(["export", "--block", "-B", text(bootstrap), "-O", text(&out)])
        .exits(2)
        .fails_with(&["--localfs-dir"]);
    image.export(&["--threads", "33"]).exits(2);
}

#[test]
fn what_cannot_become_a_disk_leaves_no_file() {
    #[track_caller]
    fn refused(image: &Image, code: i32, words: &[&str]) {
        let before = image.names();
        let out = image.dir.path().join("disk");
        image
            .export(&["-O", text(&out), "--verity"])
            .exits(code)
            .fails_with(words);
        assert_eq!(image.names(), before);
    }
    let rafs = || Image::new(&[lower(), upper()], &RAFS);
    let blob = |image: &Image| {
        let bootstrap = std::fs::read(&image.bootstrap).unwrap();
        let slots = testkit::oracle::device_slots(&bootstrap);
        image.blobs().join(&slots[0].0)
    };
    let image = rafs();
    image.patch(1408 + 68, &[0; 4]);
    refused(&image, 1, &["no place"]);
    // Onto the bootstrap, and over the other blob.
    for place in [1_u32, 0x100] {
        let image = rafs();
        image.patch(1408 + 128 + 68, &place.to_le_bytes());
        refused(&image, 1, &["is taken up to"]);
    }
    let image = rafs();
    std::fs::remove_file(blob(&image)).unwrap();
    refused(&image, 1, &["No such file", text(&blob(&image))]);
    let image = rafs();
    let mut bytes = std::fs::read(blob(&image)).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(blob(&image), bytes).unwrap();
    refused(&image, 1, &["cannot read the data"]);
    let image = Image::new(&[lower()], &TARFS);
    let tar = std::fs::read(blob(&image)).unwrap();
    std::fs::write(blob(&image), &tar[..tar.len() - 512]).unwrap();
    refused(&image, 1, &["another tar, or a part of it"]);
    let v5 = Image::new(&[lower()], &[&RAFS[..], &["-v", "5"]].concat());
    refused(&v5, 2, &["v5", "transcode"]);
    let image = rafs();
    let fifo = image.dir.path().join("fifo");
    make_fifo(&fifo);
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || std::fs::read(Path::new(&fifo)).unwrap()
    });
    image
        .export(&["-O", text(&fifo)])
        .exits(2)
        .fails_with(&["no regular file"]);
    assert!(reader.join().unwrap().is_empty());
}
