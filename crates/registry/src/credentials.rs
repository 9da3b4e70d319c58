//! Credentials from docker's configuration and its helper programs.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::bounded;
use crate::helper::{Answered, ask_helper};
use crate::{Credentials, Error, Secret};

/// What docker calls its own registry in its configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// How long a helper may take: it may ask its user.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// What is shown to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Basic {
        username: String,
        password: Secret,
    },
    /// A refresh token: good for tokens alone.
    Identity(Secret),
    /// A token that is used as it is.
    Token(Secret),
}

/// A credential, or none, and where it came from.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) credential: Option<Credential>,
    /// For messages: `credential helper docker-credential-x`, `no credentials`, ...
    pub(crate) source: String,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Looks up the credentials of a registry; may run a program and wait for it.
pub(crate) fn find(credentials: &Credentials, host: &str) -> Result<Found, Error> {
    match credentials {
        Credentials::Anonymous => Ok(Found {
            credential: None,
            source: "no credentials".to_owned(),
        }),
        Credentials::Fixed { username, password } => Ok(Found {
            credential: Some(Credential::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            source: format!("the given credentials of user {username:?}"),
        }),
        Credentials::Token(token) => Ok(Found {
            credential: Some(Credential::Token(token.clone())),
            source: "the given token".to_owned(),
        }),
        Credentials::Docker { directory } => docker(&directory.join("config.json"), host),
        Credentials::OfHost {
            host: own,
            these,
            others,
        } => find(if host == own { these } else { others }, host),
    }
}

fn docker(path: &Path, host: &str) -> Result<Found, Error> {
    let failed = |reason: String| Error::Credentials {
        host: host.to_owned(),
        place: path.display().to_string(),
        reason,
    };
    let none = |why: String| {
        Ok(Found {
            credential: None,
            source: format!("no credentials ({why})"),
        })
    };
    let config = match std::fs::read(path) {
        Ok(bytes) => Config::parse(&bytes).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return none(format!("there is no {}", path.display()));
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let helper = config.helper(host);
    if let Some(name) = helper.filter(|name| !name.is_empty()) {
        let source = format!("credential helper docker-credential-{name}");
        let credential = ask(name, server(host)).map_err(|reason| Error::Credentials {
            host: host.to_owned(),
            place: source.clone(),
            reason,
        })?;
        if credential.is_some() {
            return Ok(Found { credential, source });
        }
    }
    match config.credential(host).map_err(failed)? {
        None => none(match helper {
            Some(name) => format!("docker-credential-{name} and {} have none", path.display()),
            None => format!("{} has none for {host}", path.display()),
        }),
        credential => Ok(Found {
            credential,
            source: format!("auths in {}", path.display()),
        }),
    }
}

impl Config {
    /// Reads the file's content. The reason why not holds no piece of it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("malformed at line {line}, column {column}")
        })
    }

    /// The program that is asked for a registry first, by the end of its name.
    pub(crate) fn helper(&self, host: &str) -> Option<&str> {
        let own = lookup(&self.cred_helpers, host);
        own.or(self.creds_store.as_ref()).map(String::as_str)
    }

    /// What the file itself has for a registry.
    pub(crate) fn credential(&self, host: &str) -> Result<Option<Credential>, String> {
        match lookup(&self.auths, host) {
            Some(entry) => entry.credential(),
            None => Ok(None),
        }
    }
}

/// What helpers call a registry.
fn server(host: &str) -> &str {
    if host == "docker.io" { HUB_KEY } else { host }
}

/// The entry of a registry, whose key may be an address.
fn lookup<'a, V>(map: &'a BTreeMap<String, V>, host: &str) -> Option<&'a V> {
    let plain = |key: &str| -> String {
        let key = key
            .strip_prefix("https://")
            .or(key.strip_prefix("http://"))
            .unwrap_or(key);
        match key.split('/').next().unwrap_or_default() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            other => other.to_owned(),
        }
    };
    map.get(server(host)).or_else(|| {
        let mut all = map.iter();
        all.find(|(key, _)| plain(key) == host)
            .map(|(_, value)| value)
    })
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, String> {
        let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credential::Identity(Secret::new(token))));
        }
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(Some(Credential::Token(Secret::new(token))));
        }
        if let Some(auth) = filled(&self.auth) {
            return decode(&auth)
                .map(Some)
                .ok_or_else(|| "an \"auth\" is not the base64 of USER:PASSWORD".to_owned());
        }
        Ok(filled(&self.username).map(|username| Credential::Basic {
            username,
            password: Secret::new(self.password.clone().unwrap_or_default()),
        }))
    }
}

impl Credentials {
    /// The user and password of an `auth`, as docker writes them: USER:PASSWORD in base64.
    pub fn from_auth(auth: &str) -> Option<Self> {
        match decode(auth)? {
            Credential::Basic { username, password } => Some(Self::Fixed { username, password }),
            Credential::Identity(_) | Credential::Token(_) => None,
        }
    }
}

fn decode(auth: &str) -> Option<Credential> {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let text = String::from_utf8(engine.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credential::Basic {
        username: username.to_owned(),
        // Docker pads passwords with zeros.
        password: Secret::new(password.trim_end_matches('\0')),
    })
}

/// Asks a helper program; `None` if it has no credentials.
fn ask(name: &str, server: &str) -> Result<Option<Credential>, String> {
    if name.contains('/') {
        return Err("the name of a helper has no slash".to_owned());
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    let answered = ask_helper(command.arg("get"), server.as_bytes(), HELPER_TIMEOUT)?;
    let Answered { status, output } = answered;
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        // An answer in spite of that is no message, and holds a secret.
        return Err(match text.contains('{') {
            true => format!("it failed ({status})"),
            false => format!("it failed ({status}): {}", bounded(&text)),
        });
    }
    parse_answer(&output)
}

/// Reads what a helper has answered; `None` if it has no credentials.
pub(crate) fn parse_answer(answer: &[u8]) -> Result<Option<Credential>, String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let Ok(Answer { username, secret }) = serde_json::from_slice(answer) else {
        return Err("its answer is not {\"Username\": ..., \"Secret\": ...}".to_owned());
    };
    let secret = Secret::new(secret);
    Ok(match username.as_str() {
        "<token>" => Some(Credential::Identity(secret)),
        "" if secret.is_empty() => None,
        _ => Some(Credential::Basic {
            username,
            password: secret,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, host: &str) -> Result<Found, Error> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), json).unwrap();
        let directory = directory.path().to_path_buf();
        find(&Credentials::Docker { directory }, host)
    }

    fn basic(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        })
    }

    #[test]
    fn entries_are_found_by_all_spellings_of_a_registry() {
        // user:pass, with and without padding
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNz"},
            "http://a:5000/v2/":{"auth":"dTpwOnE"},
            "b":{"username":"u","password":"p"},
            "c":{"auth":"dXNlcjpwYXNz","identitytoken":"refresh"},
            "d":{"registrytoken":"t"},
            "e":{}
        }}"#;
        for (host, expected) in [
            ("docker.io", basic("user", "pass")),
            ("a:5000", basic("u", "p:q")),
            ("a", None),
            ("b", basic("u", "p")),
            ("c", Some(Credential::Identity(Secret::new("refresh")))),
            ("d", Some(Credential::Token(Secret::new("t")))),
            ("e", None),
            ("f", None),
        ] {
            let found = found(json, host).unwrap();
            assert_eq!(found.credential, expected, "{host}");
            assert_eq!(found.credential.is_none(), found.source.starts_with("no "));
        }
    }

    #[test]
    fn a_damaged_configuration_is_named_and_not_repeated() {
        let bad = r#"{"auths":{"a":{"auth":"geheim!"}}}"#;
        let cut = r#"{"auths":{"a":{"auth":"geheim"#;
        let typed = r#"{"auths":{"a":{"auth":7,"password":"geheim"}}}"#;
        for json in [bad, cut, typed] {
            let error = found(json, "a").unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(
                text.contains("config.json") && !text.contains("geheim"),
                "{text}"
            );
        }
        let directory = tempfile::tempdir().unwrap().path().join("none");
        let found = find(&Credentials::Docker { directory }, "a").unwrap();
        assert!(found.credential.is_none() && found.source.contains("there is no"));
    }

    #[test]
    fn a_helper_that_is_not_installed_is_named() {
        let error = found(r#"{"credsStore":"nonexistent-helper"}"#, "a").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("docker-credential-nonexistent-helper")
        );
        assert!(found(r#"{"credHelpers":{"b":"x"}}"#, "a").is_ok());
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let credential = basic("user", "geheim");
        assert!(!format!("{credential:?}").contains("geheim"));
    }
}
