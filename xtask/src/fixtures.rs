//! `cargo xtask fixtures`: makes what is in `tests/fixtures`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::fixture;

use crate::system;

/// Makes the busybox image anew.
pub fn run(busybox: Option<PathBuf>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let binary = match busybox {
        Some(path) => path,
        None => download(scratch.path())?,
    };
    let bytes = std::fs::read(&binary).with_context(|| binary.display().to_string())?;
    let target = fixture::busybox();
    if target.exists() {
        std::fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
    }
    fixture::write_busybox(&target, &bytes);
    println!(
        "{}: from a busybox of {} bytes, sha256 {}",
        target.display(),
        bytes.len(),
        testkit::sha256(&bytes)
    );
    Ok(())
}

/// Fetches Debian's package and takes the binary out of it; nothing is installed.
fn download(scratch: &Path) -> Result<PathBuf> {
    system::require(&[("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
    system::run(
        Command::new("apt-get")
            .args(["download", "-q", "busybox-static"])
            .current_dir(scratch),
    )?;
    let package = std::fs::read_dir(scratch)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(package) = package else {
        bail!("apt-get downloaded no package")
    };
    let unpacked = scratch.join("unpacked");
    system::run(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&unpacked),
    )?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|name| unpacked.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{}: holds no busybox", package.display()))
}
