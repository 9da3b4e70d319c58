//! Registries that have copies of another one's blobs: named ones, and those of a directory that may change meanwhile.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::{Digest, Origin};
use registry::{Client, Repository, Settings};
use storage::{BlobReader, Mirror, Mirrors};

use crate::Error;
use crate::detour::{Detour, Reading};
use crate::hosts::{self, MirrorHost};

/// How long a mirror may be silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether the list of mirrors has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest file that is read, in bytes.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// How to speak to a host that others can stand in for: it is not waited for as long as for the one with the last word.
pub(crate) fn briefly(settings: &Settings) -> Settings {
    Settings {
        retries: settings.retries.min(1),
        impatient: true,
        stall_timeout: settings.stall_timeout.min(PATIENCE),
        connect_timeout: settings.connect_timeout.min(PATIENCE),
        ..settings.clone()
    }
}

/// A repository as a place to read from.
impl Reading for Repository {
    fn blob(&self, id: &str, size: Option<u64>) -> Result<Option<Arc<dyn BlobReader>>, Error> {
        let Some(digest) = Digest::from_hex(id) else {
            return Ok(None);
        };
        let size = match size {
            Some(size) => Some(size),
            None => self.blob_size(&digest)?,
        };
        Ok(size.map(|size| Repository::blob(self, &digest, size)))
    }

    fn name(&self) -> String {
        self.to_string()
    }
}

/// A registry with copies of the blobs of the repository `of`, in a repository of the same name.
pub(crate) fn mirror(host: &MirrorHost, of: &Origin, settings: &Settings) -> Result<Detour, Error> {
    let mut ca_files = settings.ca_files.clone();
    ca_files.extend_from_slice(&host.ca_files);
    let plain_http = settings.plain_http && !host.scheme_given;
    let client = Client::new(Settings {
        ca_files,
        insecure: settings.insecure || host.insecure,
        plain_http,
        stand_in: Some(host.stand_in(&of.host)),
        ..briefly(settings)
    })?;
    let repository = match host.scheme_given {
        true => client.repository_at(&host.base, &of.repository),
        false => client.repository_of(&host.name(), &of.repository),
    };
    let place = Arc::new(repository);
    Ok(Detour::new(host.name(), place, &host.check, &client))
}

/// The mirrors of a repository: some that are named, and behind them those of a directory.
#[derive(Default)]
pub struct MirrorList {
    named: Vec<Arc<dyn Mirror>>,
    listed: Option<MirrorsDir>,
}

impl MirrorList {
    /// Registries that have copies of the blobs of the repository `of`. `named` are their addresses, `HOST[:PORT]` with
    /// `http://` or `https://` before it if need be; `dir` lists more of them in the way of containerd's `certs.d`: in the file
    /// `hosts.toml` in the directory `HOST_PORT_`, else in `HOST:PORT`, else in `_default`. Whoever reads gets to know a change of
    /// that file within a second or two. A file that cannot be used is named in a warning, and what was known before goes on
    /// to count. Nothing is asked for yet.
    ///
    /// # Errors
    /// [`Error::Mirror`] for what is no address; [`Error::Store`] if no connections can be set up; [`Error::Io`] if there is no
    /// such directory.
    pub fn new(
        named: &[String],
        dir: Option<&Path>,
        of: &Origin,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let named = named.iter().map(|address| {
            let mut host = MirrorHost::new(address, false).ok_or(Error::Mirror)?;
            host.root.push_str("/v2");
            Ok(Arc::new(mirror(&host, of, settings)?) as Arc<dyn Mirror>)
        });
        Ok(Self {
            named: named.collect::<Result<_, Error>>()?,
            listed: dir
                .map(|dir| MirrorsDir::open(dir, of, settings))
                .transpose()?,
        })
    }

    /// Puts one behind those that are named.
    pub(crate) fn push(&mut self, mirror: Arc<dyn Mirror>) {
        self.named.push(mirror);
    }

    /// Has a directory list more of them.
    pub(crate) fn list(
        &mut self,
        dir: &Path,
        of: &Origin,
        settings: &Settings,
    ) -> Result<(), Error> {
        self.listed = Some(MirrorsDir::open(dir, of, settings)?);
        Ok(())
    }

    /// Whether there are none, and never will be.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.listed.is_none()
    }
}

impl Mirrors for MirrorList {
    fn current(&self) -> Vec<Arc<dyn Mirror>> {
        let listed = self.listed.iter().flat_map(Mirrors::current);
        self.named.iter().cloned().chain(listed).collect()
    }
}

/// The mirrors of a repository that a directory lists.
struct MirrorsDir {
    candidates: Vec<PathBuf>,
    of: Origin,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    /// What was read last.
    stamp: Option<Stamp>,
    mirrors: Vec<(MirrorHost, Arc<Detour>)>,
}

/// By what a file is recognised that has not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn new(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl MirrorsDir {
    fn open(dir: &Path, of: &Origin, settings: &Settings) -> Result<Self, Error> {
        let absolute = std::path::absolute(dir).map_err(Error::io("find", dir))?;
        // A mistake is better known now than when a mirror is missed.
        std::fs::read_dir(&absolute).map_err(Error::io("open", &absolute))?;
        let mirrors = Self {
            candidates: hosts::candidates(&absolute, &of.host),
            of: of.clone(),
            settings: settings.clone(),
            state: Mutex::default(),
        };
        mirrors.look(&mut mirrors.state());
        Ok(mirrors)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the list if it has changed.
    fn look(&self, state: &mut State) {
        state.looked = Some(Instant::now());
        let (stamp, file) = match self.find() {
            Ok(found) => found.unzip(),
            Err(error) => return tracing::warn!("mirrors: {}", error.chain()),
        };
        if stamp == state.stamp {
            return;
        }
        state.stamp.clone_from(&stamp);
        let (Some(stamp), Some(file)) = (stamp, file) else {
            tracing::info!("mirrors: none are listed any more");
            return state.mirrors.clear();
        };
        let path = stamp.path;
        match read(file, &path) {
            Ok(hosts) => {
                let known = std::mem::take(&mut state.mirrors);
                state.mirrors = self.renew(hosts, &known);
                let names: Vec<String> =
                    state.mirrors.iter().map(|(host, _)| host.name()).collect();
                let names = names.join(", ");
                tracing::info!("mirrors by {}: {names}", path.display());
            }
            Err(error) => {
                let path = path.display();
                tracing::warn!(
                    "mirrors: {path} cannot be used, and changes nothing: {}",
                    error.chain()
                );
            }
        }
    }

    /// The first file that there is.
    fn find(&self) -> Result<Option<(Stamp, File)>, Error> {
        for path in &self.candidates {
            match File::open(path).and_then(|file| Ok((file.metadata()?, file))) {
                Ok((metadata, file)) => return Ok(Some((Stamp::new(path, &metadata), file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("open", path)(error)),
            }
        }
        Ok(None)
    }

    /// The mirrors at these hosts; those that are known already stay what they are.
    fn renew(
        &self,
        hosts: Vec<MirrorHost>,
        known: &[(MirrorHost, Arc<Detour>)],
    ) -> Vec<(MirrorHost, Arc<Detour>)> {
        let mut mirrors = Vec::new();
        for host in hosts {
            let same = known.iter().find(|(known, _)| *known == host);
            let detour = match same {
                Some((_, detour)) => Ok(Arc::clone(detour)),
                None => mirror(&host, &self.of, &self.settings).map(Arc::new),
            };
            match detour {
                Ok(detour) => mirrors.push((host, detour)),
                Err(error) => tracing::warn!("mirror {}: left out: {}", host.name(), error.chain()),
            }
        }
        mirrors
    }
}

fn read(file: File, path: &Path) -> Result<Vec<MirrorHost>, Error> {
    let mut text = String::new();
    file.take(FILE_SIZE_MAX)
        .read_to_string(&mut text)
        .map_err(Error::io("read", path))?;
    hosts::parse(&text, path.parent().unwrap_or(Path::new("/")))
}

impl Mirrors for MirrorsDir {
    fn current(&self) -> Vec<Arc<dyn Mirror>> {
        let mut state = self.state();
        if state.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.look(&mut state);
        }
        let mirrors = state.mirrors.iter();
        mirrors
            .map(|(_, detour)| Arc::clone(detour) as Arc<dyn Mirror>)
            .collect()
    }
}
