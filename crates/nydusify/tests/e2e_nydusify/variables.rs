//! Options out of the environment.

use std::process::Command;

use testkit::run::Ran;

use crate::support::{NYDUSIFY, Place, convert, fixture, tagged};

fn run_with(variables: &[(&str, &str)], words: &[&str]) -> Ran {
    let output = Command::new(NYDUSIFY)
        .args(words)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    Ran::new(words.join(" "), output)
}

/// Scripts export variables that are empty when they are not meant.
#[test]
fn an_empty_variable_is_none() {
    let place = Place::new();
    let (source, target) = (fixture(), place.oci("nydus", "v6"));
    let empty = [
        "BACKEND_CONFIG",
        "BACKEND_TYPE",
        "COMPRESSOR",
        "FS_CHUNK_SIZE",
        "FS_VERSION",
        "LOG_LEVEL",
        "MULTI_PLATFORM",
        "NYDUSD",
        "NYDUS_IMAGE",
        "OUTPUT_JSON",
        "PREFETCH_PATTERNS",
        "SOURCE_ARCHIVE",
        "TARGET_INSECURE",
        "WORK_DIR",
    ]
    .map(|name| (name, ""));
    run_with(
        &empty,
        &["convert", "--source", &source, "--target", &target],
    )
    .ok();
    run_with(&empty, &["check", "--source", &source, "--target", &target]).ok();
    let ran = run_with(&[("TARGET", "")], &["mount"]).exits(2);
    assert!(ran.stderr.contains("--target"), "{ran}");
    let ran = run_with(&[("BACKEND_TYPE", "oss")], &["mount", "--target", &target]).exits(2);
    assert!(
        ran.stderr
            .contains("--backend-type oss: its configuration is empty"),
        "{ran}"
    );
}

/// `TARGET` may be set for other commands.
#[test]
fn the_target_of_the_environment_gives_way_to_a_bootstrap() {
    let place = Place::new();
    let words = ["check", "--bootstrap", "nowhere.boot"];
    let ran = run_with(&[("TARGET", "oci:nowhere:v6")], &words).exits(1);
    assert!(ran.stderr.contains("nowhere.boot: cannot open"), "{ran}");
    convert(&fixture(), &place.oci("nydus", "v6"), &[]).ok();
    let target = place.oci("nydus", "v6");
    run_with(&[("TARGET", &target)], &["check"]).ok();
}

/// Scripts append options to those of other scripts.
#[test]
fn the_last_of_several_options_wins() {
    let place = Place::new();
    let target = place.oci("nydus", "second");
    let more = [
        "--target",
        &target,
        "--fs-align-chunk",
        "--backend-aligned-chunk",
    ];
    convert(&fixture(), &place.oci("nydus", "first"), &more).ok();
    assert_eq!(tagged(&place.path("nydus"), "first").len(), 0);
    assert_eq!(tagged(&place.path("nydus"), "second").len(), 1);
}
