//! OCI image layouts: directories, and archives of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use storage::{BlobReader, FileBlob};

use super::{Archive, Source, Store, pick};
use crate::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, DOCUMENT_SIZE_MAX, Descriptor, Digest, Error,
};

/// Opens the image `tag` of the layout in `dir`.
pub(super) fn open_directory(dir: &Path, tag: Option<&str>) -> Result<Source, Error> {
    let path = dir.join("index.json");
    let store = Directory(dir.to_owned());
    if let Some(layout) = read_file(&dir.join("oci-layout"))? {
        check_version(&layout, &store.name())?;
    }
    let index = read_file(&path)?.ok_or_else(|| Error::Document {
        what: store.name(),
        reason: "it is no OCI image layout: it has no index.json".to_owned(),
    })?;
    open(Arc::new(store), &index, tag)
}

/// Opens the image `tag` of the layout in `archive`.
pub(super) fn open_archive(archive: Archive, tag: Option<&str>) -> Result<Source, Error> {
    if archive.contains("oci-layout") {
        check_version(
            &archive.read("oci-layout")?,
            &archive.path().display().to_string(),
        )?;
    }
    if !archive.contains("index.json") {
        let hint = if archive.contains("manifest.json") {
            "; it looks like docker-archive:"
        } else {
            ""
        };
        return Err(archive.error(format!("it is no OCI archive: it has no index.json{hint}")));
    }
    let index = archive.read("index.json")?;
    open(Arc::new(archive), &index, tag)
}

fn open(store: Arc<dyn Store>, index: &[u8], tag: Option<&str>) -> Result<Source, Error> {
    let what = format!("index.json of {}", store.name());
    let json = |source| Error::Json {
        what: what.clone(),
        source,
    };
    let mut index: Value = serde_json::from_slice(index).map_err(json)?;
    let Some(Value::Array(entries)) = index.get_mut("manifests").map(Value::take) else {
        return Err(Error::Document {
            what,
            reason: "it has no list of manifests".to_owned(),
        });
    };
    let mut candidates: Vec<(Vec<String>, Value)> = Vec::new();
    for entry in entries {
        let names = names_of(&entry);
        // The same image may be listed under the same name twice.
        if !candidates
            .iter()
            .any(|(n, e)| *n == names && e.get("digest") == entry.get("digest"))
        {
            candidates.push((names, entry));
        }
    }
    let (name, entry) = pick(candidates, tag, &store.name())?;
    let mut root: Descriptor = serde_json::from_value(entry).map_err(json)?;
    root.annotations = None;
    Source::new(store, root, name)
}

/// The images on the list of the layout in `dir`, with the names that they go by. None if there is no layout.
///
/// # Errors
/// If the list cannot be read, or is none.
pub fn layout_images(dir: &Path) -> Result<Vec<(Vec<String>, Descriptor)>, Error> {
    let path = dir.join("index.json");
    let Some(index) = read_file(&path)? else {
        return Ok(Vec::new());
    };
    let what = || path.display().to_string();
    let json = |source| Error::Json {
        what: what(),
        source,
    };
    let mut index: Value = serde_json::from_slice(&index).map_err(json)?;
    let Some(Value::Array(entries)) = index.get_mut("manifests").map(Value::take) else {
        return Err(Error::Document {
            what: what(),
            reason: "it has no list of manifests".to_owned(),
        });
    };
    let images = entries
        .into_iter()
        .map(|entry| Ok((names_of(&entry), serde_json::from_value(entry)?)));
    images.collect::<Result<_, _>>().map_err(json)
}

/// The names an index entry goes by: the full one, if there is, last.
pub(crate) fn names_of(entry: &Value) -> Vec<String> {
    let annotation = |key: &str| {
        entry
            .pointer("/annotations")?
            .get(key)?
            .as_str()
            .map(str::to_owned)
    };
    [ANNOTATION_REF_NAME, ANNOTATION_CONTAINERD_NAME]
        .into_iter()
        .filter_map(annotation)
        .collect()
}

fn check_version(layout: &[u8], what: &str) -> Result<(), Error> {
    let json = |source| Error::Json {
        what: format!("oci-layout of {what}"),
        source,
    };
    let layout: Value = serde_json::from_slice(layout).map_err(json)?;
    let version = layout
        .get("imageLayoutVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if version.starts_with("1.") {
        return Ok(());
    }
    Err(Error::Document {
        what: what.to_owned(),
        reason: format!("unknown image layout version {version:?}"),
    })
}

/// A small file; `None` if there is none.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        // A pipe or device would never end.
        Ok(_) => {
            let what = path.display().to_string();
            let reason = "it is no regular file".to_owned();
            return Err(Error::Document { what, reason });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if size > DOCUMENT_SIZE_MAX {
        return Err(Error::TooLarge {
            what: path.display().to_string(),
            size,
            limit: DOCUMENT_SIZE_MAX,
        });
    }
    std::fs::read(path)
        .map(Some)
        .map_err(Error::io("read", path))
}

/// The blobs of a layout directory.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Store for Directory {
    fn blob(&self, digest: &Digest, _: Option<u64>) -> Result<Arc<dyn BlobReader>, Error> {
        let path = self.0.join("blobs/sha256").join(digest.hex());
        let missing = || Error::MissingBlob {
            digest: *digest,
            store: self.name(),
        };
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(missing()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(Error::io("open", path)(error)),
        }
        let blob = FileBlob::open(&path).map_err(Error::io("open", &path))?;
        Ok(Arc::new(blob))
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

impl Store for Archive {
    fn blob(&self, digest: &Digest, _: Option<u64>) -> Result<Arc<dyn BlobReader>, Error> {
        let (file, offset, len) = self
            .locate(&format!("blobs/sha256/{}", digest.hex()))
            .ok_or_else(|| Error::MissingBlob {
                digest: *digest,
                store: self.name(),
            })?;
        Ok(Arc::new(FileBlob::window(file, offset, len)))
    }

    fn name(&self) -> String {
        self.path().display().to_string()
    }
}
