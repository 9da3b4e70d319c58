//! The images that are measured.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::floor::{Layer, unpacked};

/// An image in an OCI layout, and what its layers unpack to.
pub struct Input {
    /// Name in tables and file names.
    pub name: String,
    /// The layout's directory.
    pub layout: PathBuf,
    /// The image's tag.
    pub tag: String,
    /// Layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The largest layer as a plain tar.
    pub tar: PathBuf,
    /// The layers unpacked one over another, for reading the native way.
    pub tree: PathBuf,
}

impl Input {
    /// Takes an image from a layout and unpacks it into `work` with the system's tar.
    pub fn open(name: &str, layout: &Path, tag: &str, work: &Path) -> Result<Self> {
        let layers = layers(layout, tag)?;
        let largest = layers
            .iter()
            .max_by_key(|l| l.metadata().map_or(0, |m| m.len()))
            .context("no layer")?;
        let tar = work.join(format!("{name}.tar"));
        let mut stream = unpacked(File::open(largest)?)?;
        io::copy(&mut stream, &mut File::create(&tar)?)
            .with_context(|| format!("unpack {}", largest.display()))?;
        let tree = work.join(format!("{name}.tree"));
        std::fs::create_dir(&tree)?;
        for layer in &layers {
            let args = [
                "--exclude=.wh.*",
                "--exclude=./dev/*",
                "--exclude=dev/*",
                "-x",
                "-f",
            ];
            let done = Command::new("tar")
                .args(args)
                .arg(layer)
                .arg("-C")
                .arg(&tree)
                .status()?;
            if !done.success() {
                bail!("tar could not unpack {}", layer.display());
            }
        }
        Ok(Self {
            name: name.to_owned(),
            layout: layout.to_owned(),
            tag: tag.to_owned(),
            layers,
            tar,
            tree,
        })
    }

    /// The image as `nydusify` names it.
    pub fn reference(&self) -> String {
        format!("oci:{}:{}", self.layout.display(), self.tag)
    }

    /// The layers as a conversion reads them.
    pub fn image_layers(&self) -> Vec<Layer> {
        self.layers
            .iter()
            .map(|path| Layer {
                path: path.clone(),
                from_image: true,
            })
            .collect()
    }

    /// The largest layer as `create` reads it.
    pub fn tar_layer(&self) -> Layer {
        Layer {
            path: self.tar.clone(),
            from_image: false,
        }
    }
}

/// The layer files of a tagged image in a layout.
fn layers(layout: &Path, tag: &str) -> Result<Vec<PathBuf>> {
    let json = |path: PathBuf| -> Result<Value> {
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"]
            .as_str()
            .context("a descriptor without digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = json(layout.join("index.json"))?;
    let named = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifest = index["manifests"]
        .as_array()
        .and_then(|all| all.iter().find(named));
    let manifest =
        json(blob(manifest.with_context(|| {
            format!("no tag {tag} in {}", layout.display())
        })?)?)?;
    manifest["layers"]
        .as_array()
        .context("a manifest without layers")?
        .iter()
        .map(blob)
        .collect()
}

/// A layout with one layer of `count` files of `size` bytes each that do not compress to nothing.
pub fn small_files(layout: &Path, count: u64, size: usize) {
    let mut tar = testkit::tar::Tar::new();
    for number in 0..count {
        tar.add(testkit::tar::Entry::file(
            format!("data/{:02}/{number:05}", number % 100),
            testkit::prose(number, size),
        ));
    }
    testkit::layout::write(layout, &[tar.finish()], testkit::layout::Packing::Gzip);
}
