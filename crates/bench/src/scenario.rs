//! What is measured of one image: the commands a user runs, and reading through the mount.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rafs_format::Compressor;
use serde::Serialize;
use testkit::docker_registry::{DockerRegistry, Options, no_docker_registry};

use crate::floor::{self, Floor, Layer, Stages};
use crate::input::Input;
use crate::measure::{Runs, Usage, median, usage};
use crate::tools::{
    args, largest_file, read_all, read_start, remove, repeat, run, size, timed, walk,
};

/// The measured programs.
pub struct Programs {
    /// `nydusify`.
    pub nydusify: PathBuf,
    /// `nydus-image`.
    pub nydus_image: PathBuf,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The image.
    pub input: String,
    /// What was done.
    pub what: String,
    /// The runs, where a whole command was measured.
    pub usage: Runs,
    /// Bytes that came out (or were read).
    pub bytes: u64,
    /// Attainable wall time in seconds, where it is defined.
    pub attainable: Option<f64>,
    /// Stages behind it.
    pub stages: Vec<Stages>,
    /// A ratio that says how good the figure is, and to what.
    pub ratio: Option<(f64, &'static str)>,
}

/// Measures one image.
pub struct Scenario<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// The image.
    pub input: &'a Input,
    /// A directory for results, emptied by whoever made it.
    pub work: &'a Path,
    /// How often each command is run.
    pub runs: usize,
    /// What was measured so far.
    pub rows: Vec<Row>,
}

impl Scenario<'_> {
    /// Everything, in the order of the table.
    pub fn measure(mut self) -> Result<Vec<Row>> {
        for compressor in [Compressor::Zstd, Compressor::Lz4Block] {
            self.convert(compressor)?;
            self.create(compressor)?;
        }
        self.dense()?;
        self.registry()?;
        self.check()?;
        self.merge()?;
        self.builder()?;
        self.mount()?;
        Ok(self.rows)
    }

    /// A file for results of this image.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.join(format!("{}.{name}", self.input.name))
    }

    /// The converted image's reference; `convert` makes it.
    fn converted(&self, compressor: Compressor) -> String {
        format!("oci:{}:nydus", self.path(compressor.name()).display())
    }

    fn repeat(&self, clean: &[&Path], command: &[OsString]) -> Result<Runs> {
        repeat(self.runs, clean, command)
    }

    /// Adds a line to the table.
    pub fn push(&mut self, what: impl Into<String>, usage: Runs, bytes: u64) -> &mut Row {
        let (input, what) = (self.input.name.clone(), what.into());
        eprintln!(
            "{input}: {what}: {:.3} s, {} KiB",
            usage.median.wall, usage.median.peak_kib
        );
        self.rows.push(Row {
            input,
            what,
            usage,
            bytes,
            attainable: None,
            stages: vec![],
            ratio: None,
        });
        self.rows.last_mut().expect("a row was just pushed")
    }

    /// The command that converts the image.
    fn conversion(&self, compressor: Compressor, target: &str, profile: &str) -> Vec<OsString> {
        args(&[
            self.programs.nydusify.as_os_str(),
            "convert".as_ref(),
            "--source".as_ref(),
            self.input.reference().as_ref(),
            "--target".as_ref(),
            target.as_ref(),
            "--compressor".as_ref(),
            compressor.name().as_ref(),
            "--profile".as_ref(),
            profile.as_ref(),
            "--no-journal".as_ref(),
        ])
    }

    fn convert(&mut self, compressor: Compressor) -> Result<()> {
        let target = self.path(compressor.name());
        // The floor compresses each chunk by itself.
        let command = self.conversion(compressor, &self.converted(compressor), "compat");
        let layers = self.input.image_layers();
        self.with_floor(
            format!("convert, {compressor}"),
            &target,
            &command,
            &layers,
            compressor,
        )
    }

    /// The other profile.
    fn dense(&mut self) -> Result<()> {
        let target = self.path("dense");
        let image = format!("oci:{}:nydus", target.display());
        let command = self.conversion(Compressor::Zstd, &image, "dense");
        let runs = self.repeat(&[&target], &command)?;
        let bytes = size(&target)?;
        self.push("convert, zstd, profile dense", runs, bytes);
        Ok(())
    }

    fn create(&mut self, compressor: Compressor) -> Result<()> {
        let blob = self.path(&format!("{compressor}.blob"));
        let command = args(&[
            self.programs.nydus_image.as_os_str(),
            "create".as_ref(),
            "--type".as_ref(),
            "tar-rafs".as_ref(),
            "--compressor".as_ref(),
            compressor.name().as_ref(),
            "--blob-inline-meta".as_ref(),
            "--features".as_ref(),
            "blob-toc".as_ref(),
            "--blob".as_ref(),
            blob.as_os_str(),
            self.input.tar.as_os_str(),
        ]);
        let layers = [self.input.tar_layer()];
        self.with_floor(
            format!("create from tar, {compressor}"),
            &blob,
            &command,
            &layers,
            compressor,
        )
    }

    /// Runs a command and the floor of its layers in turn, so that both see the machine at the same speed.
    pub fn with_floor(
        &mut self,
        what: String,
        out: &Path,
        command: &[OsString],
        layers: &[Layer],
        compressor: Compressor,
    ) -> Result<()> {
        let floors = layers
            .iter()
            .map(|l| Floor::prepare(l, compressor))
            .collect::<Result<Vec<_>>>()?;
        let mut usages = Vec::new();
        let mut rounds = vec![Vec::new(); floors.len()];
        for round in 0..=self.runs {
            remove(out)?;
            let used = usage(command)?;
            // The first run does not count.
            if round > 0 {
                usages.push(used);
                for (floor, rounds) in floors.iter().zip(&mut rounds) {
                    rounds.push(floor.round()?);
                }
            }
        }
        let stages: Vec<Stages> = rounds.iter().map(|rounds| Stages::median(rounds)).collect();
        let attainable = floor::attainable(&stages, floor::cores());
        let runs = Runs::of(usages);
        let wall = runs.median.wall;
        let row = self.push(what, runs, size(out)?);
        row.attainable = Some(attainable);
        row.ratio = Some((attainable / wall, "efficiency"));
        row.stages = stages;
        Ok(())
    }

    /// Converts from a registry into it, on loopback. What the server takes of the cores is counted into the floor.
    fn registry(&mut self) -> Result<()> {
        if let Some(why) = no_docker_registry() {
            testkit::skip("benchmark of conversions in a registry", why);
            return Ok(());
        }
        let server = DockerRegistry::start(Options::default());
        let source = format!("{}/source/image:plain", server.host());
        run(Command::new(&self.programs.nydusify)
            .args(["copy", "--plain-http", "--source"])
            .arg(self.input.reference())
            .args(["--target", &source]))?;
        let floors = self.input.image_layers();
        let floors = floors
            .iter()
            .map(|layer| Floor::prepare(layer, Compressor::Zstd))
            .collect::<Result<Vec<_>>>()?;
        let (mut usages, mut served) = (Vec::new(), Vec::new());
        let mut rounds = vec![Vec::new(); floors.len()];
        for round in 0..=self.runs {
            let target = format!("{}/target{round}/image:nydus", server.host());
            let before = server.cpu_time();
            let used = usage(&args(&[
                self.programs.nydusify.as_os_str(),
                "convert".as_ref(),
                "--plain-http".as_ref(),
                "--no-journal".as_ref(),
                "--profile".as_ref(),
                "compat".as_ref(),
                "--source".as_ref(),
                source.as_ref(),
                "--target".as_ref(),
                target.as_ref(),
            ]))?;
            // The first run does not count.
            if round > 0 {
                usages.push(used);
                served.push((server.cpu_time() - before).as_secs_f64());
                for (floor, rounds) in floors.iter().zip(&mut rounds) {
                    rounds.push(floor.round()?);
                }
            }
        }
        let stages: Vec<Stages> = rounds.iter().map(|rounds| Stages::median(rounds)).collect();
        let served = median(served);
        let attainable = floor::attainable_beside(&stages, served, floor::cores());
        let runs = Runs::of(usages);
        let wall = runs.median.wall;
        let what = format!("convert, zstd, registry to registry (server: {served:.2} core-s)");
        let row = self.push(what, runs, 0);
        row.attainable = Some(attainable);
        row.ratio = Some((wall / attainable, "times attainable"));
        row.stages = stages;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let target = self.converted(Compressor::Zstd);
        let whole = args(&[
            self.programs.nydusify.as_os_str(),
            "check".as_ref(),
            "--source".as_ref(),
            self.input.reference().as_ref(),
            "--target".as_ref(),
            target.as_ref(),
        ]);
        let runs = self.repeat(&[], &whole)?;
        self.push("check against the source", runs, 0);
        let blob = self.path("zstd.blob");
        let structure = args(&[
            self.programs.nydus_image.as_os_str(),
            "check".as_ref(),
            "--bootstrap".as_ref(),
            blob.as_os_str(),
        ]);
        let runs = self.repeat(&[], &structure)?;
        self.push("check of the bootstrap", runs, 0);
        Ok(())
    }

    /// Merges the largest layer's bootstrap three times over: as many inodes as three such layers.
    fn merge(&mut self) -> Result<()> {
        let out = self.path("merged.boot");
        let mut command = args(&[
            self.programs.nydus_image.as_os_str(),
            "merge".as_ref(),
            "--bootstrap".as_ref(),
            out.as_os_str(),
        ]);
        for layer in 0..3 {
            let boot = self.path(&format!("layer{layer}.boot"));
            let layer_blob = self.path(&format!("layer{layer}.blob"));
            run(Command::new(&self.programs.nydus_image)
                .args(["create", "--type", "tar-rafs", "--bootstrap"])
                .args([
                    boot.as_os_str(),
                    "--blob".as_ref(),
                    layer_blob.as_os_str(),
                    self.input.tar.as_os_str(),
                ]))?;
            remove(&layer_blob)?;
            command.push(boot.into());
        }
        let runs = self.repeat(&[&out], &command)?;
        let bytes = size(&out)?;
        self.push("merge of three layers", runs, bytes);
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        let native = timed(self.runs, || read_all(&self.input.tree).map(drop))?;
        let bytes = read_all(&self.input.tree)?;
        self.push("read all, native file system, warm", native.clone(), bytes);
        let native_find = timed(self.runs, || walk(&self.input.tree, &mut |_| Ok(())))?;
        self.push("find, native file system, warm", native_find, 0);

        let mut ready = Vec::new();
        let mut first = Vec::new();
        let mut cold = Vec::new();
        let mut kept = Vec::new();
        let mut find = Vec::new();
        let mut warm = Vec::new();
        let mut bytes = 0;
        for _ in 0..self.runs {
            let cache = self.path("cache");
            remove(&cache)?;
            let mount = Mount::start(self, &cache, &mut ready)?;
            find.extend(timed(1, || walk(&mount.at, &mut |_| Ok(())))?.runs);
            let some = largest_file(&mount.at)?;
            first.extend(timed(1, || read_start(&some))?.runs);
            cold.extend(timed(1, || read_all(&mount.at).map(|read| bytes = read))?.runs);
            warm.extend(timed(1, || read_all(&mount.at).map(drop))?.runs);
            mount.stop()?;
            // The chunk cache is complete now; a new mount has an empty page cache of its own.
            let mount = Mount::start(self, &cache, &mut Vec::new())?;
            kept.extend(timed(1, || read_all(&mount.at).map(drop))?.runs);
            mount.stop()?;
        }
        self.push("mount ready", Runs::of(ready), 0);
        self.push(
            "first read of a file, nothing cached",
            Runs::of(first),
            1 << 20,
        );
        self.push("find through FUSE", Runs::of(find), 0);
        self.push(
            "read all through FUSE, nothing cached",
            Runs::of(cold),
            bytes,
        );
        self.push(
            "read all through FUSE, chunks cached, new mount",
            Runs::of(kept),
            bytes,
        );
        let warm = Runs::of(warm);
        let ratio = warm.median.wall / native.median.wall;
        self.push("read all through FUSE, warm", warm, bytes).ratio = Some((ratio, "times native"));
        Ok(())
    }
}

/// A mount of the converted image that is unmounted when dropped.
struct Mount<'a> {
    programs: &'a Programs,
    at: PathBuf,
}

impl<'a> Mount<'a> {
    fn start(scenario: &Scenario<'a>, cache: &Path, ready: &mut Vec<Usage>) -> Result<Self> {
        let at = scenario.path("mnt");
        std::fs::create_dir_all(&at)?;
        ready.push(usage(&args(&[
            scenario.programs.nydusify.as_os_str(),
            "mount".as_ref(),
            "--target".as_ref(),
            scenario.converted(Compressor::Zstd).as_ref(),
            "--mount-path".as_ref(),
            at.as_os_str(),
            "--cache-dir".as_ref(),
            cache.as_os_str(),
            "--detach".as_ref(),
        ]))?);
        Ok(Self {
            programs: scenario.programs,
            at,
        })
    }

    fn stop(self) -> Result<()> {
        run(Command::new(&self.programs.nydusify)
            .arg("umount")
            .arg(&self.at))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // After an orderly `stop` there is nothing to unmount and this fails quietly.
        let _ = Command::new(&self.programs.nydusify)
            .arg("umount")
            .arg(&self.at)
            .output();
    }
}
