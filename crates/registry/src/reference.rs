//! Names of images in registries, as docker spells them.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use image::Digest;
use oci_spec::distribution;

use crate::Error;

/// A full name of an image: registry, repository, tag and digest.
///
/// Short names mean what they mean to docker: `alpine` is `docker.io/library/alpine:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry: host, and port if one is given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a manifest is asked for with: the digest if there is one, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }

    /// The same repository with another tag and without digest.
    ///
    /// # Errors
    /// [`Error::Reference`] if that is no tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, Error> {
        let name = format!("{}/{}:{tag}", self.host, self.repository);
        name.parse()
    }

    /// The same repository with a digest alone.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            host: self.host.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |reason: String| Error::Reference {
            text: text.to_owned(),
            reason,
        };
        // oci-spec knows no IPv6 literals: such a host is taken off first.
        let (host, name) = match split_ipv6(text) {
            Some((host, rest)) => (Some(host), format!("localhost/{rest}")),
            None => (None, text.to_owned()),
        };
        let lower_case = || {
            "repository names are lower case: [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST]".to_owned()
        };
        let parsed: distribution::Reference =
            name.parse().map_err(|error: distribution::ParseError| {
                invalid(match error {
                    _ if name.contains("://") => "it must have no scheme".to_owned(),
                    distribution::ParseError::ReferenceInvalidFormat
                        if name.bytes().any(|b| b.is_ascii_uppercase()) =>
                    {
                        lower_case()
                    }
                    distribution::ParseError::ReferenceInvalidFormat => {
                        "it must be [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST]".to_owned()
                    }
                    other => other.to_string(),
                })
            })?;
        // A first component that looks like a host is let pass, and taken for a part of the name then.
        if parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid(lower_case()));
        }
        let digest = match parsed.digest() {
            Some(digest) => Some(
                digest
                    .parse::<Digest>()
                    .map_err(|error| invalid(error.to_string()))?,
            ),
            None => None,
        };
        Ok(Self {
            host: host.unwrap_or(parsed.registry()).to_owned(),
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        })
    }
}

/// Splits `[::1]:5000/name` into its host and the rest.
fn split_ipv6(text: &str) -> Option<(&str, &str)> {
    let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
    address.parse::<Ipv6Addr>().ok()?;
    let (port, name) = rest.split_once('/')?;
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    let host = text.len() - name.len() - 1;
    port.then(|| (&text[..host], name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn names_are_completed_as_docker_does() {
        let digested = format!("localhost/a/b:t@sha256:{HEX}");
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("user/image", "docker.io/user/image:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("host:5000/a", "host:5000/a:latest"),
            ("example.com/a/b__c:T_1", "example.com/a/b__c:T_1"),
            ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
            ("[fd00::2]/a", "[fd00::2]/a:latest"),
            (&digested, &digested),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        }
        let reference: Reference = digested.parse().unwrap();
        assert_eq!(reference.target(), format!("sha256:{HEX}"));
        assert_eq!(reference.tag(), Some("t"));
        let only = format!("a@sha256:{HEX}").parse::<Reference>().unwrap();
        assert_eq!(only.tag(), None);
        assert_eq!(
            only.with_tag("x").unwrap().to_string(),
            "docker.io/library/a:x"
        );
        assert!(only.with_tag("x/y").is_err());
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_way_out() {
        let short = "a@sha256:00".to_owned();
        let other = format!("a@sha512:{HEX}{HEX}");
        for (text, word) in [
            ("", "at least one"),
            ("https://host/a", "no scheme"),
            ("host/Name", "lower case"),
            ("Name/app", "lower case"),
            ("a:b:c", "HOST"),
            ("a b", "HOST"),
            ("../a", "HOST"),
            ("[::1/a", "HOST"),
            ("[::1]x/a", "HOST"),
            (&short, "HOST"),
            (&other, "only sha256"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
