//! A series of versions of one image, each converted with a dictionary of those before it: what is stored and pulled.
//!
//! Figures are sizes and counts: they are the same on every machine.

mod images;
mod page;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use image::{Location, PlatformChoice, Source, nydus};
use serde_json::{Value, json};

use crate::scenario::Programs;
use crate::tools::{remove, run};

use images::Version;

/// Chunk sizes in bytes.
const CHUNK_SIZES: [u32; 3] = [64 << 10, 256 << 10, 1 << 20];
/// Values of `--dict-min-run`; `None` is without a dictionary.
const RUNS: [Option<u32>; 6] = [None, Some(1), Some(2), Some(4), Some(8), Some(16)];
/// The default of `--dict-min-run`.
const DEFAULT_RUN: u32 = 4;
/// The tag of the index over all versions so far, which is the dictionary.
const DICTIONARY: &str = "dictionary";

/// How a series is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Setting {
    chunk_size: u32,
    min_run: Option<u32>,
}

/// What became of one version. All in bytes but the counts.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    /// New in the registry: blob, bootstrap layer, configuration and manifest.
    stored: u64,
    /// Fetched by who has all chunks of the version before: new chunks and the bootstrap layer.
    pulled: u64,
    /// Runs in blobs of the dictionary.
    requests: u64,
    /// Blobs of the dictionary.
    blobs: u64,
}

/// Makes the images below `work`, converts them in every way and writes the table and the plot.
///
/// # Errors
/// If an image cannot be made or converted, or the pages not be written.
pub fn measure(programs: &Programs, work: &Path, print: bool) -> Result<()> {
    std::fs::create_dir_all(work)?;
    let versions = images::make(work)?;
    let mut all = BTreeMap::new();
    for chunk_size in CHUNK_SIZES {
        for min_run in RUNS {
            let setting = Setting {
                chunk_size,
                min_run,
            };
            eprintln!("converting: {setting:?}");
            all.insert(setting, convert_all(programs, work, &versions, setting)?);
        }
    }
    let page = page::Page {
        versions: &versions,
        figures: &all,
    };
    if print {
        print!("{}", page.text());
        return Ok(());
    }
    page.write(&testkit::workspace().join("docs"))
}

/// Converts the series once.
fn convert_all(
    programs: &Programs,
    work: &Path,
    versions: &[Version],
    setting: Setting,
) -> Result<Vec<Figures>> {
    let target = work.join("nydus");
    remove(&target)?;
    let (mut figures, mut before) = (Vec::new(), HashSet::new());
    let mut manifests = Vec::new();
    for version in versions {
        let old = blobs(&target)?;
        let report = convert(programs, &target, version, setting, !manifests.is_empty())?;
        let new = blobs(&target)?;
        let stored = new
            .iter()
            .filter(|(name, _)| !old.contains_key(*name))
            .map(|(_, size)| size)
            .sum();
        let (bootstrap, chunks) = chunks(&target, version.day)?;
        let pulled: u64 = chunks
            .iter()
            .filter(|(chunk, _)| !before.contains(*chunk))
            .map(|(_, size)| size)
            .sum();
        let found = &report["Deduplication"];
        let count = |name: &str| found[name].as_u64().context("a report without counts");
        figures.push(Figures {
            stored,
            pulled: pulled + bootstrap,
            requests: count("ExtraRequests")?,
            blobs: count("DictionaryBlobs")?,
        });
        before = chunks.into_keys().collect();
        manifests.push(entry(&target, version.day)?);
        tag_all(&target, &manifests)?;
    }
    remove(&target)?;
    Ok(figures)
}

/// Converts one version; what the program reports.
fn convert(
    programs: &Programs,
    target: &Path,
    version: &Version,
    setting: Setting,
    has_dictionary: bool,
) -> Result<Value> {
    let report = target.with_extension("json");
    let place = |tag: &str| format!("oci:{}:{tag}", target.display());
    let mut command = Command::new(&programs.nydusify);
    command
        .args(["convert", "--no-journal", "--platform", "linux/amd64"])
        // Of chunks in batches nobody knows what each takes.
        .args(["--profile", "compat"])
        .arg("--source")
        .arg(format!("oci:{}:latest", version.layout.display()))
        .args(["--target", &place(version.day), "--chunk-size"])
        .arg(setting.chunk_size.to_string())
        .arg("--output-json")
        .arg(&report);
    if let Some(run) = setting.min_run.filter(|_| has_dictionary) {
        let dictionary = format!("bootstrap:registry:{}", place(DICTIONARY));
        command.args(["--chunk-dict", &dictionary]);
        command.args(["--dict-min-run", &run.to_string()]);
    }
    run(&mut command)?;
    Ok(serde_json::from_slice(&std::fs::read(&report)?)?)
}

/// The blobs of a layout and their sizes.
fn blobs(layout: &Path) -> Result<HashMap<String, u64>> {
    let directory = layout.join("blobs/sha256");
    if !directory.exists() {
        return Ok(HashMap::new());
    }
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok();
        let name = name.context("a blob whose name is no text")?;
        found.insert(name, entry.metadata()?.len());
    }
    Ok(found)
}

/// Where a chunk is stored.
type Place = (String, u64);

/// Size of the bootstrap layer, and the chunks of an image with their stored sizes.
fn chunks(layout: &Path, tag: &str) -> Result<(u64, HashMap<Place, u64>)> {
    let source = Source::open(&Location::OciLayout {
        dir: layout.to_owned(),
        tag: Some(tag.to_owned()),
    })?;
    let selected = source.select(&PlatformChoice::All)?;
    let manifest = &selected.first().context("no image")?.manifest;
    let layer = nydus::bootstrap_descriptor(manifest).context("no Nydus image")?;
    let bytes = nydus::read_bootstrap(&source, manifest)?;
    let image = bootstrap::Parsed::parse(bytes)?.load()?;
    let chunks = image.chunks.iter().map(|chunk| {
        let blob = &image.blobs[chunk.blob_index as usize];
        let place = (blob.id.as_str().to_owned(), chunk.compressed_offset);
        (place, u64::from(chunk.compressed_size))
    });
    Ok((layer.size, chunks.collect()))
}

/// The entry of a tag in a layout, as an entry of an index.
fn entry(layout: &Path, tag: &str) -> Result<Value> {
    let index = index(layout)?;
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let entries = index["manifests"].as_array().context("no entries")?;
    let mut entry = entries.iter().find(named).context("no such tag")?.clone();
    entry["annotations"] = json!({});
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    Ok(entry)
}

/// Tags an index over all versions so far: the dictionary of the next one.
fn tag_all(layout: &Path, manifests: &[Value]) -> Result<()> {
    let media_type = "application/vnd.oci.image.index.v1+json";
    let all = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    let all = all.to_string();
    let digest = testkit::sha256(all.as_bytes());
    std::fs::write(blob(layout, &digest), &all)?;
    let mut index = index(layout)?;
    let entries = index["manifests"].as_array_mut().context("no entries")?;
    let name = "org.opencontainers.image.ref.name";
    entries.retain(|entry| entry["annotations"][name] != DICTIONARY);
    entries.push(json!({
        "mediaType": media_type,
        "digest": format!("sha256:{digest}"),
        "size": all.len(),
        "annotations": {name: DICTIONARY},
    }));
    std::fs::write(layout.join("index.json"), index.to_string())?;
    Ok(())
}

fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs/sha256").join(digest)
}

fn index(layout: &Path) -> Result<Value> {
    let bytes = std::fs::read(layout.join("index.json"))?;
    Ok(serde_json::from_slice(&bytes)?)
}
