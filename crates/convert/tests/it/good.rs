//! Images that convert, each proved equal to its source by the check that precedes the tag.

use std::num::NonZeroUsize;

use convert::{ConvertOptions, DedupScope};
use image::{Digest, Location, media, nydus};
use rafs_format::{Bootstrap, Compressor};
use serde_json::json;
use testkit::layout::{self, Flavour, Layer, Layout, Packing};
use testkit::tar::{BLOCK, Entry, Tar};
use testkit::{noise, prose};

use crate::world::{World, layer, oci, options, snapshot, tar};

fn bootstrap(world: &World) -> Bootstrap<Vec<u8>> {
    let bytes = nydus::read_bootstrap(&world.open(), &world.manifest()).unwrap();
    let bootstrap = Bootstrap::parse(bytes).unwrap();
    bootstrap.check().unwrap();
    bootstrap
}

#[test]
fn odd_images_convert() {
    let corner = testkit::corner::image();
    for packing in [Packing::GzipMembers, Packing::Zstd] {
        let world = World::new();
        layout::write(&world.source(), &corner.layers, packing);
        world
            .convert(&ConvertOptions {
                chunk_size: 1 << 20,
                ..options()
            })
            .unwrap();
        assert_eq!(world.manifest().layers.len(), 4);
    }
}

#[test]
fn every_option_gives_an_equal_image() {
    let world = World::new();
    let layers = [1, 2, 1].map(|seed| tar("a", &prose(seed, 200_000)));
    layout::write(&world.source(), &layers, Packing::None);
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
        for dedup in [DedupScope::Layer, DedupScope::Image] {
            let report = world
                .convert(&ConvertOptions {
                    compressor,
                    dedup,
                    chunk_size: 0x1_0000,
                    ..options()
                })
                .unwrap();
            assert_eq!((report.converted, report.copied), (1, 0));
            assert_eq!(bootstrap(&world).compressor(), compressor);
        }
    }
}

#[test]
fn the_result_depends_on_nothing_but_input_and_options() {
    let corner = testkit::corner::image();
    let world = World::new();
    layout::write(&world.source(), &corner.layers, Packing::Gzip);
    for dedup in [DedupScope::Layer, DedupScope::Image] {
        let mut digests = Vec::new();
        for (threads, memory) in [(1, 1 << 20), (5, 3 << 20), (2, 64 << 20)] {
            let threads = NonZeroUsize::new(threads).unwrap();
            let options = ConvertOptions {
                threads,
                memory,
                dedup,
                check: false,
                ..options()
            };
            digests.push(world.convert(&options).unwrap().digest);
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "{dedup:?}");
    }
}

#[test]
fn the_documents_are_those_of_a_nydus_image() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let layers = [layer("a", b"one"), layer("b", b"two")];
    let manifest = source.manifest_with(&layers, Flavour::Oci, |manifest, config| {
        manifest["annotations"] = json!({"kept": "yes"});
        config["unknown"] = json!({"z": 1, "a": [null]});
    });
    source.tag(&manifest, "v1");
    world
        .convert(&ConvertOptions {
            source_name: Some("v1".to_owned()),
            ..options()
        })
        .unwrap();

    let target = world.manifest();
    assert_eq!(target.media_type, media::OCI_MANIFEST);
    assert_eq!(target.config.media_type, media::OCI_CONFIG);
    let annotations = target.annotations.clone().unwrap();
    assert_eq!(annotations["kept"], "yes");
    assert_eq!(
        annotations[nydus::ANNOTATION_SOURCE_DIGEST],
        manifest["digest"].as_str().unwrap()
    );
    assert_eq!(annotations[nydus::ANNOTATION_SOURCE_REFERENCE], "v1");
    assert_eq!(annotations[nydus::ANNOTATION_FS_VERSION], "6");
    let [a, b, boot] = &target.layers[..] else {
        panic!("two blobs and a bootstrap")
    };
    for blob in [a, b] {
        assert_eq!(blob.media_type, nydus::BLOB_MEDIA_TYPE);
        assert_eq!(blob.annotation(nydus::ANNOTATION_BLOB), Some("true"));
    }
    assert_eq!(boot.media_type, media::OCI_LAYER_GZIP);
    assert_eq!(boot.annotation(nydus::ANNOTATION_BOOTSTRAP), Some("true"));
    assert_eq!(boot.annotation(nydus::ANNOTATION_FS_VERSION), Some("6"));

    let config = world.config();
    assert_eq!(config["unknown"], json!({"z": 1, "a": [null]}));
    assert_eq!(config["created"], "2024-01-02T03:04:05Z");
    let ids = nydus::diff_ids(&config, "c").unwrap();
    let (_, diff_id) = nydus::unpack_bootstrap(world.open().open_blob(boot).unwrap(), "b").unwrap();
    assert_eq!(ids, [a.digest, b.digest, diff_id]);
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.len(), 3);
    assert_eq!(
        history[2],
        json!({"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"})
    );
}

#[test]
fn docker_types_stay_unless_oci_is_asked_for() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let manifest = source.manifest(&[Layer::docker(&tar("a", b"x"))], Flavour::Docker);
    source.tag(&manifest, "t");
    world.convert(&options()).unwrap();
    let target = world.manifest();
    assert_eq!(target.media_type, media::DOCKER_MANIFEST);
    assert_eq!(target.config.media_type, media::DOCKER_CONFIG);
    assert_eq!(target.layers[1].media_type, media::DOCKER_LAYER_GZIP);

    world
        .convert(&ConvertOptions {
            oci: true,
            ..options()
        })
        .unwrap();
    let target = world.manifest();
    assert_eq!(target.media_type, media::OCI_MANIFEST);
    assert_eq!(target.config.media_type, media::OCI_CONFIG);
    assert_eq!(target.layers[1].media_type, media::OCI_LAYER_GZIP);
}

#[test]
fn a_layer_that_occurs_twice_is_listed_twice() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let a = layer("a", &prose(1, 50_000));
    let manifest = source.manifest(&[a.clone(), layer("b", b"b"), a], Flavour::Oci);
    source.tag(&manifest, "t");
    for dedup in [DedupScope::Layer, DedupScope::Image] {
        world
            .convert(&ConvertOptions { dedup, ..options() })
            .unwrap();
        let layers = world.manifest().layers;
        assert_eq!(layers.len(), 4);
        assert_eq!(layers[0], layers[2]);
        assert_ne!(layers[0], layers[1]);
    }
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let world = World::new();
    layout::write(&world.source(), &[], Packing::Gzip);
    world.convert(&options()).unwrap();
    assert_eq!(world.manifest().layers.len(), 1);
    let bootstrap = bootstrap(&world);
    assert_eq!(bootstrap.blobs().len(), 0);
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    assert_eq!(bootstrap.entries(&root).unwrap().count(), 2);
}

#[test]
fn layers_without_data_have_blobs_too() {
    let world = World::new();
    let mut only_directories = Tar::new();
    only_directories.add(Entry::directory("only/"));
    layout::write(
        &world.source(),
        &[Tar::new().finish(), only_directories.finish()],
        Packing::Gzip,
    );
    world.convert(&options()).unwrap();
    assert_eq!(world.manifest().layers.len(), 3);
    assert_eq!(bootstrap(&world).blobs().len(), 0);
}

/// Two zero blocks end a layer, as in containerd; what follows is part of its digest alone.
#[test]
fn a_layer_ends_at_its_end_mark() {
    let world = World::new();
    let alone = tar("a", b"x");
    let mut followed = alone.clone();
    followed.extend(tar("b", b"y"));
    let mut files = Vec::new();
    for layer in [alone, followed] {
        layout::write(&world.source(), &[layer], Packing::Gzip);
        world.convert(&options()).unwrap();
        files.push(builder::load_image(&bootstrap(&world)).unwrap().tree);
        std::fs::remove_dir_all(world.source()).unwrap();
    }
    assert_eq!(files[0], files[1]);
    let mut broken = Tar::new();
    broken
        .add(Entry::file("a", b"x"))
        .raw(&[0; BLOCK])
        .add(Entry::file("b", b"y"));
    layout::write(&world.source(), &[broken.finish()], Packing::Gzip);
    let error = world.convert(&options()).unwrap_err();
    let text = crate::world::chain(&error);
    assert!(text.contains("single zero block"), "{text}");
}

/// Its tree is laid over the others once, and the result is the same.
#[test]
fn a_layer_listed_many_times_is_merged_once() {
    let world = World::new();
    let mut layer = Tar::new();
    for number in 0..200 {
        layer.add(Entry::file(format!("dir/{number}"), b"x"));
    }
    layer.add(Entry::file("dir/.wh.gone", b""));
    let mut layers = vec![tar("gone", b"y"), layer.finish()];
    layers.extend(std::iter::repeat_n(layers[1].clone(), 40));
    layers.push(tar("top", b"z"));
    layout::write(&world.source(), &layers, Packing::Gzip);
    world.convert(&options()).unwrap();
    assert_eq!(world.manifest().layers.len(), layers.len() + 1);
    assert_eq!(bootstrap(&world).superblock().inos, 203);
}

#[test]
fn sharing_chunks_in_the_image_stores_them_once() {
    let world = World::new();
    let data = noise(3, 1_000_000);
    layout::write(
        &world.source(),
        &[tar("a", &data), tar("b", &data)],
        Packing::Gzip,
    );
    let separate = world.convert(&options()).unwrap().target_size;
    let shared = world
        .convert(&ConvertOptions {
            dedup: DedupScope::Image,
            ..options()
        })
        .unwrap()
        .target_size;
    assert!(shared + 900_000 < separate, "{shared} {separate}");
    assert_eq!(bootstrap(&world).blobs().len(), 1);
}

#[test]
fn a_nydus_image_passes_unchanged() {
    let world = World::new();
    layout::write(&world.source(), &[tar("a", b"x")], Packing::Gzip);
    let first = world.convert(&options()).unwrap();
    let again = World::new();
    let report = again
        .convert_from(&oci(&world.target(), None), &options())
        .unwrap();
    assert_eq!(report.digest, first.digest);
    assert_eq!((report.converted, report.copied), (0, 1));
    for (path, content) in snapshot(&again.target().join("blobs")) {
        assert_eq!(
            Digest::of(&content).hex(),
            path.file_name().unwrap().to_str().unwrap()
        );
    }
}

#[test]
fn archives_hold_what_layouts_hold() {
    let world = World::new();
    layout::write(
        &world.source(),
        &[tar("a", &noise(1, 100_000)), tar("b", b"y")],
        Packing::Zstd,
    );
    let want = world.convert(&options()).unwrap();

    let archive = world.path("source.tar");
    std::fs::write(&archive, layout::oci_archive(&world.source())).unwrap();
    let mut written = Vec::new();
    for (number, threads) in [1, 4].into_iter().enumerate() {
        let file = world.path(&format!("out{number}.tar"));
        let target = Location::OciArchive {
            file: file.clone(),
            tag: Some("docker.io/x/y:z".to_owned()),
        };
        let source = Location::OciArchive {
            file: archive.clone(),
            tag: None,
        };
        let options = ConvertOptions {
            threads: NonZeroUsize::new(threads).unwrap(),
            ..options()
        };
        let report = convert::convert(
            &source,
            &target,
            &options,
            &progress::Silent,
            &progress::Cancel::default(),
        )
        .unwrap();
        assert_eq!(report.digest, want.digest);
        let back = image::Source::open(&target).unwrap();
        assert_eq!(back.root().digest, want.digest);
        assert!(
            image::Source::open(&Location::OciArchive {
                file: file.clone(),
                tag: Some("z".to_owned())
            })
            .is_ok()
        );
        for (descriptor, manifest) in back.manifests(&image::PlatformChoice::All).unwrap() {
            for blob in manifest
                .layers
                .iter()
                .chain([&manifest.config, &descriptor])
            {
                back.verify_blob(blob).unwrap();
            }
        }
        written.push(std::fs::read(file).unwrap());
    }
    assert!(
        written[0] == written[1],
        "the archive is the same, byte by byte"
    );
}

#[test]
fn what_docker_saves_converts() {
    let world = World::new();
    let file = world.path("saved.tar");
    std::fs::write(
        &file,
        layout::docker_archive(&[tar("a", b"x"), tar("b", b"y")], "name:v2"),
    )
    .unwrap();
    for tag in [None, Some("v2".to_owned()), Some("name:v2".to_owned())] {
        let source = Location::DockerArchive {
            file: file.clone(),
            tag,
        };
        world.convert_from(&source, &options()).unwrap();
        assert_eq!(world.manifest().media_type, media::DOCKER_MANIFEST);
        assert_eq!(world.manifest().layers.len(), 3);
    }
}

#[test]
fn other_tags_of_the_target_stay() {
    let world = World::new();
    layout::write(&world.source(), &[tar("a", b"x")], Packing::Gzip);
    // Into the very layout the source is in.
    let both = oci(&world.source(), Some("new"));
    let report = convert::convert(
        &oci(&world.source(), Some("latest")),
        &both,
        &options(),
        &progress::Silent,
        &progress::Cancel::default(),
    )
    .unwrap();
    assert_eq!(
        image::Source::open(&both).unwrap().root().digest,
        report.digest
    );
    assert_ne!(
        image::Source::open(&oci(&world.source(), Some("latest")))
            .unwrap()
            .root()
            .digest,
        report.digest
    );
}

#[test]
fn prefetch_patterns_end_up_in_the_bootstrap() {
    let world = World::new();
    layout::write(&world.source(), &[tar("a", b"x")], Packing::Gzip);
    let count = |prefetch: &[&str]| {
        let prefetch = prefetch
            .iter()
            .map(|path| path.as_bytes().to_vec())
            .collect();
        world
            .convert(&ConvertOptions {
                prefetch,
                ..options()
            })
            .unwrap();
        bootstrap(&world).prefetch().count()
    };
    assert_eq!(count(&["/"]), 1);
    assert_eq!(count(&["/dir/a", "/not/there"]), 1);
    assert_eq!(count(&[]), 0);
}

#[test]
fn every_reference_image_converts() {
    let Some(shared) = testkit::shared_or_skip("every_reference_image_converts") else {
        return;
    };
    let world = World::new();
    let options = ConvertOptions {
        chunk_size: 1 << 20,
        ..options()
    };
    for tag in ["base", "python", "app-1", "app-2", "node"] {
        world
            .convert_from(&oci(&shared.join("images"), Some(tag)), &options)
            .unwrap();
    }
    world
        .convert_from(&oci(&shared.join("torture/image"), None), &options)
        .unwrap();
}
