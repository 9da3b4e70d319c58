//! Registries that have copies of an image's blobs.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use backend::{Error, MirrorList};
use image::{Location, Origin};
use registry::Retried;
use storage::{BlobSource, MirrorStats, MirroredSource, Mirrors as _};

use crate::args::Usage;
use crate::place::{Places, reference};

/// What is asked about the registries that an image comes from.
pub(super) struct Upstream {
    retried: Retried,
    mirrors: Option<Arc<MirrorList>>,
}

impl Upstream {
    pub(super) fn new(places: &Places, mirrors: Option<Arc<MirrorList>>) -> Arc<Self> {
        let retried = places.retried().clone();
        Arc::new(Self { retried, mirrors })
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

impl mount::Upstream for Upstream {
    fn retries(&self) -> u64 {
        self.retried.count()
    }

    fn mirrors(&self) -> Vec<MirrorStats> {
        let all = self.mirrors.iter().flat_map(|list| list.current());
        all.map(|mirror| mirror.standing().stats()).collect()
    }
}

/// The mirrors of the image at `location`: those that are `named`, and those that the directory `dir` lists.
pub(super) fn of_image(
    location: &Location,
    named: &[String],
    dir: Option<&Path>,
    places: &Places,
) -> Result<Option<Arc<MirrorList>>> {
    let Location::Registry(name) = location else {
        // Those of a backend have the directory's mirrors already.
        return match named {
            [] => Ok(None),
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
    Ok((!mirrors.is_empty()).then(|| Arc::new(mirrors)))
}

/// Blobs by way of their mirrors, if there are any.
pub(super) fn around(
    blobs: Arc<dyn BlobSource>,
    mirrors: Option<&Arc<MirrorList>>,
) -> Arc<dyn BlobSource> {
    match mirrors {
        Some(mirrors) => Arc::new(MirroredSource::new(blobs, mirrors.clone())),
        None => blobs,
    }
}
