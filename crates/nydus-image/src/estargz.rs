//! `create --type estargztoc-ref`: a bootstrap of the TOC of an eStargz layer, whose blob stays as it is.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use builder::{BuildOptions, BuiltLayer, build_estargz};
use layer::Compression;
use layer::estargz::{FOOTER_SIZE, Footer, read_toc_member};
use rafs_format::BlobId;

use crate::Usage;
use crate::args::{Create, SourceType};
use crate::create::refuse_for_reference;
use crate::interrupt::Interrupt;
use crate::output::{self, Output};

/// Chunk size in bytes where none is given: that of the library which makes eStargz layers.
pub const CHUNK_SIZE_DEFAULT: u32 = 0x40_0000;

/// Whether the source is the TOC of an eStargz layer.
pub fn is_toc(source: SourceType) -> bool {
    matches!(source, SourceType::EstargztocRef | SourceType::StargzIndex)
}

/// Refuses what an eStargz layer has no place for, and its own options for all else.
pub fn check_conflicts(args: &Create) -> Result<(), Usage> {
    if !is_toc(args.source_type) {
        let own = [
            ("--blob-data-size", args.blob_data_size.is_some()),
            ("--blob-meta", args.blob_meta.is_some()),
        ];
        return match own.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Usage(format!(
                "{flag} can only be used with --type estargztoc-ref"
            ))),
            None => Ok(()),
        };
    }
    let own = [
        ("--blob", args.blob.is_some()),
        ("--blob-inline-meta", args.blob_inline_meta),
        ("--features", !args.features.is_empty()),
    ];
    refuse_for_reference(
        args,
        &own,
        "--type estargztoc-ref: the eStargz layer itself is the blob",
    )?;
    if args.blob_id.is_none() {
        return Err(Usage(
            "--type estargztoc-ref needs --blob-id: the SHA-256 of the eStargz layer".to_owned(),
        ));
    }
    data_size(args).map(drop)
}

/// `--blob-data-size`, which is hexadecimal with or without `0x`.
fn data_size(args: &Create) -> Result<Option<u64>, Usage> {
    let Some(text) = &args.blob_data_size else {
        return Ok(None);
    };
    let digits = text.strip_prefix("0x").or(text.strip_prefix("0X"));
    // A sign would be read, too.
    let size = Some(digits.unwrap_or(text))
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.map(Some).ok_or_else(|| {
        Usage(format!(
            "--blob-data-size {text} is no hexadecimal number of 64 bits"
        ))
    })
}

/// Builds the image of a TOC; the source is its JSON, or the eStargz layer that holds it.
pub fn build(args: &Create, options: &BuildOptions) -> anyhow::Result<BuiltLayer> {
    let data_size = data_size(args)?;
    let Some(id) = options.blob_id.clone() else {
        bail!("the id of the blob is not known");
    };
    let failed = || format!("cannot build {}", args.source.display());
    let unreadable = || format!("cannot read {}", args.source.display());
    let file = File::open(&args.source).with_context(unreadable)?;
    let (compression, stream) = layer::detecting(file).with_context(unreadable)?;
    if compression == Compression::None {
        return build_estargz(stream, id, data_size, options).with_context(failed);
    }
    let (footer, member) = find_toc(args).with_context(unreadable)?;
    let end = data_size.unwrap_or(footer.toc_offset);
    build_from_member(member, id, end, options).with_context(failed)
}

/// Takes the TOC out of its gzip member.
fn build_from_member(
    member: io::Take<File>,
    id: BlobId,
    data_end: u64,
    options: &BuildOptions,
) -> Result<BuiltLayer, builder::Error> {
    let mut built = None;
    read_toc_member(member, |json| {
        built = Some(build_estargz(json, id, Some(data_end), options));
        Ok(())
    })?;
    built.unwrap_or(Err(builder::Error::Stopped))
}

/// What the end of the layer says, and the gzip member with the TOC.
fn find_toc(args: &Create) -> anyhow::Result<(Footer, io::Take<File>)> {
    let mut file = File::open(&args.source)?;
    if !file.metadata()?.is_file() {
        bail!(
            "it is compressed and no regular file: give the JSON of the table of contents instead"
        );
    }
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(size.saturating_sub(FOOTER_SIZE as u64)))?;
    let mut tail = Vec::with_capacity(FOOTER_SIZE);
    file.by_ref()
        .take(FOOTER_SIZE as u64)
        .read_to_end(&mut tail)?;
    let footer = Footer::parse(&tail, size)?;
    file.seek(SeekFrom::Start(footer.toc_offset))?;
    // The footer lies behind the TOC.
    let member = file.take(size - footer.size as u64 - footer.toc_offset);
    Ok((footer, member))
}

/// Writes the chunk table as readers keep it beside their cache, to the file that `--blob-meta` names or into the
/// directory. It has no name until it is committed.
pub fn write_cached_table(
    args: &Create,
    layer: &BuiltLayer,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<(Output, PathBuf)>> {
    let Some(path) = &args.blob_meta else {
        return Ok(None);
    };
    let Some(blob) = layer.image.blobs.first() else {
        return Ok(None);
    };
    let table = layer
        .table
        .as_ref()
        .context("the layer has no chunk table")?;
    let path = if path.is_dir() {
        path.join(format!("{}.blob.meta", blob.id))
    } else {
        path.clone()
    };
    let output = output::begin(&path, &table.cache_file(), &interrupt.unfinished)?;
    Ok(Some((output, path)))
}
