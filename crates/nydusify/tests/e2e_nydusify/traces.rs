//! What is made of traces, without mounts: lists of what is needed first, explanations; and what two images share.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use testkit::run::{Ran, run};

use crate::support::*;

/// The bootstrap of the image `tag` in a layout, as `image/image.boot` has it.
fn bootstrap(place: &Place, layout: &str, tag: &str) -> Vec<u8> {
    let location: image::Location = place.oci(layout, tag).parse().unwrap();
    let source = image::Source::open(&location).unwrap();
    let (_, manifest) = source
        .manifests(&image::PlatformChoice::Host)
        .unwrap()
        .swap_remove(0);
    image::nydus::read_bootstrap(&source, &manifest).unwrap()
}

/// A trace of an image with this bootstrap, in which these files are read.
fn trace(place: &Place, name: &str, bootstrap: &[u8], files: &[&str]) -> PathBuf {
    let digest = trace::bootstrap_digest(bootstrap);
    let mut text = format!(
        "{{\"trace\":1,\"image\":\"app\",\"bootstrap\":\"{digest}\",\"started\":1,\"blobs\":[\"aa\"]}}\n\
         {{\"event\":\"serving\",\"at\":0,\"mode\":\"fuse\",\"process\":1}}\n\
         {{\"event\":\"fetch\",\"at\":10,\"waited\":0,\"took\":900,\"number\":0,\"purpose\":\"read\",\"blob\":0,\"offset\":0,\"size\":4000}}\n\
         {{\"event\":\"chunk\",\"at\":910,\"took\":20,\"fetch\":0,\"chunk\":[0,77],\"size\":9000,\"stored\":3000,\"file\":\"/nobody/reads/this\",\"offset\":0}}\n"
    );
    for (number, file) in files.iter().enumerate() {
        // The same in all traces.
        let chunk: u32 = file.bytes().map(u32::from).sum();
        text += &format!(
            "{{\"event\":\"read\",\"at\":{},\"took\":1000,\"file\":\"{file}\",\"offset\":0,\"size\":10,\"chunks\":[[0,{chunk}]]}}\n",
            number * 100
        );
    }
    let path = place.path(name);
    fs::write(&path, text).unwrap();
    path
}

#[track_caller]
fn optimize(before: &str, after: &str, traces: &[&PathBuf]) -> Ran {
    let words = ["optimize", "--source", before, "--target", after];
    let traces = traces
        .iter()
        .flat_map(|path| ["--trace", path.to_str().unwrap()]);
    run(NYDUSIFY, words.into_iter().chain(traces))
}

#[test]
fn what_a_start_read_comes_first() {
    let place = Place::new();
    let (before, after) = (place.oci("layout", "before"), place.oci("other", "after"));
    convert(&fixture(), &before, &[]).ok();
    let boot = bootstrap(&place, "layout", "before");
    let first = trace(&place, "first", &boot, &["/etc/motd", "/app/main"]);
    let second = trace(
        &place,
        "second",
        &boot,
        &["/app/main", "/nowhere", "/bin/busybox"],
    );
    // Whoever recorded it was killed.
    let mut text = fs::read(&second).unwrap();
    text.extend(b"{\"event\":\"re");
    fs::write(&second, text).unwrap();
    let ran = optimize(&before, &after, &[&first, &second]).ok();
    assert!(
        ran.stderr.contains("/nowhere: the image has no such file"),
        "{ran}"
    );
    check(&fixture(), &after).ok().says(&["verified image"]);
    let boot = bootstrap(&place, "other", "after");
    let loaded = storage::LoadedBootstrap::from_bytes(boot.clone()).unwrap();
    let last = loaded.blobs().last().unwrap();
    assert!(last.chunk_count >= 2, "{last:?}");

    // It has another bootstrap now, and its first chunks are others.
    let ran = optimize(&after, &place.oci("other", "again"), &[&first]).exits(1);
    ran.fails_with(&["first", "trace of another image", "trace this one"]);
    assert_clean(&place.path("none"), "again");
    assert_eq!(tagged(&place.path("other"), "again"), Vec::<Value>::new());
    let list = place.path("list");
    fs::write(&list, "hello\n").unwrap();
    let ran = optimize(&before, &place.oci("none", "again"), &[&list]).exits(1);
    ran.fails_with(&["no trace of a mount"]);
    let mut text = fs::read(&first).unwrap();
    text.extend(b"{}\n");
    fs::write(&list, text).unwrap();
    let ran = optimize(&before, &place.oci("none", "again"), &[&list]).exits(1);
    ran.fails_with(&["line 7", "damaged"]);
    assert_clean(&place.path("none"), "again");
}

#[test]
fn a_trace_is_explained() {
    let place = Place::new();
    let usual = trace(&place, "usual", b"a", &["/a", "/b"]);
    let now = trace(&place, "now", b"a", &["/a", "/<script>"]);
    let page = place.path("page.html");
    let [usual, now, html] = [&usual, &now, &page].map(|path| path.to_str().unwrap());
    let ran = run(NYDUSIFY, ["explain", usual, now, "--html", html]).ok();
    for part in [
        "1.1 ms from the first read to the last",
        "2 of 2 files",
        "reads waited for the network",
        "fetched and not read: 1 chunks",
        "/nobody/reads/this",
        "in none of the traces before: 1 files\n  /<script>",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {ran}");
    }
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("/&lt;script&gt;") && !page.contains("<script"));
    for elsewhere in ["http://", "https://", "src=", "href="] {
        assert!(!page.contains(elsewhere), "{elsewhere} in the page");
    }
    let ran = run(NYDUSIFY, ["explain", now, "--output", "json"]).ok();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["totals"]["requests"], 1);
    assert_eq!(report["unread"][0]["bytes"], 3000);
    assert_eq!(report["new_files"], Value::Null);
    // One of another image is of use, but not without a word.
    let other = trace(&place, "other", b"b", &["/a"]);
    let ran = run(NYDUSIFY, ["explain", other.to_str().unwrap(), now]).ok();
    assert!(ran.stderr.contains("trace of another image"), "{ran}");
    run(NYDUSIFY, ["explain", html])
        .exits(1)
        .fails_with(&["no trace of a mount"]);
}

#[test]
fn images_are_compared() {
    let place = Place::new();
    let (a, b) = (place.oci("layout", "a"), place.oci("layout", "b"));
    convert(&fixture(), &a, &[]).ok();
    convert(&fixture(), &b, &["--fs-chunk-size", "0x10000"]).ok();
    let ran = run(NYDUSIFY, ["diff", &a, &a, "--output", "json"]).ok();
    let same: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(same["schema"], 1);
    assert_eq!(same["changes"], Value::Array(Vec::new()));
    assert_eq!(same["chunks"]["a"], 0);
    assert_eq!(same["chunks"]["b"], 0);
    assert!(same["chunks"]["both"].as_u64().unwrap() > 0);

    let page = place.path("page.html");
    let html = page.to_str().unwrap();
    let ran = run(NYDUSIFY, ["diff", &a, &b, "--html", html]).ok();
    assert!(ran.stdout.contains("no chunk is shared"), "{ran}");
    assert!(
        fs::read_to_string(page)
            .unwrap()
            .contains("no chunk is shared")
    );

    let boot = bootstrap(&place, "layout", "a");
    let busybox = trace(&place, "trace", &boot, &["/bin/busybox"]);
    let optimized = place.oci("layout", "optimized");
    optimize(&a, &optimized, &[&busybox]).ok();
    let ran = run(NYDUSIFY, ["diff", &a, &optimized, "--output", "json"]).ok();
    let moved: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(moved["changes"], Value::Array(Vec::new()));
    assert_eq!(moved["blobs"]["b"], 1);
    run(NYDUSIFY, ["diff", &a, &fixture()])
        .exits(1)
        .fails_with(&["not a Nydus image", "convert it first"]);
}
