//! Places and mounts of the tests here.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::run::{Mount, Ran, run};
use testkit::{oracle, skip};

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
        let mut command = Command::new(NYDUSIFY);
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
