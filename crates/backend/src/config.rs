//! What the user says about a backend.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use registry::{Client, Settings};

use crate::Error;
use crate::access::{self, Key, KeySource, Program};
use crate::keys::Keys;

/// Largest configuration that is read from a file, in bytes.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// Types of backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Aliyun's object store.
    Oss,
    /// Amazon's object store, and those that speak its protocol.
    S3,
    /// A directory.
    Localfs,
}

impl Kind {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oss => "oss",
            Self::S3 => "s3",
            Self::Localfs => "localfs",
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut kinds = [Self::Oss, Self::S3, Self::Localfs].into_iter();
        kinds
            .find(|kind| kind.name() == text)
            .ok_or_else(|| Error::Kind(text.to_owned()))
    }
}

/// A secret: never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Which backend, and how to reach it.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) place: Place,
    keys: Keys,
}

/// What the types differ in.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Bucket(Bucket),
    Local(Local),
}

/// A bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    pub(crate) kind: Kind,
    pub(crate) scheme: String,
    /// Host, with a port if any.
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) key: KeySource,
}

/// Files.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// Where blobs are written.
    pub(crate) dir: Option<PathBuf>,
    /// One file for all blobs, which are only read.
    pub(crate) file: Option<PathBuf>,
    /// Where blobs are looked for besides.
    pub(crate) others: Vec<PathBuf>,
}

impl Config {
    /// Reads the configuration of a type of backend. Unknown keys are ignored, as consumers share configurations.
    ///
    /// # Errors
    /// [`Error::Json`] and [`Error::Key`], which repeat nothing of the text.
    pub fn parse(kind: Kind, json: &str) -> Result<Self, Error> {
        Self::of(kind, &Keys::parse(kind.name(), json)?)
    }

    /// The configuration of a type of backend that has these keys.
    pub(crate) fn of(kind: Kind, keys: &Keys) -> Result<Self, Error> {
        let place = match kind {
            Kind::Localfs => Place::Local(keys.local()?),
            Kind::Oss | Kind::S3 => Place::Bucket(keys.bucket(kind)?),
        };
        Ok(Self {
            place,
            keys: keys.clone(),
        })
    }

    /// Whether it is about files of this machine.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.place, Place::Local(_))
    }

    /// Connections for the store. `settings` is how to speak to hosts; what the configuration says goes before it.
    ///
    /// # Errors
    /// [`Error::Key`], and [`Error::Store`] if none can be set up.
    pub fn client(&self, settings: &Settings) -> Result<Client, Error> {
        Ok(Client::new(self.keys.settings(settings)?)?)
    }

    /// The same from any directory.
    ///
    /// # Errors
    /// If the working directory cannot be found out.
    pub fn absolute(mut self) -> io::Result<Self> {
        match &mut self.place {
            Place::Local(local) => {
                let paths = local.dir.iter_mut().chain(&mut local.file);
                for path in paths.chain(&mut local.others) {
                    *path = std::path::absolute(&*path)?;
                }
            }
            Place::Bucket(bucket) => bucket.key = bucket.key.clone().absolute()?,
        }
        Ok(self)
    }
}

/// Reads a configuration from a file.
///
/// # Errors
/// If the file cannot be read, or is no text.
pub fn read_config(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(CONFIG_SIZE_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

impl Keys {
    fn local(&self) -> Result<Local, Error> {
        let path = |key| Ok::<_, Error>(self.text(key)?.map(PathBuf::from));
        let (dir, file) = (path("dir")?, path("blob_file")?);
        if dir.is_none() && file.is_none() {
            return Err(self.wrong("dir", "is missing"));
        }
        let others = self.paths("alt_dirs")?;
        Ok(Local { dir, file, others })
    }

    fn bucket(&self, kind: Kind) -> Result<Bucket, Error> {
        let region = match kind {
            Kind::S3 => self.needed("region")?,
            _ => "",
        };
        let amazon = format!("s3.{region}.amazonaws.com");
        let endpoint = match kind {
            Kind::S3 => self.text("endpoint")?.unwrap_or(&amazon),
            _ => self.needed("endpoint")?,
        };
        let (own_scheme, host) = match endpoint.split_once("://") {
            Some((scheme, host)) => (Some(scheme), host),
            None => (None, endpoint),
        };
        let host = host.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return Err(self.wrong("endpoint", "is no host with an optional port"));
        }
        let scheme = own_scheme.or(self.text("scheme")?).unwrap_or("https");
        if !matches!(scheme, "http" | "https") {
            return Err(self.wrong("scheme", "is neither http nor https"));
        }
        let name = self.needed("bucket_name")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if !name.chars().all(plain) || name.trim_matches('.').is_empty() {
            return Err(self.wrong("bucket_name", "is no name of a bucket"));
        }
        let prefix = self.text("object_prefix")?.unwrap_or_default();
        if prefix.starts_with('/') || prefix.split('/').any(|part| part == "." || part == "..") {
            return Err(self.wrong(
                "object_prefix",
                "begins with a slash, or has a part . or ..",
            ));
        }
        Ok(Bucket {
            kind,
            scheme: scheme.to_owned(),
            endpoint: host.to_owned(),
            region: region.to_owned(),
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            key: self.key_source(host)?,
        })
    }

    /// Where the key comes from that requests to `host` are signed with.
    fn key_source(&self, host: &str) -> Result<KeySource, Error> {
        let pair = (self.text("access_key_id")?, self.text("access_key_secret")?);
        if let Some(command) = self.text("credential_process")? {
            if pair != (None, None) {
                return Err(self.wrong(
                    "credential_process",
                    "stands beside access_key_id or access_key_secret, of which it is to take the place",
                ));
            }
            let unfinished = || self.wrong("credential_process", "has a quote without its end");
            let command = access::words(command).ok_or_else(unfinished)?;
            return Ok(KeySource::Program(Arc::new(Program::new(command, host))));
        }
        let (id, secret) = match pair {
            (Some(id), Some(secret)) => (id, secret),
            (None, None) => return Ok(KeySource::None),
            (Some(_), None) => return Err(self.wrong("access_key_secret", "is missing")),
            (None, Some(_)) => return Err(self.wrong("access_key_id", "is missing")),
        };
        if !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.wrong("access_key_id", "has characters that no such name has"));
        }
        Ok(KeySource::Fixed(Arc::new(Key {
            id: id.to_owned(),
            secret: Secret(secret.to_owned()),
            token: None,
        })))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    const S3: &str = r#"{"endpoint":"localhost:9000","scheme":"http","region":"r","bucket_name":"b",
        "object_prefix":"p/","access_key_id":"me","access_key_secret":"sesame"}"#;

    fn bucket(kind: Kind, json: &str) -> Bucket {
        match Config::parse(kind, json).unwrap().place {
            Place::Bucket(bucket) => bucket,
            Place::Local(_) => panic!("{json}"),
        }
    }

    #[test]
    fn all_keys_are_read() {
        let found = bucket(Kind::S3, S3);
        assert_eq!(
            (&*found.scheme, &*found.endpoint),
            ("http", "localhost:9000")
        );
        assert_eq!(
            (&*found.region, &*found.name, &*found.prefix),
            ("r", "b", "p/")
        );
        let found = bucket(Kind::S3, r#"{"region":"eu-1","bucket_name":"b","more":1}"#);
        assert_eq!(
            (&*found.scheme, &*found.endpoint),
            ("https", "s3.eu-1.amazonaws.com")
        );
        assert!(matches!(found.key, KeySource::None));
        let found = bucket(
            Kind::Oss,
            r#"{"endpoint":"http://oss-x/","bucket_name":"b"}"#,
        );
        assert_eq!((&*found.scheme, &*found.endpoint), ("http", "oss-x"));
        let json =
            r#"{"endpoint":"e","bucket_name":"b","credential_process":"sts --for \"my bucket\""}"#;
        let found = bucket(Kind::Oss, json);
        assert!(matches!(found.key, KeySource::Program(_)));
        let json = r#"{"dir":"/d","alt_dirs":["/e"]}"#;
        let found = Config::parse(Kind::Localfs, json).unwrap();
        assert!(matches!(found.place, Place::Local(local) if local.others.len() == 1));
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_repeated() {
        for (kind, json, word) in [
            (Kind::S3, r#"{"bucket_name":"b"}"#, "region"),
            (Kind::S3, r#"{"region":"r"}"#, "bucket_name"),
            (
                Kind::S3,
                r#"{"region":"r","bucket_name":"a/sesame"}"#,
                "bucket_name",
            ),
            (Kind::Oss, r#"{"bucket_name":"b"}"#, "endpoint"),
            (
                Kind::Oss,
                r#"{"bucket_name":"b","endpoint":"sesame@host"}"#,
                "endpoint",
            ),
            (
                Kind::Oss,
                r#"{"bucket_name":"b","endpoint":"e","access_key_secret":"sesame"}"#,
                "access_key_id",
            ),
            (
                Kind::Oss,
                r#"{"bucket_name":"b","endpoint":"e","object_prefix":"../sesame"}"#,
                "object_prefix",
            ),
            (
                Kind::Oss,
                r#"{"bucket_name":"b","endpoint":"e","access_key_secret":{"sesame":1}}"#,
                "access_key_secret",
            ),
            (
                Kind::S3,
                r#"{"region":"r","bucket_name":"b","credential_process":"sts sesame","access_key_id":"i"}"#,
                "credential_process",
            ),
            (
                Kind::S3,
                r#"{"region":"r","bucket_name":"b","credential_process":"sts 'sesame"}"#,
                "credential_process",
            ),
            (Kind::Localfs, "{}", "dir"),
            (
                Kind::Localfs,
                r#"{"dir":"d","alt_dirs":"sesame"}"#,
                "alt_dirs",
            ),
            (Kind::S3, r#"{"access_key_secret":"sesame""#, "JSON"),
            (Kind::S3, r#"["sesame"]"#, "JSON"),
            (Kind::S3, "", "JSON"),
        ] {
            let error = Config::parse(kind, json).unwrap_err();
            let text = format!("{error} {:?} {error:?}", error.source());
            assert!(text.contains(word), "{json}: {text}");
            assert!(!text.contains("sesame"), "{json}: {text}");
        }
        let shown = format!("{:?}", Config::parse(Kind::S3, S3).unwrap());
        assert!(
            shown.contains("localhost") && !shown.contains("sesame"),
            "{shown}"
        );
        let program =
            r#"{"region":"r","bucket_name":"b","credential_process":"sts --with sesame"}"#;
        let shown = format!("{:?}", Config::parse(Kind::S3, program).unwrap());
        assert!(
            shown.contains("Program(sts)") && !shown.contains("sesame"),
            "{shown}"
        );
    }
}
