//! `cargo xtask lint`: what a reviewer should not have to look for.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{licences, system, test};

/// Our crates by level: each depends only on crates of lower levels.
const LEVELS: [&[&str]; 12] = [
    &["rafs-format", "progress", "build-info", "sys"],
    &["codec"],
    &["tree"],
    &["bootstrap"],
    &["layer", "storage", "chunkdict"],
    &["image", "chunkdict-store", "trace"],
    &["registry"],
    &["backend"],
    &["builder", "verify", "inspect", "export"],
    &["convert", "mount", "container"],
    &["nydus-image", "nydusify"],
    &["testkit", "fuzz-targets", "bench", "manual", "xtask"],
];

/// Dependencies that the levels alone would allow: (crate, what it must not depend on).
const FORBIDDEN: [(&str, &str); 6] = [
    ("mount", "builder"),
    ("mount", "verify"),
    ("mount", "registry"),
    ("builder", "registry"),
    ("verify", "registry"),
    ("inspect", "registry"),
];

/// Crates for development: they may use each other, and others may not use them outside of tests.
const DEVELOPMENT: [&str; 5] = ["testkit", "fuzz-targets", "bench", "manual", "xtask"];

/// Files that are looked at for characters beyond ASCII and for marks of an unfinished merge.
const TEXT: [&str; 7] = ["rs", "toml", "md", "sh", "run", "justfile", "stderr"];

/// A check that says what is wrong.
type Lint = fn() -> Result<()>;

/// Runs the lints named, or all, and reports those that fail.
pub fn run(only: &[String]) -> Result<()> {
    let lints: [(&str, Lint); 6] = [
        ("format", || {
            system::run(system::cargo().args(["fmt", "--all", "--check"]))
        }),
        ("clippy", || {
            let arguments = [
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ];
            system::run(system::cargo().args(arguments))
        }),
        ("fuzz", fuzz_targets),
        ("dependencies", dependencies),
        ("text", text),
        ("licences", licences::check),
    ];
    if let Some(unknown) = only
        .iter()
        .find(|name| !lints.iter().any(|(known, _)| known == name))
    {
        let known: Vec<&str> = lints.iter().map(|(name, _)| *name).collect();
        bail!("no lint {unknown}; there are {}", known.join(", "));
    }
    let mut failed = Vec::new();
    for (name, lint) in lints {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        match lint() {
            Ok(()) => println!("lint {name}: ok"),
            Err(error) => {
                println!("lint {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("lints failed: {}", failed.join(", "));
    }
    Ok(())
}

fn level(name: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&name))
}

fn dependencies() -> Result<()> {
    let metadata = test::metadata()?;
    let mut wrong = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
    {
        let name = package["name"].as_str().context("a package has no name")?;
        let Some(own) = level(name) else {
            wrong.push(format!("{name}: has no level in xtask/src/lint.rs"));
            continue;
        };
        for dependency in package["dependencies"]
            .as_array()
            .context("a package lists no dependencies")?
        {
            let other = dependency["name"]
                .as_str()
                .context("a dependency has no name")?;
            let Some(level) = level(other).filter(|_| dependency["kind"].is_null()) else {
                continue;
            };
            let upward = level >= own && !DEVELOPMENT.contains(&name);
            if upward || FORBIDDEN.contains(&(name, other)) {
                wrong.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

fn text() -> Result<()> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(testkit::workspace())
        .output()
        .context("git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", output.status);
    }
    let mut wrong = Vec::new();
    for name in String::from_utf8(output.stdout)?.split_terminator('\0') {
        if !TEXT.contains(&name.rsplit(['.', '/']).next().unwrap_or_default()) {
            continue;
        }
        let Ok(text) = std::fs::read(testkit::workspace().join(name)) else {
            continue;
        };
        let lines = text.split(|byte| *byte == b'\n').enumerate();
        wrong.extend(
            lines
                .filter(|(_, line)| !line.is_ascii() || is_merge_mark(line))
                .map(|(at, _)| format!("{name}:{}", at + 1)),
        );
    }
    if !wrong.is_empty() {
        bail!(
            "characters beyond ASCII, or a merge's marks, in {}",
            wrong.join(", ")
        );
    }
    Ok(())
}

/// Whether a line is what git puts around a conflict.
fn is_merge_mark(line: &[u8]) -> bool {
    let mark = |byte| line.starts_with(&[byte; 7]) && line.get(7).is_none_or(|next| *next == b' ');
    mark(b'<') || mark(b'>') || line == [b'='; 7]
}

/// Whether the fuzzer's binaries, which are a workspace of their own, are in order. The C++ of libFuzzer is left out, for
/// nothing is linked. They are checked with the versions of dependencies that all else is built with.
fn fuzz_targets() -> Result<()> {
    system::lock_versions("fuzz")?;
    let mut cargo = system::cargo();
    cargo
        .args(["check", "--manifest-path", "fuzz/Cargo.toml"])
        .current_dir(testkit::workspace())
        .env("CUSTOM_LIBFUZZER_PATH", "none/libfuzzer.a")
        .env(
            "CARGO_TARGET_DIR",
            system::target_directory().join("fuzz-check"),
        );
    system::run(&mut cargo)
}
