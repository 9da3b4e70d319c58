//! Registries that have copies of an image's blobs.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use backend::{Error, MirrorList};
use image::{Location, Origin};
use storage::{BlobSource, MirroredSource};

use crate::args::Usage;
use crate::place::{Places, reference};

/// The blobs of the image at `location`, by way of the mirrors that are `named`, and those that the directory `dir` lists.
pub(super) fn around(
    blobs: Arc<dyn BlobSource>,
    location: &Location,
    named: &[String],
    dir: Option<&Path>,
    places: &Places,
) -> Result<Arc<dyn BlobSource>> {
    let Location::Registry(name) = location else {
        // Those of a backend have the directory's mirrors already.
        return match named {
            [] => Ok(blobs),
            _ => Err(Usage("--mirror is for images in registries".to_owned()).into()),
        };
    };
    let image = reference(name)?;
    let of = Origin {
        host: image.host().to_owned(),
        repository: image.repository().to_owned(),
    };
    let mirrors = match MirrorList::new(named, dir, &of, places.settings()) {
        Err(error @ Error::Mirror) => Err(Usage(format!("--mirror: {error}")).into()),
        found => found.map_err(anyhow::Error::from),
    }?;
    Ok(match mirrors.is_empty() {
        true => blobs,
        false => Arc::new(MirroredSource::new(blobs, Arc::new(mirrors))),
    })
}
