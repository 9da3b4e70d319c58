//! Platforms and how one is chosen from an index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Error;

/// An operating system and processor, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor: `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Version of the processor architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// All other fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Platform {
    /// A platform without a variant.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: None,
            other: Map::new(),
        }
    }

    /// Linux on the processor this program was compiled for.
    pub fn host() -> Self {
        Self::new("linux", normal_architecture(std::env::consts::ARCH))
    }

    /// Whether it is `unknown/unknown`: the mark of attestations and other things that are no image.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether an image for `self` is what is asked for by `wanted`. A missing variant is the usual one.
    pub fn fits(&self, wanted: &Self) -> bool {
        let architecture = normal_architecture(&self.architecture);
        self.os == wanted.os
            && architecture == normal_architecture(&wanted.architecture)
            && normal_variant(architecture, self.variant.as_deref())
                == normal_variant(architecture, wanted.variant.as_deref())
    }
}

/// Go's name of a processor.
fn normal_architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        other => other,
    }
}

/// The variant meant when none is named.
fn normal_variant<'a>(architecture: &str, variant: Option<&'a str>) -> &'a str {
    match (architecture, variant.unwrap_or_default()) {
        ("arm64", "" | "8") => "v8",
        ("arm", "" | "7") => "v7",
        ("arm", "6") => "v6",
        ("arm", "5") => "v5",
        ("amd64", "") => "v1",
        (_, variant) => variant,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidPlatform(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(invalid()),
        };
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if ![Some(os), Some(architecture), variant]
            .into_iter()
            .flatten()
            .all(plain)
        {
            return Err(invalid());
        }
        let mut platform = Self::new(os, normal_architecture(architecture));
        platform.variant = variant.map(str::to_owned);
        Ok(platform)
    }
}

/// Which images of an index are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformChoice {
    /// Every entry.
    All,
    /// The entries for this host's platform; a lone manifest is taken whatever it is for.
    Host,
    /// The entries for these platforms.
    Only(Vec<Platform>),
}

impl PlatformChoice {
    /// Whether an image for `platform` is wanted.
    pub fn wants(&self, platform: &Platform) -> bool {
        match self {
            Self::All => true,
            Self::Host => platform.fits(&Platform::host()),
            Self::Only(list) => list.iter().any(|wanted| platform.fits(wanted)),
        }
    }
}

impl fmt::Display for PlatformChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("any platform"),
            Self::Host => Platform::host().fmt(f),
            Self::Only(list) => {
                let names: Vec<String> = list.iter().map(Platform::to_string).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn usual_variants_are_implied() {
        assert!(parse("linux/arm64/v8").fits(&parse("linux/arm64")));
        assert!(parse("linux/arm64").fits(&parse("linux/aarch64")));
        assert!(parse("linux/arm").fits(&parse("linux/arm/v7")));
        assert!(!parse("linux/arm/v6").fits(&parse("linux/arm/v7")));
        assert!(!parse("linux/amd64/v3").fits(&parse("linux/amd64")));
        assert!(!parse("windows/amd64").fits(&parse("linux/amd64")));
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for bad in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/amd64/v1/x",
            "linux/am d64",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
