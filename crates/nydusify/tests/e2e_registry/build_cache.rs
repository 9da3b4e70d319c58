//! `convert --build-cache`: layers that somebody else converted are not converted again, and a cache that is wrong makes
//! no image wrong.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::registry::Registry;
use testkit::run::Ran;

use crate::support::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const VERSION: &str = "containerd.io/snapshot/nydus-cache-version";
const SOURCE: &str = "containerd.io/snapshot/nydus-source-digest";
const KEY: &str = "containerd.io/snapshot/nydus-cache-key";
const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-cache-bootstrap";

/// A registry with the small image, and its names.
struct Setup {
    registry: Registry,
    source: String,
}

impl Setup {
    fn new() -> Self {
        let registry = Registry::new();
        small().put(&registry, "image", "1");
        let source = format!("{}/image:1", registry.host());
        Self { registry, source }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// A user who has converted nothing before converts the image to `target`; the report besides.
    #[track_caller]
    fn convert(&self, target: &str, more: &[&str]) -> (Ran, Value) {
        let home = Home::new();
        let report = home.path("report.json").display().to_string();
        let more = [more, &["--output-json", &report]].concat();
        let ran = home.convert(&self.source, &self.name(target), &more).ok();
        let report = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        assert_well_behaved(&self.registry);
        (ran, report)
    }

    /// The digest of the image without a cache.
    fn plain(&self) -> String {
        self.convert("plain:1", &[]);
        self.registry.digest("plain", "1").unwrap()
    }

    /// Fills `image:cache`.
    fn fill(&self) {
        let (_, report) = self.convert("image:nydus", &["--build-cache-tag", "cache"]);
        assert_eq!(report["CachedLayers"], 0);
    }

    fn read(&self, repository: &str, reference: &str) -> Value {
        let (_, bytes) = self.registry.manifest(repository, reference).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The only manifest of a cache.
    fn cache(&self, repository: &str) -> Value {
        let index = self.read(repository, "cache");
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
        self.read(
            repository,
            index["manifests"][0]["digest"].as_str().unwrap(),
        )
    }

    /// Puts a manifest in place of the one of `image:cache`.
    fn replace(&self, manifest: &Value) {
        let bytes = manifest.to_string().into_bytes();
        let digest = self.registry.put_manifest("image", None, MANIFEST, &bytes);
        let mut index = self.read("image", "cache");
        index["manifests"][0]["digest"] = digest.into();
        index["manifests"][0]["size"] = bytes.len().into();
        let index = index.to_string().into_bytes();
        self.registry
            .put_manifest("image", Some("cache"), INDEX, &index);
    }
}

#[test]
fn the_cache_has_the_form_of_the_deployed_tool() {
    let setup = Setup::new();
    setup.fill();
    assert_eq!(setup.registry.missing_from("image", "cache"), [""; 0]);
    let index = setup.read("image", "cache");
    assert_eq!(index["mediaType"], INDEX);
    let platform = &index["manifests"][0]["platform"];
    assert!(platform["os"] == "linux" && platform["architecture"].is_string());
    let manifest = setup.cache("image");
    assert_eq!(manifest["mediaType"], MANIFEST);
    assert_eq!(manifest["annotations"][VERSION], "v1");
    let image = setup.read("image", "nydus");
    let records = manifest["layers"].as_array().unwrap();
    assert_eq!(records.len(), small().layers().len());
    for ((record, source), blob) in records
        .iter()
        .zip(small().layers())
        .zip(image["layers"].as_array().unwrap())
    {
        assert_eq!(record["annotations"][SOURCE], source);
        for same in ["mediaType", "digest", "size"] {
            assert_eq!(record[same], blob[same]);
        }
        let annotations = &record["annotations"];
        assert_eq!(annotations["containerd.io/snapshot/nydus-blob"], "true");
    }
    // The same again adds nothing and writes nothing.
    let before = setup.registry.digest("image", "cache");
    let (ran, report) = setup.convert("image:again", &["--build-cache-tag", "cache"]);
    assert_eq!(report["CachedLayers"], 3, "{ran}");
    assert_eq!(setup.registry.digest("image", "cache"), before);
}

#[test]
fn a_layer_of_the_cache_is_neither_fetched_nor_converted_nor_pushed() {
    let setup = Setup::new();
    let plain = setup.plain();
    setup.fill();
    let cache = setup.name("image:cache");
    setup.registry.forget_requests();
    let (ran, report) = setup.convert("other:1", &["--build-cache", &cache, "--check"]);
    assert_eq!(report["CachedLayers"], 3, "{ran}");
    assert_eq!(report["ReusedLayers"], 3);
    ran.says(&["3 layers", "were in the build cache"]);
    assert_eq!(setup.registry.digest("other", "1").unwrap(), plain);
    assert_eq!(setup.registry.missing_from("other", "1"), [""; 0]);
    assert_eq!(setup.registry.counters().mounts, 3);

    // Without the check, nothing of the source's layers is read.
    setup.registry.forget_requests();
    setup.convert("third:1", &["--build-cache", &cache]);
    let layers = small().layers();
    let read = setup.registry.requests().into_iter().filter(|request| {
        request.method == "GET" && layers.iter().any(|layer| request.path.contains(layer))
    });
    assert_eq!(read.count(), 0);
    assert_eq!(setup.registry.digest("third", "1").unwrap(), plain);

    // From another registry, blobs are copied.
    let (other, home) = (Registry::new(), Home::new());
    let target = format!("{}/far:1", other.host());
    home.convert(&setup.source, &target, &["--build-cache", &cache])
        .ok();
    assert_eq!(other.digest("far", "1").unwrap(), plain);
    assert_eq!(other.missing_from("far", "1"), [""; 0]);
}

#[test]
fn a_cache_in_another_registry_names_no_source_that_is_not_there() {
    let setup = Setup::new();
    let plain = setup.plain();
    let far = Registry::new();
    let cache = format!("{}/keep/cache:cache", far.host());
    let (ran, _) = setup.convert("one:1", &["--build-cache", &cache]);
    ran.says(&["has 3 layers more"]);
    let index: Value =
        serde_json::from_slice(&far.manifest("keep/cache", "cache").unwrap().1).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let (_, manifest) = far.manifest("keep/cache", digest).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for record in manifest["layers"].as_array().unwrap() {
        assert!(record["annotations"].get(SOURCE).is_none(), "{record}");
    }
    assert_eq!(far.missing_from("keep/cache", "cache"), [""; 0]);
    let (_, report) = setup.convert("two:1", &["--build-cache", &cache]);
    assert_eq!(report["CachedLayers"], 3);
    assert_eq!(setup.registry.digest("two", "1").unwrap(), plain);
}

/// A change to the cache, what is said of it, and how many layers are still taken.
type Poison = (&'static str, fn(&Setup, &mut Value), &'static str, u64);

const POISONS: [Poison; 7] = [
    (
        "a blob that is gone",
        |setup, manifest| {
            let digest = manifest["layers"][0]["digest"].as_str().unwrap();
            setup.registry.remove_blob("image", digest);
        },
        "missing",
        2,
    ),
    (
        "a source layer that is gone",
        |setup, _| setup.registry.remove_blob("image", small().layers()[1]),
        "missing",
        2,
    ),
    (
        "the blob of another layer",
        |_, manifest| {
            for key in ["digest", "size"] {
                manifest["layers"][0][key] = manifest["layers"][1][key].clone();
            }
        },
        "another bootstrap",
        2,
    ),
    (
        "another size",
        |_, manifest| manifest["layers"][2]["size"] = json!(1_u64 << 40),
        "not 1099511627776",
        2,
    ),
    (
        "the key of something else",
        |_, manifest| manifest["layers"][0]["annotations"][KEY] = small().digest.clone().into(),
        "as converted by others or with other options",
        2,
    ),
    (
        "annotations that are none",
        |_, manifest| {
            for record in manifest["layers"].as_array_mut().unwrap() {
                record["annotations"][BOOTSTRAP] = "../../etc/passwd".into();
            }
        },
        "as converted by others or with other options",
        0,
    ),
    (
        "a blob that is no blob",
        |setup, manifest| {
            let bytes = testkit::noise(1, 5000);
            let record = &mut manifest["layers"][0];
            record["digest"] = setup.registry.put_blob("image", &bytes).into();
            record["size"] = bytes.len().into();
        },
        "is not usable",
        2,
    ),
];

#[test]
fn a_record_that_is_wrong_is_said_to_be_and_the_layer_converted() {
    for (name, poison, words, cached) in POISONS {
        let setup = Setup::new();
        let plain = setup.plain();
        setup.fill();
        let mut manifest = setup.cache("image");
        poison(&setup, &mut manifest);
        setup.replace(&manifest);
        small().put(&setup.registry, "original", "1");
        let source = setup.name("original:1");
        let home = Home::new();
        let (target, cache) = (setup.name("other:1"), setup.name("image:cache"));
        let report = home.path("report.json").display().to_string();
        let more = ["--build-cache", &cache, "--output-json", &report];
        let ran = home.convert(&source, &target, &more).ok();
        assert!(ran.stderr.contains(words), "{name}: {ran}");
        let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        assert_eq!(report["CachedLayers"], cached, "{name}: {ran}");
        // All but the name of the source.
        let layers = |tag: &str, repository: &str| setup.read(repository, tag)["layers"].clone();
        assert_eq!(layers("1", "other"), layers("1", "plain"), "{name}");
        assert_eq!(setup.registry.missing_from("other", "1"), [""; 0]);
        // The record was put right: it serves the next one.
        let (ran, report) = setup.convert("next:1", &["--build-cache", &cache, "--check"]);
        assert_eq!(report["CachedLayers"], 3, "{name}: {ran}");
        assert_eq!(setup.registry.digest("next", "1").unwrap(), plain, "{name}");
    }
}

#[test]
fn what_a_cache_says_of_a_layers_content_is_proven_by_the_check() {
    let setup = Setup::new();
    let plain = setup.plain();
    setup.fill();
    let mut manifest = setup.cache("image");
    // Sound in itself: the blob of another layer, with all that is said of it.
    let other = manifest["layers"][1].clone();
    let record = &mut manifest["layers"][0];
    for key in ["digest", "size"] {
        record[key] = other[key].clone();
    }
    record["annotations"][BOOTSTRAP] = other["annotations"][BOOTSTRAP].clone();
    setup.replace(&manifest);
    let cache = setup.name("image:cache");
    let (ran, report) = setup.convert("other:1", &["--build-cache", &cache, "--check"]);
    ran.says(&["converting again without the build cache"]);
    assert_eq!(report["CachedLayers"], 0);
    assert_eq!(setup.registry.digest("other", "1").unwrap(), plain);
    let (_, report) = setup.convert("next:1", &["--build-cache", &cache]);
    assert_eq!(report["CachedLayers"], 3, "the record was replaced");
    assert_eq!(setup.registry.digest("next", "1").unwrap(), plain);
}

#[test]
fn layers_of_other_options_are_not_taken() {
    let setup = Setup::new();
    setup.fill();
    let options = ["--compressor", "lz4_block"];
    setup.convert("plain:1", &options);
    let cache = setup.name("image:cache");
    let more = [&options[..], &["--build-cache", &cache]].concat();
    let (_, report) = setup.convert("other:1", &more);
    assert_eq!(report["CachedLayers"], 0);
    let digest = |repository: &str| setup.registry.digest(repository, "1");
    assert_eq!(digest("other"), digest("plain"));
    // Both are in the cache now, side by side.
    let (_, report) = setup.convert("next:1", &more);
    assert_eq!(report["CachedLayers"], 3);
    let (_, report) = setup.convert("last:1", &["--build-cache", &cache]);
    assert_eq!(report["CachedLayers"], 3);
    assert_eq!(setup.cache("image")["layers"].as_array().unwrap().len(), 6);
}

#[test]
fn the_cache_keeps_what_is_there_and_grows_to_its_size() {
    let setup = Setup::new();
    let few = ["--build-cache-tag", "cache", "--build-cache-max-records"];
    let (ran, _) = setup.convert("image:nydus", &[&few[..], &["2"]].concat());
    ran.says(&["is full", "1 layers were left out"]);
    let mut manifest = setup.cache("image");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    // A record of the deployed tool: it knows nothing of keys, and stays as it is, in front.
    let annotations = manifest["layers"][0]["annotations"]
        .as_object_mut()
        .unwrap();
    annotations.remove(KEY);
    annotations.remove(BOOTSTRAP);
    annotations.insert("of.others".to_owned(), "kept".into());
    let foreign = manifest["layers"][0].clone();
    setup.replace(&manifest);
    let (_, report) = setup.convert("image:again", &[&few[..], &["3"]].concat());
    assert_eq!(report["CachedLayers"], 1);
    let layers = setup.cache("image")["layers"].clone();
    assert_eq!(layers.as_array().unwrap().len(), 3);
    assert_eq!(layers[0], foreign);
    // Another version begins anew.
    let version = ["--build-cache-tag", "cache", "--build-cache-version", "v2"];
    let (ran, report) = setup.convert("image:v2", &version);
    ran.says(&["is of version \"v1\", not \"v2\""]);
    assert_eq!(report["CachedLayers"], 0);
    let manifest = setup.cache("image");
    assert_eq!(manifest["annotations"][VERSION], "v2");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
    for bad in ["0", "201", "x"] {
        let home = Home::new();
        let more = [&few[..], &[bad]].concat();
        home.convert(&setup.source, &setup.name("x:1"), &more)
            .exits(2);
    }
}

#[test]
fn nothing_else_is_taken_for_a_cache_or_written_over() {
    let setup = Setup::new();
    let (home, target) = (Home::new(), setup.name("image:nydus"));
    let before = setup.registry.digest("image", "1");
    home.convert(&setup.source, &target, &["--build-cache", &setup.source])
        .exits(1)
        .fails_with(&["image:1 is a single image, not a build cache"]);
    let platforms = [("1", "linux/amd64"), ("1", "linux/arm64")];
    setup.registry.make_index("image", &platforms, false, "all");
    home.convert(&setup.source, &target, &["--build-cache-tag", "all"])
        .exits(1)
        .fails_with(&["image:all is an index of images, not a build cache"]);
    assert_eq!(setup.registry.digest("image", "1"), before);
    assert_eq!(setup.registry.digest("image", "nydus"), None);
    for wrong in [
        &["--build-cache", "x", "--build-cache-tag", "y"][..],
        &["--build-cache-tag", "nydus"],
        &["--build-cache", "oci-archive:x:y"],
    ] {
        home.convert(&setup.source, &target, wrong).exits(2);
    }
    // A cache that can't be read is no reason not to convert, and is left alone.
    setup
        .registry
        .put_manifest("image", Some("broken"), INDEX, b"{\"manifests\":[{}]}");
    let before = setup.registry.digest("image", "broken");
    let (ran, _) = setup.convert("image:nydus", &["--build-cache-tag", "broken"]);
    ran.says(&["broken is not used"]);
    assert_eq!(setup.registry.digest("image", "broken"), before);
}

#[test]
fn layers_with_chunks_of_a_dictionary_are_for_those_who_have_it() {
    let setup = Setup::new();
    setup.convert("image:first", &[]);
    let dictionary = format!("bootstrap:registry:{}", setup.name("image:first"));
    let dictionary = ["--chunk-dict", &dictionary, "--dict-min-run", "1"];
    setup.convert("plain:1", &dictionary);
    let cache = setup.name("image:cache");
    let more = [&dictionary[..], &["--build-cache", &cache]].concat();
    setup.convert("image:nydus", &more);
    let layers = setup.cache("image")["layers"].clone();
    let mut named = layers.as_array().unwrap().iter();
    assert!(named.all(|record| record["annotations"].get(SOURCE).is_none()));
    let (_, report) = setup.convert("other:1", &[&more[..], &["--check"]].concat());
    assert_eq!(report["CachedLayers"], 3);
    let digest = |repository: &str| setup.registry.digest(repository, "1");
    assert_eq!(digest("other"), digest("plain"));
    let (_, report) = setup.convert("without:1", &["--build-cache", &cache, "--check"]);
    assert_eq!(report["CachedLayers"], 0);
    // A hostile one says that such a layer needs no dictionary.
    let plain = setup.plain();
    let mut manifest = setup.cache("image");
    let (with, without) = manifest["layers"].as_array().unwrap().split_at(3);
    let mut forged = with.to_vec();
    for (forged, without) in forged.iter_mut().zip(without) {
        forged["annotations"][KEY] = without["annotations"][KEY].clone();
    }
    manifest["layers"] = forged.into();
    setup.replace(&manifest);
    let (ran, report) = setup.convert("forged:1", &["--build-cache", &cache]);
    ran.says(&["chunks of other blobs than these options make"]);
    assert_eq!(report["CachedLayers"], 0);
    assert_eq!(setup.registry.digest("forged", "1").unwrap(), plain);
}

#[test]
fn a_cache_whose_writer_is_killed_is_whole_and_complete_the_next_time() {
    let setup = Setup::new();
    setup.registry.forget_requests();
    setup.fill();
    let all = setup.registry.requests().len();
    let layers = setup.read("image", "nydus")["layers"].clone();
    let records = setup.cache("image")["layers"].clone();
    // From the last blobs of the image to the tag, which comes after the cache.
    let mut unfinished = 0;
    for (number, requests) in (all / 2..=all).step_by(2).enumerate() {
        let setup = Setup::new();
        setup.registry.forget_requests();
        let (home, target) = (Home::new(), setup.name("image:nydus"));
        let more = ["--build-cache-tag", "cache"];
        let mut args = home.convert_args(&setup.source, &target);
        args.extend(more.map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = home.command(&args);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        while setup.registry.requests().len() < requests && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        unfinished += u32::from(setup.registry.digest("image", "cache").is_none());
        // What a name leads to is all there.
        for tag in ["cache", "nydus"] {
            if setup.registry.digest("image", tag).is_some() {
                assert_eq!(setup.registry.missing_from("image", tag), [""; 0]);
            }
        }
        // Whether it is the same user or another one who comes next.
        let next = if number % 2 == 0 { home } else { Home::new() };
        next.convert(&setup.source, &target, &more).ok();
        assert_eq!(setup.registry.missing_from("image", "nydus"), [""; 0]);
        assert_eq!(setup.registry.missing_from("image", "cache"), [""; 0]);
        assert_eq!(setup.read("image", "nydus")["layers"], layers);
        assert_eq!(setup.cache("image")["layers"], records, "{requests}");
        let cache = setup.name("image:cache");
        let (_, report) = setup.convert("other:1", &["--build-cache", &cache, "--check"]);
        assert_eq!(report["CachedLayers"], 3);
        assert_eq!(setup.read("other", "1")["layers"], layers);
    }
    assert!(
        unfinished != 0,
        "none was killed before the cache was there"
    );
}
