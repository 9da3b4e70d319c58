//! Reading an image.

mod archive;
mod docker;
pub(crate) mod layout;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use storage::BlobReader;

use crate::media::{self, Document};
use crate::{
    DOCUMENT_SIZE_MAX, Descriptor, Digest, Error, Index, Location, Manifest, Node, Platform,
    PlatformChoice, Verifying,
};

pub(crate) use archive::Archive;
pub use layout::layout_images;
pub(crate) use layout::{Directory, names_of, read_file};

/// Indexes nest no deeper than this.
const INDEX_DEPTH_MAX: u32 = 4;
/// Most entries that an index and those in it may have.
const INDEX_ENTRIES_MAX: usize = 4096;

/// A place with blobs, read from many threads at once. Nothing it returns is verified yet.
pub trait Store: Send + Sync {
    /// Finds a blob. Its size, where the caller knows it, spares remote places a question.
    ///
    /// # Errors
    /// [`Error::MissingBlob`], or what keeps the place from being read.
    fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<Arc<dyn BlobReader>, Error>;

    /// Finds a manifest or an index, which some places keep apart from other blobs.
    ///
    /// # Errors
    /// As [`Store::blob`].
    fn document(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobReader>, Error> {
        self.blob(&descriptor.digest, Some(descriptor.size))
    }

    /// What to call the place in messages.
    fn name(&self) -> String;

    /// The repository that the place is, if it is one.
    fn origin(&self) -> Option<Origin> {
        None
    }
}

/// A repository in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The registry's host, with its port if it has one.
    pub host: String,
    /// The name of the repository there.
    pub repository: String,
}

/// An image that can be read, from many threads at once.
#[derive(Clone)]
pub struct Source {
    store: Arc<dyn Store>,
    root: Descriptor,
    name: Option<String>,
    backend: Option<Arc<dyn Store>>,
}

/// One image of an index.
#[derive(Debug, Clone)]
pub struct Selected {
    /// Its entry in the index, or the root if that is a manifest.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// It is for `unknown/unknown`: an attestation about another image, not an image.
    pub attestation: bool,
}

/// A search for the images of an index.
struct Search<'a> {
    choice: &'a PlatformChoice,
    /// Entries looked at, those that lead to an index included: nesting multiplies them.
    entries: usize,
    found: Vec<Selected>,
    /// Platforms met, for the message if none fits.
    seen: Vec<String>,
}

impl Source {
    /// Opens the image at `location`. Without a tag the place must hold one image only.
    ///
    /// # Errors
    /// [`Error::Registry`] for registries; [`Error::NoSuchTag`] and [`Error::Ambiguous`] with the tags there are;
    /// whatever makes the place unreadable.
    pub fn open(location: &Location) -> Result<Self, Error> {
        match location {
            Location::OciLayout { dir, tag } => layout::open_directory(dir, tag.as_deref()),
            Location::OciArchive { file, tag } => {
                layout::open_archive(Archive::open(file)?, tag.as_deref())
            }
            Location::DockerArchive { file, tag } => {
                let archive = Archive::open(file)?;
                if archive.contains("manifest.json") || !archive.contains("index.json") {
                    docker::open(archive, tag.as_deref())
                } else {
                    layout::open_archive(archive, tag.as_deref())
                }
            }
            Location::Registry(reference) => Err(Error::Registry(reference.clone())),
        }
    }

    /// Opens an archive of either kind. `name` picks one of several images and is not looked at if there is but one.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_archive(file: &Path, name: &str) -> Result<Self, Error> {
        let archive = Archive::open(file)?;
        let open = if archive.contains("index.json") {
            layout::open_archive
        } else {
            docker::open
        };
        match open(archive, None) {
            Err(Error::Ambiguous { .. }) => open(Archive::open(file)?, Some(name)),
            other => other,
        }
    }

    /// Opens the only image of an archive of either kind: the one at `path`, which has been decompressed to `file`.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_decompressed(path: &Path, file: File) -> Result<Self, Error> {
        let archive = Archive::of(path, file)?;
        if archive.contains("index.json") {
            layout::open_archive(archive, None)
        } else {
            docker::open(archive, None)
        }
    }

    /// The image under `root` in the OCI layout in `dir`, whether or not a tag leads to it. Nothing is read yet.
    ///
    /// # Errors
    /// If `root` is no manifest or index.
    pub fn in_layout(dir: &Path, root: Descriptor) -> Result<Self, Error> {
        Self::new(Arc::new(Directory(dir.to_owned())), root, None)
    }

    /// The image under `root` in `store`, known there as `name`.
    ///
    /// # Errors
    /// If `root` is no manifest or index.
    pub fn new(
        store: Arc<dyn Store>,
        root: Descriptor,
        name: Option<String>,
    ) -> Result<Self, Error> {
        media::document(&root.media_type, &root.digest.to_string())?;
        Ok(Self {
            store,
            root,
            name,
            backend: None,
        })
    }

    /// Another image in the same place.
    ///
    /// # Errors
    /// As [`Source::new`].
    pub fn at(&self, root: Descriptor) -> Result<Self, Error> {
        media::document(&root.media_type, &root.digest.to_string())?;
        Ok(Self {
            root,
            ..self.clone()
        })
    }

    /// The same image, with another place for blobs that its manifest does not list.
    #[must_use]
    pub fn with_backend(self, backend: Option<Arc<dyn Store>>) -> Self {
        Self { backend, ..self }
    }

    /// Where blobs lie that the manifest does not list, if that is elsewhere.
    pub fn backend(&self) -> Option<&dyn Store> {
        self.backend.as_deref()
    }

    /// The backend as a place to copy blobs from, if there is one.
    pub fn at_backend(&self) -> Option<Self> {
        Some(Self {
            store: Arc::clone(self.backend.as_ref()?),
            ..self.clone()
        })
    }

    /// The manifest or index that the tag leads to.
    pub fn root(&self) -> &Descriptor {
        &self.root
    }

    /// The name or tag under which the image is known where it lies.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Where the image lies.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Where the image lies, for use with others.
    pub fn shared_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Reads a small blob and verifies it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond [`DOCUMENT_SIZE_MAX`]; if the blob is missing or not what the descriptor says.
    pub fn read_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        self.read_small(descriptor, |store| {
            store.blob(&descriptor.digest, Some(descriptor.size))
        })
    }

    /// Reads a manifest or an index and verifies it.
    ///
    /// # Errors
    /// As [`Source::read_blob`].
    pub fn read_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        self.read_small(descriptor, |store| store.document(descriptor))
    }

    fn read_small(
        &self,
        descriptor: &Descriptor,
        find: impl FnOnce(&dyn Store) -> Result<Arc<dyn BlobReader>, Error>,
    ) -> Result<Vec<u8>, Error> {
        if descriptor.size > DOCUMENT_SIZE_MAX {
            let what = format!("document {}", descriptor.digest);
            return Err(Error::TooLarge {
                what,
                size: descriptor.size,
                limit: DOCUMENT_SIZE_MAX,
            });
        }
        let mut bytes = Vec::new();
        self.verifying(find(&*self.store)?, descriptor)?
            .read_to_end(&mut bytes)
            .map_err(|error| self.reading(&descriptor.digest, error))?;
        Ok(bytes)
    }

    /// Opens a blob for streaming: a difference in size or digest is an error of the read that meets the end, with
    /// kind `InvalidData` and an [`Error`] inside.
    ///
    /// # Errors
    /// If the blob is missing, or its file has another size.
    pub fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        let blob = self.store.blob(&descriptor.digest, Some(descriptor.size))?;
        Ok(Box::new(self.verifying(blob, descriptor)?))
    }

    fn verifying(
        &self,
        blob: Arc<dyn BlobReader>,
        descriptor: &Descriptor,
    ) -> Result<Verifying<Box<dyn Read + Send>>, Error> {
        if blob.size() != descriptor.size {
            return Err(Error::SizeMismatch {
                digest: descriptor.digest,
                expected: descriptor.size,
                actual: blob.size(),
            });
        }
        let stream = blob
            .stream(0)
            .map_err(|error| self.reading(&descriptor.digest, error))?;
        Ok(Verifying::new(stream, descriptor))
    }

    /// Reads a blob to its end to learn whether it is what its descriptor says.
    ///
    /// # Errors
    /// As [`Source::open_blob`], and those of its reader.
    pub fn verify_blob(&self, descriptor: &Descriptor) -> Result<(), Error> {
        let mut reader = self.open_blob(descriptor)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.reading(&descriptor.digest, error)),
            }
        }
    }

    /// A blob, for reading at random. Nothing is verified. Its size, if it is known, spares remote places a question.
    ///
    /// # Errors
    /// If the blob is missing or the place cannot be read.
    pub fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<Arc<dyn BlobReader>, Error> {
        self.store.blob(digest, size)
    }

    /// Reads and parses the manifest or index behind a descriptor.
    ///
    /// # Errors
    /// If it is missing, corrupt, too large, malformed or of an unknown type.
    pub fn node(&self, descriptor: &Descriptor) -> Result<Node, Error> {
        media::document(&descriptor.media_type, &descriptor.digest.to_string())?;
        Node::parse(descriptor, &self.read_document(descriptor)?)
    }

    /// Reads the configuration of an image, as the JSON it is.
    ///
    /// # Errors
    /// If it is missing, corrupt, too large, no JSON object or of a type that no image has.
    pub fn config(&self, manifest: &Manifest) -> Result<Value, Error> {
        let config = &manifest.config;
        if !matches!(
            &*config.media_type,
            media::OCI_CONFIG | media::DOCKER_CONFIG | crate::nydus::CONFIG_MEDIA_TYPE
        ) {
            return Err(Error::MediaType {
                media_type: config.media_type.clone(),
                what: format!("configuration {}", config.digest),
                reason: "it is no container image",
            });
        }
        let what = || format!("configuration {}", config.digest);
        let value: Value =
            serde_json::from_slice(&self.read_blob(config)?).map_err(|source| Error::Json {
                what: what(),
                source,
            })?;
        if !value.is_object() {
            return Err(Error::Document {
                what: what(),
                reason: "it is no JSON object".to_owned(),
            });
        }
        Ok(value)
    }

    /// The images of the chosen platforms, in index order, nested indexes flattened. Attestations are among them if
    /// every platform was chosen.
    ///
    /// # Errors
    /// [`Error::NoPlatform`] if nothing fits; whatever keeps a manifest on the way from being read.
    pub fn select(&self, choice: &PlatformChoice) -> Result<Vec<Selected>, Error> {
        match self.node(&self.root)? {
            Node::Manifest(manifest) => self.select_lone(*manifest, choice),
            Node::Index(index) => {
                let mut search = Search {
                    choice,
                    entries: 0,
                    found: Vec::new(),
                    seen: Vec::new(),
                };
                self.collect(&index, INDEX_DEPTH_MAX, &mut search)?;
                let Search {
                    found, mut seen, ..
                } = search;
                if found.iter().all(|image: &Selected| image.attestation) {
                    seen.dedup();
                    let available = if seen.is_empty() {
                        "none".to_owned()
                    } else {
                        seen.join(", ")
                    };
                    return Err(Error::NoPlatform {
                        wanted: choice.to_string(),
                        available,
                    });
                }
                Ok(found)
            }
        }
    }

    /// The images of the chosen platforms without attestations: descriptor and manifest of each.
    ///
    /// # Errors
    /// As [`Source::select`].
    pub fn manifests(&self, choice: &PlatformChoice) -> Result<Vec<(Descriptor, Manifest)>, Error> {
        let selected = self
            .select(choice)?
            .into_iter()
            .filter(|image| !image.attestation);
        Ok(selected
            .map(|image| (image.descriptor, image.manifest))
            .collect())
    }

    /// What stands behind a root that is a manifest: one image. Only platforms asked for by name can rule it out.
    fn select_lone(
        &self,
        manifest: Manifest,
        choice: &PlatformChoice,
    ) -> Result<Vec<Selected>, Error> {
        if let PlatformChoice::Only(_) = choice {
            let platform = self.platform_of(&manifest)?;
            if !choice.wants(&platform) {
                return Err(Error::NoPlatform {
                    wanted: choice.to_string(),
                    available: platform.to_string(),
                });
            }
        }
        Ok(vec![Selected {
            descriptor: self.root.clone(),
            manifest,
            attestation: false,
        }])
    }

    fn collect(&self, index: &Index, depth: u32, search: &mut Search<'_>) -> Result<(), Error> {
        let what = || format!("index {}", self.root.digest);
        let choice = search.choice;
        for entry in &index.manifests {
            search.entries += 1;
            if search.entries > INDEX_ENTRIES_MAX {
                let reason = format!("it has more than {INDEX_ENTRIES_MAX} entries");
                return Err(Error::Document {
                    what: what(),
                    reason,
                });
            }
            if let Some(platform) = &entry.platform {
                search.seen.push(platform.to_string());
                if !choice.wants(platform) {
                    continue;
                }
            }
            if media::document(&entry.media_type, &entry.digest.to_string())? == Document::Index
                && depth == 0
            {
                let reason = format!("indexes nest deeper than {INDEX_DEPTH_MAX}");
                return Err(Error::Document {
                    what: what(),
                    reason,
                });
            }
            match self.node(entry)? {
                Node::Index(inner) => self.collect(&inner, depth - 1, search)?,
                Node::Manifest(manifest) => {
                    if entry.platform.is_none() && *choice != PlatformChoice::All {
                        let platform = self.platform_of(&manifest)?;
                        search.seen.push(platform.to_string());
                        if !choice.wants(&platform) {
                            continue;
                        }
                    }
                    let attestation = entry.platform.as_ref().is_some_and(Platform::is_unknown);
                    search.found.push(Selected {
                        descriptor: entry.clone(),
                        manifest: *manifest,
                        attestation,
                    });
                }
            }
        }
        Ok(())
    }

    /// The platform that the configuration of an image states.
    fn platform_of(&self, manifest: &Manifest) -> Result<Platform, Error> {
        let config = self.config(manifest)?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
        let mut platform = Platform::new(text("os"), text("architecture"));
        platform.variant = config
            .get("variant")
            .and_then(Value::as_str)
            .map(str::to_owned);
        Ok(platform)
    }

    /// Turns a failed read into what it was about: the mismatch inside, or the place that could not be read.
    pub(crate) fn reading(&self, digest: &Digest, error: std::io::Error) -> Error {
        let path = format!("blob {digest} of {}", self.store.name());
        match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Error::Io {
                action: "read",
                path: path.into(),
                source,
            },
        }
    }
}

/// Picks an image by tag or name. Each candidate comes with all names it is known by.
///
/// An exact match goes before one of the tag alone (`1.36` for `docker.io/library/busybox:1.36`).
pub(crate) fn pick<T>(
    candidates: Vec<(Vec<String>, T)>,
    wanted: Option<&str>,
    store: &str,
) -> Result<(Option<String>, T), Error> {
    let available = || {
        let names: Vec<String> = candidates
            .iter()
            .map(|(names, _)| {
                names
                    .first()
                    .map_or_else(|| "(no tag)".to_owned(), |name| format!("{name:?}"))
            })
            .collect();
        if names.is_empty() {
            "no image at all".to_owned()
        } else {
            names.join(", ")
        }
    };
    let fits = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..candidates.len())
            .filter(|&i| candidates[i].0.iter().any(|name| test(name)))
            .collect()
    };
    let found = match wanted {
        None => (0..candidates.len()).collect(),
        Some(wanted) => {
            let exact = fits(&|name| name == wanted);
            if exact.is_empty() {
                fits(&|name| tag_of(name) == Some(wanted))
            } else {
                exact
            }
        }
    };
    match found[..] {
        [one] => {
            let (names, value) = candidates
                .into_iter()
                .nth(one)
                .expect("the position of a candidate");
            Ok((
                wanted
                    .map(str::to_owned)
                    .or_else(|| names.into_iter().next()),
                value,
            ))
        }
        [] => Err(Error::NoSuchTag {
            store: store.to_owned(),
            tag: wanted.unwrap_or_default().to_owned(),
            available: available(),
        }),
        _ => Err(Error::Ambiguous {
            store: store.to_owned(),
            available: available(),
        }),
    }
}

/// The tag of a full image name.
pub(crate) fn tag_of(name: &str) -> Option<&str> {
    let (_, tag) = name.rsplit_once(':')?;
    (!tag.contains('/')).then_some(tag)
}
