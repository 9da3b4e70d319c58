//! Keys that a program gives, by the configuration that names it.

use std::fs;

use image::Digest;
use testkit::bucket::{Bucket, KEY_ID, SECRET};
use testkit::noise;

use crate::support::{LARGE, Relay, open_config, read_all, settings, write};

/// The configuration of a store whose key a program gives, which notes its runs.
fn config(store: &Bucket, dir: &std::path::Path) -> serde_json::Value {
    let script = format!(
        "echo run >> '{runs}'\n\
         echo '{{\"Version\":1,\"AccessKeyId\":\"{KEY_ID}\",\"SecretAccessKey\":\"{SECRET}\",\"SessionToken\":\"of+these/days==\"}}'\n",
        runs = dir.join("runs").display()
    );
    fs::write(dir.join("a helper"), script).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&store.config("p/")).unwrap();
    let keys = config.as_object_mut().unwrap();
    keys.remove("access_key_id");
    keys.remove("access_key_secret");
    let command = format!("sh \"{}\" --for blobs", dir.join("a helper").display());
    keys.insert("credential_process".to_owned(), command.into());
    config
}

#[test]
fn blobs_are_written_and_read_with_the_key_of_a_program() {
    for store in [Bucket::s3(), Bucket::oss()] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&store, dir.path());
        let runs = || {
            fs::read_to_string(dir.path().join("runs"))
                .unwrap()
                .lines()
                .count()
        };
        let bytes = noise(5, LARGE);
        let backend = open_config(store.kind(), &config.to_string());
        write(&backend.target(false), &bytes).unwrap();
        assert_eq!(runs(), 1);
        assert_eq!((store.objects().len(), store.uploads()), (1, 0));

        // All ways to the store share the key: the proxy that is asked first, and the direct one.
        let relay = Relay::start();
        config["proxy"] = serde_json::json!({ "url": relay.url() });
        let blobs = backend::open_source(store.kind(), &config.to_string(), &settings(), None);
        let blobs = blobs.unwrap();
        read_all(&blobs, &Digest::of(&bytes).hex(), &bytes);
        assert_eq!(runs(), 2);
        let heads = relay.heads();
        let token = match store.kind() {
            "s3" => "x-amz-security-token: of+these/days==",
            _ => "x-oss-security-token: of+these/days==",
        };
        assert!(!heads.is_empty());
        assert!(heads.iter().all(|head| head.contains(token)), "{heads:?}");
    }
}
