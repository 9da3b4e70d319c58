//! Images of a dictionary, by the names that it has them under.

use std::path::{Path, PathBuf};

use anyhow::Result;
use convert::{Shelf, bare_path};
use image::{Descriptor, Digest, Location, Source, media};

use crate::place::{Places, reference};

/// Opens images as the options say.
pub struct Named<'a> {
    /// Where images are.
    pub places: &'a Places,
    /// Whether certificates of registries are not checked.
    pub insecure: bool,
}

/// The name that a dictionary has an image under: the same wherever the program is run.
pub fn name(text: &str) -> Result<String> {
    if let Some(path) = bare_path(text) {
        return Ok(bare_name(path));
    }
    let location = match text.parse()? {
        Location::Registry(name) => Location::Registry(reference(&name)?.to_string()),
        Location::OciLayout { dir, tag } => Location::OciLayout {
            dir: absolute(dir),
            tag,
        },
        Location::OciArchive { file, tag } => Location::OciArchive {
            file: absolute(file),
            tag,
        },
        Location::DockerArchive { file, tag } => Location::DockerArchive {
            file: absolute(file),
            tag,
        },
    };
    Ok(location.to_string())
}

/// The name that a dictionary has a bare bootstrap under.
pub fn bare_name(path: &Path) -> String {
    format!("bootstrap:{}", absolute(path.to_owned()).display())
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

impl Named<'_> {
    fn local(&self, location: &Location) -> Result<Option<Source>, image::Error> {
        let there = |path: &Path| path.exists();
        let is_there = match location {
            Location::OciLayout { dir, .. } => there(dir),
            Location::OciArchive { file, .. } | Location::DockerArchive { file, .. } => there(file),
            Location::Registry(_) => true,
        };
        if !is_there {
            return Ok(None);
        }
        match Source::open(location) {
            Ok(source) => Ok(Some(source)),
            Err(image::Error::NoSuchTag { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An error of a step before the image as one of the image.
fn remote(error: anyhow::Error) -> image::Error {
    image::Error::Remote(error.into())
}

impl Shelf for Named<'_> {
    fn image(&self, name: &str, id: Digest) -> Result<Option<Source>, image::Error> {
        let location = name.parse()?;
        let Location::Registry(name) = location else {
            return self.local(&location);
        };
        let image = reference(&name).map_err(remote)?.with_digest(id);
        let client = self.places.client(self.insecure).map_err(remote)?;
        match client.source(&image) {
            Ok(source) => Ok(Some(source)),
            Err(image::Error::Remote(error)) => {
                let known = error.downcast_ref::<registry::Error>();
                match known.is_some_and(registry::Error::is_not_found) {
                    true => Ok(None),
                    false => Err(image::Error::Remote(error)),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn place(&self, name: &str) -> Result<Option<Source>, image::Error> {
        let location = name.parse()?;
        let root = || Descriptor::new(media::OCI_MANIFEST, Digest::from([0; 32]), 0);
        let Location::Registry(name) = location else {
            return self.local(&location);
        };
        // The name of the image is of no account: nothing is asked for but blobs.
        let image = reference(&name).map_err(remote)?;
        let client = self.places.client(self.insecure).map_err(remote)?;
        let store = client.target(&image).store();
        Source::new(store, root(), Some(name)).map(Some)
    }
}
