//! Layouts into registries, and the program with nothing of the user's own environment.

use std::io::Write;
use std::ops::Deref;
use std::path::Path;

use registry::{Client, Credentials, Repository, Secret, Settings};
use serde_json::Value;
use testkit::docker_registry::no_docker_registry;
use testkit::home::Home;
use testkit::registry::Ca;
use testkit::run::{Mount, Ran};
use testkit::{oracle, skip};

/// The program under test.
pub const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");

/// Media types of OCI and what docker calls the same.
const DOCKER: [(&str, &str); 5] = [
    (
        "application/vnd.oci.image.manifest.v1+json",
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

/// A user's directories, one to mount on among them.
pub struct Place(Home);

impl Deref for Place {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.0
    }
}

impl Place {
    /// A new one; `None`, said aloud, where the test `name` can't run.
    pub fn new(name: &str) -> Option<Self> {
        if let Some(why) = oracle::no_fuse().or_else(no_docker_registry) {
            skip(name, why);
            return None;
        }
        let home = Home::new(NYDUSIFY);
        std::fs::create_dir(home.path("root")).unwrap();
        Some(Self(home))
    }

    #[track_caller]
    pub fn convert(&self, source: &str, target: &str, more: &[&str]) -> Ran {
        self.run(&["convert", "--source", source, "--target", target], more)
    }

    #[track_caller]
    pub fn check(&self, source: &str, target: &str, more: &[&str]) -> Ran {
        self.run(&["check", "--source", source, "--target", target], more)
    }

    /// Mounts an image, with nothing fetched that nobody reads, and an empty cache.
    #[track_caller]
    pub fn mount(&self, target: &str, more: &[&str]) -> Mount {
        self.mount_with("--no-prefetch", target, more)
    }

    /// Mounts an image with an empty cache; `prefetch` is an option that says what is fetched in the background.
    #[track_caller]
    pub fn mount_with(&self, prefetch: &str, target: &str, more: &[&str]) -> Mount {
        let (root, cache) = (self.path("root"), self.path("cache"));
        if cache.exists() {
            std::fs::remove_dir_all(&cache).unwrap();
        }
        let mut command = self.command(&["mount", prefetch, "--target", target]);
        command.arg("--mount-path").arg(&root);
        command.arg("--cache-dir").arg(&cache).args(more);
        Mount::start(&mut command, &root)
    }
}

/// The modes of mounts that work here; says so where the kernel's does not.
pub fn modes(name: &str, place: &Place) -> Vec<&'static str> {
    let cache = place.path("cache");
    std::fs::create_dir_all(&cache).unwrap();
    let doctor = ["doctor", "--output", "json", "--cache-dir"];
    let doctor = place.run(&doctor, &[cache.to_str().unwrap()]);
    if doctor.stdout.contains(r#""erofs":true"#) {
        return vec!["fuse", "erofs"];
    }
    skip(name, "the kernel can't fill EROFS mounts on demand here");
    vec!["fuse"]
}

/// A repository of a registry on loopback.
pub fn repository(host: &str, name: &str, ca: Option<&Ca>) -> Repository {
    let client = Client::new(Settings {
        plain_http: ca.is_none(),
        ca_files: ca.iter().map(|ca| ca.pem()).collect(),
        credentials: Credentials::Fixed {
            username: "me".to_owned(),
            password: Secret::new("secret"),
        },
        ..Settings::default()
    });
    let reference = format!("{host}/{name}").parse().unwrap();
    client.unwrap().repository(&reference)
}

/// Pushes what a tag of a layout names, maybe with docker's media types in place of OCI's, under a tag.
pub fn push(layout: &Path, name: &str, docker: bool, to: &Repository, tag: &str) {
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
    let mut manifests = index["manifests"].as_array().unwrap().iter();
    let descriptor = manifests.find(named).unwrap();
    push_manifest(layout, descriptor, docker, to, Some(tag));
}

fn push_manifest(
    layout: &Path,
    descriptor: &Value,
    docker: bool,
    to: &Repository,
    tag: Option<&str>,
) {
    let mut bytes = read(layout, descriptor);
    let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
    for child in list(&manifest, "manifests") {
        push_manifest(layout, child, false, to, None);
    }
    let blobs = manifest.get("config").into_iter();
    for blob in blobs.chain(list(&manifest, "layers")) {
        let digest = blob["digest"].as_str().unwrap().parse().unwrap();
        if to.blob_size(&digest).unwrap().is_none() {
            let mut upload = to.upload().unwrap();
            upload.write_all(&read(layout, blob)).unwrap();
            upload.finish(digest).unwrap();
        }
    }
    let mut media_type = descriptor["mediaType"].as_str().unwrap().to_owned();
    if docker {
        media_type = docker_type(&media_type);
        manifest["mediaType"] = media_type.clone().into();
        let layers = manifest["layers"].as_array_mut().unwrap().iter_mut();
        for layer in layers {
            layer["mediaType"] = docker_type(layer["mediaType"].as_str().unwrap()).into();
        }
        let config = &mut manifest["config"];
        config["mediaType"] = docker_type(config["mediaType"].as_str().unwrap()).into();
        bytes = manifest.to_string().into_bytes();
    }
    let reference = match tag {
        Some(tag) => tag.to_owned(),
        None => descriptor["digest"].as_str().unwrap().to_owned(),
    };
    to.put_manifest(&reference, &media_type, &bytes).unwrap();
}

fn docker_type(media_type: &str) -> String {
    let found = DOCKER.iter().find(|(oci, _)| *oci == media_type);
    found.map_or(media_type, |(_, docker)| *docker).to_owned()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn read(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let name = descriptor["digest"].as_str().unwrap().replace(':', "/");
    std::fs::read(layout.join("blobs").join(name)).unwrap()
}

/// Insists on an empty list of differences.
#[track_caller]
pub fn assert_equal(differences: &[String]) {
    let shown: Vec<&String> = differences.iter().take(40).collect();
    assert!(
        differences.is_empty(),
        "{} differences: {shown:#?}",
        differences.len()
    );
}
