//! What a registry has and what it saw.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::Registry;
use super::manifest::{Part, parts};
use super::state::{Counters, Request, lock};
use super::storage::{Manifest, Storage};

impl Registry {
    /// All requests so far, in the order in which their answers were ready (or not to be).
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.log).clone()
    }

    /// How many requests for blobs there were since this, or [`Registry::forget_requests`], was called last.
    pub fn take_blob_reads(&self) -> usize {
        let requests = self.requests();
        self.forget_requests();
        let reads = requests.iter().filter(|request| request.method == "GET");
        reads
            .filter(|request| request.path.contains("/blobs/"))
            .count()
    }

    /// Forgets the requests so far, and how many there were at once; other figures stay.
    pub fn forget_requests(&self) {
        lock(&self.state.log).clear();
        self.state.requests.forget();
    }

    /// The figures.
    pub fn counters(&self) -> Counters {
        let state = &self.state;
        Counters {
            requests: state.numbers.load(Ordering::SeqCst),
            received: state.received.load(Ordering::SeqCst),
            sent: state.sent.load(Ordering::SeqCst),
            connections: state.connections.now(),
            max_connections: state.connections.most(),
            max_requests_at_once: state.requests.most(),
            open_uploads: state.uploads.open(),
            uploads_opened: state.uploads.opened(),
            uploads_deleted: state.uploads.deleted(),
            mounts: state.mounts.load(Ordering::SeqCst),
        }
    }

    /// What clients did that they must not do: credentials sent to the storage host, segments appended where they do
    /// not belong.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.state.violations).clone()
    }

    /// The repositories that have anything.
    pub fn repositories(&self) -> Vec<String> {
        lock(&self.state.storage)
            .repositories
            .keys()
            .cloned()
            .collect()
    }

    /// The tags of a repository.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let storage = lock(&self.state.storage);
        let found = storage.repositories.get(repository);
        found.map_or_else(Vec::new, |found| found.tags.keys().cloned().collect())
    }

    /// The digests of a repository's manifests, tagged or not.
    pub fn manifests(&self, repository: &str) -> Vec<String> {
        let storage = lock(&self.state.storage);
        let found = storage.repositories.get(repository);
        let digests = found.into_iter().flat_map(|found| found.manifests.keys());
        digests.map(|hex| format!("sha256:{hex}")).collect()
    }

    /// The digests of a repository's blobs.
    pub fn blobs(&self, repository: &str) -> Vec<String> {
        let storage = lock(&self.state.storage);
        let found = storage.repositories.get(repository);
        let digests = found.into_iter().flat_map(|found| &found.blobs);
        digests.map(|hex| format!("sha256:{hex}")).collect()
    }

    /// The digest that a tag stands for.
    pub fn digest(&self, repository: &str, reference: &str) -> Option<String> {
        let storage = lock(&self.state.storage);
        let found = storage.repositories.get(repository)?;
        found.resolve(reference).map(|hex| format!("sha256:{hex}"))
    }

    /// Media type and bytes of a manifest, by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Vec<u8>)> {
        let storage = lock(&self.state.storage);
        let found = storage.repositories.get(repository)?;
        let manifest = &found.manifests[found.resolve(reference)?];
        Some((manifest.media_type.clone(), manifest.bytes.clone()))
    }

    /// The bytes of a blob.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        let hex = digest.strip_prefix("sha256:")?;
        let stored = lock(&self.state.storage).blob(repository, hex)?;
        Some(stored.read().expect("read a blob"))
    }

    /// Stores a blob; its digest.
    pub fn put_blob(&self, repository: &str, mut bytes: &[u8]) -> String {
        let mut storage = lock(&self.state.storage);
        let mut incoming = storage.incoming().expect("make a file");
        incoming.append(&mut bytes).expect("write a blob");
        let hex = incoming.sha256();
        storage
            .store(repository, &hex, incoming)
            .expect("store a blob");
        format!("sha256:{hex}")
    }

    /// Stores a manifest, whatever it names, and maybe tags it; its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
    ) -> String {
        let hex = crate::sha256(bytes);
        let mut storage = lock(&self.state.storage);
        let repository = storage
            .repositories
            .entry(repository.to_owned())
            .or_default();
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            bytes: bytes.to_vec(),
        };
        repository.manifests.insert(hex.clone(), manifest);
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), hex.clone());
        }
        format!("sha256:{hex}")
    }

    /// Replaces the bytes of a blob while its digest stays, for good.
    pub fn overwrite_blob(&self, digest: &str, bytes: &[u8]) {
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        let mut storage = lock(&self.state.storage);
        storage
            .overwrite(hex, bytes.to_vec())
            .expect("write a blob");
    }

    /// Takes a blob away from a repository.
    pub fn remove_blob(&self, repository: &str, digest: &str) {
        let mut storage = lock(&self.state.storage);
        if let (Some(repository), Some(hex)) = (
            storage.repositories.get_mut(repository),
            digest.strip_prefix("sha256:"),
        ) {
            repository.blobs.remove(hex);
        }
    }

    /// All that a tag or digest needs and that is not there or not what its descriptor says, with the reason.
    pub fn missing_from(&self, repository: &str, reference: &str) -> Vec<String> {
        let storage = lock(&self.state.storage);
        let resolved = storage
            .repositories
            .get(repository)
            .and_then(|found| found.resolve(reference));
        let Some(hex) = resolved else {
            return vec![format!("{repository}:{reference}: no such manifest")];
        };
        let top = Part {
            digest: format!("sha256:{hex}"),
            size: None,
            is_manifest: true,
        };
        let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
        let mut next = vec![top];
        while let Some(part) = next.pop() {
            if !seen.insert((part.digest.clone(), part.is_manifest)) {
                continue;
            }
            match look_at(&storage, repository, &part) {
                Ok(more) => next.extend(more),
                Err(why) => wrong.push(format!("{}: {why}", part.digest)),
            }
        }
        wrong.sort();
        wrong
    }
}

/// Checks one thing; what else it needs.
fn look_at(storage: &Storage, repository: &str, part: &Part) -> Result<Vec<Part>, String> {
    let (len, hex, more) = if part.is_manifest {
        let manifest = storage
            .repositories
            .get(repository)
            .and_then(|found| found.manifests.get(part.hex()))
            .ok_or("no such manifest")?;
        let value: Value =
            serde_json::from_slice(&manifest.bytes).map_err(|error| error.to_string())?;
        (
            manifest.bytes.len() as u64,
            crate::sha256(&manifest.bytes),
            parts(&value),
        )
    } else {
        let blob = storage.blob(repository, part.hex()).ok_or("no such blob")?;
        let hex = blob.sha256().map_err(|error| error.to_string())?;
        (blob.len(), hex, Vec::new())
    };
    if hex != part.hex() {
        return Err(format!("its content is sha256:{hex}"));
    }
    match part.size {
        Some(size) if size != len => Err(format!("{len} bytes, not {size}")),
        _ => Ok(more),
    }
}
