//! Registries that have copies of an image's blobs.

use std::io;
use std::sync::Arc;

use anyhow::Result;
use image::{Digest, Location};
use registry::Repository;
use storage::{BlobReader, BlobSource, Mirror, MirroredSource, Standing, Tolerance};

use crate::args::Usage;
use crate::place::{Places, reference};

/// A repository with copies of blobs.
struct Copies {
    repository: Repository,
    standing: Standing,
}

impl Mirror for Copies {
    fn open(&self, id: &str, size: u64) -> io::Result<Arc<dyn BlobReader>> {
        let digest = Digest::from_hex(id).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.repository.blob(&digest, size))
    }

    fn standing(&self) -> &Standing {
        &self.standing
    }
}

/// The blobs of the image at `location`, by way of the mirrors that are `named`.
pub(super) fn around(
    blobs: Arc<dyn BlobSource>,
    location: &Location,
    named: &[String],
    places: &Places,
) -> Result<Arc<dyn BlobSource>> {
    if named.is_empty() {
        return Ok(blobs);
    }
    let Location::Registry(name) = location else {
        return Err(Usage("--mirror is for images in registries".to_owned()).into());
    };
    let image = reference(name)?;
    let mirrors = named
        .iter()
        .map(|text| open(text, image.repository(), places));
    let mirrors: Vec<Arc<dyn Mirror>> = mirrors.collect::<Result<_>>()?;
    Ok(Arc::new(MirroredSource::new(blobs, Arc::new(mirrors))))
}

fn open(text: &str, repository: &str, places: &Places) -> Result<Arc<dyn Mirror>> {
    let (scheme, host) = text.split_once("://").unwrap_or(("", text));
    let host = host.trim_end_matches('/');
    let wrong =
        || Usage("--mirror: it must be HOST[:PORT], or http:// or https:// before it".to_owned());
    // The name may hold what nobody should see: it is not repeated.
    if !matches!(scheme, "" | "http" | "https")
        || host.is_empty()
        || host.contains(['/', '@', '?', '#', ' '])
    {
        return Err(wrong().into());
    }
    let name = format!("{host}/{repository}")
        .parse()
        .map_err(|_| wrong())?;
    let client = places.mirror(scheme == "http")?;
    Ok(Arc::new(Copies {
        repository: client.repository(&name),
        standing: Standing::new(host, Tolerance::default()),
    }))
}
