use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use image::Digest;

/// Largest part of a registry's own error message that is repeated, in bytes.
const MESSAGE_SIZE_MAX: usize = 300;

/// What a request was about: the object, its repository and its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The registry as the user writes it: host, and port if any.
    pub host: String,
    /// The repository; empty where the registry as a whole is meant.
    pub repository: String,
    /// The object: `manifest latest`, `blob sha256:...`, `upload`, ...
    pub object: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.object, self.host)?;
        if !self.repository.is_empty() {
            write!(f, "/{}", self.repository)?;
        }
        Ok(())
    }
}

/// What a registry answered when it refused: status, and code and message from the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The registry's error code, such as `NAME_UNKNOWN`; empty if it gave none.
    pub code: String,
    /// The registry's message, bounded; empty if it gave none.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

/// What can go wrong between this program and a registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A reference that names no image.
    #[error("invalid image reference {text:?}: {reason}")]
    Reference {
        /// The reference as given.
        text: String,
        /// Why.
        reason: String,
    },
    /// The client could not be set up.
    #[error("cannot set up the registry client: {reason}")]
    Setup {
        /// What failed.
        reason: String,
    },
    /// A file with certificate authorities could not be used.
    #[error("cannot use the certificates in {path}: {reason}", path = path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Credentials could not be looked up.
    #[error("cannot get the credentials of {host} from {place}: {reason}")]
    Credentials {
        /// The registry.
        host: String,
        /// The docker configuration or the credential helper.
        place: String,
        /// Why.
        reason: String,
    },
    /// The work was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] progress::Cancelled),
    /// The registry could not be reached, or the connection broke.
    #[error("{subject}: cannot talk to {peer}")]
    Connection {
        /// What was asked for.
        subject: Box<Subject>,
        /// The host that was spoken to: the registry, a token server or a storage host.
        peer: String,
        /// What the HTTP client said, without the address.
        source: reqwest::Error,
    },
    /// The certificate of a host is not trusted.
    #[error(
        "{subject}: the certificate of {peer} is not trusted (name its authority with --ca-file, or turn off \
         certificate checks with the option --insecure, --source-insecure or --target-insecure)"
    )]
    Certificate {
        /// What was asked for.
        subject: Box<Subject>,
        /// The host that was spoken to.
        peer: String,
        /// What the HTTP client said, without the address.
        source: reqwest::Error,
    },
    /// Nothing moved for too long.
    #[error("{subject}: {peer} did not answer or send anything for {seconds} s", seconds = waited.as_secs())]
    Stalled {
        /// What was asked for.
        subject: Box<Subject>,
        /// The host that was spoken to.
        peer: String,
        /// How long nothing moved.
        waited: Duration,
    },
    /// The registry wants (other) credentials.
    #[error("{subject}: access denied ({refusal}); tried {tried}; log in with \"docker login {host}\"", host = subject.host)]
    Unauthorized {
        /// What was asked for.
        subject: Box<Subject>,
        /// What the registry or its token server said.
        refusal: Refusal,
        /// Where the credentials came from that were tried; never a secret.
        tried: String,
    },
    /// The object is not there.
    #[error("{subject} does not exist ({refusal})")]
    NotFound {
        /// What was asked for.
        subject: Box<Subject>,
        /// What the registry said.
        refusal: Refusal,
    },
    /// The registry refused for another reason.
    #[error("{subject}: {host} refused to {action} ({refusal})", host = subject.host)]
    Refused {
        /// What was asked for.
        subject: Box<Subject>,
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// What the registry said.
        refusal: Refusal,
    },
    /// An answer that the protocol does not allow.
    #[error("{subject}: unusable answer from {peer}: {reason}")]
    Answer {
        /// What was asked for.
        subject: Box<Subject>,
        /// The host that answered.
        peer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Bytes or a header do not have the digest they should.
    #[error("{subject} is corrupt: its digest is {actual} instead of {expected}")]
    DigestMismatch {
        /// What was asked for.
        subject: Box<Subject>,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A blob is shorter or longer than its descriptor says.
    #[error("{subject} has {actual} bytes instead of {expected}")]
    SizeMismatch {
        /// What was asked for.
        subject: Box<Subject>,
        /// Bytes that the descriptor promises.
        expected: u64,
        /// Bytes that the registry has.
        actual: u64,
    },
    /// A document beyond what is read into memory.
    #[error("{subject} is beyond the limit of {limit} bytes")]
    TooLarge {
        /// What was asked for.
        subject: Box<Subject>,
        /// The limit.
        limit: u64,
    },
    /// An upload cannot go on, since the registry lost what it had acknowledged.
    #[error("{subject}: {reason}; the blob must be uploaded again from its start")]
    UploadLost {
        /// The upload.
        subject: Box<Subject>,
        /// What the registry still has.
        reason: String,
    },
}

impl Error {
    /// Whether the object simply is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether it came from [`progress::Cancel`].
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotFound { .. } => io::ErrorKind::NotFound,
            Error::Unauthorized { .. } => io::ErrorKind::PermissionDenied,
            Error::Stalled { .. } => io::ErrorKind::TimedOut,
            Error::DigestMismatch { .. } | Error::SizeMismatch { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Text of another party as one bounded line without control characters.
pub(crate) fn bounded(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out: String = line.chars().filter(|c| !c.is_control()).collect();
    if out.len() > MESSAGE_SIZE_MAX {
        let mut end = MESSAGE_SIZE_MAX;
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
        out.push_str("...");
    }
    out
}

impl Refusal {
    /// Reads the registry's error document, or takes the text of the body as it is.
    pub(crate) fn parse(status: u16, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Document {
            #[serde(default)]
            errors: Vec<Entry>,
            // Token servers: RFC 6749, and what Docker's own gives.
            #[serde(default)]
            error: String,
            #[serde(default)]
            error_description: String,
            #[serde(default)]
            details: String,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let (code, message) = match serde_json::from_slice::<Document>(body) {
            Ok(document) => match document.errors.into_iter().next() {
                Some(first) => (first.code, first.message),
                None if !document.error_description.is_empty() => {
                    (document.error, document.error_description)
                }
                None => (document.error, document.details),
            },
            // Object stores answer in XML. A page of HTML explains nothing.
            Err(_) if body.first() == Some(&b'<') => {
                let text = String::from_utf8_lossy(body);
                let element = |name: &str| element(&text, name).unwrap_or_default();
                (element("Code"), element("Message"))
            }
            Err(_) => (String::new(), String::from_utf8_lossy(body).into_owned()),
        };
        Self {
            status,
            code: bounded(&code),
            message: bounded(&message),
        }
    }
}

/// The text of the first element of a name in a document without attributes, as those of object stores are.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_message_is_bounded_and_one_line() {
        let body = format!(
            r#"{{"errors":[{{"code":"DENIED","message":"a\nb\u001b[31m{}","detail":null}}]}}"#,
            "x".repeat(1000)
        );
        let refusal = Refusal::parse(403, body.as_bytes());
        assert_eq!(refusal.code, "DENIED");
        assert!(refusal.message.starts_with("a b[31mxxx") && refusal.message.len() < 310);
        assert_eq!(Refusal::parse(502, b"<html>").to_string(), "HTTP 502");
        let xml =
            b"<?xml?><Error><Code>NoSuchKey</Code><Message>not here</Message><Key>x</Key></Error>";
        assert_eq!(
            Refusal::parse(404, xml).to_string(),
            "HTTP 404 NoSuchKey: not here"
        );
        assert_eq!(
            Refusal::parse(503, b"try later\n").to_string(),
            "HTTP 503: try later"
        );
        let oauth = br#"{"error":"invalid_grant","error_description":"expired"}"#;
        assert_eq!(
            Refusal::parse(400, oauth).to_string(),
            "HTTP 400 invalid_grant: expired"
        );
    }
}
