//! Images into a registry and out of it without a client, and images in other shapes.

use std::path::Path;

use serde_json::{Value, json};

use super::Registry;
use super::state::lock;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Media types of OCI and what docker calls the same.
const DOCKER: [(&str, &str); 6] = [
    (
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ),
    (
        OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.v2+json",
    ),
    (
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    ),
    (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
    ),
    (
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
    (
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ),
];

impl Registry {
    /// Stores what a tag of an OCI layout directory names, under `repository:tag`; its digest. Nothing is verified, so
    /// that damaged images can be stored.
    pub fn push_layout(&self, layout: &Path, name: &str, repository: &str, tag: &str) -> String {
        let index = read_json(&layout.join("index.json"));
        let manifests = index["manifests"]
            .as_array()
            .expect("a layout has manifests");
        let descriptor = manifests
            .iter()
            .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == name)
            .unwrap_or_else(|| panic!("{}: no tag {name}", layout.display()));
        self.push_manifest(layout, descriptor, repository, Some(tag))
    }

    fn push_manifest(
        &self,
        layout: &Path,
        descriptor: &Value,
        repository: &str,
        tag: Option<&str>,
    ) -> String {
        let bytes = read(&blob_path(layout, digest_of(descriptor)));
        let manifest: Value = serde_json::from_slice(&bytes).expect("manifests are JSON");
        for child in list(&manifest, "manifests") {
            self.push_manifest(layout, child, repository, None);
        }
        for blob in manifest
            .get("config")
            .into_iter()
            .chain(list(&manifest, "layers"))
        {
            self.push_file(layout, digest_of(blob), repository);
        }
        let media_type = descriptor["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
        self.put_manifest(repository, tag, media_type, &bytes)
    }

    fn push_file(&self, layout: &Path, digest: &str, repository: &str) {
        let path = blob_path(layout, digest);
        let mut file = std::fs::File::open(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        let mut incoming = lock(&self.state.storage).incoming().expect("make a file");
        incoming.append(&mut file).expect("copy a blob");
        let mut storage = lock(&self.state.storage);
        storage
            .store(repository, hex, incoming)
            .expect("store a blob");
    }

    /// Writes what a tag or digest refers to as an OCI layout, under the same name; nothing is verified.
    pub fn pull_layout(&self, repository: &str, reference: &str, layout: &Path) {
        std::fs::create_dir_all(layout.join("blobs/sha256")).expect("make the layout");
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        std::fs::write(layout.join("oci-layout"), version.to_string()).expect("write oci-layout");
        let mut descriptor = self.pull_manifest(repository, reference, layout);
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        let index =
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor] });
        std::fs::write(layout.join("index.json"), index.to_string()).expect("write index.json");
    }

    fn pull_manifest(&self, repository: &str, reference: &str, layout: &Path) -> Value {
        let (descriptor, manifest) = self.described(repository, reference);
        for child in list(&manifest, "manifests") {
            self.pull_manifest(repository, digest_of(child), layout);
        }
        for blob in manifest
            .get("config")
            .into_iter()
            .chain(list(&manifest, "layers"))
        {
            let digest = digest_of(blob);
            let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
            let stored = lock(&self.state.storage).blob(repository, hex);
            let stored = stored.unwrap_or_else(|| panic!("{repository}: no blob {digest}"));
            let mut file = std::fs::File::create(blob_path(layout, digest)).expect("make a blob");
            let mut source = stored.read_at(0).expect("read a blob");
            std::io::copy(&mut source, &mut file).expect("copy a blob");
        }
        let (_, bytes) = self.manifest(repository, reference).expect("just seen");
        std::fs::write(blob_path(layout, digest_of(&descriptor)), bytes).expect("write a manifest");
        descriptor
    }

    /// The descriptor of a manifest or index, and what it says.
    fn described(&self, repository: &str, reference: &str) -> (Value, Value) {
        let (media_type, bytes) = self
            .manifest(repository, reference)
            .unwrap_or_else(|| panic!("{repository}:{reference}: no such manifest"));
        let digest = format!("sha256:{}", crate::sha256(&bytes));
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        let value = serde_json::from_slice(&bytes).expect("manifests are JSON");
        (descriptor, value)
    }

    /// Stores an image (or an index with all its images) again, with docker's media types in place of OCI's, under
    /// `tag`; its digest.
    pub fn as_docker(&self, repository: &str, reference: &str, tag: &str) -> String {
        let descriptor = self.relabel(repository, reference, Some(tag));
        digest_of(&descriptor).to_owned()
    }

    fn relabel(&self, repository: &str, reference: &str, tag: Option<&str>) -> Value {
        let (mut descriptor, mut manifest) = self.described(repository, reference);
        docker_type(&mut descriptor);
        manifest["mediaType"] = descriptor["mediaType"].clone();
        if let Some(config) = manifest.get_mut("config") {
            docker_type(config);
        }
        // Not by index: that would add what is not there.
        let layers = manifest.get_mut("layers").and_then(Value::as_array_mut);
        for layer in layers.into_iter().flatten() {
            docker_type(layer);
        }
        let children = manifest.get_mut("manifests");
        for child in children.and_then(Value::as_array_mut).into_iter().flatten() {
            let new = self.relabel(repository, digest_of(child), None);
            for name in ["mediaType", "digest", "size"] {
                child[name] = new[name].clone();
            }
        }
        let bytes = manifest.to_string().into_bytes();
        let media_type = descriptor["mediaType"].as_str().unwrap_or_default();
        let digest = self.put_manifest(repository, tag, media_type, &bytes);
        descriptor["digest"] = digest.into();
        descriptor["size"] = bytes.len().into();
        descriptor
    }

    /// Stores an index over images of the repository, each given as (tag or digest, platform as `os/architecture` or
    /// `os/architecture/variant`), under `tag`; its digest. With `attested`, each image has an attestation manifest
    /// beside it, as BuildKit makes them.
    pub fn make_index(
        &self,
        repository: &str,
        images: &[(&str, &str)],
        attested: bool,
        tag: &str,
    ) -> String {
        let mut entries = Vec::new();
        let mut attestations = Vec::new();
        for (reference, platform) in images {
            let mut descriptor = self.as_platform(repository, reference, platform);
            if attested {
                attestations.push(self.attest(repository, digest_of(&descriptor)));
            }
            descriptor["platform"] = platform_object(platform);
            entries.push(descriptor);
        }
        entries.append(&mut attestations);
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        let bytes = index.to_string();
        self.put_manifest(repository, Some(tag), OCI_INDEX, bytes.as_bytes())
    }

    /// The descriptor of an image whose configuration is that of `platform`: this one, or else one made of it.
    fn as_platform(&self, repository: &str, reference: &str, platform: &str) -> Value {
        let (descriptor, mut manifest) = self.described(repository, reference);
        let digest = digest_of(&manifest["config"]).to_owned();
        let config = self
            .blob(repository, &digest)
            .expect("the image has a configuration");
        let mut config: Value = serde_json::from_slice(&config).expect("configurations are JSON");
        let before = config.clone();
        for (key, value) in platform_object(platform).as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        if config == before {
            return descriptor;
        }
        let bytes = config.to_string();
        manifest["config"]["digest"] = self.put_blob(repository, bytes.as_bytes()).into();
        manifest["config"]["size"] = bytes.len().into();
        let bytes = manifest.to_string();
        let kind = descriptor["mediaType"].clone();
        let name = kind.as_str().unwrap_or_default();
        let digest = self.put_manifest(repository, None, name, bytes.as_bytes());
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    /// Stores an attestation of an image; the descriptor for an index.
    fn attest(&self, repository: &str, digest: &str) -> Value {
        let blob = |media_type: &str, bytes: &[u8]| {
            json!({
                "mediaType": media_type,
                "digest": self.put_blob(repository, bytes),
                "size": bytes.len(),
            })
        };
        let predicate = "https://slsa.dev/provenance/v0.2";
        let subject = json!({ "name": "image", "digest": { "sha256": digest.split_once(':').map(|(_, hex)| hex) } });
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": predicate,
            "subject": [subject],
            "predicate": {},
        });
        let statement = statement.to_string();
        let mut layer = blob("application/vnd.in-toto+json", statement.as_bytes());
        layer["annotations"] = json!({ "in-toto.io/predicate-type": predicate });
        let diff_ids = [format!("sha256:{}", crate::sha256(statement.as_bytes()))];
        let config = json!({
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": [layer],
        });
        let bytes = manifest.to_string();
        json!({
            "mediaType": OCI_MANIFEST,
            "digest": self.put_manifest(repository, None, OCI_MANIFEST, bytes.as_bytes()),
            "size": bytes.len(),
            "annotations": {
                "vnd.docker.reference.digest": digest,
                "vnd.docker.reference.type": "attestation-manifest",
            },
            "platform": { "architecture": "unknown", "os": "unknown" },
        })
    }
}

fn docker_type(descriptor: &mut Value) {
    let own = descriptor["mediaType"].as_str().unwrap_or_default();
    if let Some((_, docker)) = DOCKER.iter().find(|(oci, _)| *oci == own) {
        descriptor["mediaType"] = (*docker).into();
    }
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn digest_of(descriptor: &Value) -> &str {
    descriptor["digest"]
        .as_str()
        .expect("a descriptor has a digest")
}

fn blob_path(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&read(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `OS/ARCHITECTURE[/VARIANT]` as it stands in an index.
fn platform_object(platform: &str) -> Value {
    let mut parts = platform.split('/');
    let mut object = json!({ "os": parts.next(), "architecture": parts.next() });
    if let Some(variant) = parts.next() {
        object["variant"] = variant.into();
    }
    object
}
