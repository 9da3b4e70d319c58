//! Both kinds of object stores: what is written can be read, and nothing else is left.

use std::io;

use image::{Digest, Store as _};
use progress::Cancel;
use storage::BlobSource;
use testkit::bucket::Bucket;
use testkit::noise;

use crate::support::{LARGE, open, open_config, stream, write};

fn stores() -> [Bucket; 2] {
    [Bucket::s3(), Bucket::oss()]
}

#[test]
fn blobs_are_objects_named_by_prefix_and_digest() {
    for store in stores() {
        let backend = open(&store, "a prefix/+&/");
        let target = backend.target(false);
        for size in [0, 1, 100_000, 8 << 20, (8 << 20) + 1, LARGE] {
            let bytes = noise(7, size);
            let digest = Digest::of(&bytes);
            assert!(!target.contains(&digest, size as u64).unwrap());
            assert_eq!(write(&target, &bytes).unwrap(), size as u64);
            let objects = store.objects();
            let name = format!("a prefix/+&/{}", digest.hex());
            assert!(objects.get(&name) == Some(&bytes), "{store:?} {size}");
            assert!(target.contains(&digest, size as u64).unwrap());
            assert!(!target.contains(&digest, size as u64 + 1).unwrap());

            let blob = backend.open(&digest.hex()).unwrap();
            assert_eq!(blob.size(), size as u64);
            assert!(stream(blob.clone(), 0) == bytes);
            assert!(stream(blob.clone(), size as u64 / 2) == bytes[size / 2..]);
            if size > 100 {
                let mut part = vec![0; size / 3];
                blob.read_exact_at(&mut part, 50).unwrap();
                assert!(part == bytes[50..50 + size / 3]);
            }
            let error = blob
                .read_exact_at(&mut [0; 2], (size as u64).saturating_sub(1))
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(
            store.objects().len(),
            6,
            "{store:?}: no temporary object is left"
        );
        assert_eq!(store.uploads(), 0, "{store:?}");
    }
}

#[test]
fn what_is_there_is_not_written_again_unless_asked_for() {
    for store in stores() {
        let backend = open(&store, "");
        for bytes in [noise(1, 1000), noise(2, LARGE)] {
            write(&backend.target(false), &bytes).unwrap();
            store.requests();
            write(&backend.target(false), &bytes).unwrap();
            let hex = Digest::of(&bytes).hex();
            let puts = |requests: Vec<String>| {
                let own = |line: &String| line.starts_with("PUT") && line.contains(&hex);
                requests.iter().filter(|line| own(line)).count()
            };
            assert_eq!(puts(store.requests()), 0);
            assert_eq!(store.uploads(), 0);
            let force = backend.target(true);
            assert!(
                !force
                    .contains(&Digest::of(&bytes), bytes.len() as u64)
                    .unwrap()
            );
            write(&force, &bytes).unwrap();
            assert_eq!(puts(store.requests()), 1);
        }
        assert_eq!(store.objects().len(), 2);
    }
}

#[test]
fn an_object_of_the_wrong_size_is_replaced() {
    for store in stores() {
        let backend = open(&store, "");
        let (bytes, other) = (noise(1, 1000), noise(1, 999));
        // The right name for other bytes.
        let mut writer = backend.target(false).blob_writer().unwrap();
        io::Write::write_all(&mut writer, &other).unwrap();
        writer.finish(Digest::of(&bytes)).unwrap();
        assert_eq!(store.objects()[&Digest::of(&bytes).hex()].len(), 999);
        write(&backend.target(false), &bytes).unwrap();
        assert!(store.objects()[&Digest::of(&bytes).hex()] == bytes);
    }
}

#[test]
fn an_absent_blob_is_named_with_its_place() {
    for store in stores() {
        let backend = open(&store, "");
        let digest = Digest::of(b"absent");
        let error = BlobSource::open(&backend, &digest.hex()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(&digest.hex()), "{error}");
        let error = backend.blob(&digest, None).err().unwrap();
        assert!(matches!(error, image::Error::MissingBlob { .. }), "{error}");
        assert!(
            error.to_string().contains("bucket blobs at 127.0.0.1:"),
            "{error}"
        );
        for id in ["", "../x", "a/b", ".hidden"] {
            assert!(BlobSource::open(&backend, id).is_err(), "{id}");
        }
    }
}

#[test]
fn a_wrong_secret_is_refused_and_shown_nowhere() {
    for store in stores() {
        let backend = open_config(store.kind(), &store.config_with("", "wrong-sesame"));
        let text = match write(&backend.target(false), b"bytes") {
            Err(error) => format!("{error} {error:?} {backend:?}"),
            Ok(_) => panic!("{store:?}"),
        };
        assert!(
            text.contains("403") && text.contains("SignatureDoesNotMatch"),
            "{text}"
        );
        assert!(!text.contains("sesame"), "{text}");
        assert!(store.objects().is_empty());
    }
}

#[test]
fn an_upload_that_is_dropped_leaves_nothing() {
    for store in stores() {
        let backend = open(&store, "");
        let mut writer = backend.target(false).blob_writer().unwrap();
        io::Write::write_all(&mut writer, &noise(1, LARGE)).unwrap();
        assert!(store.uploads() > 0, "parts have gone out");
        drop(writer);
        assert_eq!(store.uploads(), 0, "{store:?}");
        assert!(store.objects().is_empty());
    }
}

#[test]
fn an_upload_that_is_cancelled_leaves_nothing() {
    for store in stores() {
        let cancel = Cancel::default();
        let settings = registry::Settings {
            cancel: cancel.clone(),
            ..crate::support::settings()
        };
        let kind = store.kind().parse().unwrap();
        let config = backend::Config::parse(kind, &store.config("")).unwrap();
        let client = registry::Client::new(settings).unwrap();
        let backend = backend::Backend::open(&config, &client).unwrap();
        let mut writer = backend.target(false).blob_writer().unwrap();
        let bytes = noise(1, LARGE);
        io::Write::write_all(&mut writer, &bytes).unwrap();
        cancel.cancel();
        let error = writer.finish(Digest::of(&bytes)).unwrap_err();
        assert!(matches!(error, image::Error::Cancelled(_)), "{error}");
        assert_eq!(store.uploads(), 0, "{store:?}");
        assert!(store.objects().is_empty());
    }
}
