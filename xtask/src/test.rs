//! `cargo xtask test`: runs test binaries and sums up, skipped tests included.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::system;

/// Test binaries with this prefix need root, FUSE or EROFS.
const PRIVILEGED: &str = "privileged";

/// How a skip begins that is no fault where the reference data is absent.
const NO_DATA: &str = "SKIPPED (no ../shared)";

/// What the privileged tests run, and the Debian packages of it.
const PROGRAMS: [(&str, &str); 10] = [
    ("docker-registry", "docker-registry"),
    ("fio", "fio"),
    ("fsck.erofs", "erofs-utils"),
    ("fusermount3", "fuse3"),
    ("getfattr", "attr"),
    ("getcap", "libcap2-bin"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("tar", "tar"),
    ("veritysetup", "cryptsetup-bin"),
];

/// Runs the tests without privileges, or those with.
pub fn run(privileged: bool, no_skips: bool) -> Result<()> {
    let started = Instant::now();
    if privileged {
        if !testkit::oracle::is_root() {
            bail!("the privileged tests mount file systems: run them as root");
        }
        system::require(&PROGRAMS)?;
    }
    let skips = Skips::new()?;
    let mut total = Total::default();
    let mut passed = cargo_test(&selection(privileged)?, &skips, &mut total)?;
    if passed && !privileged {
        passed = cargo_test(&["--doc".to_owned()], &skips, &mut total)?;
    }
    let skipped = skips.read()?;
    println!();
    for line in &skipped {
        println!("{line}");
    }
    println!(
        "{} passed, {} failed, {} skipped, in {} s",
        total.passed,
        total.failed,
        skipped.len(),
        started.elapsed().as_secs()
    );
    if !passed {
        bail!("tests failed");
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    if no_skips && skipped.iter().any(|line| !line.starts_with(NO_DATA)) {
        bail!("tests were skipped that have to run here");
    }
    Ok(())
}

#[derive(Default)]
struct Total {
    passed: u64,
    failed: u64,
}

impl Total {
    /// Adds what a line like `test result: ok. 12 passed; 0 failed; ...` says.
    fn note(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let count = |what: &str| -> u64 {
            let before = result.split(what).next().unwrap_or_default();
            before
                .rsplit([' ', '.', ';'])
                .find(|word| !word.is_empty())
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
    }
}

/// Runs `cargo test` with a selection of targets and lets its output through; whether all was well.
fn cargo_test(selection: &[String], skips: &Skips, total: &mut Total) -> Result<bool> {
    let mut command = system::cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(selection);
    command
        .env("NYDUS_TEST_SKIPS", &skips.file)
        // Tests leave the user's own caches alone.
        .env(
            "XDG_CACHE_HOME",
            system::target_directory().join("test-cache"),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cargo test")?;
    let output = BufReader::new(child.stdout.take().context("cargo test has no output")?);
    for line in output.split(b'\n') {
        let line = line?;
        total.note(&String::from_utf8_lossy(&line));
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
    }
    Ok(child.wait()?.success())
}

/// The targets to test: libraries, binaries and integration tests by their names.
fn selection(privileged: bool) -> Result<Vec<String>> {
    let mut tests = Vec::new();
    for package in metadata()?["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
    {
        for target in package["targets"]
            .as_array()
            .context("cargo metadata lists no targets")?
        {
            let name = target["name"].as_str().context("a target has no name")?;
            let is_test = target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
            if is_test && name.starts_with(PRIVILEGED) == privileged {
                tests.push(name.to_owned());
            }
        }
    }
    tests.sort_unstable();
    tests.dedup();
    let mut out = if privileged {
        Vec::new()
    } else {
        vec!["--lib".to_owned(), "--bins".to_owned()]
    };
    for test in tests {
        out.extend(["--test".to_owned(), test]);
    }
    if out.is_empty() {
        bail!("there are no such tests");
    }
    Ok(out)
}

/// What cargo knows of the workspace's own packages.
pub fn metadata() -> Result<Value> {
    let output = system::cargo()
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The file in which tests note that they were skipped.
struct Skips {
    file: PathBuf,
}

impl Skips {
    fn new() -> Result<Self> {
        let directory = system::target_directory();
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let file = directory.join("test-skips.txt");
        std::fs::write(&file, b"").with_context(|| file.display().to_string())?;
        Ok(Self { file })
    }

    fn read(&self) -> Result<Vec<String>> {
        let text =
            std::fs::read_to_string(&self.file).with_context(|| self.file.display().to_string())?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::Total;

    #[test]
    fn results_are_summed() {
        let mut total = Total::default();
        total.note("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.1s");
        total
            .note("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        total.note("test a ... ok");
        assert_eq!((total.passed, total.failed), (13, 2));
    }
}
