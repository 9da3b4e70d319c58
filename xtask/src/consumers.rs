//! `cargo xtask consumers`: whether the converter that nerdctl, acceld and BuildKit share gets on with our builder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::system;

/// The program in Go that runs the converter, in the workspace.
const CONSUMER: &str = "tests/consumers/go";

/// Ways to convert: what they are called, and what the program is told.
const WAYS: [(&str, &[&str]); 10] = [
    ("v6", &[]),
    ("v6 lz4", &["-compressor", "lz4_block"]),
    (
        "v6 in small chunks, not compressed",
        &["-compressor", "none", "-chunk-size", "0x1000"],
    ),
    ("v6 in batches", &["-batch-size", "0x40000"]),
    ("v6 encrypted", &["-encrypt"]),
    ("v6 with prefetching", &["-prefetch", "/bin\n/etc\n"]),
    ("v6, data in the source's layers", &["-oci-ref"]),
    ("v5", &["-fs-version", "5"]),
    ("v5 aligned", &["-fs-version", "5", "-aligned-chunk"]),
    ("v5 lz4", &["-fs-version", "5", "-compressor", "lz4_block"]),
];

/// Converts images by Go's converter in every way and proves the results equal to their sources.
pub fn run() -> Result<()> {
    let Some(go) = go() else {
        println!("SKIPPED (no Go): consumers");
        return Ok(());
    };
    let target = system::target_directory();
    let consumer = target.join("consumers/go/consumer");
    if !build(&go, &consumer)? {
        println!("SKIPPED (Go's modules cannot be fetched): consumers");
        return Ok(());
    }
    let packages = ["build", "--package", "nydusify", "--package", "nydus-image"];
    system::run(system::cargo().args(packages))?;
    let programs = Programs {
        consumer,
        builder: target.join("debug/nydus-image"),
        nydusify: target.join("debug/nydusify"),
    };
    let busybox = testkit::fixture::busybox();
    let torture = testkit::shared().map(|shared| shared.join("torture/image"));
    let mut passed = 0;
    for (name, options) in WAYS {
        programs.convert(
            &format!("busybox, {name}"),
            &busybox,
            testkit::fixture::BUSYBOX_TAG,
            options,
        )?;
        passed += 1;
        if let Some(torture) = &torture {
            programs.convert(&format!("torture, {name}"), torture, "torture", options)?;
            passed += 1;
        }
    }
    if torture.is_none() {
        println!("SKIPPED (no ../shared): consumers, torture image");
    }
    programs.dictionary(&busybox)?;
    passed += 1;
    println!("{passed} conversions by containerd's converter came out equal to their sources");
    Ok(())
}

/// Go's own program.
fn go() -> Option<PathBuf> {
    testkit::oracle::program("go").or_else(|| {
        let usual = PathBuf::from("/usr/local/go/bin/go");
        usual.exists().then_some(usual)
    })
}

/// Builds the consumer; whether its modules could be had.
fn build(go: &Path, consumer: &Path) -> Result<bool> {
    let directory = testkit::workspace().join(CONSUMER);
    let command = |words: &[&str]| {
        let mut command = Command::new(go);
        command.args(words).current_dir(&directory);
        command
    };
    // Fetches what the program needs and no more.
    let fetched = command(&["list", "-mod=readonly", "-deps", "."])
        .stdout(Stdio::null())
        .status()
        .context("go list")?;
    if fetched.success() {
        system::run(
            command(&["build", "-mod=readonly", "-o"])
                .arg(consumer)
                .arg("."),
        )?;
    }
    Ok(fetched.success())
}

struct Programs {
    consumer: PathBuf,
    builder: PathBuf,
    nydusify: PathBuf,
}

impl Programs {
    /// Converts `tag` of the OCI layout `layout`; the layout that is made has the tags `source` and `nydus`.
    fn convert(
        &self,
        what: &str,
        layout: &Path,
        tag: &str,
        options: &[&str],
    ) -> Result<tempfile::TempDir> {
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        self.convert_with(what, layout, tag, &options)
    }

    fn convert_with(
        &self,
        what: &str,
        layout: &Path,
        tag: &str,
        options: &[OsString],
    ) -> Result<tempfile::TempDir> {
        println!("consumers: {what}");
        let out = tempfile::Builder::new()
            .prefix("nydus-consumer-")
            .tempdir()?;
        let mut consumer = Command::new(&self.consumer);
        consumer.arg("-builder").arg(&self.builder);
        consumer.arg("-layout").arg(layout).args(["-tag", tag]);
        consumer.arg("-out").arg(out.path()).args(options);
        system::output(&mut consumer).with_context(|| what.to_owned())?;
        let image = |tag: &str| format!("oci:{}:{tag}", out.path().display());
        let mut check = Command::new(&self.nydusify);
        check.args([
            "check",
            "--source",
            &image("source"),
            "--target",
            &image("nydus"),
        ]);
        system::output(&mut check).with_context(|| what.to_owned())?;
        Ok(out)
    }

    /// Converts an image with its own Nydus image as dictionary: nothing is new.
    fn dictionary(&self, busybox: &Path) -> Result<()> {
        let first = self.convert(
            "busybox, for a dictionary",
            busybox,
            testkit::fixture::BUSYBOX_TAG,
            &[],
        )?;
        let dict = bootstrap(first.path())?;
        let options = ["-chunk-dict".into(), dict.into_os_string()];
        // The layout of the dictionary has its blobs, and the source.
        self.convert_with(
            "busybox, with a dictionary",
            first.path(),
            "source",
            &options,
        )?;
        Ok(())
    }
}

/// The bootstrap of the image `nydus` of a layout, out of its last layer.
fn bootstrap(layout: &Path) -> Result<PathBuf> {
    let blob = |digest: &Value| -> Result<PathBuf> {
        let digest = digest.as_str().context("a descriptor has no digest")?;
        let hex = digest
            .strip_prefix("sha256:")
            .context("a digest is not sha256")?;
        Ok(layout.join("blobs/sha256").join(hex))
    };
    let json = |path: PathBuf| -> Result<Value> {
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    };
    let index = json(layout.join("index.json"))?;
    let manifests = index["manifests"].as_array().context("no manifests")?;
    let nydus = manifests
        .iter()
        .find(|manifest| manifest["annotations"]["org.opencontainers.image.ref.name"] == "nydus")
        .context("no Nydus image")?;
    let manifest = json(blob(&nydus["digest"])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let last = layers.last().context("no layers")?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf")
        .arg(blob(&last["digest"])?)
        .arg("-C")
        .arg(layout)
        .arg("image/image.boot");
    system::run(&mut tar)?;
    Ok(layout.join("image/image.boot"))
}
