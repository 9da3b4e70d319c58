//! The images, and how each is judged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tree::{Content, Image};

use crate::estargz::Estargz;
use crate::reader::Opened;
use crate::references::{self, Holds, Reference};
use crate::sample::{self, Layer};
use crate::{listing::Listing, ours};

/// Options of `create` for one layer.
const CREATE: &[&str] = &[
    "-v 6 --compressor none",
    "-v 6 --compressor lz4_block",
    "-v 6 --compressor zstd",
    "-v 6 --digester sha256",
    "-v 6 --chunk-size 0x10000",
    "-v 6 --chunk-size 0x10000 --batch-size 0x10000",
    "-v 6 --batch-size 0x100000",
    "-v 6 --encrypt",
    "-v 6 --encrypt --compressor none",
    "-v 6 --features blob-toc",
    "-v 6 --features blob-toc --digester sha256 --compressor lz4_block",
    "-v 5 --compressor none",
    "-v 5 --compressor lz4_block",
    "-v 5 --compressor zstd",
    "-v 5 --digester sha256",
    "-v 5 --chunk-size 0x10000",
    "-v 5 --aligned-chunk",
    "-v 5 --aligned-chunk --compressor lz4_block --digester sha256",
];

/// Options of `create` for two layers that are merged or built upon each other, and rewritten.
const LAYERED: &[&str] = &[
    "-v 6",
    "-v 6 --features blob-toc --compressor lz4_block",
    "-v 6 --chunk-size 0x10000 --digester sha256",
    "-v 6 --batch-size 0x100000",
    "-v 6 --encrypt",
    "-v 5",
    "-v 5 --compressor none",
    "-v 5 --aligned-chunk --digester sha256 --compressor lz4_block",
];

/// What is made, and where.
pub struct Lab<'a> {
    program: &'a Path,
    dir: &'a Path,
    pub lower: &'a Layer,
    pub upper: &'a Layer,
    pub star: &'a Estargz,
}

/// An image to look at.
struct Made<'a> {
    bootstrap: PathBuf,
    /// What files hold, where that is known.
    files: Option<&'a BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Whether the reader gets at data without a kernel.
    readable: bool,
}

/// Judges all images whose names contain `filter`, a line for each; whether all are as they should be.
pub fn run_all(program: PathBuf, filter: &str) -> Result<bool> {
    let lower = sample::lower();
    let upper = sample::upper(&lower);
    let (star_layer, star) = sample::star();
    let (mut good, mut bad) = (0, 0);
    let mut case =
        |name: String, make: &dyn Fn(&Lab) -> Result<PathBuf>, files, readable| -> Result<()> {
            if !name.contains(filter) {
                return Ok(());
            }
            let dir = tempfile::tempdir()?;
            for sub in ["blobs", "boots", "cache"] {
                fs::create_dir(dir.path().join(sub))?;
            }
            let lab = Lab {
                program: &program,
                dir: dir.path(),
                lower: &lower,
                upper: &upper,
                star: &star,
            };
            let judged = make(&lab).and_then(|bootstrap| {
                judge(
                    &lab,
                    &Made {
                        bootstrap,
                        files,
                        readable,
                    },
                )
            });
            match judged {
                Ok(told) => {
                    good += 1;
                    println!("ok    {name}: {told}");
                }
                Err(error) => {
                    bad += 1;
                    println!("FAIL  {name}: {error:#}");
                }
            }
            Ok(())
        };
    let (below, above) = (Some(&lower.files), Some(&upper.files));
    for options in CREATE {
        let separate = |lab: &Lab| lab.create("lower", options);
        case(format!("create {options}"), &separate, below, true)?;
        let inline = |lab: &Lab| {
            lab.create_inline("lower", options)
                .and_then(|blob| lab.extract(&blob))
        };
        case(
            format!("create {options} --blob-inline-meta"),
            &inline,
            below,
            true,
        )?;
        if options.contains("blob-toc") {
            let whole = |lab: &Lab| lab.create_inline("lower", options);
            case(
                format!("create {options} --blob-inline-meta, opened as a blob"),
                &whole,
                below,
                true,
            )?;
        }
    }
    for options in LAYERED {
        let to = if options.contains("-v 5") { "6" } else { "5" };
        let encrypted = options.contains("--encrypt");
        let plain = !encrypted && !options.contains("--batch-size");
        case(
            format!("merge {options}"),
            &|lab| lab.merged(options),
            above,
            true,
        )?;
        let parent = |lab: &Lab| {
            let below = lab.create("lower", options)?;
            lab.create(
                "upper",
                &format!("{options} --parent-bootstrap {}", below.display()),
            )
        };
        case(
            format!("create --parent-bootstrap {options}"),
            &parent,
            above,
            true,
        )?;
        let dictionary = |lab: &Lab| {
            let dictionary = lab.create("upper", options)?;
            lab.create(
                "lower",
                &format!("{options} --chunk-dict bootstrap={}", dictionary.display()),
            )
        };
        case(
            format!("create --chunk-dict {options}"),
            &dictionary,
            below,
            true,
        )?;
        case(
            format!("optimize {options}"),
            &|lab| lab.optimized(options),
            above,
            true,
        )?;
        if !encrypted {
            case(
                format!("chunkdict generate {options}"),
                &|lab| lab.dictionary(options),
                None,
                true,
            )?;
            case(
                format!("merge --chunk-dict, generated, {options}"),
                &|lab| lab.known(options),
                below,
                true,
            )?;
        }
        // Nothing of others is put together, and v5 has no words for them.
        if !plain {
            continue;
        }
        case(
            format!("compact {options}"),
            &|lab| lab.compacted(options),
            above,
            true,
        )?;
        let again = |lab: &Lab| lab.optimize(&lab.compacted(options)?);
        case(
            format!("optimize, compacted {options}"),
            &again,
            above,
            true,
        )?;
        let transcoded = |lab: &Lab| {
            let (from, out) = (lab.merged(options)?, lab.boot("transcoded"));
            lab.run(&format!(
                "transcode --to {to} -B {} -O {} -D {}",
                from.display(),
                out.display(),
                lab.blobs().display()
            ))?;
            Ok(out)
        };
        case(
            format!("transcode --to {to}, from {options}"),
            &transcoded,
            above,
            true,
        )?;
    }
    case(
        "create -t tar-tarfs".to_owned(),
        &|lab| lab.tarfs(),
        None,
        false,
    )?;
    for Reference { name, make, holds } in references::ALL {
        let files = match holds {
            Holds::Lower => &lower.files,
            Holds::Upper => &upper.files,
            Holds::Star => &star_layer.files,
        };
        case((*name).to_owned(), make, Some(files), true)?;
    }
    println!("{good} images are as the reader sees them, {bad} are not");
    ensure!(good + bad > 0, "no image has a name with {filter:?}");
    Ok(bad == 0)
}

impl Lab<'_> {
    pub fn boot(&self, name: &str) -> PathBuf {
        self.dir.join("boots").join(name)
    }

    /// Where the reader keeps what it has read.
    pub fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    pub fn run(&self, words: &str) -> Result<()> {
        let output = Command::new(self.program)
            .args(words.split_whitespace())
            .output()
            .with_context(|| self.program.display().to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "nydus-image {words}: {}",
                said.lines().last().unwrap_or_default()
            );
        }
        Ok(())
    }

    fn tar(&self, layer: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{layer}.tar"));
        let tar = if layer == "lower" {
            &self.lower.tar
        } else {
            &self.upper.tar
        };
        fs::write(&path, tar)?;
        Ok(path)
    }

    /// A bootstrap beside its blob.
    fn create(&self, layer: &str, options: &str) -> Result<PathBuf> {
        let (tar, boot, blobs) = (self.tar(layer)?, self.boot(layer), self.blobs());
        let (tar, at, blobs) = (tar.display(), boot.display(), blobs.display());
        self.run(&format!(
            "create -t tar-rafs {options} -B {at} -D {blobs} {tar}"
        ))?;
        Ok(boot)
    }

    /// A blob with its bootstrap inside.
    fn create_inline(&self, layer: &str, options: &str) -> Result<PathBuf> {
        let tar = self.tar(layer)?;
        self.inline(&format!("-t tar-rafs {options} {}", tar.display()))
    }

    /// The blob with its bootstrap inside that `create` makes of these words.
    pub fn inline(&self, words: &str) -> Result<PathBuf> {
        let blobs = self.blobs();
        let before = names(&blobs)?;
        self.run(&format!(
            "create --blob-inline-meta -D {} {words}",
            blobs.display()
        ))?;
        let mut new = names(&blobs)?;
        new.retain(|name| !before.contains(name));
        ensure!(new.len() == 1, "the blobs that were made: {new:?}");
        Ok(new.remove(0))
    }

    /// The bootstrap out of a blob, in a file of the blob's name, as deployed converters do it.
    pub fn extract(&self, blob: &Path) -> Result<PathBuf> {
        let boot = self.boot(&blob.file_name().context("a blob's name")?.to_string_lossy());
        fs::write(&boot, bytes(blob)?)?;
        Ok(boot)
    }

    fn merged(&self, options: &str) -> Result<PathBuf> {
        let (lower, upper) = (
            self.create_inline("lower", options)?,
            self.create_inline("upper", options)?,
        );
        let out = self.boot("merged");
        self.run(&format!(
            "merge -B {} {} {}",
            out.display(),
            lower.display(),
            upper.display()
        ))?;
        Ok(out)
    }

    /// A dictionary of two images that have chunks in common.
    fn dictionary(&self, options: &str) -> Result<PathBuf> {
        let mut sources = Vec::new();
        for layer in ["lower", "upper"] {
            let (blob, dir) = (
                self.create_inline(layer, options)?,
                self.boot(&format!("{layer}:1")),
            );
            fs::create_dir(&dir)?;
            let boot = dir.join("bootstrap").display().to_string();
            self.run(&format!("merge -B {boot} {}", blob.display()))?;
            sources.push(boot);
        }
        let out = self.boot("dictionary");
        let (at, sources) = (out.display(), sources.join(" "));
        self.run(&format!("chunkdict generate -B {at} {sources}"))?;
        Ok(out)
    }

    /// An image of a layer whose chunks are in that dictionary, as far as they are.
    fn known(&self, options: &str) -> Result<PathBuf> {
        let dictionary = self.dictionary(options)?;
        let dictionary = format!("--chunk-dict bootstrap={}", dictionary.display());
        let blob = self.create_inline("lower", &format!("{options} {dictionary}"))?;
        let out = self.boot("known");
        let (at, blob) = (out.display(), blob.display());
        self.run(&format!("merge -B {at} {blob} {dictionary}"))?;
        Ok(out)
    }

    fn compacted(&self, options: &str) -> Result<PathBuf> {
        let (from, out, blobs) = (self.merged(options)?, self.boot("compacted"), self.blobs());
        let (from, at, blobs) = (from.display(), out.display(), blobs.display());
        self.run(&format!(
            "compact --layers-to-compact 1 -B {from} -D {blobs} -O {at}"
        ))?;
        Ok(out)
    }

    fn optimized(&self, options: &str) -> Result<PathBuf> {
        self.optimize(&self.merged(options)?)
    }

    /// The image with two of its files in a blob of their own.
    pub fn optimize(&self, from: &Path) -> Result<PathBuf> {
        let (out, blobs) = (self.boot("optimized"), self.blobs());
        let list = self.dir.join("list.json");
        fs::write(
            &list,
            r#"{"version": "v1", "files": [{"path": "/text"}, {"path": "/etc/config"}]}"#,
        )?;
        let (from, at, blobs, list) = (
            from.display(),
            out.display(),
            blobs.display(),
            list.display(),
        );
        self.run(&format!(
            "optimize -B {from} -p {list} -D {blobs} --output-blob-dir {blobs} -O {at}"
        ))?;
        Ok(out)
    }

    fn tarfs(&self) -> Result<PathBuf> {
        let (tar, boot, blobs) = (self.tar("lower")?, self.boot("tarfs"), self.blobs());
        let (tar, at, blobs) = (tar.display(), boot.display(), blobs.display());
        let id = "ab".repeat(32);
        self.run(&format!(
            "create -t tar-tarfs -B {at} --blob-id {id} -D {blobs} {tar}"
        ))?;
        Ok(boot)
    }
}

fn names(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
    entries.collect()
}

/// A bootstrap, or that in a blob.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if rafs_format::version(&bytes).is_ok()
        && !path.parent().is_some_and(|dir| dir.ends_with("blobs"))
    {
        return Ok(bytes);
    }
    Ok(storage::extract_bootstrap(&storage::FileBlob::open(path)?)?)
}

/// Compares what the reader and our libraries see, and the data that it reads.
fn judge(lab: &Lab, made: &Made) -> Result<String> {
    let name = made
        .bootstrap
        .file_name()
        .context("a bootstrap's name")?
        .to_string_lossy();
    let mut image = ours::load(bytes(&made.bootstrap)?, &name)?;
    if image.tarfs {
        forget_full_last_chunks(&mut image);
    }
    let expected: Listing = ours::list(&image);
    let opened = Opened::new(&made.bootstrap, &lab.blobs(), &lab.cache())?;
    opened.list()?.expect(&expected)?;
    let told = format!(
        "{} names, {} chunks",
        expected.paths.len(),
        image.chunks.len()
    );
    if !made.readable {
        return Ok(told);
    }
    let files = sizes(&image);
    let mut read = 0;
    opened.read_all(|path, data| {
        read += 1;
        if let Some(files) = made.files {
            let right = files.get(path).context("no such file in the tar")?;
            ensure!(data == right, "other data than in the tar");
        }
        Ok(())
    })?;
    ensure!(read == files, "{read} of {files} files were read");
    Ok(format!("{told}, {read} files read"))
}

/// Number of names of files that are not empty.
fn sizes(image: &Image) -> usize {
    let names = image.tree.walk();
    names
        .filter(|visit| matches!(&image.tree.inode(visit.id).content, Content::Regular { size, .. } if *size > 0))
        .count()
}

/// The reader takes the size of a file's last chunk in a tar for the remainder of a division, which is 0 for a full chunk.
/// Its data comes through the kernel, which goes by the file's size.
fn forget_full_last_chunks(image: &mut Image) {
    let ids: Vec<_> = image.tree.walk().map(|visit| visit.id).collect();
    for id in ids {
        if let Content::Regular { size, chunks } = &image.tree.inode(id).content
            && size % u64::from(image.chunk_size) == 0
            && let Some(last) = chunks.last()
        {
            let chunk = &mut image.chunks[last.0 as usize];
            (chunk.compressed_size, chunk.uncompressed_size) = (0, 0);
        }
    }
}
