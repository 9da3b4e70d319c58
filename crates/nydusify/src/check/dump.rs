//! `--work-dir`: what a check looks at, as files, where the deployed tool leaves them.
//!
//! `source` and `target` hold the documents of an image, indented, and for a Nydus image the files of its bootstrap
//! layer and what `nydus-image check` would report. A former dump is replaced; nothing else is touched.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use flate2::read::MultiGzDecoder;
use image::{Node, Source, nydus};
use inspect::CommandReport;
use layer::tar::{EntryKind, Reader};
use serde_json::Value;
use verify::{Document, Files, Side};

use crate::args::Usage;

/// Most bytes that a bootstrap layer is unpacked to: more than any that is accepted has.
const UNPACKED_MAX: u64 = 2 * nydus::BOOTSTRAP_SIZE_MAX;

const OCI_INDEX: &str = "oci_index.json";
const OCI_MANIFEST: &str = "oci_manifest.json";
const OCI_CONFIG: &str = "oci_config.json";
const NYDUS_INDEX: &str = "nydus_index.json";
const NYDUS_MANIFEST: &str = "nydus_manifest.json";
const NYDUS_CONFIG: &str = "nydus_config.json";
const NYDUS_BOOTSTRAP: &str = "nydus_bootstrap";
const NYDUS_OUTPUT: &str = "nydus_output.json";

/// All that a dump of one image may have.
const NAMES: [&str; 8] = [
    OCI_INDEX,
    OCI_MANIFEST,
    OCI_CONFIG,
    NYDUS_INDEX,
    NYDUS_MANIFEST,
    NYDUS_CONFIG,
    NYDUS_BOOTSTRAP,
    NYDUS_OUTPUT,
];

/// Writes the dump of a pair of images to `source` and `target` in `dir`.
pub fn write(
    dir: &Path,
    source: Option<(&Source, &Side)>,
    target: (Option<&Source>, &Side),
) -> Result<()> {
    let places = ["source", "target"].map(|name| dir.join(name));
    for place in &places {
        clear(place)?;
    }
    let [source_place, target_place] = places;
    if let Some((image, side)) = source {
        write_side(&source_place, Some(image), side)?;
    }
    write_side(&target_place, target.0, target.1)
}

/// Where the dump of one of several targets goes: a directory named by its platform.
pub fn platform_dir(dir: &Path, target: &Side) -> PathBuf {
    let text = |key: &str| {
        let value = target.document.as_ref()?.config.get(key)?.as_str()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        let safe: String = value.chars().filter(|c| plain(*c)).collect();
        (!safe.trim_matches('.').is_empty()).then_some(safe)
    };
    let words: Vec<String> = ["os", "architecture", "variant"]
        .into_iter()
        .filter_map(text)
        .collect();
    dir.join(if words.is_empty() {
        "unknown".to_owned()
    } else {
        words.join("_")
    })
}

/// Removes a former dump. What is none is refused before anything is removed.
fn clear(place: &Path) -> Result<()> {
    let failed = || format!("cannot read {}", place.display());
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(foreign(place)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(failed),
    }
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(place).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let directory = entry.file_type().with_context(failed)?.is_dir();
        if !NAMES.contains(&&*name) || directory != (name == NYDUS_BOOTSTRAP) {
            return Err(foreign(&entry.path()));
        }
        names.insert(name);
    }
    for name in names {
        let path = place.join(&name);
        let removed = match &*name {
            NYDUS_BOOTSTRAP => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::remove_dir(place).with_context(|| format!("cannot remove {}", place.display()))
}

fn foreign(path: &Path) -> anyhow::Error {
    Usage(format!(
        "--work-dir: {} is not of a former check; use another directory",
        path.display()
    ))
    .into()
}

fn write_side(place: &Path, image: Option<&Source>, side: &Side) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    let (index_name, manifest_name, config_name) = match side.files {
        Files::Layers(_) => (OCI_INDEX, OCI_MANIFEST, OCI_CONFIG),
        Files::Rafs { .. } => (NYDUS_INDEX, NYDUS_MANIFEST, NYDUS_CONFIG),
    };
    if let Some(Document {
        manifest, config, ..
    }) = &side.document
    {
        write_json(&place.join(manifest_name), &parsed(&manifest.to_json())?)?;
        write_json(&place.join(config_name), config)?;
        if let Some(image) = image {
            if let Node::Index(index) = image.node(image.root())? {
                write_json(&place.join(index_name), &parsed(&index.to_json())?)?;
            }
            if let Some(layer) = nydus::bootstrap_descriptor(manifest) {
                let unpacked = place.join(NYDUS_BOOTSTRAP);
                unpack(image, layer, &unpacked)?;
            }
        }
    }
    if let Files::Rafs { bootstrap, .. } = &side.files {
        let begun = Instant::now();
        // An invalid one has no report, as with `nydus-image check`; the check says what is wrong.
        if bootstrap.check().is_ok() {
            let path = match side.document {
                Some(_) => place.join(NYDUS_BOOTSTRAP).join("image/image.boot"),
                None => PathBuf::from(&side.name),
            };
            let seconds = begun.elapsed().as_secs_f64();
            let report = CommandReport::of_check(&path, &bootstrap.bootstrap, seconds);
            write_file(&place.join(NYDUS_OUTPUT), &serde_json::to_vec(&report)?)?;
        }
    }
    Ok(())
}

fn parsed(json: &[u8]) -> Result<Value> {
    serde_json::from_slice(json).context("cannot read a document back")
}

/// Two spaces for each level.
fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, &serde_json::to_vec_pretty(value)?)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Unpacks the regular files of a bootstrap layer below `root`, which is not there yet: nothing in it can be a link
/// that leads elsewhere. Names are resolved by their text alone.
fn unpack(image: &Source, layer: &image::Descriptor, root: &Path) -> Result<()> {
    let what = || format!("cannot unpack bootstrap layer {}", layer.digest);
    fs::create_dir(root).with_context(|| format!("cannot create {}", root.display()))?;
    let stream = MultiGzDecoder::new(image.open_blob(layer)?).take(UNPACKED_MAX);
    let mut reader = Reader::new(stream);
    while let Some(entry) = reader.next().with_context(what)? {
        let names = layer::path::clean(&entry.path);
        let mut path = root.to_owned();
        path.extend(
            names
                .iter()
                .map(|name| Path::new(std::ffi::OsStr::from_bytes(name))),
        );
        let written = match entry.kind {
            EntryKind::Directory => fs::create_dir_all(&path),
            EntryKind::Regular if !names.is_empty() => {
                create(&path).and_then(|mut file| io::copy(&mut reader.data(), &mut file).map(drop))
            }
            _ => {
                tracing::debug!(path = %path.display(), "neither file nor directory, it is not unpacked");
                Ok(())
            }
        };
        written.with_context(|| format!("{}: cannot write {}", what(), path.display()))?;
    }
    if reader.finish().with_context(what)? >= UNPACKED_MAX {
        bail!("{}: it has {UNPACKED_MAX} bytes and more", what());
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path)
}
