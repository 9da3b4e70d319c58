//! Real mounts within the test process: needs root (or fusermount3) and /dev/fuse.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mount::{Mounted, Options};
use storage::{BlobSource, ChunkStore, DirSource, StoreOptions, load_bootstrap};
use testkit::expect::compare;
use testkit::{noise, oracle, shared_or_skip, skip};

/// Says aloud that a test can't run here; whether it can.
fn can_mount(test: &str) -> bool {
    match oracle::no_fuse() {
        Some(why) => {
            skip(test, why);
            false
        }
        None => true,
    }
}

/// A mounted golden image, its cache and its mount point.
struct Golden {
    mounted: Mounted,
    root: PathBuf,
    _place: tempfile::TempDir,
}

/// Mounts `bootstrap` with the blobs that `blobs` holds under their ids.
fn mount(bootstrap: &Path, blobs: &Path) -> Golden {
    let place = tempfile::tempdir().unwrap();
    let loaded = load_bootstrap(bootstrap).unwrap();
    let source = loaded
        .source(Some(
            Arc::new(DirSource(blobs.to_owned())) as Arc<dyn BlobSource>
        ))
        .unwrap();
    let options = StoreOptions {
        cache_dir: Some(place.path().join("cache")),
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(&loaded.bootstrap, source, options).unwrap();
    let root = place.path().join("root");
    let mounted = mount::mount(
        Arc::new(loaded.bootstrap),
        Arc::new(store),
        &root,
        &Options::default(),
    )
    .unwrap();
    Golden {
        mounted,
        root,
        _place: place,
    }
}

/// A directory of the golden blobs, each under its SHA-256.
fn blobs_by_id(golden: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sums = std::fs::read_to_string(golden.join("SHA256SUMS")).unwrap();
    for (digest, name) in sums.lines().filter_map(|line| line.split_once("  ")) {
        symlink(golden.join(name), dir.path().join(digest)).unwrap();
    }
    dir
}

#[test]
fn privileged_golden_images_show_the_expected_trees() {
    const TEST: &str = "privileged_golden_images_show_the_expected_trees";
    let Some(golden) = shared_or_skip(TEST).map(|shared| shared.join("golden")) else {
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let blobs = blobs_by_id(&golden);
    let images = [
        ("v6-zstd.blob", "lower.tar.expect.json"),
        ("v6-zstd-64k.blob", "lower.tar.expect.json"),
        ("v6-none.blob", "lower.tar.expect.json"),
        ("v6-lz4-sha256.blob", "lower.tar.expect.json"),
        ("v6-batch.blob", "lower.tar.expect.json"),
        ("v6-encrypt.blob", "lower.tar.expect.json"),
        ("v6-separate.boot", "lower.tar.expect.json"),
        ("v6-upper.blob", "upper.tar.expect.json"),
        ("v6-dict-upper.blob", "upper.tar.expect.json"),
        ("merged/v6.boot", "merged.expect.json"),
    ];
    for (image, expect) in images {
        let mount = mount(&golden.join(image), blobs.path());
        let mut differences = compare(&mount.root, &golden.join(expect));
        // The bootstrap of a lone layer keeps its whiteouts as files; the expected trees do not name them.
        differences.retain(|difference| {
            !(difference.starts_with("extra ") && difference.contains(".wh."))
        });
        assert!(differences.is_empty(), "{image}: {differences:#?}");
        assert_eq!(mount.mounted.stats().errors, 0, "{image}");
    }
}

/// The files of a tree by size, the largest first.
fn files_of(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut below = vec![root.to_owned()];
    while let Some(dir) = below.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                below.push(entry.path());
            } else if metadata.is_file() {
                files.push((metadata.size(), entry.path()));
            }
        }
    }
    files.sort();
    files.into_iter().rev().map(|(_, path)| path).collect()
}

#[test]
fn privileged_reads_at_random_offsets_by_many_readers_agree() {
    const TEST: &str = "privileged_reads_at_random_offsets_by_many_readers_agree";
    let Some(golden) = shared_or_skip(TEST).map(|shared| shared.join("golden")) else {
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let blobs = blobs_by_id(&golden);
    // 64 KiB chunks: reads cross their borders all the time.
    let image = golden.join("v6-zstd-64k.blob");
    let cold = mount(&image, blobs.path());
    let whole = mount(&image, blobs.path());
    let files: Vec<PathBuf> = files_of(&whole.root)
        .iter()
        .map(|path| path.strip_prefix(&whole.root).unwrap().to_owned())
        .take(6)
        .collect();
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (files, cold, whole) = (&files, &cold.root, &whole.root);
            scope.spawn(move || {
                let picks = noise(reader + 1, 8 * 200);
                for pick in picks
                    .chunks_exact(8)
                    .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
                {
                    let file = &files[(pick % files.len() as u64) as usize];
                    let truth = std::fs::read(whole.join(file)).unwrap();
                    let offset = (pick >> 8) % (truth.len() as u64 + 10);
                    let mut buffer = vec![0; 1 + ((pick >> 40) % 200_000) as usize];
                    let len = File::open(cold.join(file))
                        .unwrap()
                        .read_at(&mut buffer, offset)
                        .unwrap();
                    let want = truth.get(offset as usize..).unwrap_or_default();
                    let want = &want[..want.len().min(buffer.len())];
                    assert!(buffer[..len] == *want, "{} at {offset}", file.display());
                }
            });
        }
    });
}

#[test]
fn privileged_damage_is_eio_and_the_rest_stays_readable() {
    const TEST: &str = "privileged_damage_is_eio_and_the_rest_stays_readable";
    let Some(golden) = shared_or_skip(TEST).map(|shared| shared.join("golden")) else {
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut blob = std::fs::read(golden.join("v6-none.blob")).unwrap();
    // Uncompressed, so every flipped byte of data is one of a file.
    let data_end = 4 << 20;
    for at in (0..data_end).step_by(1 << 20) {
        blob[at + 4321] ^= 1;
    }
    std::fs::write(dir.path().join("v6-none.blob"), &blob).unwrap();
    let good = mount(&golden.join("v6-none.blob"), dir.path());
    let bad = mount(&dir.path().join("v6-none.blob"), dir.path());
    let (mut same, mut refused) = (0, 0);
    for file in files_of(&good.root) {
        let path = file.strip_prefix(&good.root).unwrap();
        let want = std::fs::read(&file).unwrap();
        let mut got = Vec::new();
        match File::open(bad.root.join(path))
            .unwrap()
            .read_to_end(&mut got)
        {
            Ok(_) => {
                assert!(got == want, "{}: wrong bytes", path.display());
                same += 1;
            }
            Err(error) => {
                assert_eq!(
                    error.raw_os_error(),
                    Some(rustix::io::Errno::IO.raw_os_error()),
                    "{}",
                    path.display()
                );
                assert!(
                    want.starts_with(&got),
                    "{}: wrong bytes before the error",
                    path.display()
                );
                refused += 1;
            }
        }
    }
    assert!(
        same > 0 && refused > 0,
        "{same} files read, {refused} refused"
    );
    assert!(bad.mounted.stats().errors >= refused);
}

/// Looks at everything below `dir`, down to a depth that no sound image here has; a damaged one may have loops.
fn look_at_all(dir: &Path, depth: u32, left: &mut u32) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(fewer) = left.checked_sub(1) else {
            return;
        };
        *left = fewer;
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let mut value = [0; 256];
        let _ = rustix::fs::lgetxattr(&path, "user.dir", &mut value);
        if metadata.is_dir() && depth > 0 {
            look_at_all(&path, depth - 1, left);
        } else if metadata.is_symlink() {
            let _ = std::fs::read_link(&path);
        } else if metadata.is_file() {
            let mut start = vec![0; 20_000];
            if let Ok(file) = File::open(&path) {
                let _ = file.read_at(&mut start, 0);
                let _ = file.read_at(&mut start, metadata.size().saturating_sub(10_000));
            }
        }
    }
}

#[test]
fn privileged_a_damaged_bootstrap_is_refused_or_served_without_a_crash() {
    const TEST: &str = "privileged_a_damaged_bootstrap_is_refused_or_served_without_a_crash";
    let Some(golden) = shared_or_skip(TEST).map(|shared| shared.join("golden")) else {
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let blobs = blobs_by_id(&golden);
    let sound = std::fs::read(golden.join("v6-separate.boot")).unwrap();
    let picks = noise(7, 40 * 8);
    let mut served = 0;
    // A panic ends one serving thread without anybody noticing but this.
    static CRASHES: AtomicU32 = AtomicU32::new(0);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        if !name.starts_with("privileged_") {
            CRASHES.fetch_add(1, Ordering::Relaxed);
        }
        print(panic);
    }));
    for pick in picks
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    {
        // Several at once, most of them where inodes and directories are.
        let mut bytes = sound.clone();
        for part in 0..4 {
            let at = (pick.rotate_left(part * 16) as usize) % bytes.len();
            bytes[at] ^= 1 << (pick >> (part * 3) & 7);
        }
        let Ok(bootstrap) = rafs_format::Bootstrap::parse(bytes) else {
            continue;
        };
        let Ok(store) = ChunkStore::open(
            &bootstrap,
            Arc::new(DirSource(blobs.path().to_owned())),
            StoreOptions::default(),
        ) else {
            continue;
        };
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        let mounted = mount::mount(
            Arc::new(bootstrap),
            Arc::new(store),
            &root,
            &Options::default(),
        )
        .unwrap();
        look_at_all(&root, 8, &mut 2_000);
        drop(mounted);
        assert_eq!(CRASHES.load(Ordering::Relaxed), 0);
        served += 1;
    }
    assert!(
        served > 5,
        "{served} of the damaged bootstraps could be mounted"
    );
}

#[test]
fn privileged_names_that_are_not_there_and_types_that_do_not_fit() {
    const TEST: &str = "privileged_names_that_are_not_there_and_types_that_do_not_fit";
    let Some(golden) = shared_or_skip(TEST).map(|shared| shared.join("golden")) else {
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let mount = mount(&golden.join("v6-zstd.blob"), &golden);
    let errno = |error: std::io::Error| {
        error
            .raw_os_error()
            .map(rustix::io::Errno::from_raw_os_error)
    };
    let absent = mount.root.join("no/such/name");
    for _ in 0..3 {
        assert_eq!(
            errno(std::fs::metadata(&absent).unwrap_err()),
            Some(rustix::io::Errno::NOENT)
        );
    }
    let lookups = mount.mounted.stats().lookups;
    let _ = std::fs::metadata(&absent);
    assert_eq!(
        mount.mounted.stats().lookups,
        lookups,
        "the kernel remembers what is not there"
    );

    let file = files_of(&mount.root).remove(0);
    assert_eq!(
        errno(std::fs::write(&file, b"x").unwrap_err()),
        Some(rustix::io::Errno::ROFS)
    );
    assert_eq!(
        errno(std::fs::read_link(&file).unwrap_err()),
        Some(rustix::io::Errno::INVAL)
    );
    let mut value = [0; 64];
    let none = rustix::fs::getxattr(&file, "user.none", &mut value);
    assert_eq!(none.unwrap_err(), rustix::io::Errno::NODATA);
    let reads = mount.mounted.stats().reads;
    std::fs::read(&file).unwrap();
    let cold = mount.mounted.stats().reads;
    std::fs::read(&file).unwrap();
    assert!(cold > reads, "the first read reaches us");
    assert_eq!(
        mount.mounted.stats().reads,
        cold,
        "the page cache is kept across opens"
    );
}

#[test]
fn privileged_dropping_a_mount_unmounts_and_removes_the_directory_made_for_it() {
    const TEST: &str = "privileged_dropping_a_mount_unmounts_and_removes_the_directory_made_for_it";
    let Some(golden) = shared_or_skip(TEST).map(|shared| shared.join("golden")) else {
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let mount = mount(&golden.join("v6-zstd.blob"), &golden);
    assert!(testkit::run::is_mounted(&mount.root));
    drop(mount.mounted);
    assert!(!testkit::run::is_mounted(&mount.root));
    assert!(!mount.root.exists());
}
