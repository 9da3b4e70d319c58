//! `bench mount`: one image in Python's root file system, served in every way there is, with the same work done on each.
//!
//! Every round goes through all sides, so that they see the machine alike. *Cold* is a mount without cache, *cached* a
//! new mount whose cache is complete; the kernel's page cache is dropped before both. *Warm* comes right after cached.

mod optimized;
mod side;
mod table;
mod unconverted;
mod work;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use testkit::docker_registry::{DockerRegistry, Options, no_docker_registry};

use crate::input::Input;
use crate::link::{Link, Shape};
use crate::scenario::Programs;
use crate::tools::{remove, run};
use side::{Mode, Served, Side};
pub use table::Table;
use work::Work;

/// What is compared, and where.
pub struct Mounts<'a> {
    programs: &'a Programs,
    input: Input,
    server: DockerRegistry,
    work: &'a Path,
    plain: PathBuf,
    table: Table,
}

/// The image as it is, and converted, in the registry.
const SOURCE: &str = "source/image:plain";
const TARGET: &str = "converted/image:nydus";

impl<'a> Mounts<'a> {
    /// Makes the image of Python's root and the packages in the layout `big`, in each form. `None`, said aloud, where
    /// something is missing.
    pub fn prepare(programs: &'a Programs, big: &Path, work: &'a Path) -> Result<Option<Self>> {
        let what = "benchmark of mounts";
        let Some(images) = testkit::shared_or_skip(what).map(|s| s.join("images")) else {
            return Ok(None);
        };
        if let Some(why) = no_docker_registry() {
            testkit::skip(what, why);
            return Ok(None);
        }
        let layout = work.join("stack");
        stack(&layout, &[(&images, "python"), (big, "big")])?;
        let input = Input::open("stack", &layout, "stack", work)?;
        let plain = work.join("plain.erofs");
        run(Command::new("mkfs.erofs").arg(&plain).arg(&input.tree))?;
        let server = DockerRegistry::start(Options::default());
        let (source, target) = (
            format!("{}/{SOURCE}", server.host()),
            format!("{}/{TARGET}", server.host()),
        );
        run(Command::new(&programs.nydusify)
            .args(["copy", "--plain-http", "--source", &input.reference()])
            .args(["--target", &source]))?;
        run(Command::new(&programs.nydusify)
            .args(["convert", "--plain-http", "--no-journal"])
            .args(["--source", &source, "--target", &target]))?;
        Ok(Some(Self {
            programs,
            input,
            server,
            work,
            plain,
            table: Table::default(),
        }))
    }

    /// Measures everything `runs` times.
    pub fn measure(mut self, runs: usize) -> Result<Table> {
        let near = Link::start(self.server.host(), Shape::NONE)?;
        let far = Link::start(self.server.host(), Shape::FAR)?;
        for mode in Mode::ALL {
            self.fill(mode, &near)?;
        }
        self.optimize(&near)?;
        for round in 0..runs {
            eprintln!("round {} of {runs}", round + 1);
            for side in Side::ALL {
                self.local(side, &near)?;
            }
            for mode in Mode::ALL {
                self.cold(mode, &near, "")?;
                self.cold(mode, &far, ", 20 ms and 200 Mbit/s")?;
                self.before_and_after(mode, &near, Shape::NONE, "")?;
                self.before_and_after(mode, &far, Shape::FAR, ", 20 ms and 200 Mbit/s")?;
            }
            self.pull(&near, "")?;
            self.pull(&far, ", 20 ms and 200 Mbit/s")?;
        }
        Ok(self.table)
    }

    /// Makes the complete cache of a mode.
    fn fill(&self, mode: Mode, link: &Link) -> Result<()> {
        let served = self.serve(mode, &self.cache(mode), link)?;
        Work::ReadAll.run(served.root())?;
        // What no file refers to comes by prefetch, with nobody waiting for it.
        let mut before = 0;
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
            let now = link.traffic().bytes;
            if now == before {
                return served.stop();
            }
            before = now;
        }
    }

    fn cache(&self, mode: Mode) -> PathBuf {
        self.work.join(format!("{}.cache", mode.name()))
    }

    fn serve(&self, mode: Mode, cache: &Path, link: &Link) -> Result<Served> {
        let image = format!("{}/{TARGET}", link.host());
        Served::lazily(
            &self.programs.nydusify,
            mode,
            &image,
            &self.work.join("mnt"),
            cache,
            &[],
        )
    }

    fn open(&self, side: Side, link: &Link) -> Result<Served> {
        match side {
            Side::Native => Ok(Served::tree(&self.input.tree)),
            Side::Plain => Served::image(&self.plain, &self.work.join("mnt")),
            Side::Lazy(mode) => self.serve(mode, &self.cache(mode), link),
        }
    }

    /// Everything that needs no network.
    fn local(&mut self, side: Side, link: &Link) -> Result<()> {
        for work in [Work::Start, Work::ReadAll] {
            drop_page_cache()?;
            let served = self.open(side, link)?;
            drop_page_cache()?;
            for state in ["cached", "warm"] {
                let seconds = work.run(served.root())?;
                self.table
                    .add(&format!("{}, {state}", work.name()), side.name(), seconds);
            }
            if work == Work::ReadAll {
                for work in Work::WARM {
                    work.run(served.root())?;
                    let seconds = work.run(served.root())?;
                    self.table
                        .add(&format!("{}, warm", work.name()), side.name(), seconds);
                }
            }
            served.stop()?;
        }
        Ok(())
    }

    /// What comes over the network.
    fn cold(&mut self, mode: Mode, link: &Link, over: &str) -> Result<()> {
        let (cache, side) = (self.work.join("cold.cache"), Side::Lazy(mode).name());
        for work in [Work::Hello, Work::Start, Work::ReadAll] {
            remove(&cache)?;
            drop_page_cache()?;
            let (before, started) = (link.traffic(), Instant::now());
            let served = self.serve(mode, &cache, link)?;
            let ready = started.elapsed().as_secs_f64();
            let name = format!("{}, cold{over}", work.name());
            let seconds = work.run(served.root())?;
            let traffic = link.traffic();
            // Of the shortest work the way to it is part.
            let shown = if work == Work::Hello {
                ready + seconds
            } else {
                seconds
            };
            self.table.add(&name, side, shown);
            if over.is_empty() {
                self.table.add("mount ready", side, ready);
                let count = |what: &str| format!("{}, cold: {what}", work.name());
                let requests = traffic.requests - before.requests;
                let bytes = traffic.bytes - before.bytes;
                self.table.add(&count("requests"), side, requests as f64);
                self.table
                    .add(&count("MB fetched"), side, bytes as f64 / 1e6);
                let memory = served.peak_memory()?;
                self.table.add(
                    &count("peak MiB, all processes"),
                    side,
                    memory as f64 / 1024.0,
                );
            }
            served.stop()?;
        }
        Ok(())
    }

    /// The way without lazy loading.
    fn pull(&mut self, link: &Link, over: &str) -> Result<()> {
        for (work, seconds) in self.pulled(link)? {
            let what = format!("{}, cold{over}", work.name());
            self.table.add(&what, "pull and unpack", seconds);
        }
        Ok(())
    }

    /// Every layer through `tar` as it arrives, then the work: how long both took.
    fn pulled(&self, link: &Link) -> Result<[(Work, f64); 3]> {
        let tree = self.work.join("pulled");
        remove(&tree)?;
        std::fs::create_dir(&tree)?;
        drop_page_cache()?;
        let started = Instant::now();
        let (name, _) = SOURCE.split_once(':').context("a tag")?;
        for layer in &self.input.layers {
            let digest = layer.file_name().context("a blob")?.to_string_lossy();
            let url = format!("http://{}/v2/{name}/blobs/sha256:{digest}", link.host());
            let line = format!(
                "curl -sSf '{url}' | tar -xz --exclude='.wh.*' --exclude='dev/*' --exclude='./dev/*' -C '{}'",
                tree.display()
            );
            run(Command::new("sh").args(["-c", &line]))?;
        }
        let pulled = started.elapsed().as_secs_f64();
        let mut times = [Work::Hello, Work::Start, Work::ReadAll].map(|work| (work, pulled));
        for (work, seconds) in &mut times {
            *seconds += work.run(&tree)?;
        }
        remove(&tree)?;
        Ok(times)
    }
}

/// Writes what is in memory to the disk and drops the kernel's page cache, names and inodes.
fn drop_page_cache() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache (needs root)")
}

/// A layout whose image has the layers of others, lowest first.
fn stack(layout: &Path, images: &[(&Path, &str)]) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (from, tag) in images {
        let read = |digest: &Value| -> Result<Vec<u8>> {
            let digest = digest.as_str().context("no digest")?.replace(':', "/");
            let path = from.join("blobs").join(digest);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let index: Value = serde_json::from_slice(&std::fs::read(from.join("index.json"))?)?;
        let named = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == *tag;
        let entry = index["manifests"]
            .as_array()
            .and_then(|all| all.iter().find(named));
        let entry = entry.with_context(|| format!("no tag {tag} in {}", from.display()))?;
        let manifest: Value = serde_json::from_slice(&read(&entry["digest"])?)?;
        let config: Value = serde_json::from_slice(&read(&manifest["config"]["digest"])?)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            let data = read(&layer["digest"])?;
            let digest = layer["digest"].as_str().unwrap_or_default();
            let hex = digest.strip_prefix("sha256:").context("not SHA-256")?;
            std::fs::write(blobs.join(hex), data)?;
            layers.push(layer.clone());
        }
        diff_ids.extend(
            config["rootfs"]["diff_ids"]
                .as_array()
                .context("no diff ids")?
                .clone(),
        );
    }
    if layers.len() != diff_ids.len() {
        bail!("as many layers as diff ids are wanted");
    }
    let put = |value: &Value| -> Result<Value> {
        let data = serde_json::to_vec(value)?;
        let digest = testkit::sha256(&data);
        std::fs::write(blobs.join(&digest), &data)?;
        Ok(json!({"digest": format!("sha256:{digest}"), "size": data.len()}))
    };
    let config = put(&json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = put(&json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config["digest"], "size": config["size"],
        },
        "layers": layers,
    }))?;
    manifest["mediaType"] = manifest_type.into();
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "stack"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}
