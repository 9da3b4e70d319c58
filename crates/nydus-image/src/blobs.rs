//! Where the blobs of an image are read from.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use progress::Cancel;
use rafs_format::{BlobFeatures, BlobInfo};
use registry::{Credentials, Proxy, Settings};
use storage::{BlobReader, BlobSource, ChunkStore, DirSource, FileBlob, LoadedBootstrap};

use crate::Usage;

/// Largest configuration that is read from a file, in bytes.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// A text with secrets in it: never shown.
#[derive(Clone)]
struct Hidden(String);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Options about a storage backend.
#[derive(Debug, Args)]
pub struct BackendArgs {
    /// Type of the backend that holds the blobs: localfs, oss, s3, registry or http-proxy
    #[arg(long, value_name = "TYPE")]
    backend_type: Option<String>,
    /// Configuration of the --backend-type
    #[arg(
        long,
        value_name = "JSON",
        requires = "backend_type",
        conflicts_with = "backend_config_file"
    )]
    backend_config: Option<Hidden>,
    /// File with the configuration of the --backend-type
    #[arg(long, value_name = "FILE", requires = "backend_type")]
    backend_config_file: Option<PathBuf>,
}

impl BackendArgs {
    /// The backend, if one was chosen.
    pub fn open(&self, cancel: &Cancel) -> anyhow::Result<Option<Arc<dyn BlobSource>>> {
        let Some(kind) = &self.backend_type else {
            return Ok(None);
        };
        let config = match (&self.backend_config, &self.backend_config_file) {
            (Some(text), _) => text.0.clone(),
            (None, Some(path)) => read(path)?,
            (None, None) => String::new(),
        };
        if config.trim().is_empty() {
            let reason =
                format!("--backend-type {kind} needs --backend-config or --backend-config-file");
            return Err(Usage(reason).into());
        }
        let opened = backend::open_source(kind, &config, &settings(cancel));
        Ok(Some(opened.context("cannot use the backend")?))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(CONFIG_SIZE_MAX).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// How to speak to hosts: with docker's credentials and the usual proxies.
fn settings(cancel: &Cancel) -> Settings {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let either = |name: &str| variable(&name.to_ascii_lowercase()).or_else(|| variable(name));
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let directory = variable("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    Settings {
        credentials: match directory {
            Some(directory) => Credentials::Docker { directory },
            None => Credentials::Anonymous,
        },
        proxy: Proxy {
            http: either("HTTP_PROXY"),
            https: either("HTTPS_PROXY"),
            exceptions: either("NO_PROXY"),
        },
        cancel: cancel.clone(),
        ..Settings::default()
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

/// Opens the chunks of an image. A blob may also be its chunk data alone, as unpackers cut it out. An image that needs no blob, or has its only one with it, needs no place for them;
/// for others `needed` says what to do.
pub fn open_chunks(
    loaded: &mut LoadedBootstrap,
    rest: Option<Arc<dyn BlobSource>>,
    needed: &str,
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
    Ok(ChunkStore::open(
        &loaded.bootstrap,
        source,
        Default::default(),
    )?)
}
