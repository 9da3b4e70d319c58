//! Every target runs on its seeds, and on seeds that were changed at random but always the same way.

use std::path::PathBuf;

use fuzz_targets::{TARGETS, Target};
use testkit::change::change;

/// The seeds of a target, by name of the file.
fn seeds(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = testkit::workspace().join("fuzz/seeds").join(target.name);
    let mut seeds: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| {
            let path = entry.expect("the directory can be read").path();
            let bytes = std::fs::read(&path).expect("the seed can be read");
            (path, bytes)
        })
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn seeds_and_what_becomes_of_them_show_no_bug() {
    for target in TARGETS {
        let seeds = seeds(&target);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for (path, seed) in &seeds {
            println!("{}", path.display());
            (target.run)(seed);
        }
        let mut seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, seed)| seed).collect();
        seeds.extend((target.samples)());
        for number in 0..target.changes {
            let input = change(&seeds, u64::from(number));
            // Shown if it fails.
            println!("{} {number}", target.name);
            (target.run)(&input);
        }
    }
}

#[test]
fn every_target_has_a_binary_that_calls_it() {
    let fuzz = testkit::workspace().join("fuzz");
    let read = |name: &str| {
        std::fs::read_to_string(fuzz.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for Target { name, .. } in TARGETS {
        let call = format!("fuzz_targets::run(\"{name}\", input)");
        assert!(
            read(&format!("fuzz_targets/{name}.rs")).contains(&call),
            "{name}"
        );
    }
    let manifest = read("Cargo.toml");
    let binaries: Vec<&str> = manifest
        .split("[[bin]]\nname = \"")
        .skip(1)
        .filter_map(|entry| entry.split('"').next())
        .collect();
    assert_eq!(binaries, TARGETS.map(|target| target.name));
}
