//! What is measured of `nydus-image`: each source type with each compressor, the index of a gzip layer, unpacking, and
//! the merge of many layers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use layer::tar::EntryKind;
use rafs_format::Compressor;

use crate::floor::unpacked;
use crate::scenario::{Programs, Row, Scenario};
use crate::tools::{args, remove, repeat, run, size, timed};

/// Sources whose data is cut into chunks of a new blob.
const CHUNKED: [&str; 4] = ["dir-rafs", "tar-rafs", "targz-rafs", "estargz-rafs"];
/// Sources whose data stays where it is.
const REFERRED: [&str; 3] = ["targz-ref", "estargz-ref", "tar-tarfs"];
/// What is inflated at a time, as the builder does, in bytes.
const PIECE: usize = 256 << 10;
/// Chunks of the eStargz layer, in bytes.
const ESTARGZ_CHUNK: usize = 4 << 20;

impl Scenario<'_> {
    /// Everything of the builder but `create --type tar-rafs`, which stands beside `convert` with its efficiency.
    pub fn builder(&mut self) -> Result<()> {
        let sources = Sources::of(self)?;
        for kind in CHUNKED {
            for compressor in [Compressor::Zstd, Compressor::Lz4Block, Compressor::None] {
                if kind != "tar-rafs" || compressor == Compressor::None {
                    self.create_chunked(kind, sources.get(kind), compressor)?;
                }
            }
        }
        for kind in REFERRED {
            self.create_referred(kind, sources.get(kind))?;
        }
        self.unpack()
    }

    fn create_chunked(&mut self, kind: &str, source: &Path, compressor: Compressor) -> Result<()> {
        let blob = self.path(&format!("{kind}.{compressor}.blob"));
        let mut command = create(self.programs, kind);
        command.extend(args(&[
            "--compressor".as_ref(),
            compressor.name().as_ref(),
            "--blob-inline-meta".as_ref(),
            "--features".as_ref(),
            "blob-toc".as_ref(),
            "--blob".as_ref(),
            blob.as_os_str(),
            source.as_os_str(),
        ]));
        let runs = repeat(self.runs, &[&blob], &command)?;
        let bytes = size(&blob)?;
        self.push(format!("create, {kind}, {compressor}"), runs, bytes);
        remove(&blob)
    }

    fn create_referred(&mut self, kind: &str, source: &Path) -> Result<()> {
        let out = self.path(&format!("{kind}.out"));
        let mut command = create(self.programs, kind);
        if kind == "tar-tarfs" {
            command.extend(args(&["--blob-id".as_ref(), "0".repeat(64).as_ref()]));
            command.extend(args(&["--bootstrap".as_ref(), out.as_os_str()]));
        } else {
            let inline = ["--blob-inline-meta", "--features", "blob-toc", "--blob"];
            command.extend(inline.map(OsString::from));
            command.push(out.clone().into());
        }
        command.push(source.into());
        let runs = repeat(self.runs, &[&out], &command)?;
        let wall = runs.median.wall;
        let bytes = size(&out)?;
        if kind == "tar-tarfs" {
            self.push(format!("create, {kind}"), runs, bytes);
            return Ok(());
        }
        let inflate = timed(self.runs, || inflate(source))?.median.wall;
        let row = self.push(format!("create, {kind} (zran index)"), runs, bytes);
        row.ratio = Some((wall / inflate, "times inflating"));
        Ok(())
    }

    fn unpack(&mut self) -> Result<()> {
        let (blob, tar) = (self.path("zstd.blob"), self.path("unpacked.tar"));
        let command = args(&[
            self.programs.nydus_image.as_os_str(),
            "unpack".as_ref(),
            "--bootstrap".as_ref(),
            blob.as_os_str(),
            "--blob".as_ref(),
            blob.as_os_str(),
            "--output".as_ref(),
            tar.as_os_str(),
        ]);
        let runs = repeat(self.runs, &[&tar], &command)?;
        let bytes = size(&tar)?;
        self.push("unpack to a tar, zstd", runs, bytes);
        remove(&tar)
    }
}

fn create(programs: &Programs, kind: &str) -> Vec<OsString> {
    let program: &OsStr = programs.nydus_image.as_os_str();
    args(&[program, "create".as_ref(), "--type".as_ref(), kind.as_ref()])
}

/// Inflates a layer, as the index is made with the same library, and throws the result away.
fn inflate(layer: &Path) -> Result<()> {
    let mut tar = unpacked(File::open(layer)?)?;
    let mut piece = vec![0; PIECE];
    while tar.read(&mut piece)? > 0 {}
    Ok(())
}

/// The same layer in the form each source type wants.
struct Sources {
    tree: PathBuf,
    tar: PathBuf,
    gzip: PathBuf,
    estargz: PathBuf,
}

impl Sources {
    fn of(scenario: &Scenario<'_>) -> Result<Self> {
        let tar = scenario.input.tar.clone();
        let gzip = scenario.path("tar.gz");
        let mut packed = GzBuilder::new().write(File::create(&gzip)?, Compression::default());
        std::io::copy(&mut File::open(&tar)?, &mut packed)?;
        packed.finish()?;
        let estargz = scenario.path("estargz");
        let entries = regular_files(&std::fs::read(&tar)?)?;
        std::fs::write(
            &estargz,
            testkit::estargz::estargz(&entries, ESTARGZ_CHUNK).blob,
        )?;
        let tree = scenario.path("layer-tree");
        std::fs::create_dir(&tree)?;
        run(Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .args(["--exclude=.wh.*", "--exclude=dev/*", "--exclude=./dev/*"])
            .arg("-C")
            .arg(&tree))?;
        Ok(Self {
            tree,
            tar,
            gzip,
            estargz,
        })
    }

    fn get(&self, kind: &str) -> &Path {
        match kind {
            "dir-rafs" => &self.tree,
            "targz-rafs" | "targz-ref" => &self.gzip,
            "estargz-rafs" | "estargz-ref" => &self.estargz,
            _ => &self.tar,
        }
    }
}

/// The regular files of a tar: what an eStargz layer is made of here.
fn regular_files(tar: &[u8]) -> Result<Vec<testkit::tar::Entry>> {
    let mut entries = Vec::new();
    let mut reader = layer::tar::Reader::new(tar);
    while let Some(entry) = reader.next()? {
        if entry.kind == EntryKind::Regular {
            let start = usize::try_from(entry.offset)?;
            let data = tar
                .get(start..start + usize::try_from(entry.size)?)
                .context("a tar ends within a file")?;
            entries.push(testkit::tar::Entry::file(&entry.path, data));
        }
    }
    Ok(entries)
}

/// Layers and files of each that [`merge_many`] merges.
const MANY_LAYERS: u64 = 30;
const MANY_FILES: u64 = 4000;

/// Merges many layers of many files, each with data of its own.
pub fn merge_many(programs: &Programs, work: &Path, runs: usize) -> Result<Row> {
    let out = work.join("many.boot");
    let mut command = args(&[
        programs.nydus_image.as_os_str(),
        "merge".as_ref(),
        "--bootstrap".as_ref(),
        out.as_os_str(),
    ]);
    let (tar, blob) = (work.join("many.tar"), work.join("many.blob"));
    for layer in 0..MANY_LAYERS {
        let boot = work.join(format!("many{layer}.boot"));
        let mut files = testkit::tar::Tar::new();
        for number in 0..MANY_FILES {
            let path = format!("data/{:02}/{layer:02}-{number:04}", number % 100);
            files.add(testkit::tar::Entry::file(path, format!("{layer} {number}")));
        }
        std::fs::write(&tar, files.finish())?;
        run(Command::new(&programs.nydus_image)
            .args(["create", "--type", "tar-rafs", "--bootstrap"])
            .args([
                boot.as_os_str(),
                "--blob".as_ref(),
                blob.as_os_str(),
                tar.as_os_str(),
            ]))?;
        remove(&blob)?;
        command.push(boot.into());
    }
    let runs = repeat(runs, &[&out], &command)?;
    let (seconds, bytes) = (runs.median.wall, size(&out)?);
    eprintln!("merge: {seconds:.3} s, {} KiB", runs.median.peak_kib);
    Ok(Row {
        input: "merge".to_owned(),
        what: format!("{MANY_LAYERS} layers, {} files", MANY_LAYERS * MANY_FILES),
        usage: runs,
        bytes,
        attainable: None,
        stages: vec![],
        ratio: None,
    })
}
