//! What `nydusify mount` mounts, and where its cache lies.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use backend::Blobs;
use image::nydus::{self, ImageBlobs};
use image::{Descriptor, Location, Manifest, PlatformChoice, Source, Store};
use progress::Cancel;
use rafs_format::Bootstrap;
use serde::{Deserialize, Serialize};
use storage::{BlobSource, DirSource, LoadedBootstrap, load_bootstrap};

use super::mirrors::{self, Upstream};
use super::unconverted::Index;
use super::{LazyArgs, Mode};
use crate::args::Named;
use crate::place::Places;

/// An image ready to be mounted.
pub struct Image {
    pub(super) bootstrap: Arc<Bootstrap<Vec<u8>>>,
    pub(super) blobs: Arc<dyn BlobSource>,
    /// What is known of the places that the blobs come from.
    pub(super) upstream: Arc<Upstream>,
    /// What a process needs to know to serve this very image, whatever its name leads to by then.
    pub(super) record: Vec<u8>,
    /// Its configuration, where that was asked for and there is one.
    pub config: Option<serde_json::Value>,
    /// Why the kernel must not mount it.
    not_for_kernel: Option<String>,
}

/// Where an image's bootstrap was found. The bootstrap itself follows it in a record.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    descriptor: Descriptor,
    manifest: Manifest,
    /// What describes its layers, if nobody converted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<Index>,
}

/// A record: the length of the first part, that part, which is JSON, and the bootstrap.
fn record(found: Option<&Found>, bootstrap: &[u8]) -> Result<Vec<u8>> {
    let found = serde_json::to_vec(&found)?;
    let mut record = (found.len() as u64).to_le_bytes().to_vec();
    record.extend_from_slice(&found);
    record.extend_from_slice(bootstrap);
    Ok(record)
}

fn read_record(record: &[u8]) -> Result<(Option<Found>, &[u8])> {
    let parts = record.split_first_chunk::<8>().and_then(|(len, rest)| {
        rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
    });
    let (found, bootstrap) = parts.context("what is known of the mounted image is damaged")?;
    Ok((serde_json::from_slice(found)?, bootstrap))
}

impl Image {
    /// Refuses what the kernel must not be given: another format, and a bootstrap that contradicts itself.
    pub(super) fn check_for_kernel(&self) -> Result<()> {
        match &self.not_for_kernel {
            Some(why) => Err(anyhow!("the kernel can't mount the image: {why}")),
            None => Ok(()),
        }
    }

    /// Says which blobs cannot be opened. What is in the cache, or in other blobs, can be read all the same.
    pub(super) fn warn_of_missing_blobs(&self) {
        let needed = self.bootstrap.blobs().iter();
        for info in needed.filter(|info| info.chunk_count != 0) {
            if let Err(error) = self.blobs.open(info.id.as_str()) {
                let id = &info.id;
                tracing::warn!("blob {id} cannot be opened, reads of its data will fail: {error}");
            }
        }
    }
}

/// Opens what the arguments name. `record` is that of the image that is mounted already, which is opened again then.
pub(super) fn open(named: Named<'_>, args: &LazyArgs, record: Option<&[u8]>) -> Result<Image> {
    open_image(named, args, record, false)
}

/// Opens what the arguments name, its configuration as well.
pub fn open_to_run(named: Named<'_>, args: &LazyArgs) -> Result<Image> {
    open_image(named, args, None, true)
}

fn open_image(
    named: Named<'_>,
    args: &LazyArgs,
    record: Option<&[u8]>,
    with_config: bool,
) -> Result<Image> {
    let known = record.map(read_record).transpose()?;
    // A signal ends the mount, not what it has asked a registry for: there may be readers that wait.
    let places =
        Places::new(&args.registry, None, &Cancel::default()).with_patience(&args.patience);
    let backend = args.backend.choice();
    let backend = backend.open(&places, args.mirrors_dir.as_deref())?;
    match named {
        Named::Bare(bootstrap) => {
            let upstream = Upstream::new(&places, None);
            let image = bare(bootstrap, args.blob_dir.as_deref(), backend, upstream)?;
            let same = known.is_none_or(|(_, mounted)| mounted == image.bootstrap.data());
            let path = bootstrap.display();
            ensure!(
                same,
                "{path}: it is no longer the bootstrap that was mounted"
            );
            Ok(image)
        }
        Named::Image(target) => in_image(target, args, &places, backend, known, with_config),
    }
}

fn bare(
    path: &Path,
    blob_dir: Option<&Path>,
    backend: Option<Arc<Blobs>>,
    upstream: Arc<Upstream>,
) -> Result<Image> {
    let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let loaded = load_bootstrap(&absolute)?;
    // An image's bootstrap is covered by the digest of its layer. A bare one by nothing: refuse what contradicts itself.
    loaded
        .check()
        .with_context(|| format!("{}: damaged bootstrap", path.display()))?;
    let rest = match blob_dir {
        Some(dir) => {
            let dir = std::path::absolute(dir).with_context(|| dir.display().to_string())?;
            Some(Arc::new(DirSource(dir)) as Arc<dyn BlobSource>)
        }
        None => backend.map(|backend| backend as Arc<dyn BlobSource>),
    };
    let blobs = loaded.source(rest)?;
    Ok(Image {
        record: record(None, loaded.bootstrap.data())?,
        config: None,
        upstream,
        not_for_kernel: not_for_kernel(&loaded),
        bootstrap: Arc::new(loaded.bootstrap),
        blobs,
    })
}

fn in_image(
    target: &str,
    args: &LazyArgs,
    places: &Places,
    backend: Option<Arc<Blobs>>,
    known: Option<(Option<Found>, &[u8])>,
    with_config: bool,
) -> Result<Image> {
    let location = absolute(target.parse()?).with_context(|| target.to_owned())?;
    let backend = backend.map(|backend| backend as Arc<dyn Store>);
    let (source, found, bytes) = match known {
        Some((Some(found), bytes)) => {
            let root = found.descriptor.clone();
            let source = places.source_of(&location, args.target_insecure, root)?;
            (source.with_backend(backend), found, bytes.to_vec())
        }
        _ => {
            let source = places.source(&location, args.target_insecure)?;
            let source = source.with_backend(backend);
            let found = find(target, args, (places, &location), &source)?;
            let bytes = match &found.index {
                Some(index) => index.bootstrap(args, &source),
                None => Ok(nydus::read_bootstrap(&source, &found.manifest)?),
            };
            let bytes = bytes.with_context(|| target.to_owned())?;
            (source, found, bytes)
        }
    };
    let config = with_config
        .then(|| source.config(&found.manifest))
        .transpose()?;
    let record = record(Some(&found), &bytes)?;
    let loaded =
        LoadedBootstrap::from_bytes(bytes).with_context(|| format!("{target}: the bootstrap"))?;
    let dir = args.mirrors_dir.as_deref();
    let mirrors = mirrors::of_image(&location, &args.mirror, dir, places)?;
    let around = |blobs: ImageBlobs| -> Result<Arc<dyn BlobSource>> {
        Ok(mirrors::around(Arc::new(blobs), mirrors.as_ref()))
    };
    let blobs = match &found.index {
        Some(index) => {
            let image = (&found.descriptor, &found.manifest);
            index.blobs(target, args, source, image, around)?
        }
        None => around(ImageBlobs::new(source, &found.manifest))?,
    };
    Ok(Image {
        config,
        record,
        not_for_kernel: match args.mode {
            Mode::Fuse => None,
            Mode::Auto | Mode::Erofs => not_for_kernel(&loaded),
        },
        bootstrap: Arc::new(loaded.bootstrap),
        blobs,
        upstream: Upstream::new(places, mirrors),
    })
}

/// The image for the platform that the arguments name: a Nydus image if there is one, else with an index.
fn find(
    target: &str,
    args: &LazyArgs,
    place: (&Places, &Location),
    source: &Source,
) -> Result<Found> {
    let choice = match &args.platform {
        Some(platform) => PlatformChoice::Only(vec![platform.clone()]),
        None => PlatformChoice::Host,
    };
    let mut images = source.manifests(&choice)?;
    let nydus = images
        .iter()
        .position(|(_, manifest)| nydus::is_nydus(manifest));
    let at = nydus.unwrap_or_default();
    ensure!(at < images.len(), "{target}: there is no image in it");
    let (descriptor, manifest) = images.swap_remove(at);
    let index = match nydus {
        Some(_) => None,
        None => Some(Index::of(
            target,
            args,
            place,
            source,
            (&descriptor, &manifest),
        )?),
    };
    Ok(Found {
        descriptor,
        manifest,
        index,
    })
}

fn not_for_kernel(loaded: &LoadedBootstrap) -> Option<String> {
    if loaded.v5.is_some() {
        return Some("it is RAFS v5; `nydus-image transcode --to 6` makes v6 of it".to_owned());
    }
    loaded
        .check()
        .err()
        .map(|error| format!("the bootstrap is damaged: {error}"))
}

/// The same place from any directory: blobs are opened when they are first read, and a detached process lets go of the
/// directory it was started in.
fn absolute(mut location: Location) -> io::Result<Location> {
    match &mut location {
        Location::OciLayout { dir: path, .. }
        | Location::OciArchive { file: path, .. }
        | Location::DockerArchive { file: path, .. } => *path = std::path::absolute(&*path)?,
        Location::Registry(_) => {}
    }
    Ok(location)
}
