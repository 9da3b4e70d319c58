//! Which images of two places are to be compared.

use std::sync::Arc;

use image::{Descriptor, Manifest, Platform, PlatformChoice, Source, nydus};

use crate::side::{OpenError, Side};

/// An image of an index, or the only one.
struct Image {
    descriptor: Descriptor,
    manifest: Manifest,
    platform: Option<Platform>,
    /// It is a Nydus image, or its index says so.
    nydus: bool,
}

/// The images of the chosen platforms in `target`, each with the image of `source` that it should equal.
///
/// Of a platform that has both a plain and a Nydus image, the Nydus image is the target and the plain one the source.
/// The names of the places are for reports.
///
/// # Errors
/// [`OpenError`] if an image cannot be read, or if a target has no counterpart.
pub fn images(
    source: Option<(&Arc<Source>, &str)>,
    target: (&Arc<Source>, &str),
    choice: &PlatformChoice,
) -> Result<Vec<(Option<Side>, Side)>, OpenError> {
    let targets = preferring(list(target.0, choice)?, true);
    let sources = match source {
        Some((source, _)) => preferring(list(source, choice)?, false),
        None => Vec::new(),
    };
    let several = targets.len() > 1;
    let mut pairs = Vec::with_capacity(targets.len());
    for image in targets {
        let name = |place: &str| match &image.platform {
            Some(platform) if several => format!("{place} ({platform})"),
            _ => place.to_owned(),
        };
        if image.nydus && !nydus::is_nydus(&image.manifest) {
            return Err(OpenError::NoBootstrap {
                name: name(target.1),
                digest: image.descriptor.digest,
            });
        }
        let old = match source {
            Some((place, text)) => {
                let found = counterpart(&image, &sources, several).ok_or_else(|| {
                    OpenError::NoCounterpart {
                        name: name(target.1),
                        source_name: text.to_owned(),
                    }
                })?;
                let side = Side::image(place, name(text), found.manifest.clone())?;
                Some(side.on(found.descriptor.platform.clone()))
            }
            None => None,
        };
        let new = Side::image(target.0, name(target.1), image.manifest.clone())?;
        pairs.push((old, new.on(image.descriptor.platform)));
    }
    Ok(pairs)
}

fn list(source: &Source, choice: &PlatformChoice) -> Result<Vec<Image>, OpenError> {
    let image = |(descriptor, manifest): (Descriptor, Manifest)| {
        let platform = match descriptor.platform.clone() {
            Some(platform) => Some(platform),
            None => stated_platform(source, &manifest)?,
        };
        let nydus = nydus::is_nydus(&manifest) || nydus::is_nydus_entry(&descriptor);
        Ok(Image {
            nydus,
            descriptor,
            manifest,
            platform,
        })
    };
    source.manifests(choice)?.into_iter().map(image).collect()
}

/// The platform in the configuration.
fn stated_platform(source: &Source, manifest: &Manifest) -> Result<Option<Platform>, OpenError> {
    let config = source.config(manifest)?;
    let text = |key: &str| config.get(key).and_then(serde_json::Value::as_str);
    Ok(text("os")
        .zip(text("architecture"))
        .map(|(os, architecture)| {
            let mut platform = Platform::new(os, architecture);
            platform.variant = text("variant").map(str::to_owned);
            platform
        }))
}

/// Leaves out images for which there is one of the preferred kind for the same platform.
fn preferring(images: Vec<Image>, nydus: bool) -> Vec<Image> {
    let preferred: Vec<Option<Platform>> = images
        .iter()
        .filter(|image| image.nydus == nydus)
        .map(|image| image.platform.clone())
        .collect();
    let hidden = |image: &Image| {
        image.nydus != nydus
            && preferred
                .iter()
                .any(|platform| same(platform, &image.platform))
    };
    images.into_iter().filter(|image| !hidden(image)).collect()
}

fn same(a: &Option<Platform>, b: &Option<Platform>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.fits(b),
        _ => a.is_none() && b.is_none(),
    }
}

/// The image that `image` was made from: that of the same platform, or the only one there is for the only target.
fn counterpart<'a>(image: &Image, sources: &'a [Image], several: bool) -> Option<&'a Image> {
    let origin = image
        .manifest
        .annotations
        .as_ref()
        .and_then(|all| all.get(nydus::ANNOTATION_SOURCE_DIGEST));
    let by_origin = || {
        sources.iter().find(|source| {
            origin.is_some_and(|origin| *origin == source.descriptor.digest.to_string())
        })
    };
    let only = || sources.first().filter(|_| !several && sources.len() == 1);
    by_origin()
        .or_else(|| {
            sources
                .iter()
                .find(|source| same(&source.platform, &image.platform))
        })
        .or_else(only)
}
