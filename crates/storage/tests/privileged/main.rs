//! Tests that need root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../storage/image.rs"]
#[allow(dead_code, reason = "these tests need less of it")]
mod image;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use storage::ChunkStore;

use storage::{BlobSource, FileBlob, NamedSource, complete_cache_files, load_bootstrap};

use image::{Image, Kind, Source, cached, some_chunks};

/// A tmpfs of so many bytes; unmounted when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("none", dir.path(), "tmpfs", MountFlags::empty(), &*options).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn privileged_a_full_disk_keeps_nobody_from_reading() {
    if !testkit::oracle::is_root() {
        return testkit::skip(
            "privileged_a_full_disk_keeps_nobody_from_reading",
            "not root",
        );
    }
    let image = Image::new(some_chunks(60, 50_000), Kind::default());
    let disk = Tmpfs::new(400_000);
    let source = image.source();
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(source)),
        cached(disk.path()),
    )
    .unwrap();
    image.check(&store).unwrap();
    image.check(&store).unwrap();
    let stats = store.stats();
    assert!(
        stats.cache_errors > 0 && stats.errors == 0 && stats.hits > 0,
        "{stats}"
    );
    assert!(!store.is_complete(0));
    drop(store);
    // What fitted is still there and sound; the rest is fetched again.
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(image.source())),
        cached(disk.path()),
    )
    .unwrap();
    image.check(&store).unwrap();
    assert!(store.stats().hits > 0);
}

#[test]
fn privileged_a_disk_without_any_room_still_lets_read() {
    if !testkit::oracle::is_root() {
        return testkit::skip(
            "privileged_a_disk_without_any_room_still_lets_read",
            "not root",
        );
    }
    let image = Image::new(some_chunks(10, 5000), Kind::default());
    let disk = Tmpfs::new(8192);
    let _ = fs::write(disk.path().join("filler"), [1; 8192]);
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(image.source())),
        cached(disk.path()),
    )
    .unwrap();
    image.check(&store).unwrap();
    assert!(store.stats().cache_errors > 0);
}

#[test]
fn privileged_complete_cache_files_are_devices_of_a_kernel_mount() {
    const NAME: &str = "privileged_complete_cache_files_are_devices_of_a_kernel_mount";
    let Some(shared) = testkit::shared_or_skip(NAME) else {
        return;
    };
    if let Some(why) = testkit::oracle::no_erofs().or_else(testkit::oracle::no_fsck) {
        return testkit::skip(NAME, why);
    }
    let golden = shared.join("golden");
    let mut source = NamedSource::new(None);
    for name in ["v6-zstd", "v6-upper"] {
        let path = golden.join(format!("{name}.blob"));
        source.insert(
            testkit::sha256(&fs::read(&path).unwrap()),
            Arc::new(FileBlob::open(&path).unwrap()),
        );
    }
    let source: Arc<dyn BlobSource> = Arc::new(source);
    let boot = golden.join("merged/v6.boot");
    let dir = tempfile::tempdir().unwrap();
    let loaded = load_bootstrap(&boot).unwrap();
    let devices =
        complete_cache_files(&loaded.bootstrap, source, &dir.path().join("cache")).unwrap();
    testkit::oracle::fsck(&boot, &devices).unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mount = testkit::oracle::kernel_mount(&boot, &devices, &at).unwrap();
    let differences = testkit::expect::compare(mount.path(), &golden.join("merged.expect.json"));
    assert!(differences.is_empty(), "{differences:#?}");
}

const CHILD: &str = "STORAGE_TEST_MARKED_DIR";

fn marked_image() -> Image {
    Image::new(some_chunks(40, 30_000), Kind::default())
}

/// Not a test by itself: what [`privileged_a_writer_that_waits_for_a_filler_holds_up_nobody`] runs without
/// `CAP_SYS_ADMIN`.
#[test]
fn read_and_write_marked_files() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let image = marked_image();
    let source = Arc::new(Source(image.source()));
    let store = ChunkStore::open(&image.bootstrap, source, cached(Path::new(&dir))).unwrap();
    image.check(&store).unwrap();
    image.check(&store).unwrap();
    assert!(store.is_complete(0));
}

/// A store that fills a marked cache file for others, as it does for a mount by the kernel, and a process that has to ask
/// for each of its writes.
#[test]
fn privileged_a_writer_that_waits_for_a_filler_holds_up_nobody() {
    const NAME: &str = "privileged_a_writer_that_waits_for_a_filler_holds_up_nobody";
    use sys::fanotify::{Answer, EVENT_WORDS, Group};
    let image = marked_image();
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Source(image.source()));
    let store = ChunkStore::open(&image.bootstrap, source, cached(dir.path())).unwrap();
    let files = store.hand_over().unwrap();
    let group = Group::new().and_then(|group| group.mark(&files.blobs[0].data).map(|()| group));
    let group = match group {
        Ok(group) => group,
        Err(error) => return testkit::skip(NAME, &format!("no pre-content events: {error}")),
    };
    let start = Instant::now();
    let mut child = Command::new("setpriv");
    child
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "read_and_write_marked_files"])
        .env(CHILD, dir.path());
    let mut child = child.stdout(Stdio::null()).spawn().unwrap();
    let mut asked = 0;
    let status = thread::scope(|scope| {
        loop {
            let words = <[_; EVENT_WORDS]>::default();
            match group.read_event(&words) {
                Ok((event, file)) => {
                    asked += 1;
                    let (store, group) = (&store, &group);
                    scope.spawn(move || {
                        let filled = store.fill(0, event.range.unwrap());
                        filled.unwrap();
                        group.answer(event.number, Answer::Allow).unwrap();
                        drop(file);
                    });
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
            }
        }
    });
    let took = start.elapsed();
    assert!(status.success(), "{status} after {took:?}");
    assert!(asked != 0, "the child was never held up");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(store.is_complete(0));
    image.check(&store).unwrap();
}
