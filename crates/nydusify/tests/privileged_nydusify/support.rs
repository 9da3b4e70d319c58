//! Places and mounts of the tests here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::run::{Mount, Ran, run, wait_until};
use testkit::tar::{Entry, Tar};
use testkit::{noise, oracle, skip};

/// The program under test.
pub const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");

/// A scratch directory.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A new one; `None`, said aloud, where the test `name` can't run.
    pub fn new(name: &str) -> Option<Self> {
        let kernel = oracle::no_erofs().or_else(oracle::no_fsck);
        if let Some(why) = oracle::no_fuse().or(kernel) {
            skip(name, why);
            return None;
        }
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory in here, made.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// `oci:DIR:TAG` of a layout in here.
    pub fn oci(&self, name: &str, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path(name).display())
    }

    /// Converts an image to the layout `nydus` in here, checked; its reference.
    #[track_caller]
    pub fn converted(&self, source: &str, options: &[&str]) -> String {
        let target = self.oci("nydus", "v6");
        run(
            NYDUSIFY,
            [
                "convert", "--source", source, "--target", &target, "--check",
            ]
            .iter()
            .chain(options),
        )
        .ok();
        target
    }

    /// Mounts an image at `root` in here, with its cache in `cache`.
    #[track_caller]
    pub fn mount(&self, target: &str, options: &[&str]) -> Mount {
        Mount::start(self.mount_command(target).args(options), &self.path("root"))
    }

    /// The command that mounts an image at `root` in here, with its cache in `cache`.
    pub fn mount_command(&self, target: &str) -> Command {
        self.mount_command_of(Path::new(NYDUSIFY), target)
    }

    /// The same with another file of the program.
    pub fn mount_command_of(&self, program: &Path, target: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(["mount", "--target", target, "--mount-path"])
            .arg(self.directory("root"));
        command.arg("--cache-dir").arg(self.path("cache"));
        command
    }

    /// A directory in here with these blobs of the deployed builder under their ids.
    pub fn golden_blobs(&self, golden: &Path, names: &[&str]) -> PathBuf {
        let blobs = self.directory("blobs");
        for name in names {
            let file = golden.join(name);
            let id = testkit::sha256(&std::fs::read(&file).unwrap());
            std::os::unix::fs::symlink(&file, blobs.join(id)).unwrap();
        }
        blobs
    }

    /// Checks bare RAFS files and mounts them at `root` in here.
    #[track_caller]
    pub fn checked_bare(&self, bootstrap: &Path, blobs: &Path, cache: &str) -> Mount {
        check_bare(bootstrap, blobs).ok();
        let mut command = Command::new(NYDUSIFY);
        command.arg("mount").args(bare(bootstrap, blobs));
        command.arg("--mount-path").arg(self.directory("root"));
        command.arg("--cache-dir").arg(self.path(cache));
        Mount::start(&mut command, &self.path("root"))
    }

    /// The merged bootstrap of the image in the layout `nydus`.
    pub fn bootstrap(&self) -> PathBuf {
        let layout = self.path("nydus");
        let blob = |digest: &serde_json::Value| {
            let name = digest.as_str().unwrap().replace(':', "/");
            std::fs::read(layout.join("blobs").join(name)).unwrap()
        };
        let json = |bytes: &[u8]| -> serde_json::Value { serde_json::from_slice(bytes).unwrap() };
        let index = json(&std::fs::read(layout.join("index.json")).unwrap());
        let manifest = json(&blob(&index["manifests"][0]["digest"]));
        let layer = blob(&manifest["layers"].as_array().unwrap().last().unwrap()["digest"]);
        let unpacked = self.directory("bootstrap-layer");
        std::fs::write(unpacked.join("layer.tar.gz"), layer).unwrap();
        run(
            "tar",
            [
                "-xzf",
                unpacked.join("layer.tar.gz").to_str().unwrap(),
                "-C",
                unpacked.to_str().unwrap(),
            ],
        )
        .ok();
        unpacked.join("image/image.boot")
    }

    /// The cache files of the blobs of a bootstrap, in slot order.
    pub fn devices(&self, bootstrap: &Path) -> Vec<PathBuf> {
        let slots = oracle::device_slots(&std::fs::read(bootstrap).unwrap());
        slots
            .iter()
            .map(|(id, _)| self.path("cache").join(format!("{id}.blob.data")))
            .collect()
    }
}

fn bare<'a>(bootstrap: &'a Path, blobs: &'a Path) -> [&'a str; 4] {
    let (bootstrap, blobs) = (bootstrap.to_str().unwrap(), blobs.to_str().unwrap());
    ["--bootstrap", bootstrap, "--blob-dir", blobs]
}

/// The modes of mounts that work here; says so where the kernel's does not.
pub fn modes(name: &str, place: &Place) -> Vec<&'static str> {
    let cache = place.directory("cache");
    let doctor = ["doctor", "--output", "json", "--cache-dir"];
    let doctor = run(NYDUSIFY, doctor.iter().chain(&[cache.to_str().unwrap()]));
    if doctor.stdout.contains(r#""erofs":true"#) {
        return vec!["fuse", "erofs"];
    }
    skip(name, "the kernel can't fill EROFS mounts on demand here");
    vec!["fuse"]
}

/// A file that everyone may use as long as this lives.
pub struct OpenToAll<'a> {
    path: &'a Path,
    before: std::fs::Permissions,
    _turn: std::sync::MutexGuard<'static, ()>,
}

/// Who else opens it would restore another's mode.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl<'a> OpenToAll<'a> {
    pub fn new(path: &'a Path) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let turn = TURN
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = std::fs::metadata(path).unwrap().permissions();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
        Self {
            path,
            before,
            _turn: turn,
        }
    }
}

impl Drop for OpenToAll<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::fs::set_permissions(self.path, self.before.clone()) {
            eprintln!("{}: cannot restore its mode: {error}", self.path.display());
        }
    }
}

/// `nydusify check` of bare RAFS files.
#[track_caller]
pub fn check_bare(bootstrap: &Path, blobs: &Path) -> Ran {
    run(NYDUSIFY, ["check"].iter().chain(&bare(bootstrap, blobs)))
}

/// The reference of the busybox fixture.
pub fn fixture() -> String {
    format!(
        "oci:{}:{}",
        testkit::fixture::busybox().display(),
        testkit::fixture::BUSYBOX_TAG
    )
}

/// Bytes that the files in a directory take on disk.
pub fn stored(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.metadata().unwrap().blocks() * 512)
        .sum()
}

/// Insists on an empty list of differences.
#[track_caller]
pub fn assert_equal(differences: &[String]) {
    let shown: Vec<&String> = differences.iter().take(40).collect();
    assert!(
        differences.is_empty(),
        "{} differences: {shown:#?}",
        differences.len()
    );
}

/// An image of many files that do not compress, each of several chunks, and what is in them.
pub fn noisy(place: &Place, files: u64) -> (String, BTreeMap<PathBuf, Vec<u8>>) {
    let mut tar = Tar::new();
    let mut expected = BTreeMap::new();
    for number in 0..files {
        let (name, data) = (format!("f{number:03}"), noise(number + 1, 150_000));
        tar.add(Entry::file(&name, &data));
        expected.insert(PathBuf::from(name), data);
    }
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let image = layout.manifest(&[Layer::new(&tar.finish(), Packing::Gzip)], Flavour::Oci);
    layout.tag(&image, "latest");
    let options = ["--fs-chunk-size", "0x10000"];
    (
        place.converted(&place.oci("source", "latest"), &options),
        expected,
    )
}

/// How often the tests kill a process of a mount: `NYDUSIFY_KILL_ROUNDS`, for longer runs by hand.
pub fn kill_rounds() -> usize {
    let rounds = std::env::var("NYDUSIFY_KILL_ROUNDS");
    rounds.map_or(12, |rounds| rounds.parse().expect("a number of rounds"))
}

/// The two processes of a FUSE mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub server: i32,
    pub keeper: i32,
}

impl Pair {
    /// Those of the mount at `root`.
    #[track_caller]
    pub fn of(root: &Path) -> Self {
        let mut value = [0; 128];
        let len = rustix::fs::getxattr(root, "user.nydusify.server", &mut value).unwrap();
        let value = std::str::from_utf8(&value[..len]).unwrap();
        let numbers: Vec<i32> = value
            .split(' ')
            .take(2)
            .map(|number| number.parse().unwrap())
            .collect();
        Self {
            server: numbers[0],
            keeper: numbers[1],
        }
    }

    /// Kills both at the same moment, which no mount outlives.
    pub fn kill(self, root: &Path) {
        // The keeper last: the kernel lets stopped processes go on whose group loses its last parent.
        let both = [self.server, self.keeper];
        // The kernel has these attributes from now on, and tells them of a dead mount, too.
        std::fs::metadata(root).unwrap();
        // Else one might see the other die, and start it again.
        stop(&both);
        both.iter().for_each(|&id| send(id, Signal::KILL));
        wait_until("the mount to be dead", || rustix::fs::statfs(root).is_err());
    }
}

/// Stops processes, and waits until each of their threads has: on a busy machine some go on for a while.
pub fn stop(processes: &[i32]) {
    processes.iter().for_each(|&id| send(id, Signal::STOP));
    let has_stopped = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    };
    wait_until("all threads to have stopped", || {
        let mut tasks = processes
            .iter()
            .flat_map(|id| std::fs::read_dir(format!("/proc/{id}/task")).unwrap());
        tasks.all(|task| task.is_ok_and(has_stopped))
    });
}

/// Sends a signal to a process, which may be gone.
pub fn send(id: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(id).unwrap(), signal);
}

/// Whether a process runs. One that has ended and that nobody has waited for yet does not.
pub fn lives(id: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// The processes that a process has started and not waited for yet.
pub fn children(id: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let text = text.unwrap_or_default();
    let numbers = text.split_whitespace().filter_map(|id| id.parse().ok());
    numbers.collect()
}

/// Reads all files of a mount, each once and by one of several readers, while something is done. All must be right.
pub fn read_while(root: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>, done: impl FnOnce()) {
    let files: Vec<_> = expected.iter().collect();
    std::thread::scope(|scope| {
        for part in files.chunks(files.len().div_ceil(3)) {
            scope.spawn(move || {
                for (name, data) in part {
                    let read = std::fs::read(root.join(name))
                        .unwrap_or_else(|error| panic!("{}: {error}", name.display()));
                    assert!(read == **data, "{} has other content", name.display());
                    std::thread::sleep(std::time::Duration::from_millis(15));
                }
            });
        }
        done();
    });
}
