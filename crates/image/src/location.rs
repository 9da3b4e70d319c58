//! Where an image lies.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;

/// Where an image lies: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:TAG]`; all else is a
/// reference to a registry.
///
/// A colon may be part of the path. The text after the prefix is a path without a tag if it exists as a whole; else
/// it is split at the last colon before which an existing path stands; else, for paths that are yet to be made, at
/// the last colon if a tag (letters, digits, `.`, `_`, `-`) follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory in OCI image layout.
    OciLayout {
        /// The directory.
        dir: PathBuf,
        /// Tag or full name of the image.
        tag: Option<String>,
    },
    /// A tar of an OCI image layout.
    OciArchive {
        /// The file.
        file: PathBuf,
        /// Tag or full name of the image.
        tag: Option<String>,
    },
    /// What `docker save` writes.
    DockerArchive {
        /// The file.
        file: PathBuf,
        /// Tag or full name of the image.
        tag: Option<String>,
    },
    /// A reference to a registry.
    Registry(String),
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((prefix, rest)) = text.split_once(':') else {
            return Ok(Self::Registry(text.to_owned()));
        };
        if !matches!(prefix, "oci" | "oci-archive" | "docker-archive") {
            return Ok(Self::Registry(text.to_owned()));
        }
        let (path, tag) = split_tag(rest);
        if path.is_empty() {
            return Err(Error::Location {
                location: text.to_owned(),
                reason: "it names no file",
            });
        }
        let (path, tag) = (PathBuf::from(path), tag.map(str::to_owned));
        Ok(match prefix {
            "oci" => Self::OciLayout { dir: path, tag },
            "oci-archive" => Self::OciArchive { file: path, tag },
            _ => Self::DockerArchive { file: path, tag },
        })
    }
}

fn split_tag(text: &str) -> (&str, Option<&str>) {
    if Path::new(text).exists() {
        return (text, None);
    }
    let existing = text
        .rmatch_indices(':')
        .map(|(at, _)| (&text[..at], &text[at + 1..]))
        .find(|(path, name)| is_name(name) && Path::new(path).exists());
    if let Some((path, name)) = existing {
        return (path, Some(name));
    }
    match text.rsplit_once(':') {
        Some((path, tag)) if is_name(tag) && !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    }
}

/// Whether `text` is a tag or could be a full image name.
fn is_name(text: &str) -> bool {
    text.len() <= 512
        && text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, path, tag) = match self {
            Self::OciLayout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag),
            Self::Registry(reference) => return f.write_str(reference),
        };
        write!(f, "{prefix}:{}", path.display())?;
        match tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oci(dir: &str, tag: Option<&str>) -> Location {
        Location::OciLayout {
            dir: dir.into(),
            tag: tag.map(str::to_owned),
        }
    }

    #[test]
    fn prefixes_and_tags() {
        assert_eq!(
            "oci:/no/dir:v1.2".parse::<Location>().unwrap(),
            oci("/no/dir", Some("v1.2"))
        );
        assert_eq!(
            "oci:/no/dir".parse::<Location>().unwrap(),
            oci("/no/dir", None)
        );
        assert_eq!(
            "oci:/no:1/dir".parse::<Location>().unwrap(),
            oci("/no:1/dir", None)
        );
        assert!(matches!(
            "oci-archive:a.tar:x".parse().unwrap(),
            Location::OciArchive { tag: Some(_), .. }
        ));
        assert!(matches!(
            "docker-archive:a.tar".parse().unwrap(),
            Location::DockerArchive { tag: None, .. }
        ));
        for reference in [
            "busybox",
            "busybox:1.36",
            "localhost:5000/a/b:c",
            "docker://busybox",
        ] {
            assert_eq!(
                reference.parse::<Location>().unwrap(),
                Location::Registry(reference.to_owned())
            );
        }
        assert!("oci:".parse::<Location>().is_err());
        assert!("oci::tag".parse::<Location>().is_err());
    }

    #[test]
    fn a_colon_may_be_part_of_an_existing_path() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        let odd = odd.to_str().unwrap();
        assert_eq!(
            format!("oci:{odd}").parse::<Location>().unwrap(),
            oci(odd, None)
        );
        assert_eq!(
            format!("oci:{odd}:t").parse::<Location>().unwrap(),
            oci(odd, Some("t"))
        );
        let full = format!("oci:{odd}:docker.io/library/x:1");
        assert_eq!(
            full.parse::<Location>().unwrap(),
            oci(odd, Some("docker.io/library/x:1"))
        );
    }

    #[test]
    fn a_location_prints_as_it_is_written() {
        for text in [
            "oci:/x/y:t",
            "oci-archive:/x.tar",
            "docker-archive:x:t",
            "quay.io/a:b",
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
        }
    }
}
