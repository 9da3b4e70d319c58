//! Every type of backend, for reading.

use std::sync::Arc;

use registry::{Client, Credentials, Reference, Settings};
use storage::BlobSource;

use crate::config::Keys;
use crate::proxy::{self, Proxy};
use crate::{Backend, Config, Error, Kind};

/// Opens a backend to read blobs from. `settings` is how to speak to hosts; what the configuration says of
/// certificates, credentials and sockets goes before it. Nothing is asked for yet.
///
/// # Errors
/// [`Error::Source`] for a type that there is not; [`Error::Json`] and [`Error::Key`] for a configuration that is
/// wrong; [`Error::Store`] if no connections can be set up.
pub fn open_source(
    kind: &str,
    json: &str,
    settings: &Settings,
) -> Result<Arc<dyn BlobSource>, Error> {
    match kind {
        proxy::KIND => Ok(Arc::new(Proxy::open(json, settings)?)),
        REGISTRY => registry(json, settings),
        _ => {
            let kind: Kind = kind.parse().map_err(|_| Error::Source(kind.to_owned()))?;
            let config = Config::parse(kind, json)?;
            let client = Client::new(Keys::parse(kind.name(), json)?.settings(settings)?)?;
            Ok(Arc::new(Backend::open(&config, &client)?))
        }
    }
}

const REGISTRY: &str = "registry";

/// The repository of a configuration.
fn registry(json: &str, settings: &Settings) -> Result<Arc<dyn BlobSource>, Error> {
    let keys = Keys::parse(REGISTRY, json)?;
    let (host, repository) = (keys.needed("host")?, keys.needed("repo")?);
    let reference: Reference = format!("{host}/{repository}")
        .parse()
        .map_err(|_| keys.wrong("repo", "makes no name in the registry with \"host\""))?;
    let credentials = match keys.text("auth")? {
        Some(auth) => Credentials::from_auth(auth)
            .ok_or_else(|| keys.wrong("auth", "is not USER:PASSWORD in base64"))?,
        None if keys.text("registry_token")?.is_some() => {
            return Err(keys.wrong("registry_token", "is not supported: give \"auth\""));
        }
        None => settings.credentials.clone(),
    };
    let client = Client::new(Settings {
        plain_http: keys.text("scheme")? == Some("http"),
        credentials,
        ..keys.settings(settings)?
    })?;
    Ok(Arc::new(client.repository(&reference)))
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
            assert!(open_source(kind, json, &settings).is_ok(), "{kind}");
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
            (
                "registry",
                r#"{"host":"h","repo":"r","registry_token":"sesame"}"#,
                "registry_token",
            ),
            ("http-proxy", "{}", "addr"),
            (
                "s3",
                r#"{"region":"r","bucket_name":"b","ca_cert_files":["/nowhere/sesame",1]}"#,
                "ca_cert_files",
            ),
        ] {
            let error = open_source(kind, json, &settings).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(word) && !text.contains("sesame"), "{text}");
        }
    }
}
