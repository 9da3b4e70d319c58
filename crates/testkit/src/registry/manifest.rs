//! Manifests and indexes, by tag and digest.

use std::io::{self, Read};

use serde_json::Value;

use super::answer::Answer;
use super::route::{Call, parse_digest};
use super::state::lock;
use super::storage::{Manifest, Repository};

/// Longer manifests are refused.
const MAX: u64 = 4 << 20;

/// GET and HEAD.
pub(super) fn get(call: &Call, name: &str, reference: &str) -> Answer {
    let storage = lock(&call.state.storage);
    let Some(repository) = storage.repositories.get(name) else {
        return Answer::error(404, "NAME_UNKNOWN", name);
    };
    let Some(hex) = repository.resolve(reference) else {
        return Answer::error(404, "MANIFEST_UNKNOWN", reference);
    };
    let manifest = &repository.manifests[hex];
    if !accepts(call, &manifest.media_type) {
        let what = "what Accept names is not what there is";
        return Answer::error(404, "MANIFEST_UNKNOWN", what);
    }
    Answer::new(200)
        .header("Docker-Content-Digest", format!("sha256:{hex}"))
        .header("ETag", format!("\"sha256:{hex}\""))
        .bytes(&manifest.media_type, manifest.bytes.clone())
}

/// Whether the client takes this media type; like the deployed registries, all are fine when it names none.
fn accepts(call: &Call, media_type: &str) -> bool {
    let mut named = call
        .head
        .headers("accept")
        .flat_map(|value| value.split(','))
        .map(|value| value.split(';').next().unwrap_or_default().trim())
        .peekable();
    named.peek().is_none()
        || named.any(|value| value == media_type || value == "*/*" || value == "application/*")
}

/// PUT.
pub(super) fn put(call: &mut Call, name: &str, reference: &str) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    call.body.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Ok(Answer::error(
            413,
            "SIZE_INVALID",
            "the manifest is too long",
        ));
    }
    Ok(checked(call, name, reference, bytes).unwrap_or_else(|refusal| refusal))
}

fn checked(call: &Call, name: &str, reference: &str, bytes: Vec<u8>) -> Result<Answer, Answer> {
    let invalid = |what: &str| Answer::error(400, "MANIFEST_INVALID", what);
    let hex = crate::sha256(&bytes);
    let by_digest = reference.contains(':');
    if by_digest && parse_digest(reference)? != hex {
        return Err(Answer::error(400, "DIGEST_INVALID", reference));
    }
    if !by_digest && !is_tag(reference) {
        return Err(Answer::error(400, "TAG_INVALID", reference));
    }
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("not JSON"))?;
    if value["schemaVersion"] != 2 {
        return Err(invalid("schemaVersion"));
    }
    let media_type = match call.head.header("content-type") {
        Some(given) => given.to_owned(),
        None => value["mediaType"].as_str().unwrap_or_default().to_owned(),
    };
    if media_type.is_empty()
        || value["mediaType"]
            .as_str()
            .is_some_and(|own| own != media_type)
    {
        return Err(invalid("mediaType and Content-Type"));
    }
    let mut storage = lock(&call.state.storage);
    let repository = storage.repositories.entry(name.to_owned()).or_default();
    for part in parts(&value) {
        part.digest
            .strip_prefix("sha256:")
            .ok_or_else(|| invalid(&part.digest))?;
        if !part.is_in(repository) {
            return Err(Answer::error(400, "MANIFEST_BLOB_UNKNOWN", &part.digest));
        }
    }
    let subject = value["subject"]["digest"].as_str().map(str::to_owned);
    let manifest = Manifest { media_type, bytes };
    repository.manifests.insert(hex.clone(), manifest);
    if !by_digest {
        repository.tags.insert(reference.to_owned(), hex.clone());
    }
    let mut answer = Answer::new(201)
        .header("Location", format!("/v2/{name}/manifests/sha256:{hex}"))
        .header("Docker-Content-Digest", format!("sha256:{hex}"));
    if let Some(subject) = subject.filter(|_| call.state.options.referrers) {
        answer = answer.header("OCI-Subject", subject);
    }
    Ok(answer)
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(|byte| word(*byte))
        && bytes.iter().all(|byte| word(*byte) || b".-".contains(byte))
}

/// DELETE: a tag, or a manifest with all its tags.
pub(super) fn delete(call: &Call, name: &str, reference: &str) -> Answer {
    if !call.state.options.delete {
        return Answer::error(405, "UNSUPPORTED", "nothing is deleted here");
    }
    let mut storage = lock(&call.state.storage);
    let gone = storage
        .repositories
        .get_mut(name)
        .is_some_and(|repository| match reference.strip_prefix("sha256:") {
            Some(hex) => {
                repository.tags.retain(|_, tagged| tagged != hex);
                repository.manifests.remove(hex).is_some()
            }
            None => repository.tags.remove(reference).is_some(),
        });
    if gone {
        Answer::new(202)
    } else {
        Answer::error(404, "MANIFEST_UNKNOWN", reference)
    }
}

/// Something that a manifest or index names and that has to be in the same repository.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub digest: String,
    pub size: Option<u64>,
    /// A manifest or index, not a blob.
    pub is_manifest: bool,
}

impl Part {
    /// The digest without its algorithm.
    pub fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or_default()
    }

    fn is_in(&self, repository: &Repository) -> bool {
        if self.is_manifest {
            repository.manifests.contains_key(self.hex())
        } else {
            repository.blobs.contains(self.hex())
        }
    }
}

/// All that a manifest or index names, but for layers that lie elsewhere by their URLs.
pub(super) fn parts(value: &Value) -> Vec<Part> {
    let list = |name: &str| value[name].as_array().into_iter().flatten();
    let part = |descriptor: &Value, is_manifest| Part {
        digest: descriptor["digest"].as_str().unwrap_or_default().to_owned(),
        size: descriptor["size"].as_u64(),
        is_manifest,
    };
    let here = |descriptor: &&Value| descriptor["urls"].as_array().is_none_or(Vec::is_empty);
    let config = value.get("config").into_iter();
    config
        .chain(list("layers"))
        .filter(here)
        .map(|descriptor| part(descriptor, false))
        .chain(list("manifests").map(|descriptor| part(descriptor, true)))
        .collect()
}
