//! The referrers API.

use serde_json::{Value, json};

use super::answer::Answer;
use super::route::{Call, parse_digest};
use super::state::lock;

/// GET: an index of the manifests that have this digest as their subject.
pub(super) fn get(call: &Call, name: &str, digest: &str) -> Answer {
    if !call.state.options.referrers {
        // As it comes from registries that do not know the path: no JSON.
        return Answer::new(404).bytes("text/plain", b"404 page not found\n".to_vec());
    }
    if let Err(refusal) = parse_digest(digest) {
        return refusal;
    }
    let storage = lock(&call.state.storage);
    let Some(repository) = storage.repositories.get(name) else {
        return Answer::error(404, "NAME_UNKNOWN", name);
    };
    let wanted = call.head.parameter("artifactType");
    let mut manifests = Vec::new();
    for (hex, manifest) in &repository.manifests {
        let value: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        if value["subject"]["digest"] != digest {
            continue;
        }
        let artifact_type = value["artifactType"]
            .as_str()
            .or_else(|| value["config"]["mediaType"].as_str());
        if wanted.is_some() && wanted != artifact_type {
            continue;
        }
        let mut descriptor = json!({
            "mediaType": manifest.media_type,
            "digest": format!("sha256:{hex}"),
            "size": manifest.bytes.len(),
        });
        if let Some(artifact_type) = artifact_type {
            descriptor["artifactType"] = artifact_type.into();
        }
        if let Some(annotations) = value.get("annotations") {
            descriptor["annotations"] = annotations.clone();
        }
        manifests.push(descriptor);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let answer = Answer::new(200).bytes(media_type, index.to_string().into_bytes());
    match wanted {
        Some(_) => answer.header("OCI-Filters-Applied", "artifactType"),
        None => answer,
    }
}
