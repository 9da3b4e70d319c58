//! `create --attributes` and `--external-blob`: files whose data lies elsewhere get a bootstrap and a blob of their own.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use builder::{Attributes, BuildOptions, ExternalImage, Whiteouts, encode};
use sha2::{Digest as _, Sha256};

use crate::Usage;
use crate::args::Create;
use crate::interrupt::Interrupt;
use crate::output::{self, Output};
use crate::parent;

/// Largest file of attributes that is read, in bytes: checksums of two million chunks have room.
const ATTRIBUTES_MAX: u64 = 64 << 20;

/// Whether there is to be an external image.
pub fn is_asked_for(args: &Create) -> bool {
    args.attributes.is_some() || args.external_blob.is_some()
}

/// Refuses what has no external files.
pub fn check_conflicts(args: &Create, directory: bool) -> Result<(), Usage> {
    if !is_asked_for(args) {
        return Ok(());
    }
    let flag = match &args.attributes {
        Some(_) => "--attributes",
        None => "--external-blob",
    };
    if !directory {
        return Err(Usage(format!(
            "{flag} can only be used with --type dir-rafs"
        )));
    }
    if parent::path(args.parent_bootstrap.as_deref()).is_some() {
        return Err(Usage(format!(
            "{flag} cannot be used with --parent-bootstrap: external files are an image of their own"
        )));
    }
    if bootstrap_path(args).is_some_and(|path| Some(path) == args.bootstrap) {
        return Err(Usage(
            "--bootstrap cannot end in .external: that of external files is called so".to_owned(),
        ));
    }
    Ok(())
}

/// The external bootstrap beside the other one.
fn bootstrap_path(args: &Create) -> Option<PathBuf> {
    let path = args.bootstrap.as_ref()?;
    Some(path.with_extension("external"))
}

/// Finds the external files, which the other image then leaves out. `None` if none are asked for.
pub fn scan(
    args: &Create,
    whiteouts: Whiteouts,
    options: &mut BuildOptions,
) -> anyhow::Result<Option<ExternalImage>> {
    if !is_asked_for(args) {
        return Ok(None);
    }
    let attributes = match &args.attributes {
        Some(path) => {
            let failed = || format!("cannot read the attributes in {}", path.display());
            let text = read(path).with_context(failed)?;
            Attributes::parse(&text).with_context(failed)?
        }
        None => Attributes::default(),
    };
    let failed = || format!("cannot build {}", args.source.display());
    let image =
        ExternalImage::scan(&args.source, whiteouts, &attributes, options).with_context(failed)?;
    warn_of_missing(&attributes, &image, &args.source);
    let place = args.external_blob.is_some() || (args.blob_dir.is_some() && !options.inline_meta);
    ensure!(
        place || !image.needs_blob(options),
        "there is no place for the blob of external files: give --external-blob"
    );
    options.external = Some(Arc::new(attributes));
    Ok(Some(image))
}

/// Says so if attributes are about files that are not there.
fn warn_of_missing(attributes: &Attributes, external: &ExternalImage, source: &Path) {
    let missing = |path: &&[u8]| external.image.tree.lookup(path).is_none();
    let mut missing = attributes.iter().map(|(path, _)| path).filter(missing);
    if let Some(first) = missing.next() {
        tracing::warn!(
            "{} files with attributes are not in {}, the first is {}",
            missing.count() + 1,
            source.display(),
            String::from_utf8_lossy(first)
        );
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(path)?;
    file.take(ATTRIBUTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > ATTRIBUTES_MAX {
        bail!("it has more than {ATTRIBUTES_MAX} bytes");
    }
    Ok(text)
}

/// The files of an external image, complete but without names.
pub struct Written {
    pub blob: Option<(Output, PathBuf)>,
    pub bootstrap: Option<(Output, PathBuf)>,
    /// A file that must not be there, for there is nothing to put into it.
    pub useless: Option<PathBuf>,
    /// The ids of the blobs.
    pub ids: Vec<String>,
}

/// Writes the blob and the bootstrap.
pub fn write(
    mut external: ExternalImage,
    args: &Create,
    options: &BuildOptions,
    interrupt: &Interrupt,
) -> anyhow::Result<Written> {
    let unfinished = &interrupt.unfinished;
    let mut output = match (&args.external_blob, &args.blob_dir) {
        (Some(path), _) => Output::create(path, unfinished)?,
        (None, Some(dir)) => Output::create_in(dir, "external", unfinished)?,
        (None, None) => {
            // Checked before that nothing has to be written.
            let bootstrap = bootstrap(&external, args, interrupt)?;
            return Ok(Written {
                blob: None,
                bootstrap,
                useless: None,
                ids: ids(&external),
            });
        }
    };
    let written = external.write(&mut output, options);
    let written = written.context("cannot write the blob of external files")?;
    let path = match (&args.external_blob, &args.blob_dir) {
        (None, Some(dir)) => dir.join(hex::encode(written.digest)),
        (path, _) => path.clone().unwrap_or_default(),
    };
    let useful = written.size != 0 || !output.is_regular();
    let useless = (!useful && args.external_blob.is_some()).then(|| path.clone());
    let bootstrap = match args.blob_inline_meta {
        true => None,
        false => bootstrap(&external, args, interrupt)?,
    };
    Ok(Written {
        blob: useful.then_some((output, path)),
        bootstrap,
        useless,
        ids: ids(&external),
    })
}

fn ids(external: &ExternalImage) -> Vec<String> {
    let blobs = external.image.blobs.iter();
    blobs.map(|blob| blob.id.to_string()).collect()
}

fn bootstrap(
    external: &ExternalImage,
    args: &Create,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<(Output, PathBuf)>> {
    let bytes = encode(&external.image).context("cannot encode the external bootstrap")?;
    let path = match (bootstrap_path(args), &args.blob_dir) {
        (Some(path), _) => path,
        (None, Some(dir)) => dir.join(format!("{}.external", hex::encode(Sha256::digest(&bytes)))),
        (None, None) => bail!("there is no place for the external bootstrap"),
    };
    let output = output::begin(&path, &bytes, &interrupt.unfinished)?;
    Ok(Some((output, path)))
}
