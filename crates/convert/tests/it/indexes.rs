//! Indexes that are kept: who uses them, what is removed, and what is made again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use convert::{BesideBlobs, ImageIndex, IndexStore, prune_cache};
use image::{Descriptor, Manifest, PlatformChoice, Source, Target};
use progress::{Cancel, Silent};
use storage::{Besides as _, Prune, Room};
use testkit::layout::{Flavour, Layer, Layout};
use testkit::{noise, prose};

use crate::world::{World, layer, oci, snapshot};

/// Images that nobody converted, and the cache directory that their indexes lie in.
struct Images {
    world: World,
    store: IndexStore,
}

impl Images {
    /// Images of these names and layers.
    fn new(images: &[(&str, &[Layer])]) -> Self {
        let world = World::new();
        let dir = world.source();
        let mut layout = Layout::create(&dir);
        for (name, layers) in images {
            let image = layout.manifest_with(layers, Flavour::Oci, |_, _| ());
            layout.tag(&image, name);
        }
        let store = IndexStore::beside(&world.path("cache"));
        Self { world, store }
    }

    fn cache(&self) -> PathBuf {
        self.world.path("cache")
    }

    fn blobs(&self) -> PathBuf {
        self.cache().join("index/images/blobs/sha256")
    }

    fn image(&self, name: &str) -> (Source, Descriptor, Manifest) {
        let source = Source::open(&oci(&self.world.source(), Some(name))).unwrap();
        let (descriptor, manifest) = source.manifests(&PlatformChoice::All).unwrap().remove(0);
        (source, descriptor, manifest)
    }

    fn make(&self, name: &str) -> ImageIndex {
        let (source, descriptor, manifest) = self.image(name);
        let image = (&descriptor, &manifest);
        let made = self
            .store
            .make(&source, image, None, &Silent, &Cancel::default());
        made.unwrap()
    }

    fn find(&self, name: &str) -> Option<ImageIndex> {
        self.store.find(&self.image(name).1.digest)
    }

    /// Removes the index of an image.
    fn remove(&self, name: &str) -> bool {
        let image = self.image(name).1.digest;
        let list = self.store.list().unwrap();
        let index = list.iter().find(|index| index.image == image).unwrap();
        self.store.remove(index).unwrap()
    }

    fn used_at(&self, name: &str, time: SystemTime) {
        let lock = format!("index/locks/{}.use", self.image(name).1.digest.hex());
        let file = File::options().write(true).open(self.cache().join(lock));
        file.unwrap().set_modified(time).unwrap();
    }
}

fn two() -> Images {
    let shared = layer("shared", &prose(1, 50_000));
    let own = |name, seed| layer(name, &noise(seed, 30_000));
    Images::new(&[
        ("one", &[shared.clone(), own("a", 2)]),
        ("two", &[shared, own("b", 3)]),
    ])
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn an_index_of_which_a_file_is_not_what_its_name_says_is_found() {
    let images = two();
    drop((images.make("one"), images.make("two")));
    let wrong = || {
        let list = images.store.list().unwrap();
        let wrong = list
            .iter()
            .filter(|index| images.store.verify(index).is_err());
        wrong.count()
    };
    assert_eq!(wrong(), 0);
    for name in names(&images.blobs()) {
        let path = images.blobs().join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        for bad in [bad, good[1..].to_vec(), Vec::new()] {
            fs::write(&path, bad).unwrap();
            assert_ne!(wrong(), 0, "{}", path.display());
        }
        fs::write(&path, good).unwrap();
    }
    assert_eq!(wrong(), 0);
}

#[test]
fn the_last_layer_of_an_index_has_the_tree_alone() {
    let images = two();
    let index = images.make("one");
    let last = index.manifest.layers.last().unwrap();
    let packed = File::open(images.blobs().join(last.digest.hex())).unwrap();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(packed));
    let entries = tar.entries().unwrap();
    let names = entries.map(|entry| entry.unwrap().path().unwrap().display().to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["image/", "image/image.boot"]);
}

#[test]
fn an_index_that_is_used_stays_and_what_others_need_stays() {
    let images = two();
    assert_eq!(images.store.list().unwrap(), []);
    assert_eq!(images.store.disk_usage().unwrap(), 0);
    let one = images.make("one");
    let of_one = names(&images.blobs());
    drop(images.make("two"));
    let list = images.store.list().unwrap();
    assert_eq!(list.len(), 2);
    let in_use: Vec<_> = list.iter().filter(|index| index.in_use).collect();
    assert_eq!(in_use.len(), 1);
    assert_eq!(in_use[0].image, images.image("one").1.digest);
    let disk: u64 = list.iter().map(|index| index.disk).sum();
    assert_eq!(disk, images.store.disk_usage().unwrap());

    let before = snapshot(&images.cache().join("index/images"));
    assert!(!images.remove("one"));
    assert!(snapshot(&images.cache().join("index/images")) == before);
    // A clone of the lease alone keeps it.
    let lease = one.lease.clone();
    drop(one);
    assert!(!images.remove("one"));
    assert!(images.remove("two"));
    assert_eq!(names(&images.blobs()), of_one);
    assert!(images.find("two").is_none() && images.find("one").is_some());
    drop(lease);
    assert!(images.remove("one"));
    assert_eq!(names(&images.blobs()).len(), 0);
    assert_eq!(images.store.list().unwrap(), []);
    assert!(images.make("two").lease.is_some());
}

#[test]
fn one_that_is_being_made_is_in_use() {
    let images = two();
    drop(images.make("one"));
    let lock = images.image("one").1.digest.hex();
    let lock = File::open(images.cache().join("index/locks").join(lock)).unwrap();
    lock.lock().unwrap();
    assert!(images.store.list().unwrap()[0].in_use);
    assert!(!images.remove("one"));
    drop(lock);
    assert!(images.remove("one"));
}

#[test]
fn while_somebody_writes_no_blob_is_removed() {
    let images = two();
    drop(images.make("one"));
    let before = names(&images.blobs());
    let writer = Target::open(&oci(&images.cache().join("index/images"), Some("x"))).unwrap();
    assert!(images.remove("one"));
    assert_eq!(names(&images.blobs()), before);
    assert!(images.find("one").is_none());
    drop(writer);
    // Whoever comes next removes what is left.
    drop(images.make("two"));
    assert!(images.remove("two"));
    assert_eq!(names(&images.blobs()).len(), 0);
}

#[test]
fn whoever_comes_while_indexes_are_removed_finds_one_or_makes_one() {
    let images = two();
    thread::scope(|scope| {
        let users = ["one", "two", "one"].map(|name| {
            let images = &images;
            scope.spawn(move || {
                for _ in 0..15 {
                    let index = images.find(name).unwrap_or_else(|| images.make(name));
                    for part in &index.manifest.layers {
                        index.source.verify_blob(part).unwrap();
                    }
                }
            })
        });
        let all = Prune {
            all: true,
            ..Prune::default()
        };
        while !users.iter().all(|user| user.is_finished()) {
            prune_cache(&images.cache(), &all).unwrap();
        }
    });
}

#[test]
fn a_damaged_index_is_made_again() {
    let images = two();
    let made = images.make("one");
    let parts = made.manifest.layers.iter().map(|layer| layer.digest);
    let root = made.source.root().digest;
    let parts: Vec<_> = parts.chain([made.manifest.config.digest, root]).collect();
    drop(made);
    let right = snapshot(&images.blobs());
    for part in parts {
        let path = images.blobs().join(part.hex());
        let good = &right[&path];
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for damaged in [Some(&flipped[..]), Some(&good[..good.len() - 1]), None] {
            assert!(images.find("one").is_some());
            match damaged {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            assert!(images.find("one").is_none(), "{part}");
            drop(images.make("one"));
            assert!(snapshot(&images.blobs()) == right, "{part}");
        }
    }
    let list = images.cache().join("index/images/index.json");
    for damaged in ["", "[", "{\"manifests\":7}"] {
        fs::write(&list, damaged).unwrap();
        assert!(images.find("one").is_none());
        drop(images.make("one"));
        assert!(images.find("one").is_some());
    }
}

#[test]
fn a_mount_makes_room_among_blobs_and_indexes() {
    let images = two();
    for name in ["one", "two"] {
        drop(images.make(name));
    }
    let cache = images.cache();
    let blob = (cache.join("b.blob.data"), cache.join("b.blob.map"));
    fs::write(blob.0, noise(9, 40_000)).unwrap();
    File::create(blob.1).unwrap();
    images.used_at("one", SystemTime::now() - Duration::from_secs(3600));
    let besides = BesideBlobs::new(&cache);
    let used = besides.disk_usage();
    assert_eq!(used, images.store.disk_usage().unwrap());
    let room = besides.make_room(used + 40_960 - 1).unwrap();
    let left = besides.disk_usage() + 40_960;
    assert_eq!(room, Room { removed: 1, left });
    assert!(images.find("one").is_none() && images.find("two").is_some());
    let besides = BesideBlobs::new(cache.join("none"));
    assert_eq!(besides.disk_usage(), 0);
}

#[test]
fn files_that_were_sound_are_read_again_after_another_boot() {
    let images = two();
    drop(images.make("one"));
    let note = format!("index/locks/{}.use", images.image("one").1.digest.hex());
    let note = images.cache().join(note);
    let (first, other) = (fs::read(&note).unwrap(), b"another boot\n");
    assert!(!first.is_empty());
    fs::write(&note, other).unwrap();
    assert!(images.find("one").is_some());
    assert_eq!(fs::read(&note).unwrap(), first);
    // As if the damage had been done below the file system.
    let path = images
        .blobs()
        .join(images.make("one").manifest.config.digest.hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[3] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::write(&note, other).unwrap();
    assert!(images.find("one").is_none());
}

#[test]
fn what_was_not_used_for_longest_goes_first_be_it_blob_or_index() {
    let images = two();
    for name in ["one", "two"] {
        drop(images.make(name));
    }
    let cache = images.cache();
    let now = SystemTime::now();
    let ago = |hours: u64| now - Duration::from_secs(3600 * hours);
    for (id, hours) in [("a", 40), ("b", 10)] {
        fs::write(cache.join(format!("{id}.blob.data")), noise(9, 40_000)).unwrap();
        let map = File::create(cache.join(format!("{id}.blob.map"))).unwrap();
        map.set_modified(ago(hours)).unwrap();
    }
    images.used_at("one", ago(30));
    images.used_at("two", ago(20));
    let prune = |what: Prune| {
        let pruned = prune_cache(&cache, &what).unwrap();
        let blobs = pruned.blobs.iter().map(|blob| blob.id.clone());
        let indexes = pruned.indexes.iter().map(|index| index.image.to_string());
        (blobs.chain(indexes).collect::<Vec<_>>(), pruned.left)
    };
    let one = images.image("one").1.digest.to_string();
    let dry = Prune {
        dry_run: true,
        all: true,
        ..Prune::default()
    };
    let before = snapshot(&cache);
    let (all, left) = prune(dry);
    assert_eq!((all.len(), left), (4, 0));
    assert!(snapshot(&cache) == before);

    let whole = prune(Prune::default()).1;
    let a = 40_960;
    let most = |size| Prune {
        max_size: Some(size),
        ..Prune::default()
    };
    let (gone, left) = prune(most(whole - 1));
    assert_eq!((gone, left), (vec!["a".to_owned()], whole - a));
    let (gone, left) = prune(most(left - 1));
    assert_eq!(gone, [one]);
    assert_eq!(left, images.store.disk_usage().unwrap() + a);
    assert!(images.find("one").is_none());
    images.used_at("two", ago(20));
    let old = Prune {
        older_than: Some(Duration::from_secs(3600 * 15)),
        ..Prune::default()
    };
    let two = images.image("two").1.digest.to_string();
    assert_eq!(prune(old), (vec![two], a));
}
