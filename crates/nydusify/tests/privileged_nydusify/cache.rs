//! `nydusify cache`, over a cache that mounts share.

use std::process::Command;

use serde_json::Value;
use testkit::fixture;
use testkit::run::{Ran, output, run};

use crate::support::*;

/// Runs `nydusify` with its default cache directory in `place`.
fn nydusify(place: &Place, words: &[&str]) -> Ran {
    let mut command = Command::new(NYDUSIFY);
    output(command.args(words).env("XDG_CACHE_HOME", place.path("xdg")))
}

fn json(ran: Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn privileged_mounts_share_the_default_cache_and_it_is_looked_after() {
    const TEST: &str = "privileged_mounts_share_the_default_cache_and_it_is_looked_after";
    let Some(place) = Place::new(TEST) else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let roots = ["one", "two"].map(|name| place.path(name).display().to_string());
    // At the same moment.
    std::thread::scope(|scope| {
        for root in &roots {
            let words = ["mount", "--detach", "--prefetch", "--target", &target];
            let words: Vec<&str> = words
                .iter()
                .copied()
                .chain(["--mount-path", root])
                .collect();
            let place = &place;
            scope.spawn(move || nydusify(place, &words).ok());
        }
    });
    for root in &roots {
        assert_equal(&fixture::busybox_expect().compare(root.as_ref()));
    }
    let list = json(nydusify(&place, &["cache", "ls", "--output", "json"]).ok());
    let blob = &list[0];
    assert_eq!(blob["in_use"], true, "{list}");
    assert_eq!(blob["processes"].as_array().unwrap().len(), 2, "{list}");
    let table = nydusify(&place, &["cache", "ls"]);
    let id = blob["id"].as_str().unwrap();
    assert!(table.stdout.contains(&id[..16]), "{}", table.stdout);
    let pruned = json(nydusify(&place, &["cache", "prune", "--all", "--output", "json"]).ok());
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 0, "{pruned}");
    for root in &roots {
        run(NYDUSIFY, ["umount", root]).ok();
    }
    let list = json(nydusify(&place, &["cache", "ls", "--output", "json"]).ok());
    assert_eq!(list[0]["complete"], true, "{list}");
    assert_eq!(list[0]["in_use"], false, "{list}");

    nydusify(&place, &["cache", "verify"]).ok();
    let data = place
        .path("xdg/nydusify/blobs")
        .join(format!("{id}.blob.data"));
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    let verified = nydusify(&place, &["cache", "verify"]).exits(1);
    assert!(verified.stdout.contains("chunk 0"), "{}", verified.stdout);
    nydusify(&place, &["cache", "verify"]).ok();
    let usage = json(nydusify(&place, &["cache", "du", "--output", "json"]).ok());
    let blobs = list.as_array().unwrap().len();
    assert_eq!(usage["blobs"], blobs, "{usage}");
    assert_eq!(usage["blobs_in_use"], 0, "{usage}");

    let dry = ["cache", "prune", "--older-than", "0s", "--dry-run"];
    let dry = nydusify(&place, &dry).ok();
    let all = format!("would remove {blobs} blobs");
    assert!(dry.stdout.contains(&all), "{}", dry.stdout);
    nydusify(&place, &["cache", "prune", "--max-size", "1"]).ok();
    assert!(!data.exists());
    nydusify(&place, &["cache", "prune"]).exits(2);
}
