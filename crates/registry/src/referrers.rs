//! Which manifests refer to another one: the referrers API, and the index that stands in for it elsewhere.

use image::{Descriptor, Digest, Index, media};
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};

use crate::transport::Target;
use crate::{Error, Repository};

/// Pages of referrers that are read.
const PAGES_MAX: usize = 64;

impl Repository {
    /// The manifests that refer to the manifest `subject`, by the referrers API, or by the index that other clients
    /// keep under the tag `sha256-...` in registries without it. No such index means that there are none.
    ///
    /// # Errors
    /// What can go wrong on the way, and [`Error::Answer`] for an index that is none.
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.client.wait(async {
            match self.listed(subject).await? {
                Some(listed) => Ok(listed),
                None => Ok(self
                    .fallback(subject)
                    .await?
                    .map_or(Vec::new(), |i| i.manifests)),
            }
        })
    }

    /// Whether the registry has the referrers API.
    ///
    /// # Errors
    /// What can go wrong on the way.
    pub fn supports_referrers(&self, subject: &Digest) -> Result<bool, Error> {
        let listed = self.client.wait(self.listed(subject))?;
        Ok(listed.is_some())
    }

    /// Adds an entry to the index that stands in for the referrers API, unless it is there. Only for registries that
    /// did not note the subject of a manifest when it was put ([`crate::Pushed::subject_noted`]). Two writers at the
    /// same time can lose an entry: the protocol has no way to prevent it.
    ///
    /// # Errors
    /// What can go wrong on the way.
    pub fn add_referrer(&self, subject: &Digest, entry: Descriptor) -> Result<(), Error> {
        self.client.wait(async {
            let mut index = match self.fallback(subject).await? {
                Some(index) => index,
                None => Index {
                    schema_version: 2,
                    media_type: media::OCI_INDEX.to_owned(),
                    manifests: Vec::new(),
                    annotations: None,
                    other: Default::default(),
                },
            };
            if index.manifests.iter().any(|old| old.digest == entry.digest) {
                return Ok(());
            }
            index.manifests.push(entry);
            let bytes = index.to_json();
            self.write_manifest(&fallback_tag(subject), media::OCI_INDEX, &bytes)
                .await?;
            Ok(())
        })
    }

    /// The referrers by the API, or `None` if there is none.
    async fn listed(&self, subject: &Digest) -> Result<Option<Vec<Descriptor>>, Error> {
        let mut call = self.call(
            format!("referrers of {subject}"),
            Method::GET,
            &format!("referrers/{subject}"),
        );
        let kind = HeaderValue::from_static(media::OCI_INDEX);
        call.request.headers.insert(ACCEPT, kind);
        let mut all = Vec::new();
        for page in 0..PAGES_MAX {
            let document = self
                .core()
                .document(&call, image::DOCUMENT_SIZE_MAX)
                .await?;
            match document.status.as_u16() {
                200 => {}
                // Registries without it say so in many ways.
                400 | 404 | 405 | 406 | 501 if page == 0 => return Ok(None),
                _ => return Err(self.core().refusal(&call, document.status, &document.body)),
            }
            match parse(&document.body) {
                Some(index) => all.extend(index.manifests),
                None if page == 0 => return Ok(None),
                None => {
                    return Err(Error::Answer {
                        subject: Box::new(call.subject),
                        peer: self.host.name.clone(),
                        reason: "a page of referrers is no index".to_owned(),
                    });
                }
            }
            let Some(next) = next(&document.headers) else {
                return Ok(Some(all));
            };
            let base = self
                .host
                .base()
                .and_then(|base| base.join(&call_path(&call.request.target)).ok());
            let Some(url) = base.and_then(|base| base.join(&next).ok()) else {
                return Ok(Some(all));
            };
            call.request.target = Target::Url(url);
        }
        Ok(Some(all))
    }

    async fn fallback(&self, subject: &Digest) -> Result<Option<Index>, Error> {
        let tag = fallback_tag(subject);
        let manifest = match self.read_manifest(&tag).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        match serde_json::from_slice(&manifest.bytes) {
            Ok(index) => Ok(Some(index)),
            Err(error) => Err(Error::Answer {
                subject: Box::new(crate::Subject {
                    host: self.host.name.clone(),
                    repository: self.name.to_string(),
                    object: format!("manifest {tag}"),
                }),
                peer: self.host.name.clone(),
                reason: format!("it is no index: {error}"),
            }),
        }
    }
}

/// The tag under which an index of referrers stands in for the API.
fn fallback_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn call_path(target: &Target) -> String {
    match target {
        Target::Path(path) => path.clone(),
        Target::Url(url) => url.to_string(),
    }
}

pub(crate) fn parse(body: &[u8]) -> Option<Index> {
    let index: Index = serde_json::from_slice(body).ok()?;
    (index.media_type.is_empty() || index.media_type == media::OCI_INDEX).then_some(index)
}

/// The next page: `Link: <...>; rel="next"`.
pub(crate) fn next(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(LINK)?.to_str().ok()?;
    let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    next.then(|| address.to_owned())
}
