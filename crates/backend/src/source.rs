//! Every type of backend, for reading, by whatever ways its configuration names.

use std::io;
use std::path::Path;
use std::sync::Arc;

use image::{Digest, Origin, Store};
use registry::{BlobAddresses, Client, Credentials, Reference, Secret, Settings};
use storage::{BlobReader, BlobSource, MirroredBlob};

use crate::config::Config;
use crate::detour::{Detour, Reading};
use crate::disk::{self, Disk};
use crate::hosts::MirrorHost;
use crate::keys::Keys;
use crate::mirrors::{MirrorList, briefly, mirror};
use crate::place::{Place, open_by_name};
use crate::proxy::{self, Proxy};
use crate::{Error, Kind, hosts};

/// Name of a type.
const REGISTRY: &str = "registry";

/// Opens a backend to read blobs from. `settings` is how to speak to hosts; what the configuration says of
/// certificates, credentials, time limits, proxies and sockets goes before it. `mirrors_dir` lists mirrors of registries, see
/// [`MirrorList::new`]. Nothing is asked for yet, but a disk's partition table is read.
///
/// # Errors
/// [`Error::Source`] for a type that there is not; [`Error::Json`] and [`Error::Key`] for a configuration that is
/// wrong; [`Error::Store`] if no connections can be set up; [`Error::Io`] if there is no `mirrors_dir` or no disk;
/// [`Error::Disk`] for one whose partitions cannot be told.
pub fn open_source(
    kind: &str,
    json: &str,
    settings: &Settings,
    mirrors_dir: Option<&Path>,
) -> Result<Blobs, Error> {
    let (kind, keys) = Type::parse(kind, json)?;
    let settings = kind.settings(&keys, settings)?;
    let mut place = kind.open(&keys, &settings)?;
    let (mut mirrors, mut proxy) = (MirrorList::default(), None);
    if let Some(through) = keys.proxy()? {
        let patient = match through.fallback {
            true => briefly(&settings),
            false => settings.clone(),
        };
        let around = Settings {
            proxy: through.proxy,
            ..patient
        };
        let around = kind.open(&keys, &around)?;
        if through.fallback {
            let client = Client::new(settings.clone())?;
            let (name, check) = (through.name, &through.check);
            let detour = Detour::new(name, Arc::clone(&around), check, &client);
            mirrors.push(Arc::new(detour));
            proxy = Some(around);
        } else {
            place = around;
        }
    }
    for host in keys.mirrors(keys.text("host")?.unwrap_or_default())? {
        if let Some(detour) = kind.mirror(&keys, host, &settings)? {
            mirrors.push(Arc::new(detour));
        }
    }
    if let (Type::Registry, Some(dir)) = (&kind, mirrors_dir) {
        mirrors.list(dir, &repository(&keys)?, &settings)?;
    }
    Ok(Blobs {
        place,
        mirrors: Arc::new(mirrors),
        proxy,
    })
}

/// Types of backends that can be read from.
enum Type {
    /// All ways to a store go by the same configuration, and share what it leads to.
    Store(Box<Config>),
    Registry,
    Proxy,
    Disk,
}

impl Type {
    fn parse(name: &str, json: &str) -> Result<(Self, Keys), Error> {
        Ok(match name {
            REGISTRY => (Self::Registry, Keys::parse(REGISTRY, json)?),
            proxy::KIND => (Self::Proxy, Keys::parse(proxy::KIND, json)?),
            disk::KIND => (Self::Disk, Keys::parse(disk::KIND, json)?),
            _ => {
                let kind: Kind = name.parse().map_err(|_| Error::Source(name.to_owned()))?;
                let keys = Keys::parse(kind.name(), json)?;
                let config = Config::of(kind, &keys)?.absolute();
                let config = config.map_err(Error::io("find", "."))?;
                (Self::Store(Box::new(config)), keys)
            }
        })
    }

    /// How to speak to its host.
    fn settings(&self, keys: &Keys, settings: &Settings) -> Result<Settings, Error> {
        let settings = keys.settings(settings)?;
        if !matches!(self, Self::Registry) {
            return Ok(settings);
        }
        let own = match (keys.text("auth")?, keys.text("registry_token")?) {
            (Some(auth), _) => Credentials::from_auth(auth)
                .ok_or_else(|| keys.wrong("auth", "is not USER:PASSWORD in base64"))?,
            (None, Some(token)) => Credentials::Token(Secret::new(token)),
            (None, None) => settings.credentials.clone(),
        };
        // A mirror is another registry: what is said here is none of its business.
        let credentials = Credentials::OfHost {
            host: repository(keys)?.host,
            these: Box::new(own),
            others: Box::new(settings.credentials.clone()),
        };
        Ok(Settings {
            plain_http: settings.plain_http || keys.text("scheme")? == Some("http"),
            credentials,
            blob_addresses: blob_addresses(keys)?,
            ..settings
        })
    }

    fn open(&self, keys: &Keys, settings: &Settings) -> Result<Arc<dyn Reading>, Error> {
        Ok(match self {
            Self::Store(config) => Arc::new(store(config, settings, None)?.0),
            Self::Registry => {
                let Origin { host, repository } = repository(keys)?;
                let client = Client::new(settings.clone())?;
                Arc::new(client.repository_of(&host, &repository))
            }
            Self::Proxy => Arc::new(Proxy::open(keys, settings)?),
            Self::Disk => Arc::new(Disk::open(keys)?),
        })
    }

    /// By way of a mirror, where there is such a way.
    fn mirror(
        &self,
        keys: &Keys,
        mut host: MirrorHost,
        settings: &Settings,
    ) -> Result<Option<Detour>, Error> {
        match self {
            Self::Proxy | Self::Disk => Ok(None),
            Self::Store(config) if config.is_local() => Ok(None),
            Self::Store(config) => {
                let (place, client) = store(config, &briefly(settings), Some(&host))?;
                let detour = Detour::new(host.name(), Arc::new(place), &host.check, &client);
                Ok(Some(detour))
            }
            Self::Registry => {
                host.root.push_str("/v2");
                mirror(&host, &repository(keys)?, settings).map(Some)
            }
        }
    }
}

/// A bucket or files, and the client that a bucket is asked with.
fn store(
    config: &Config,
    settings: &Settings,
    mirror: Option<&MirrorHost>,
) -> Result<(Place, Client), Error> {
    let client = Client::new(settings.clone())?;
    Ok((Place::open(config, &client, mirror)?, client))
}

/// Where the blobs are that a registry redirects to, if not where it says.
fn blob_addresses(keys: &Keys) -> Result<BlobAddresses, Error> {
    let (scheme, host) = (
        keys.text("blob_url_scheme")?,
        keys.text("blob_redirected_host")?,
    );
    if scheme.is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(keys.wrong("blob_url_scheme", "is neither http nor https"));
    }
    if host.is_some_and(|host| MirrorHost::new(host, false).is_none() || host.contains("://")) {
        return Err(keys.wrong("blob_redirected_host", "is no host with an optional port"));
    }
    Ok(BlobAddresses {
        scheme: scheme.map(str::to_owned),
        host: host.map(str::to_owned),
    })
}

/// The repository of a configuration.
fn repository(keys: &Keys) -> Result<Origin, Error> {
    let (host, repository) = (keys.needed("host")?, keys.needed("repo")?);
    if MirrorHost::new(host, false).is_none() || host.contains("://") {
        return Err(keys.wrong("host", "is no host with an optional port"));
    }
    let reference: Reference = format!("registry.invalid/{repository}")
        .parse()
        .map_err(|_| keys.wrong("repo", "is no name of a repository"))?;
    Ok(Origin {
        host: hosts::usual_name(host),
        repository: reference.repository().to_owned(),
    })
}

/// A backend that blobs are read from.
pub struct Blobs {
    /// The one with the last word.
    place: Arc<dyn Reading>,
    /// Those that are asked before.
    mirrors: Arc<MirrorList>,
    /// The same as `place`, through a proxy, for where that is the only way.
    proxy: Option<Arc<dyn Reading>>,
}

impl Blobs {
    fn find(&self, id: &str, size: Option<u64>) -> Result<Option<Arc<dyn BlobReader>>, Error> {
        let found = match (self.place.blob(id, size), &self.proxy) {
            (Err(error), Some(proxy)) if size.is_none() => {
                let Ok(Some(blob)) = proxy.blob(id, None) else {
                    return Err(error);
                };
                self.place.blob(id, Some(blob.size()))?
            }
            (found, _) => found?,
        };
        Ok(found.map(|blob| match self.mirrors.is_empty() {
            true => blob,
            false => Arc::new(MirroredBlob::new(id, blob, Arc::clone(&self.mirrors) as _)),
        }))
    }
}

impl BlobSource for Blobs {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        open_by_name(id, &self.place.name(), || self.find(id, None))
    }
}

impl Store for Blobs {
    fn blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Arc<dyn BlobReader>, image::Error> {
        self.find(&digest.hex(), size)?
            .ok_or_else(|| image::Error::MissingBlob {
                digest: *digest,
                store: self.name(),
            })
    }

    fn name(&self) -> String {
        self.place.name()
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_opened_and_what_is_wrong_is_named() {
        let settings = Settings::default();
        for (kind, json) in [
            ("localfs", r#"{"dir":"/d"}"#),
            ("s3", r#"{"region":"r","bucket_name":"b"}"#),
            ("oss", r#"{"endpoint":"e","bucket_name":"b"}"#),
            ("registry", r#"{"host":"h:1","repo":"a/b","auth":"dTpw"}"#),
            ("http-proxy", r#"{"addr":"/run/x.sock"}"#),
        ] {
            assert!(open_source(kind, json, &settings, None).is_ok(), "{kind}");
        }
        for (kind, json, word) in [
            ("ftp", "{}", "ftp"),
            ("registry", r#"{"host":"h"}"#, "repo"),
            ("registry", r#"{"host":"h","repo":"A B"}"#, "repo"),
            (
                "registry",
                r#"{"host":"h","repo":"r","auth":"sesame"}"#,
                "auth",
            ),
            ("registry", r#"{"host":"sesame@h","repo":"r"}"#, "host"),
            (
                "registry",
                r#"{"host":"h","repo":"r","blob_url_scheme":"sesame"}"#,
                "blob_url_scheme",
            ),
            (
                "registry",
                r#"{"host":"h","repo":"r","blob_redirected_host":"http://sesame"}"#,
                "blob_redirected_host",
            ),
            (
                "registry",
                r#"{"host":"h","repo":"r","mirrors":[{"host":"http://sesame@m"}]}"#,
                "mirror",
            ),
            ("http-proxy", "{}", "addr"),
            ("localdisk", "{}", "device_path"),
            ("localdisk", r#"{"device_path":"/nowhere"}"#, "/nowhere"),
            ("localdisk", r#"{"device_path":"/dev/null"}"#, "/dev/null"),
            (
                "localdisk",
                r#"{"device_path":"/dev/null","disable_gpt":true}"#,
                "disable_gpt",
            ),
            (
                "s3",
                r#"{"region":"r","bucket_name":"b","ca_cert_files":["/nowhere/sesame",1]}"#,
                "ca_cert_files",
            ),
        ] {
            let error = open_source(kind, json, &settings, None).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(word) && !text.contains("sesame"), "{text}");
        }
    }
}
