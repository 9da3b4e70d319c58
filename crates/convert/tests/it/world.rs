//! Sources and targets in a scratch directory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use convert::{ConvertOptions, ConvertReport, Error};
use image::{Location, Manifest, Source};
use progress::{Cancel, Silent};
use serde_json::Value;
use testkit::layout::{Layer, Packing};
use testkit::tar::{Entry, Tar};

/// A scratch directory with room for a source and a target.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The layout that tests convert from.
    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// The layout that tests convert to; not there yet.
    pub fn target(&self) -> PathBuf {
        self.path("target")
    }

    /// Converts the only image of the source, with `--check`.
    pub fn convert(&self, options: &ConvertOptions) -> Result<ConvertReport, Error> {
        self.convert_from(&oci(&self.source(), None), options)
    }

    pub fn convert_from(
        &self,
        source: &Location,
        options: &ConvertOptions,
    ) -> Result<ConvertReport, Error> {
        let target = oci(&self.target(), Some("t"));
        convert::convert(source, &target, options, &Silent, &Cancel::default())
    }

    /// The converted image.
    pub fn open(&self) -> Source {
        Source::open(&oci(&self.target(), Some("t"))).unwrap()
    }

    /// The manifest of the converted image, which must be the only one.
    pub fn manifest(&self) -> Manifest {
        let source = self.open();
        let mut all = source.manifests(&image::PlatformChoice::All).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0).1
    }

    pub fn config(&self) -> Value {
        self.open().config(&self.manifest()).unwrap()
    }
}

pub fn oci(dir: &Path, tag: Option<&str>) -> Location {
    Location::OciLayout {
        dir: dir.to_owned(),
        tag: tag.map(str::to_owned),
    }
}

/// Two threads, small chunks, and a check of every result.
pub fn options() -> ConvertOptions {
    ConvertOptions {
        chunk_size: 0x1000,
        check: true,
        platform: image::PlatformChoice::Host,
        ..ConvertOptions::new(NonZeroUsize::new(2).unwrap())
    }
}

/// A layer with one file.
pub fn tar(name: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::directory("dir/"));
    tar.add(Entry::file(format!("dir/{name}"), data));
    tar.finish()
}

/// A gzip layer of an OCI image with one file.
pub fn layer(name: &str, data: &[u8]) -> Layer {
    Layer::new(&tar(name, data), Packing::Gzip)
}

/// Every file below `dir` and its content, by path; empty if there is no `dir`.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                todo.push(entry.path());
            } else {
                files.insert(entry.path(), std::fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

/// An error and its causes, as the program prints them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
