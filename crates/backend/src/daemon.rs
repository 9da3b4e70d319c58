//! A daemon's configuration, for what it says of an image's blobs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use registry::Settings;
use serde_json::{Map, Value};
use storage::BlobSource;

use crate::{Error, open_source};

/// Where a daemon finds the blobs of an image. All else in its configuration is of no matter here and is not looked at.
///
/// Four forms are understood:
///
/// * version 2, as JSON or TOML: `version = 2`, `backend.type`, and the backend's parameters in a table of that name;
/// * version 1, as JSON: `device.backend.type` and `device.backend.config`;
/// * an entry of a blob cache, as JSON or TOML, with either of the two inside: `config_v2` with the keys of version 2, or
///   `config` with `backend_type` and `backend_config`. Both name the bootstrap as well (`metadata_path`).
pub struct DaemonConfig {
    kind: String,
    /// May hold secrets.
    parameters: Map<String, Value>,
    bootstrap: Option<PathBuf>,
}

impl DaemonConfig {
    /// Reads a configuration. Unknown keys are ignored, as consumers share configurations.
    ///
    /// # Errors
    /// [`Error::Syntax`] and [`Error::Daemon`], which repeat nothing of the text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let root = parse_object(text)?;
        if let Some(config) = object(&root, "config_v2")? {
            let (kind, parameters) = version_2(config)?;
            return Ok(Self {
                kind,
                parameters,
                bootstrap: bootstrap(config)?,
            });
        }
        if let Some(config) = object(&root, "config")? {
            return Ok(Self {
                kind: needed(config, "backend_type")?,
                parameters: object(config, "backend_config")?
                    .cloned()
                    .ok_or(wrong("backend_config", "is missing"))?,
                bootstrap: bootstrap(config)?,
            });
        }
        let (kind, parameters) = match object(&root, "device")? {
            Some(device) => version_1(device)?,
            None => version_2(&root)?,
        };
        Ok(Self {
            kind,
            parameters,
            bootstrap: None,
        })
    }

    /// The bootstrap, which entries of a blob cache name.
    pub fn bootstrap(&self) -> Option<&Path> {
        self.bootstrap.as_deref()
    }

    /// Opens the backend to read blobs from; see [`open_source`].
    ///
    /// # Errors
    /// As [`open_source`].
    pub fn open(&self, settings: &Settings) -> Result<Arc<dyn BlobSource>, Error> {
        let json = Value::Object(self.parameters.clone()).to_string();
        let opened = open_source(&self.kind, &json, settings, None)?;
        Ok(Arc::new(opened))
    }
}

impl fmt::Debug for DaemonConfig {
    /// Without the parameters, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonConfig")
            .field("kind", &self.kind)
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

/// JSON, or else TOML.
fn parse_object(text: &str) -> Result<Map<String, Value>, Error> {
    let json = match serde_json::from_str(text) {
        Ok(Value::Object(map)) => return Ok(map),
        Ok(_) => return Err(wrong("version", "is missing: this is no table of keys")),
        Err(error) => error,
    };
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        Error::Syntax {
            // Its own words would repeat the line, which may hold a secret.
            toml_line: before.unwrap_or_default().split('\n').count(),
            source: json,
        }
    })
}

/// `backend.type`, and the table of that name beside it.
fn version_2(config: &Map<String, Value>) -> Result<(String, Map<String, Value>), Error> {
    if config.get("version").and_then(Value::as_u64) != Some(2) {
        return Err(wrong(
            "version",
            "is not 2, and there is no \"device\" as in version 1",
        ));
    }
    let backend = object(config, "backend")?.ok_or(wrong("backend", "is missing"))?;
    let kind = needed(backend, "type")?;
    let parameters = object(backend, &kind)?.cloned();
    let missing = wrong("backend", "has no table that is called as its type is");
    Ok((kind, parameters.ok_or(missing)?))
}

/// `backend.type` and `backend.config`.
fn version_1(device: &Map<String, Value>) -> Result<(String, Map<String, Value>), Error> {
    let backend = object(device, "backend")?.ok_or(wrong("device.backend", "is missing"))?;
    let parameters = object(backend, "config")?.cloned();
    let missing = wrong("device.backend.config", "is missing");
    Ok((needed(backend, "type")?, parameters.ok_or(missing)?))
}

fn bootstrap(config: &Map<String, Value>) -> Result<Option<PathBuf>, Error> {
    match config.get("metadata_path") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(path)) if path.is_empty() => Ok(None),
        Some(Value::String(path)) => Ok(Some(path.into())),
        Some(_) => Err(wrong("metadata_path", "is no string")),
    }
}

fn object<'a>(
    map: &'a Map<String, Value>,
    key: &str,
) -> Result<Option<&'a Map<String, Value>>, Error> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(Error::Daemon {
            key: key.to_owned(),
            reason: "is no table",
        }),
    }
}

fn needed(map: &Map<String, Value>, key: &'static str) -> Result<String, Error> {
    let text = map.get(key).and_then(Value::as_str);
    let text = text.filter(|text| !text.is_empty());
    text.map(str::to_owned)
        .ok_or(wrong(key, "is missing or no string"))
}

fn wrong(key: &str, reason: &'static str) -> Error {
    Error::Daemon {
        key: key.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    const V2: &str = r#"{"version":2,"id":"x","backend":{"type":"localfs","localfs":{"dir":"/d","readahead":true},
        "oss":{"endpoint":1}},"cache":{"type":"blobcache"},"rafs":{"mode":"direct"}}"#;
    const V2_TOML: &str = "version = 2\nid = \"x\"\n[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = \"/d\"\n\
        alt_dirs = [\"/e\"]\n[cache]\ntype = \"filecache\"\n[cache.prefetch]\nenable = true\nthreads = 8\n";
    const V1: &str = r#"{"device":{"id":"/1","backend":{"type":"registry","config":{"host":"h:1","repo":"a/b",
        "auth":"dTpw","mirrors":[]}},"cache":{"type":"blobcache","config":{"work_dir":"c"}}},"mode":"direct",
        "fs_prefetch":{"enable":true}}"#;
    const ENTRY_V2: &str = r#"{"type":"bootstrap","id":"disk-default","domain_id":"block-nbd","config_v2":{"version":2,
        "id":"factory","backend":{"type":"localfs","localfs":{"dir":"/d"}},"metadata_path":"/m/image.boot"}}"#;
    const ENTRY_V1: &str = r#"{"type":"bootstrap","id":"i","domain_id":"d","config":{"id":"i","backend_type":"localfs",
        "backend_config":{"dir":"/d"},"cache_type":"fscache","cache_config":{},"metadata_path":"/m/image.boot"}}"#;

    #[test]
    fn every_form_is_understood() {
        let with_bootstrap = Some(Path::new("/m/image.boot"));
        let entry_toml = format!(
            "type = \"bootstrap\"\n[config_v2]\nmetadata_path = \"/m/image.boot\"\n{}",
            V2_TOML
                .replace("[backend", "[config_v2.backend")
                .replace("[cache", "[config_v2.cache")
        );
        for (text, kind, bootstrap) in [
            (V2, "localfs", None),
            (V2_TOML, "localfs", None),
            (V1, "registry", None),
            (ENTRY_V2, "localfs", with_bootstrap),
            (&entry_toml, "localfs", with_bootstrap),
            (ENTRY_V1, "localfs", with_bootstrap),
        ] {
            let config = DaemonConfig::parse(text).unwrap();
            assert_eq!(
                (&*config.kind, config.bootstrap()),
                (kind, bootstrap),
                "{text}"
            );
            config.open(&Settings::default()).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_repeated() {
        for (text, word) in [
            ("", "version"),
            ("[]", "version"),
            (
                r#"{"version":1,"backend":{"type":"oss","oss":{"key":"sesame"}}}"#,
                "version",
            ),
            (r#"{"version":"2"}"#, "version"),
            (r#"{"version":2,"id":"sesame"}"#, "backend"),
            (r#"{"version":2,"backend":"sesame"}"#, "backend"),
            (
                r#"{"version":2,"backend":{"type":"oss","s3":{"key":"sesame"}}}"#,
                "its type",
            ),
            (
                r#"{"version":2,"backend":{"type":"oss","oss":"sesame"}}"#,
                "oss",
            ),
            (
                r#"{"device":{"backend":{"type":"oss","key":"sesame"}}}"#,
                "config",
            ),
            (r#"{"device":{"id":"sesame"}}"#, "device.backend"),
            (r#"{"config":{"id":"sesame"}}"#, "backend_type"),
            (
                r#"{"config":{"backend_type":"oss","id":"sesame"}}"#,
                "backend_config",
            ),
            (
                r#"{"config":{"backend_type":"oss","backend_config":{},"metadata_path":["sesame"]}}"#,
                "metadata_path",
            ),
            ("version = 2\n[backend]\nkey = sesame\n", "line 3"),
            (r#"{"version":2,"key":"sesame""#, "JSON"),
        ] {
            let error = DaemonConfig::parse(text).unwrap_err();
            let shown = format!("{error} {:?} {error:?}", error.source());
            assert!(shown.contains(word), "{text}: {shown}");
            assert!(!shown.contains("sesame"), "{text}: {shown}");
        }
        let secret = V1.replace("dTpw", "sesame");
        let shown = format!("{:?}", DaemonConfig::parse(&secret).unwrap());
        assert!(
            shown.contains("registry") && !shown.contains("sesame"),
            "{shown}"
        );
    }
}
