use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use image::{Descriptor, Digest, media};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::blob::Origin;
use crate::client::{Call, Core, Document};
use crate::host::Host;
use crate::range::Resolved;
use crate::session::Session;
use crate::transport::{Target, is};
use crate::{BlobStream, Client, Error, Upload, blob};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// A repository of a registry. Clones share everything.
#[derive(Clone)]
pub struct Repository {
    pub(crate) client: Client,
    pub(crate) host: Arc<Host>,
    pub(crate) name: Arc<str>,
    /// Where ranges of blobs are read, until it ends.
    pub(crate) resolved: Arc<Mutex<HashMap<Digest, Resolved>>>,
}

/// A manifest or index as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its media type, as the registry or else the document says.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// What came of putting a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// The registry took note of the manifest's subject: it needs no entry in the fallback index.
    pub subject_noted: bool,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({self})")
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host.name, self.name)
    }
}

impl Repository {
    pub(crate) fn new(client: Client, host: Arc<Host>, name: &str) -> Self {
        Self {
            client,
            host,
            name: name.into(),
            resolved: Arc::default(),
        }
    }

    /// The registry, as the user calls it.
    pub fn host(&self) -> &str {
        &self.host.name
    }

    /// The name of the repository in its registry.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        self.client.core()
    }

    pub(crate) fn call(&self, object: String, method: Method, path: &str) -> Call<'_> {
        let target = Target::Path(format!("/v2/{}/{path}", self.name));
        Call::new(&self.host, &self.name, object, method, target)
    }

    fn manifest_call(&self, reference: &str, method: Method) -> Call<'_> {
        let path = format!("manifests/{reference}");
        let mut call = self.call(format!("manifest {reference}"), method, &path);
        for kind in [
            media::OCI_INDEX,
            media::OCI_MANIFEST,
            media::DOCKER_LIST,
            media::DOCKER_MANIFEST,
        ] {
            let value = HeaderValue::from_static(kind);
            call.request.headers.append(ACCEPT, value);
        }
        call
    }

    pub(crate) fn blob_call(&self, digest: &Digest, method: Method) -> Call<'_> {
        let path = format!("blobs/{digest}");
        let mut call = self.call(format!("blob {digest}"), method, &path);
        call.request.blob = true;
        call
    }

    /// Reads the manifest or index behind a tag or digest.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::DigestMismatch`] if it is not what the digest promises; [`Error::TooLarge`]
    /// beyond [`image::DOCUMENT_SIZE_MAX`]; and all that can go wrong on the way.
    pub fn manifest(&self, reference: &str) -> Result<RawManifest, Error> {
        self.client.wait(self.read_manifest(reference))
    }

    pub(crate) async fn read_manifest(&self, reference: &str) -> Result<RawManifest, Error> {
        let call = self.manifest_call(reference, Method::GET);
        let document = self
            .core()
            .document(&call, image::DOCUMENT_SIZE_MAX)
            .await?;
        if document.status != 200 {
            return Err(self.core().refusal(&call, document.status, &document.body));
        }
        let digest = Digest::of(&document.body);
        let promised = match reference.parse::<Digest>() {
            Ok(expected) => Some(expected),
            // A header that disagrees with the body means that one of them was damaged.
            Err(_) => content_digest(&document.headers),
        };
        if let Some(expected) = promised.filter(|expected| *expected != digest) {
            return Err(Error::DigestMismatch {
                subject: Box::new(call.subject),
                expected,
                actual: digest,
            });
        }
        Ok(RawManifest {
            media_type: media_type(&document),
            bytes: document.body,
            digest,
        })
    }

    /// Type, digest and size of the manifest behind a tag or digest, or `None` if there is none.
    ///
    /// # Errors
    /// As [`Repository::manifest`].
    pub fn manifest_digest(&self, reference: &str) -> Result<Option<Descriptor>, Error> {
        self.client.wait(async {
            let call = self.manifest_call(reference, Method::HEAD);
            let answer = self.core().send(&call).await?;
            let headers = answer.response.headers();
            match answer.response.status().as_u16() {
                404 => return Ok(None),
                200 => {
                    let kind = plain_type(headers);
                    let size = length(headers);
                    if let (Some(digest), Some(kind), Some(size)) =
                        (content_digest(headers), kind, size)
                    {
                        return Ok(Some(Descriptor::new(kind, digest, size)));
                    }
                }
                405 => {}
                _ => return Err(self.core().refuse(&call, answer).await),
            }
            // A registry that does not tell all by HEAD.
            match self.read_manifest(reference).await {
                Ok(manifest) => Ok(Some(Descriptor::new(
                    manifest.media_type,
                    manifest.digest,
                    manifest.bytes.len() as u64,
                ))),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Writes a manifest or index under a tag or its digest.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if the registry says that it got something else; [`Error::Refused`] if it does not
    /// take it, for instance as a blob is missing; and all that can go wrong on the way.
    pub fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Pushed, Error> {
        self.client
            .wait(self.write_manifest(reference, media_type, bytes))
    }

    pub(crate) async fn write_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Pushed, Error> {
        let path = format!("manifests/{reference}");
        let mut call = self.call(format!("manifest {reference}"), Method::PUT, &path);
        let kind = HeaderValue::from_str(media_type).map_err(|_| Error::Answer {
            subject: Box::new(call.subject.clone()),
            peer: "its author".to_owned(),
            reason: "its media type is none".to_owned(),
        })?;
        call.request.headers.insert(CONTENT_TYPE, kind);
        call.request.body = bytes.to_vec().into();
        let answer = self.core().send(&call).await?;
        if !is(answer.response.status(), &[200, 201, 202]) {
            return Err(match self.core().refuse(&call, answer).await {
                // The repository or a blob is not there, not the manifest that is to be.
                Error::NotFound { subject, refusal } => Error::Refused {
                    subject,
                    action: "write",
                    refusal,
                },
                other => other,
            });
        }
        let headers = answer.response.headers();
        let expected = Digest::of(bytes);
        match content_digest(headers) {
            Some(actual) if actual != expected => Err(Error::DigestMismatch {
                subject: Box::new(call.subject),
                expected,
                actual,
            }),
            _ => Ok(Pushed {
                subject_noted: headers.contains_key(OCI_SUBJECT),
            }),
        }
    }

    /// The size of a blob, or `None` if the repository does not have it.
    ///
    /// # Errors
    /// What can go wrong on the way, and [`Error::Answer`] if the registry does not tell the size.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.client.wait(self.head_blob(digest))
    }

    pub(crate) async fn head_blob(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let call = self.blob_call(digest, Method::HEAD);
        let answer = self.core().send(&call).await?;
        match answer.response.status().as_u16() {
            404 => Ok(None),
            200 => match length(answer.response.headers()) {
                Some(size) => Ok(Some(size)),
                None => Err(Error::Answer {
                    peer: crate::transport::peer(&answer.url),
                    subject: Box::new(call.subject),
                    reason: "it does not tell the size".to_owned(),
                }),
            },
            _ => Err(self.core().refuse(&call, answer).await),
        }
    }

    /// Streams a blob of `size` bytes from `offset` on. A cut connection goes on where it was cut; the digest is for
    /// the reader to check.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::SizeMismatch`], and all that can go wrong on the way.
    pub fn open_blob(&self, digest: &Digest, size: u64, offset: u64) -> Result<BlobStream, Error> {
        let origin = Origin::Blob(self.clone(), *digest);
        blob::open(&self.client, origin, size, offset)
    }

    /// Begins to upload a blob whose digest is told at the end.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] if this repository may not be written to, and all that can go wrong on the way.
    pub fn upload(&self) -> Result<Upload, Error> {
        let session = self.client.wait(Session::open(self))?;
        Ok(Upload::new(self.clone(), session))
    }

    /// Takes a blob over from another repository of the same registry; `None` if that worked. Else the upload that
    /// the registry began instead, or a fresh one.
    ///
    /// # Errors
    /// As [`Repository::upload`].
    pub fn mount_or_upload(
        &self,
        digest: &Digest,
        from_repository: &str,
    ) -> Result<Option<Upload>, Error> {
        let session = self
            .client
            .wait(Session::mount(self, digest, from_repository))?;
        Ok(session.map(|session| Upload::new(self.clone(), session)))
    }

    /// Takes a blob over from another repository of the same registry; `false` if that did not work.
    ///
    /// # Errors
    /// As [`Repository::upload`].
    pub fn mount_blob(&self, digest: &Digest, from_repository: &str) -> Result<bool, Error> {
        // An upload that began instead is given up when it is dropped.
        Ok(self.mount_or_upload(digest, from_repository)?.is_none())
    }
}

/// `Docker-Content-Digest`, if it is there and one that is understood.
pub(crate) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// `Content-Length`. The client's own idea of it is that of the body, which a HEAD has none of.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn plain_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = value.split(';').next()?.trim();
    (!kind.is_empty()).then(|| kind.to_owned())
}

/// The header's type if it is one of a manifest; else what the document calls itself.
fn media_type(document: &Document) -> String {
    let header = plain_type(&document.headers).unwrap_or_default();
    if media::document(&header, "").is_ok() {
        return header;
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed: Option<Typed> = serde_json::from_slice(&document.body).ok();
    typed.and_then(|typed| typed.media_type).unwrap_or(header)
}
