//! Writes OCI layouts (and what `docker save` writes) from layer tars.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::sha256;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Plain tar.
    None,
    /// One gzip member.
    Gzip,
    /// Several gzip members of 64 KiB each.
    GzipMembers,
    /// zstd, one frame.
    Zstd,
    /// Several zstd frames of 64 KiB each.
    ZstdFrames,
}

/// Media types of a manifest and its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// OCI image.
    #[default]
    Oci,
    /// Docker image manifest, version 2, schema 2.
    Docker,
}

/// A layer as it goes into an image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The stored bytes.
    pub bytes: Vec<u8>,
    /// sha256 of the uncompressed tar, in hex.
    pub diff_id: String,
    /// Media type in the manifest.
    pub media_type: String,
}

impl Layer {
    /// Packs a tar as a layer of an OCI image.
    pub fn new(tar: &[u8], packing: Packing) -> Self {
        let suffix = match packing {
            Packing::None => "",
            Packing::Gzip | Packing::GzipMembers => "+gzip",
            Packing::Zstd | Packing::ZstdFrames => "+zstd",
        };
        Self {
            bytes: pack(tar, packing),
            diff_id: sha256(tar),
            media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
        }
    }

    /// Packs a tar as a layer of a docker image.
    pub fn docker(tar: &[u8]) -> Self {
        Self {
            media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".into(),
            ..Self::new(tar, Packing::Gzip)
        }
    }
}

/// Compresses `tar`; the same bytes give the same bytes.
pub fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    let gzip = |part: &[u8]| {
        let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::new(9));
        encoder.write_all(part).expect("a vector takes all bytes");
        encoder.finish().expect("a vector takes all bytes")
    };
    let zstd = |part: &[u8]| zstd::encode_all(part, 3).expect("a vector takes all bytes");
    match packing {
        Packing::None => tar.to_vec(),
        Packing::Gzip => gzip(tar),
        Packing::GzipMembers => tar.chunks(64 << 10).flat_map(gzip).collect(),
        Packing::Zstd => zstd(tar),
        Packing::ZstdFrames => tar.chunks(64 << 10).flat_map(zstd).collect(),
    }
}

/// An OCI layout in a directory.
#[derive(Debug)]
pub struct Layout<'a> {
    root: &'a Path,
    manifests: Vec<Value>,
}

impl<'a> Layout<'a> {
    /// Starts an empty layout at `root`, which is made.
    ///
    /// # Panics
    /// Here as in all methods: when a file cannot be written.
    pub fn create(root: &'a Path) -> Self {
        std::fs::create_dir_all(root.join("blobs/sha256")).expect("make the layout");
        std::fs::write(
            root.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .expect("write oci-layout");
        let layout = Self {
            root,
            manifests: Vec::new(),
        };
        layout.write_index();
        layout
    }

    /// Stores a blob; its descriptor.
    pub fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = sha256(bytes);
        std::fs::write(self.root.join("blobs/sha256").join(&digest), bytes).expect("write a blob");
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    /// Stores layers, config and manifest; the manifest's descriptor.
    pub fn manifest(&self, layers: &[Layer], flavour: Flavour) -> Value {
        self.manifest_with(layers, flavour, |_, _| {})
    }

    /// Like [`Layout::manifest`], with a last change to manifest and config: `change(manifest, config)`. The config's
    /// descriptor is filled in after the change.
    pub fn manifest_with(
        &self,
        layers: &[Layer],
        flavour: Flavour,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Value {
        let (manifest_type, config_type) = match flavour {
            Flavour::Oci => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
            Flavour::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(&layer.bytes, &layer.media_type))
            .collect();
        let mut config = config(layers);
        let mut manifest =
            json!({ "schemaVersion": 2, "mediaType": manifest_type, "layers": descriptors });
        change(&mut manifest, &mut config);
        manifest["config"] = self.blob(config.to_string().as_bytes(), config_type);
        self.blob(manifest.to_string().as_bytes(), manifest_type)
    }

    /// Names a manifest or index in `index.json`.
    pub fn tag(&mut self, descriptor: &Value, name: &str) -> &mut Self {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        self.manifests.push(descriptor);
        self.write_index();
        self
    }

    /// Stores an image index over `manifests`, each with its `platform`; its descriptor.
    pub fn index(&self, manifests: &[(Value, Value)]) -> Value {
        let manifests: Vec<Value> = manifests
            .iter()
            .map(|(descriptor, platform)| {
                let mut descriptor = descriptor.clone();
                descriptor["platform"] = platform.clone();
                descriptor
            })
            .collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        self.blob(index.to_string().as_bytes(), media_type)
    }

    fn write_index(&self) {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        });
        std::fs::write(self.root.join("index.json"), index.to_string()).expect("write index.json");
    }
}

/// Writes a layout with one image of these layer tars under the tag `latest`.
pub fn write(root: &Path, tars: &[Vec<u8>], packing: Packing) {
    let layers: Vec<Layer> = tars.iter().map(|tar| Layer::new(tar, packing)).collect();
    let mut layout = Layout::create(root);
    let manifest = layout.manifest(&layers, Flavour::Oci);
    layout.tag(&manifest, "latest");
}

/// The layers of an image in a layout, as files, lowest first.
///
/// # Panics
/// When there is no such tag, or the layout is damaged.
pub fn layer_files(layout: &Path, tag: &str) -> Vec<PathBuf> {
    let blob = |digest: &Value| {
        let digest = digest.as_str().expect("a descriptor has a digest");
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    let json = |path: PathBuf| -> Value {
        let bytes =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&bytes).expect("documents are JSON")
    };
    let index = json(layout.join("index.json"));
    let tagged = index["manifests"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == tag)
        .unwrap_or_else(|| panic!("{}: no tag {tag}", layout.display()));
    let manifest = json(blob(&tagged["digest"]));
    let layers = manifest["layers"].as_array().into_iter().flatten();
    layers.map(|layer| blob(&layer["digest"])).collect()
}

fn config(layers: &[Layer]) -> Value {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", layer.diff_id))
        .collect();
    let history: Vec<Value> = (0..layers.len())
        .map(|i| json!({ "created_by": format!("layer {i}"), "comment": "made by a test" }))
        .collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    })
}

/// What `docker save` writes for one image: `manifest.json`, the config and the layers as plain tars, in a tar.
pub fn docker_archive(tars: &[Vec<u8>], name: &str) -> Vec<u8> {
    use crate::tar::{Entry, Tar};
    let layers: Vec<Layer> = tars
        .iter()
        .map(|tar| Layer::new(tar, Packing::None))
        .collect();
    let config = config(&layers).to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let names: Vec<String> = layers
        .iter()
        .map(|layer| format!("{}/layer.tar", layer.diff_id))
        .collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": names }]);
    let mut archive = Tar::new();
    archive.add(Entry::file(&config_name, &config));
    for (layer, name) in layers.iter().zip(&names) {
        archive.add(Entry::directory(format!("{}/", layer.diff_id)));
        archive.add(Entry::file(name, &layer.bytes));
    }
    archive.add(Entry::file("manifest.json", manifest.to_string()));
    archive.finish()
}

/// An OCI layout directory as one tar.
///
/// # Panics
/// When the directory cannot be read.
pub fn oci_archive(root: &Path) -> Vec<u8> {
    use crate::tar::{Entry, Tar};
    let read = |path: &Path| {
        std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut archive = Tar::new();
    for name in ["oci-layout", "index.json"] {
        archive.add(Entry::file(name, read(&root.join(name))));
    }
    let blobs = root.join("blobs/sha256");
    let mut names: Vec<_> = std::fs::read_dir(&blobs)
        .expect("list the blobs")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    for name in names {
        let name = name.to_string_lossy().into_owned();
        archive.add(Entry::file(
            format!("blobs/sha256/{name}"),
            read(&blobs.join(&name)),
        ));
    }
    archive.finish()
}
