//! `nydusify convert --build-cache`: options, and where the cache lies.

use std::sync::Arc;

use anyhow::Result;
use convert::{BuildCache, CacheError, CachePlace};
use image::{Location, Source, Target};

use crate::args::{Usage, switch};
use crate::place::{Places, reference};

/// Options about the build cache.
#[derive(Debug, Clone, clap::Args)]
pub struct BuildCacheArgs {
    /// Image that keeps converted layers for others: a name in a registry, or oci:DIR:TAG. Layers it has are not
    /// converted again, new ones are added to it
    #[arg(long, env = "BUILD_CACHE", value_name = "IMAGE")]
    build_cache: Option<String>,

    /// The build cache is in the target's repository, under this tag
    #[arg(long, env = "BUILD_CACHE_TAG", value_name = "TAG")]
    build_cache_tag: Option<String>,

    /// Version of the build cache: records of another one are not used, and go when the cache is written
    #[arg(
        long,
        env = "BUILD_CACHE_VERSION",
        value_name = "VERSION",
        default_value = "v1"
    )]
    build_cache_version: String,

    /// Do not check the certificate of the build cache's registry
    #[arg(long, env = "BUILD_CACHE_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    build_cache_insecure: bool,

    /// Most layers of a platform that the build cache keeps, up to 200
    #[arg(long, env = "BUILD_CACHE_MAX_RECORDS", value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u16).range(1..=200))]
    build_cache_max_records: u16,
}

impl BuildCacheArgs {
    /// The cache for a conversion to `target`, if one is asked for.
    ///
    /// # Errors
    /// [`Usage`] if the options contradict each other, or name a place that can't be a cache.
    pub fn open(&self, places: &Arc<Places>, target: &Location) -> Result<Option<BuildCache>> {
        let given = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
        let location = match (given(&self.build_cache), given(&self.build_cache_tag)) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                let reason = "--build-cache and --build-cache-tag exclude one another";
                return Err(Usage(reason.to_owned()).into());
            }
            (Some(name), None) => with_tag(name.parse()?)?,
            (None, Some(tag)) => beside(target, &tag)?,
        };
        if location == with_tag(target.clone()).unwrap_or_else(|_| target.clone()) {
            return Err(Usage(format!(
                "the build cache {location} is the target: give it another tag"
            ))
            .into());
        }
        Ok(Some(BuildCache {
            name: location.to_string(),
            version: self.build_cache_version.clone(),
            max_records: self.build_cache_max_records.into(),
            place: Arc::new(Place {
                places: Arc::clone(places),
                location,
                insecure: self.build_cache_insecure,
            }),
        }))
    }
}

/// The place of a cache, its name in full.
fn with_tag(location: Location) -> Result<Location> {
    match location {
        Location::Registry(name) => {
            let reference = reference(&name)?;
            if reference.digest().is_some() {
                return Err(Usage(format!(
                    "the build cache {name} is named by its digest, and can't be added to: give a tag"
                ))
                .into());
            }
            Ok(Location::Registry(reference.to_string()))
        }
        Location::OciLayout { tag: Some(_), .. } => Ok(location),
        _ => Err(Usage(format!(
            "the build cache {location} must be a name in a registry or oci:DIR:TAG"
        ))
        .into()),
    }
}

/// The target's place, with another tag.
fn beside(target: &Location, tag: &str) -> Result<Location> {
    match target {
        Location::Registry(name) => {
            let reference = reference(name)?.with_tag(tag)?;
            Ok(Location::Registry(reference.to_string()))
        }
        Location::OciLayout { dir, .. } => Ok(Location::OciLayout {
            dir: dir.clone(),
            tag: Some(tag.to_owned()),
        }),
        _ => Err(Usage(format!(
            "--build-cache-tag needs a target in a registry or a layout, not {target}; name the cache with --build-cache"
        ))
        .into()),
    }
}

/// Where a cache lies.
struct Place {
    places: Arc<Places>,
    location: Location,
    insecure: bool,
}

impl CachePlace for Place {
    fn source(&self) -> Result<Option<Source>, CacheError> {
        if let Location::OciLayout { dir, .. } = &self.location
            && !dir.join("index.json").exists()
        {
            return Ok(None);
        }
        match self.places.source(&self.location, self.insecure) {
            Ok(source) => Ok(Some(source)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn target(&self) -> Result<Target, CacheError> {
        Ok(self.places.target(&self.location, self.insecure)?)
    }
}

/// Whether there simply is no such image.
fn is_missing(error: &anyhow::Error) -> bool {
    let registry = |error: &registry::Error| error.is_not_found();
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(registry)
            || matches!(cause.downcast_ref(), Some(image::Error::NoSuchTag { .. }))
            || match cause.downcast_ref() {
                Some(image::Error::Remote(inner)) => inner.downcast_ref().is_some_and(registry),
                _ => false,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_beside_a_target_is_in_its_place() {
        let beside =
            |target: &str| Ok::<_, anyhow::Error>(beside(&target.parse()?, "cache")?.to_string());
        assert_eq!(beside("host:5000/a/b:1").unwrap(), "host:5000/a/b:cache");
        assert_eq!(beside("oci:dir:1").unwrap(), "oci:dir:cache");
        assert!(beside("oci-archive:file:1").is_err());
    }

    #[test]
    fn a_cache_has_a_tag() {
        let digest = format!("host.example/a@sha256:{}", "a".repeat(64));
        for bad in [
            &*digest,
            "oci:dir",
            "oci-archive:file:t",
            "docker-archive:file",
        ] {
            assert!(with_tag(bad.parse().unwrap()).is_err(), "{bad}");
        }
        for (name, full) in [
            ("host.example/a", "host.example/a:latest"),
            ("oci:dir:t", "oci:dir:t"),
        ] {
            assert_eq!(with_tag(name.parse().unwrap()).unwrap().to_string(), full);
        }
    }
}
