//! `cargo xtask bench`: builds the release binaries and the benchmark program, and runs it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::system::{cargo, run, target_directory};

/// Measures conversions, or what the first of `arguments` names; they go to the benchmark program.
pub fn bench(arguments: &[String]) -> Result<()> {
    let packages = ["-p", "nydusify", "-p", "nydus-image", "-p", "bench"];
    run(cargo()
        .args(["build", "--release", "--quiet"])
        .args(packages))?;
    let mut program = Command::new(target_directory().join("release/bench"));
    if arguments.first().is_none_or(|a| a.starts_with('-')) {
        program.arg("measure");
    }
    program.args(arguments);
    if arguments.first().is_some_and(|a| a == "series") {
        if !arguments.iter().any(|a| a.starts_with("--work")) {
            let work = target_directory().join("bench/series");
            program.arg("--work").arg(work);
        }
        return run(&mut program);
    }
    if !arguments.iter().any(|a| a.starts_with("--big"))
        && let Some(big) = big_image()?
    {
        program.arg("--big").arg(big);
    }
    run(&mut program)
}

/// The layout of the big image, made once with the tool of the reference data, if that is here.
fn big_image() -> Result<Option<PathBuf>> {
    let Some(tool) = testkit::shared().map(|s| s.join("tools/make_big_image.py")) else {
        return Ok(None);
    };
    let layout = target_directory().join("bench/big");
    if !layout.join("index.json").exists() {
        eprintln!(
            "making the big image in {}; this takes some minutes",
            layout.display()
        );
        std::fs::create_dir_all(&layout)?;
        run(Command::new("python3").arg(tool).arg(&layout))?;
    }
    Ok(Some(layout))
}
