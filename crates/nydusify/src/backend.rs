//! Options about backends: where blobs lie that an image's manifest does not list.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use backend::{Backend, Blobs, Config, Error, Kind};
use registry::Secret;

use crate::args::{Usage, any_path, given};
use crate::place::Places;

/// What the options of one backend say.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// What comes before `backend-type` in the names of the options, with both dashes.
    prefix: &'static str,
    kind: Option<&'a str>,
    config: Option<&'a Secret>,
    file: Option<&'a Path>,
}

/// Options of one backend.
macro_rules! options {
    ($name:ident, $doc:literal, $prefix:literal, $what:literal, $types:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, clap::Args)]
        pub struct $name {
            #[arg(help = concat!("Type of the backend with ", $what, ": ", $types),
                  id = concat!($prefix, "backend-type"), long = concat!($prefix, "backend-type"),
                  env = "BACKEND_TYPE", value_name = "TYPE")]
            kind: Option<String>,

            #[arg(help = concat!("Configuration of the --", $prefix, "backend-type"),
                  id = concat!($prefix, "backend-config"), long = concat!($prefix, "backend-config"),
                  env = "BACKEND_CONFIG", value_name = "JSON", hide_env_values = true)]
            config: Option<Secret>,

            #[arg(help = concat!("File with the configuration of the --", $prefix, "backend-type"),
                  id = concat!($prefix, "backend-config-file"), long = concat!($prefix, "backend-config-file"),
                  env = "BACKEND_CONFIG_FILE", value_name = "FILE", value_parser = any_path())]
            file: Option<PathBuf>,
        }

        impl $name {
            /// What these options say.
            pub fn choice(&self) -> Choice<'_> {
                Choice {
                    prefix: concat!("--", $prefix),
                    kind: self.kind.as_deref().filter(|kind| !kind.is_empty()),
                    config: self.config.as_ref().filter(|text| !text.is_empty()),
                    file: given(self.file.as_ref()),
                }
            }
        }
    };
}

options!(
    TargetOptions,
    "Where `convert` writes blobs.",
    "",
    "the blobs, which the image then does not list",
    "oss, s3 or localfs"
);
options!(
    MountOptions,
    "Where `mount` finds blobs.",
    "",
    "the blobs that the image does not list",
    "oss, s3, localfs, localdisk, registry or http-proxy"
);
options!(
    DictionaryOptions,
    "Where `chunkdict generate` finds blobs.",
    "",
    "the blobs that the sources do not list",
    "oss, s3, localfs, localdisk, registry or http-proxy"
);
options!(
    SourceSide,
    "Where `check`, `copy` and `optimize` find blobs of the source.",
    "source-",
    "the source's blobs that it does not list",
    "oss, s3, localfs, localdisk, registry or http-proxy"
);
options!(
    TargetSide,
    "Where `check` finds blobs of the target.",
    "target-",
    "the target's blobs that it does not list",
    "oss, s3, localfs, localdisk, registry or http-proxy"
);

impl Choice<'_> {
    /// Whether one was chosen.
    pub fn is_given(&self) -> bool {
        self.kind.is_some()
    }

    /// The backend to write to, if one was chosen.
    pub fn open_target(&self, places: &Places) -> Result<Option<Backend>> {
        let Some((name, text)) = self.read()? else {
            return Ok(None);
        };
        let kind: Kind = name.parse().map_err(|error| self.usage("type", &error))?;
        let config = Config::parse(kind, &text);
        let config = config.map_err(|error| self.wrong_config(name, &text, &error))?;
        let config = config.absolute();
        let config = config.context("cannot find out the working directory")?;
        let client = config.client(places.settings())?;
        Ok(Some(Backend::open(&config, &client)?))
    }

    /// The backend to read from, if one was chosen. `mirrors` lists mirrors of registries.
    pub fn open(&self, places: &Places, mirrors: Option<&Path>) -> Result<Option<Arc<Blobs>>> {
        let Some((name, text)) = self.read()? else {
            return Ok(None);
        };
        match backend::open_source(name, &text, places.settings(), mirrors) {
            Ok(blobs) => Ok(Some(Arc::new(blobs))),
            Err(error @ Error::Source(_)) => Err(self.usage("type", &error).into()),
            Err(error @ (Error::Json { .. } | Error::Key { .. })) => {
                Err(self.wrong_config(name, &text, &error).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A mistake in the value of an option.
    fn usage(&self, option: &str, error: &Error) -> Usage {
        let prefix = self.prefix;
        match std::error::Error::source(error) {
            Some(source) => Usage(format!("{prefix}backend-{option}: {error}: {source}")),
            None => Usage(format!("{prefix}backend-{option}: {error}")),
        }
    }

    /// A configuration that cannot be used.
    fn wrong_config(&self, name: &str, text: &str, error: &Error) -> Usage {
        let prefix = self.prefix;
        match text.trim().is_empty() {
            true => Usage(format!(
                "{prefix}backend-type {name}: its configuration is empty; give it with {prefix}backend-config or \
                 {prefix}backend-config-file"
            )),
            false => self.usage("config", error),
        }
    }

    /// The type and the text of the configuration, if a backend was chosen.
    fn read(&self) -> Result<Option<(&str, String)>> {
        let prefix = self.prefix;
        if self.config.is_some() && self.file.is_some() {
            let reason = format!(
                "{prefix}backend-config and {prefix}backend-config-file exclude one another"
            );
            return Err(Usage(reason).into());
        }
        let Some(name) = self.kind else {
            if self.config.is_some() || self.file.is_some() {
                tracing::warn!(
                    "a backend's configuration without {prefix}backend-type has no effect"
                );
            }
            return Ok(None);
        };
        let text = match (self.config, self.file) {
            (Some(text), _) => text.reveal().to_owned(),
            (None, Some(path)) => backend::read_config(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
            (None, None) => String::new(),
        };
        Ok(Some((name, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: Option<&str>, config: Option<&str>, file: Option<&Path>) -> Result<bool> {
        let config = config.map(Secret::new);
        let choice = Choice {
            prefix: "--source-",
            kind,
            config: config.as_ref(),
            file,
        };
        assert!(!format!("{choice:?}").contains("sesame"));
        let registry = crate::place::RegistryArgs::default();
        let places = Places::new(&registry, None, &progress::Cancel::default());
        let read = choice.open(&places, None)?.is_some();
        let written = choice.open_target(&places)?.is_some();
        assert_eq!(read, written);
        Ok(read)
    }

    #[test]
    fn a_backend_is_a_type_and_one_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, r#"{"dir":"blobs"}"#).unwrap();
        let json =
            r#"{"region":"r","bucket_name":"b","access_key_id":"i","access_key_secret":"sesame"}"#;
        assert!(!config(None, None, None).unwrap());
        assert!(!config(None, Some(json), None).unwrap());
        assert!(config(Some("s3"), Some(json), None).unwrap());
        assert!(config(Some("localfs"), None, Some(&file)).unwrap());
        for (kind, text, file, word) in [
            (Some("s3"), None, None, "--source-backend-config-file"),
            (Some("s3"), Some(" "), None, "empty"),
            (Some("s3"), Some(json), Some(&*file), "exclude one another"),
            (None, Some(json), Some(&*file), "exclude one another"),
            (
                Some("ftp"),
                Some(json),
                None,
                "--source-backend-type: there is no backend type \"ftp\"",
            ),
            (Some("oss"), Some(json), None, "\"endpoint\" is missing"),
            (Some("s3"), Some("{\"sesame"), None, "EOF while parsing"),
            (
                Some("localfs"),
                None,
                Some(Path::new("/no/where")),
                "cannot read /no/where",
            ),
        ] {
            let error = format!("{:#}", config(kind, text, file).unwrap_err());
            assert!(error.contains(word) && !error.contains("sesame"), "{error}");
        }
    }
}
