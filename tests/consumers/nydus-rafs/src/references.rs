//! Images whose chunks stay in the layers: gzip layers with places to inflate from (zran), and eStargz layers by their
//! tables of contents.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};

use crate::cases::Lab;
use crate::{sample, sha256};

/// Bytes of the tar in each gzip member, where there are several.
const MEMBER: usize = 700_001;

/// An image by reference.
pub struct Reference {
    pub name: &'static str,
    pub make: fn(&Lab) -> Result<PathBuf>,
    pub holds: Holds,
}

/// Which layer's files an image has.
pub enum Holds {
    Lower,
    Upper,
    Star,
}

/// All that there are.
pub const ALL: &[Reference] = &[
    Reference {
        name: "create -t targz-ref",
        make: |lab| apart(lab, "targz-ref", &gzip(&lab.lower.tar)?),
        holds: Holds::Lower,
    },
    Reference {
        name: "create -t targz-ref --features blob-toc",
        make: |lab| apart(lab, "targz-ref --features blob-toc", &gzip(&lab.lower.tar)?),
        holds: Holds::Lower,
    },
    Reference {
        name: "create -t targz-ref, of many gzip members",
        make: |lab| apart(lab, "targz-ref", &members(&lab.lower.tar)?),
        holds: Holds::Lower,
    },
    Reference {
        name: "create -t targz-ref --blob-inline-meta",
        make: |lab| {
            let blob = inline(lab, "targz-ref", &gzip(&lab.lower.tar)?)?;
            lab.extract(&blob)
        },
        holds: Holds::Lower,
    },
    Reference {
        name: "create -t targz-ref --blob-inline-meta --features blob-toc, opened as a blob",
        make: |lab| inline(lab, "targz-ref --features blob-toc", &gzip(&lab.lower.tar)?),
        holds: Holds::Lower,
    },
    Reference {
        name: "create -t estargz-ref",
        make: |lab| apart(lab, "estargz-ref", &lab.star.blob),
        holds: Holds::Star,
    },
    Reference {
        name: "create -t estargz-ref --blob-inline-meta --features blob-toc",
        make: |lab| {
            let blob = inline(lab, "estargz-ref --features blob-toc", &lab.star.blob)?;
            lab.extract(&blob)
        },
        holds: Holds::Star,
    },
    Reference {
        name: "create -t estargztoc-ref",
        make: |lab| table_of_contents(lab, &lab.boot("stargz.index.json"), ""),
        holds: Holds::Star,
    },
    Reference {
        name: "create -t estargztoc-ref --blob-data-size",
        make: |lab| {
            let size = format!("--blob-data-size {:#x}", lab.star.toc_offset);
            table_of_contents(lab, &lab.boot("stargz.index.json"), &size)
        },
        holds: Holds::Star,
    },
    Reference {
        name: "create -t estargztoc-ref, of the layer",
        make: |lab| table_of_contents(lab, &lab.blobs().join(sha256(&lab.star.blob)), ""),
        holds: Holds::Star,
    },
    Reference {
        name: "optimize of targz-ref",
        make: |lab| {
            let boot = apart(lab, "targz-ref", &gzip(&lab.lower.tar)?)?;
            lab.optimize(&boot)
        },
        holds: Holds::Lower,
    },
    Reference {
        name: "optimize of estargztoc-ref",
        make: |lab| {
            let boot = table_of_contents(lab, &lab.boot("stargz.index.json"), "")?;
            lab.optimize(&boot)
        },
        holds: Holds::Star,
    },
    Reference {
        name: "merge of two targz-ref",
        make: merged,
        holds: Holds::Upper,
    },
];

fn gzip(tar: &[u8]) -> Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::new(6));
    out.write_all(tar)?;
    Ok(out.finish()?)
}

fn members(tar: &[u8]) -> Result<Vec<u8>> {
    let members: Result<Vec<_>> = tar.chunks(MEMBER).map(gzip).collect();
    Ok(members?.concat())
}

/// The layer among the blobs, by its digest.
fn layer(lab: &Lab, bytes: &[u8]) -> Result<PathBuf> {
    let path = lab.blobs().join(sha256(bytes));
    fs::write(&path, bytes)?;
    Ok(path)
}

/// A bootstrap beside the blob with the places to inflate from.
fn apart(lab: &Lab, words: &str, bytes: &[u8]) -> Result<PathBuf> {
    let (source, boot, blobs) = (layer(lab, bytes)?, lab.boot("reference"), lab.blobs());
    let (source, at, blobs) = (source.display(), boot.display(), blobs.display());
    lab.run(&format!("create -t {words} -B {at} -D {blobs} {source}"))?;
    Ok(boot)
}

/// One blob with both, as converters have it made.
fn inline(lab: &Lab, words: &str, bytes: &[u8]) -> Result<PathBuf> {
    let source = layer(lab, bytes)?;
    lab.inline(&format!("-t {words} {}", source.display()))
}

/// As the snapshotter has it made, of a table or the layer: the chunk table goes where the reader keeps those that it has read.
fn table_of_contents(lab: &Lab, source: &Path, more: &str) -> Result<PathBuf> {
    let id = name(&layer(lab, &lab.star.blob)?);
    let boot = lab.boot("reference");
    fs::write(lab.boot("stargz.index.json"), &lab.star.toc)?;
    lab.run(&format!(
        "create -t estargztoc-ref --blob-id {id} --chunk-size {:#x} -B {} --blob-meta {} {more} {}",
        sample::STAR_CHUNK,
        boot.display(),
        lab.cache().join(format!("{id}.blob.meta")).display(),
        source.display()
    ))?;
    Ok(boot)
}

/// As converters merge layers by reference: each bootstrap is called as its original layer.
fn merged(lab: &Lab) -> Result<PathBuf> {
    let (mut boots, mut digests, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for tar in [&lab.lower.tar, &lab.upper.tar] {
        let bytes = gzip(tar)?;
        let blob = inline(lab, "targz-ref --features blob-toc", &bytes)?;
        let boot = lab.boot(&sha256(&bytes));
        fs::rename(lab.extract(&blob)?, &boot)?;
        boots.push(boot.display().to_string());
        digests.push(name(&blob));
        sizes.push(fs::metadata(&blob)?.len().to_string());
    }
    let out = lab.boot("merged");
    lab.run(&format!(
        "merge -B {} {} --blob-digests {} --blob-sizes {}",
        out.display(),
        boots.join(" "),
        digests.join(","),
        sizes.join(",")
    ))?;
    Ok(out)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
