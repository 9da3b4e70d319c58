//! The image that the tests here use, and the program with nothing of the user's own environment.

use std::ops::Deref;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::registry::{Auth, Bearer, Registry, User};
use testkit::run::Ran;
use testkit::tar::{Entry, Tar};

/// The program under test.
pub const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");

/// An image as registries have it.
#[derive(Debug, Clone)]
pub struct Stored {
    media_type: String,
    manifest: Vec<u8>,
    /// Configuration and layers, in the order of the manifest.
    pub blobs: Vec<(String, Vec<u8>)>,
    /// The manifest's digest.
    pub digest: String,
}

impl Stored {
    /// Takes an image out of a registry.
    pub fn take(registry: &Registry, repository: &str, reference: &str) -> Self {
        let (media_type, manifest) = registry.manifest(repository, reference).unwrap();
        let value: Value = serde_json::from_slice(&manifest).unwrap();
        let layers = value["layers"].as_array().unwrap();
        let blobs = std::iter::once(&value["config"]).chain(layers).map(|blob| {
            let digest = blob["digest"].as_str().unwrap();
            (
                digest.to_owned(),
                registry.blob(repository, digest).unwrap(),
            )
        });
        Self {
            blobs: blobs.collect(),
            digest: format!("sha256:{}", testkit::sha256(&manifest)),
            media_type,
            manifest,
        }
    }

    /// Puts it into a registry.
    pub fn put(&self, registry: &Registry, repository: &str, tag: &str) {
        for (_, bytes) in &self.blobs {
            registry.put_blob(repository, bytes);
        }
        registry.put_manifest(repository, Some(tag), &self.media_type, &self.manifest);
    }

    /// The digests of its layers.
    pub fn layers(&self) -> Vec<&str> {
        let layers = self.blobs.iter().skip(1);
        layers.map(|(digest, _)| digest.as_str()).collect()
    }
}

/// The regular files of the small image, by path.
pub fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("bin/noise", testkit::noise(1, 300_000)),
        ("data/prose", testkit::prose(2, 400_000)),
        ("data/little", b"a few bytes\n".to_vec()),
        ("data/upper", testkit::noise(3, 150_000)),
        ("etc/config", testkit::prose(4, 9_000)),
        ("top", testkit::prose(5, 120_000)),
    ]
}

/// A small image of three layers: some hundred kilobytes, stored in every way that layers are.
pub fn small() -> &'static Stored {
    static SMALL: OnceLock<Stored> = OnceLock::new();
    SMALL.get_or_init(|| {
        let files = files();
        let file = |at: usize| Entry::file(files[at].0, &files[at].1);
        let mut tars = [Tar::new(), Tar::new(), Tar::new()];
        tars[0]
            .add(Entry::directory("bin/"))
            .add(file(0))
            .add(Entry::hard("bin/same", "bin/noise"))
            .add(Entry::directory("data/"))
            .add(file(1))
            .add(Entry::file("data/gone", testkit::noise(9, 70_000)))
            .add(Entry::file("top", "hidden by an upper layer"));
        tars[1]
            .add(Entry::file("data/.wh.gone", b""))
            .add(file(2))
            .add(file(3))
            .add(Entry::symlink("link", "data/upper"));
        tars[2].add(file(4)).add(file(5));
        let packings = [Packing::Gzip, Packing::None, Packing::Zstd];
        let layers: Vec<Layer> = tars
            .iter()
            .zip(packings)
            .map(|(tar, packing)| Layer::new(&tar.finish(), packing))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::create(dir.path());
        let image = layout.manifest(&layers, Flavour::Oci);
        layout.tag(&image, "latest");
        let registry = Registry::new();
        registry.push_layout(dir.path(), "latest", "image", "latest");
        Stored::take(&registry, "image", "latest")
    })
}

/// Somebody who may do everything, as the `login` of [`Home`] has it.
pub fn me() -> User {
    User::new("me", "secret")
}

/// Tokens for [`me`] that are good for some requests only: more than go out at once, fewer than a conversion makes.
pub fn short_lived_tokens() -> Auth {
    Auth::Bearer(Bearer {
        users: vec![me()],
        requests_per_token: Some(5),
        ..Bearer::default()
    })
}

/// A user's directories, one for the journal among them.
pub struct Home(testkit::home::Home);

impl Deref for Home {
    type Target = testkit::home::Home;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Home {
    pub fn new() -> Self {
        let home = testkit::home::Home::new(NYDUSIFY);
        std::fs::create_dir(home.path("journal")).unwrap();
        Self(home)
    }

    /// `nydusify convert`, in small pieces and with small pauses, its journal in here.
    pub fn convert_args(&self, source: &str, target: &str) -> Vec<String> {
        let journal = self.path("journal").display().to_string();
        let words = [
            "convert",
            "--source",
            source,
            "--target",
            target,
            "--journal-dir",
            &journal,
            "--push-chunk-size",
            "65536",
            "--push-retry-delay",
            "20ms",
            "--fs-chunk-size",
            "0x10000",
        ];
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[track_caller]
    pub fn convert(&self, source: &str, target: &str, more: &[&str]) -> Ran {
        let args = self.convert_args(source, target);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.run(&args, more)
    }

    #[track_caller]
    pub fn check(&self, source: &str, target: &str, more: &[&str]) -> Ran {
        self.run(&["check", "--source", source, "--target", target], more)
    }
}

/// The files below a directory, as paths from it.
pub fn list(directory: &Path) -> Vec<String> {
    let found = testkit::scan::scan(directory).unwrap();
    let files = found.into_iter().filter(|(_, file)| file.sha256.is_some());
    files
        .map(|(path, _)| String::from_utf8(path).unwrap())
        .collect()
}

/// What a failed push must leave in a repository: nothing that is tagged, and no upload that is open.
#[track_caller]
pub fn assert_nothing_left(registry: &Registry, repository: &str) {
    assert_eq!(registry.tags(repository), Vec::<String>::new());
    assert_eq!(registry.manifests(repository), Vec::<String>::new());
    assert_eq!(registry.counters().open_uploads, 0, "open uploads");
    assert_well_behaved(registry);
}

/// What must hold whatever happens: no credentials to other hosts, no bytes where they do not belong.
#[track_caller]
pub fn assert_well_behaved(registry: &Registry) {
    assert_eq!(registry.violations(), Vec::<String>::new());
}

/// A number that depends on a seed and what it is for alone.
pub fn draw(seed: u64, what: u64, below: u64) -> u64 {
    let digest = testkit::sha256(format!("{seed} {what}").as_bytes());
    u64::from_str_radix(&digest[..15], 16).unwrap() % below
}
