//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, guided by coverage.
//!
//! The compiler that builds all else will do: that LLVM counts what runs needs a pass of it, which stable compilers take, too. With a
//! `--target`, build scripts and macros, which run while it is built, are not counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::system;

/// Counters of blocks and edges, the table that says where they are, and what comparisons compare.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What a fuzzer is built with besides: mistakes in arithmetic and broken assertions are found, too.
const CHECKS: [&str; 4] = [
    "--cfg",
    "fuzzing",
    "-Cdebug-assertions=yes",
    "-Coverflow-checks=yes",
];

/// How long one input may take.
const TIMEOUT: &str = "-timeout=10";

/// How much memory it may take.
const MEMORY: &str = "-rss_limit_mb=1024";

/// Names of files with inputs that fail begin with these.
const FAILURES: [&str; 4] = ["crash-", "timeout-", "oom-", "leak-"];

/// Builds the fuzzers and runs those named, or all, one after the other for `seconds` each.
pub fn run(seconds: u32, names: &[String]) -> Result<()> {
    let all = targets()?;
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        bail!("no target {unknown}; there are {}", all.join(", "));
    }
    let chosen = match names {
        [] => &all[..],
        names => names,
    };
    let started = Instant::now();
    let binaries = build(chosen)?;
    println!("fuzz: built in {} s", started.elapsed().as_secs());
    let mut failed = Vec::new();
    for name in chosen {
        let begun = Instant::now();
        let target = Fuzzer::new(&binaries, name);
        let failures = target.run(seconds)?;
        if failures.is_empty() {
            let kept = target.minimise()?;
            let took = begun.elapsed().as_secs();
            println!("fuzz {name}: ok, {kept} inputs in its corpus, {took} s");
        }
        for file in failures {
            println!("fuzz {name}: FAILED on {}", file.display());
            failed.push(format!("{name} on {}", file.display()));
        }
    }
    if !failed.is_empty() {
        bail!("targets failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Where the fuzzers are.
fn directory() -> PathBuf {
    testkit::workspace().join("fuzz")
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let file = directory().join("Cargo.toml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let manifest: toml::Table = text.parse().with_context(|| file.display().to_string())?;
    let binaries = manifest.get("bin").and_then(toml::Value::as_array);
    let names = binaries.into_iter().flatten();
    let names = names.filter_map(|binary| Some(binary.get("name")?.as_str()?.to_owned()));
    Ok(names.collect())
}

/// Builds fuzzers and tells where they are.
fn build(names: &[String]) -> Result<PathBuf> {
    system::lock_versions("fuzz")?;
    let host = host()?;
    let target = system::target_directory().join("fuzz");
    let mut cargo = system::cargo();
    cargo
        .args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml"])
        .args(["--target", &host, "--target-dir"])
        .arg(&target)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [&COVERAGE[..], &CHECKS].concat().join("\u{1f}"),
        );
    for name in names {
        cargo.args(["--bin", name]);
    }
    system::run(&mut cargo)?;
    Ok(target.join(host).join("release"))
}

/// What the compiler calls the machine it is on.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("rustc")?;
    let text = String::from_utf8(output.stdout).context("rustc -vV")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// One target's fuzzer, and where its inputs are.
struct Fuzzer {
    binary: PathBuf,
    /// Inputs in the repository.
    seeds: PathBuf,
    /// Inputs that it has found, which are not kept there.
    corpus: PathBuf,
    /// Inputs that fail.
    artifacts: PathBuf,
}

impl Fuzzer {
    fn new(binaries: &Path, name: &str) -> Self {
        let dir = |kind| directory().join(kind).join(name);
        Self {
            binary: binaries.join(name),
            seeds: dir("seeds"),
            corpus: dir("corpus"),
            artifacts: dir("artifacts"),
        }
    }

    /// Looks for inputs that show something new, and returns those that failed.
    fn run(&self, seconds: u32) -> Result<Vec<PathBuf>> {
        for dir in [&self.corpus, &self.artifacts] {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let before = self.failures()?;
        let mut command = Command::new(&self.binary);
        command
            .args([TIMEOUT, MEMORY, "-print_final_stats=1"])
            .arg(format!("-max_total_time={}", seconds.max(1)))
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()))
            .args([&self.corpus, &self.seeds]);
        // Whether it failed is told by what it left, and else by its end.
        let ended = system::run(&mut command);
        let mut failures = self.failures()?;
        failures.retain(|file| !before.contains(file));
        if failures.is_empty() {
            ended?;
        }
        Ok(failures)
    }

    /// Inputs that have failed so far.
    fn failures(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.artifacts)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if FAILURES.iter().any(|prefix| name.starts_with(prefix)) {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    /// Leaves in the corpus what the seeds do not show, each thing by the smallest input, and counts that.
    fn minimise(&self) -> Result<usize> {
        let less = self.corpus.with_extension("less");
        let more = self.corpus.with_extension("more");
        for dir in [&less, &more] {
            let _ = fs::remove_dir_all(dir);
        }
        fs::create_dir_all(&less).with_context(|| less.display().to_string())?;
        // What is in the first directory stays there: the seeds come first by being copied.
        for entry in fs::read_dir(&self.seeds)? {
            let path = entry?.path();
            fs::copy(
                &path,
                less.join(path.file_name().context("a seed has no name")?),
            )?;
        }
        let mut command = Command::new(&self.binary);
        command
            .args([TIMEOUT, MEMORY, "-merge=1", "-verbosity=0"])
            .args([&less, &self.corpus]);
        system::run(&mut command)?;
        for entry in fs::read_dir(&self.seeds)? {
            fs::remove_file(less.join(entry?.file_name()))?;
        }
        fs::rename(&self.corpus, &more)?;
        fs::rename(&less, &self.corpus)?;
        fs::remove_dir_all(&more)?;
        Ok(fs::read_dir(&self.corpus)?.count())
    }
}
