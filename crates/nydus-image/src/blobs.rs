//! Where the blobs of an image are read from.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use backend::DaemonConfig;
use clap::Args;
use progress::Cancel;
use rafs_format::{BlobFeatures, BlobInfo};
use registry::{Credentials, Proxy, Secret, Settings};
use storage::{
    BlobReader, BlobSource, ChunkStore, DirSource, FileBlob, LoadedBootstrap, StoreOptions,
    can_locate_batches,
};

use crate::Usage;

/// Options about a storage backend.
#[derive(Debug, Args)]
pub struct BackendArgs {
    /// Type of the backend that holds the blobs: localfs, localdisk, oss, s3, registry or http-proxy
    #[arg(long, value_name = "TYPE")]
    backend_type: Option<String>,
    /// Configuration of the --backend-type
    #[arg(
        long,
        value_name = "JSON",
        requires = "backend_type",
        conflicts_with = "backend_config_file"
    )]
    backend_config: Option<Secret>,
    /// File with the configuration of the --backend-type
    #[arg(long, value_name = "FILE", requires = "backend_type")]
    backend_config_file: Option<PathBuf>,
}

impl BackendArgs {
    /// Whether a converter passes the blobs on.
    pub fn is_proxy(&self) -> bool {
        self.backend_type.as_deref() == Some("http-proxy")
    }

    /// The backend, if one was chosen.
    pub fn open(&self, cancel: &Cancel) -> anyhow::Result<Option<Arc<dyn BlobSource>>> {
        let Some(kind) = &self.backend_type else {
            return Ok(None);
        };
        let config = match (&self.backend_config, &self.backend_config_file) {
            (Some(text), _) => text.reveal().to_owned(),
            (None, Some(path)) => backend::read_config(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
            (None, None) => String::new(),
        };
        if config.trim().is_empty() {
            let reason =
                format!("--backend-type {kind} needs --backend-config or --backend-config-file");
            return Err(Usage(reason).into());
        }
        let opened = backend::open_source(kind, &config, &settings(cancel), None);
        Ok(Some(Arc::new(opened.context("cannot use the backend")?)))
    }
}

/// How to speak to the hosts of backends.
fn settings(cancel: &Cancel) -> Settings {
    Settings {
        credentials: Credentials::from_environment(),
        proxy: Proxy::from_environment(),
        cancel: cancel.clone(),
        ..Settings::default()
    }
}

/// The configuration of a daemon: what `--config` names.
pub struct Config {
    path: PathBuf,
    parsed: DaemonConfig,
}

impl Config {
    /// Reads it from a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = backend::read_config(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let parsed = DaemonConfig::parse(&text);
        Ok(Self {
            path: path.to_owned(),
            parsed: parsed.with_context(|| format!("cannot use {}", path.display()))?,
        })
    }

    /// The bootstrap that an entry of a blob cache names.
    pub fn bootstrap(&self) -> anyhow::Result<&Path> {
        self.parsed.bootstrap().with_context(|| {
            let path = self.path.display();
            format!(
                "{path} names no bootstrap: it is no entry of a blob cache with \"metadata_path\""
            )
        })
    }

    /// Where blobs are read from.
    pub fn open(&self, cancel: &Cancel) -> anyhow::Result<Arc<dyn BlobSource>> {
        let opened = self.parsed.open(&settings(cancel));
        opened.with_context(|| format!("cannot use the backend of {}", self.path.display()))
    }
}

/// A file that serves every blob.
pub struct OneFile(pub PathBuf);

impl BlobSource for OneFile {
    fn open(&self, _: &str) -> io::Result<Arc<dyn BlobReader>> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.0.display()))
        };
        Ok(Arc::new(FileBlob::open(&self.0).map_err(named)?))
    }
}

/// Blobs of a directory, and of another place those that are not there.
pub struct FirstOf {
    dir: DirSource,
    rest: Option<Arc<dyn BlobSource>>,
}

impl FirstOf {
    /// Looks into `dir` first.
    pub fn new(dir: &Path, rest: Option<Arc<dyn BlobSource>>) -> Self {
        Self {
            dir: DirSource(dir.to_owned()),
            rest,
        }
    }
}

impl BlobSource for FirstOf {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        match (self.dir.open(id), &self.rest) {
            (Err(error), Some(rest)) if error.kind() == io::ErrorKind::NotFound => rest.open(id),
            (opened, _) => opened,
        }
    }
}

/// The first of these places that was named.
pub fn choose(
    file: Option<&Path>,
    dir: Option<&Path>,
    backend: &BackendArgs,
    cancel: &Cancel,
) -> anyhow::Result<Option<Arc<dyn BlobSource>>> {
    Ok(match (file, dir) {
        (Some(file), _) => Some(Arc::new(OneFile(file.to_owned()))),
        (None, Some(dir)) => Some(Arc::new(DirSource(dir.to_owned()))),
        (None, None) => backend.open(cancel)?,
    })
}

/// Takes no more of the blobs than their chunk data. Converters' proxies have nothing else, though they may state the
/// size of the whole blob, and a read beyond the data spoils every later one. Some batches need more.
pub fn read_data_alone(loaded: &mut LoadedBootstrap) {
    for info in loaded.bootstrap.blobs_mut() {
        let apart = info.features.contains(BlobFeatures::SEPARATE);
        let lost = info.features.contains(BlobFeatures::BATCH) && !can_locate_batches(info);
        if !apart && !lost {
            info.cut_to_data();
        }
    }
}

/// Opens the chunks of an image. A blob may also be its chunk data alone, as unpackers cut it out. An image that needs no blob, or has its only one with it, needs no place for them; for others `needed` says
/// what to do.
pub fn open_chunks(
    loaded: &mut LoadedBootstrap,
    rest: Option<Arc<dyn BlobSource>>,
    needed: &str,
    options: StoreOptions,
) -> anyhow::Result<ChunkStore> {
    let own = loaded.own_blob.as_ref().map(|(id, _)| id);
    let others = |info: &BlobInfo| Some(&info.id) != own;
    if rest.is_none() && loaded.bootstrap.blobs().iter().any(others) {
        return Err(Usage(needed.to_owned()).into());
    }
    let source = loaded.source(rest)?;
    let whole = |info: &&mut BlobInfo| !info.features.contains(BlobFeatures::SEPARATE);
    for info in loaded.bootstrap.blobs_mut().iter_mut().filter(whole) {
        // What cannot be opened is named by the read that needs it.
        if let Ok(blob) = source.open(info.id.as_str())
            && blob.size() == info.data_size()
        {
            info.cut_to_data();
        }
    }
    Ok(ChunkStore::open(&loaded.bootstrap, source, options)?)
}
