//! What the registry holds: blobs by digest, and per repository which blobs, manifests and tags it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// Bytes at rest.
#[derive(Debug, Clone)]
pub(super) enum Stored {
    /// In memory.
    Memory(Arc<Vec<u8>>),
    /// In a file of this length.
    File(PathBuf, u64),
}

impl Stored {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// Reads from `start` to the end.
    pub fn read_at(&self, start: u64) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Memory(bytes) => {
                let mut cursor = io::Cursor::new(Shared(Arc::clone(bytes)));
                cursor.set_position(start);
                Ok(Box::new(cursor))
            }
            Self::File(path, _) => {
                let mut file = open(path)?;
                file.seek(SeekFrom::Start(start))?;
                Ok(Box::new(file))
            }
        }
    }

    /// All of it.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read_at(0)?.read_to_end(&mut out)?;
        Ok(out)
    }

    /// Its digest, in hex.
    pub fn sha256(&self) -> io::Result<String> {
        let mut source = self.read_at(0)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(hex::encode(hasher.finalize())),
                got => hasher.update(&buffer[..got]),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Lets a cursor run over bytes that others hold too.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes that come in, and their digest so far.
pub(super) struct Incoming {
    sink: Sink,
    hasher: Sha256,
    len: u64,
}

enum Sink {
    Memory(Vec<u8>),
    File(PathBuf, File),
}

impl Incoming {
    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Appends what `source` has.
    pub fn append(&mut self, source: &mut dyn Read) -> io::Result<()> {
        let mut buffer = vec![0; 128 << 10];
        loop {
            let got = source.read(&mut buffer)?;
            if got == 0 {
                return Ok(());
            }
            match &mut self.sink {
                Sink::Memory(bytes) => bytes.extend_from_slice(&buffer[..got]),
                Sink::File(_, file) => file.write_all(&buffer[..got])?,
            }
            self.hasher.update(&buffer[..got]);
            self.len += got as u64;
        }
    }

    /// The digest of all so far, in hex.
    pub fn sha256(&self) -> String {
        hex::encode(self.hasher.clone().finalize())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Sink::File(path, _) = &self.sink {
            // Already moved away when it became a blob.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A manifest or index as it was pushed.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Repository {
    /// Hex digests of the blobs that this repository may hand out.
    pub blobs: BTreeSet<String>,
    /// By hex digest.
    pub manifests: BTreeMap<String, Manifest>,
    /// Tag to hex digest.
    pub tags: BTreeMap<String, String>,
}

impl Repository {
    /// The hex digest that a tag or a digest (`sha256:...`) refers to, if there is such a manifest.
    pub fn resolve(&self, reference: &str) -> Option<&str> {
        let hex = match reference.strip_prefix("sha256:") {
            Some(hex) => hex,
            None => self.tags.get(reference)?,
        };
        self.manifests
            .get_key_value(hex)
            .map(|(hex, _)| hex.as_str())
    }
}

/// Everything at rest.
#[derive(Debug)]
pub(super) struct Storage {
    directory: Option<PathBuf>,
    blobs: BTreeMap<String, Stored>,
    incoming: u64,
    pub repositories: BTreeMap<String, Repository>,
}

impl Storage {
    /// In memory, or with blobs as files below a directory.
    pub fn new(directory: Option<PathBuf>) -> io::Result<Self> {
        if let Some(directory) = &directory {
            for part in ["blobs", "incoming"] {
                std::fs::create_dir_all(directory.join(part))?;
            }
        }
        Ok(Self {
            directory,
            blobs: BTreeMap::new(),
            incoming: 0,
            repositories: BTreeMap::new(),
        })
    }

    /// Starts to take in bytes.
    pub fn incoming(&mut self) -> io::Result<Incoming> {
        self.incoming += 1;
        let sink = match &self.directory {
            None => Sink::Memory(Vec::new()),
            Some(directory) => {
                let path = directory.join(format!("incoming/{}", self.incoming));
                let file = File::create(&path)?;
                Sink::File(path, file)
            }
        };
        Ok(Incoming {
            sink,
            hasher: Sha256::new(),
            len: 0,
        })
    }

    /// Makes a blob of a repository of what came in, under the hex digest `hex`.
    pub fn store(&mut self, repository: &str, hex: &str, mut bytes: Incoming) -> io::Result<()> {
        let stored = match &mut bytes.sink {
            Sink::Memory(bytes) => Stored::Memory(Arc::new(std::mem::take(bytes))),
            Sink::File(from, _) => {
                let path = self.blob_path(hex);
                std::fs::rename(&*from, &path)?;
                Stored::File(path, bytes.len)
            }
        };
        self.blobs.insert(hex.to_owned(), stored);
        self.link(repository, hex);
        Ok(())
    }

    fn blob_path(&self, hex: &str) -> PathBuf {
        let directory = self.directory.as_deref().unwrap_or(Path::new("."));
        directory.join("blobs").join(hex)
    }

    /// Lets a repository hand out a blob.
    pub fn link(&mut self, repository: &str, hex: &str) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.blobs.insert(hex.to_owned());
    }

    /// A blob of a repository.
    pub fn blob(&self, repository: &str, hex: &str) -> Option<Stored> {
        let linked = self.repositories.get(repository)?.blobs.contains(hex);
        self.blobs.get(hex).filter(|_| linked).cloned()
    }

    /// Replaces the bytes of a blob, whatever its digest says.
    pub fn overwrite(&mut self, hex: &str, bytes: Vec<u8>) -> io::Result<()> {
        let stored = if self.directory.is_some() {
            let path = self.blob_path(hex);
            std::fs::write(&path, &bytes)?;
            Stored::File(path, bytes.len() as u64)
        } else {
            Stored::Memory(Arc::new(bytes))
        };
        self.blobs.insert(hex.to_owned(), stored);
        Ok(())
    }
}
