//! The client against Debian's registry, on loopback. It needs no privileges, but a program that is not everywhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::{Descriptor, Digest, Index, Manifest, media};
use registry::{Client, Reference, Repository, Settings};

/// The registry; it ends and its data goes when dropped.
struct Registry {
    child: Child,
    host: String,
    directory: tempfile::TempDir,
}

impl Registry {
    fn start(name: &str) -> Option<Self> {
        let Some(program) = testkit::oracle::program("docker-registry") else {
            testkit::skip(name, "no docker-registry");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let host = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let config = directory.path().join("config.yml");
        let root = directory.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {host}}}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&host).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self {
            child,
            host,
            directory,
        })
    }

    fn repository(&self, name: &str, segment_size: usize) -> Repository {
        // HTTPS first: the fallback is tried as well.
        let client = Client::new(Settings {
            segment_size,
            ..Settings::default()
        });
        let reference: Reference = format!("{}/{name}", self.host).parse().unwrap();
        client.unwrap().repository(&reference)
    }

    /// Uploads that are open. (Of those given up this registry forgets to remove the state of the hash.)
    fn uploads(&self, name: &str) -> usize {
        let path = format!("data/docker/registry/v2/repositories/{name}/_uploads");
        let entries = std::fs::read_dir(self.directory.path().join(path));
        entries.map_or(0, |entries| {
            let open = |path: std::path::PathBuf| path.join("startedat").exists();
            entries
                .filter(|entry| open(entry.as_ref().unwrap().path()))
                .count()
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn push(repository: &Repository, blob: &[u8]) -> Digest {
    let digest = Digest::of(blob);
    let mut upload = repository.upload().unwrap();
    upload.write_all(blob).unwrap();
    assert_eq!(upload.finish(digest).unwrap(), blob.len() as u64);
    digest
}

#[test]
fn blobs_go_in_segments_and_come_back() {
    let Some(server) = Registry::start("blobs_go_in_segments_and_come_back") else {
        return;
    };
    let repository = server.repository("a/b", 1 << 20);
    for length in [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000] {
        let blob = testkit::noise(7, length);
        let digest = push(&repository, &blob);
        assert_eq!(repository.blob_size(&digest).unwrap(), Some(length as u64));
        let mut all = Vec::new();
        let mut stream = repository.open_blob(&digest, length as u64, 0).unwrap();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, blob);
        if length > 1000 {
            let mut part = vec![0; 500];
            repository.read_range(&digest, 400, &mut part).unwrap();
            assert_eq!(part, blob[400..900]);
            let mut stream = repository.open_blob(&digest, length as u64, 999).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, blob[999..]);
        }
    }
    assert_eq!(server.uploads("a/b"), 0);
}

#[test]
fn blobs_are_mounted_and_uploads_given_up() {
    let Some(server) = Registry::start("blobs_are_mounted_and_uploads_given_up") else {
        return;
    };
    let first = server.repository("a/b", 1000);
    let digest = push(&first, b"some bytes");
    let second = server.repository("c", 1000);
    assert_eq!(second.blob_size(&digest).unwrap(), None);
    assert!(second.mount_blob(&digest, "a/b").unwrap());
    assert_eq!(second.blob_size(&digest).unwrap(), Some(10));
    assert!(!second.mount_blob(&Digest::of(b"none"), "a/b").unwrap());
    assert_eq!(server.uploads("c"), 0);

    let mut upload = second.upload().unwrap();
    upload.write_all(&[7; 2500]).unwrap();
    assert_eq!(server.uploads("c"), 1);
    drop(upload);
    assert_eq!(server.uploads("c"), 0);
}

#[test]
fn manifests_go_and_come_and_have_referrers() {
    let Some(server) = Registry::start("manifests_go_and_come_and_have_referrers") else {
        return;
    };
    let repository = server.repository("a", 1000);
    let config = push(&repository, b"{}");
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::OCI_MANIFEST.to_owned(),
        config: Descriptor::new(media::OCI_CONFIG, config, 2),
        layers: Vec::new(),
        annotations: None,
        other: Default::default(),
    };
    let bytes = manifest.to_json();
    repository
        .put_manifest("tag", media::OCI_MANIFEST, &bytes)
        .unwrap();
    let back = repository.manifest("tag").unwrap();
    assert_eq!(
        (&back.bytes, back.media_type.as_str()),
        (&bytes, media::OCI_MANIFEST)
    );
    let found = repository.manifest_digest("tag").unwrap().unwrap();
    assert_eq!(
        (found.digest, found.size),
        (back.digest, bytes.len() as u64)
    );
    assert!(repository.manifest("none").unwrap_err().is_not_found());
    assert_eq!(repository.manifest_digest("none").unwrap(), None);

    // This registry has no referrers API.
    assert!(!repository.supports_referrers(&back.digest).unwrap());
    assert_eq!(repository.referrers(&back.digest).unwrap(), []);
    let entry = Descriptor::new(media::OCI_MANIFEST, back.digest, bytes.len() as u64);
    repository
        .add_referrer(&back.digest, entry.clone())
        .unwrap();
    assert_eq!(repository.referrers(&back.digest).unwrap(), [entry]);
    let index = repository
        .manifest(&format!("sha256-{}", back.digest.hex()))
        .unwrap();
    assert!(serde_json::from_slice::<Index>(&index.bytes).is_ok());

    let missing = Manifest {
        config: Descriptor::new(media::OCI_CONFIG, Digest::of(b"none"), 4),
        ..manifest
    };
    let error = repository
        .put_manifest("bad", media::OCI_MANIFEST, &missing.to_json())
        .unwrap_err();
    assert!(
        error.to_string().contains("MANIFEST_BLOB_UNKNOWN"),
        "{error}"
    );
}
