//! `cargo xtask dist`: what a release consists of, in `dist` below cargo's target directory. The same source, compiler
//! and zig give the same bytes, wherever the clone lies.

mod build;
mod check;
mod container;
mod notices;
mod pack;
mod sbom;
mod zig;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::sha256;

use crate::system;

/// A processor that binaries are made for.
pub struct Architecture {
    /// As container images, and the names of what is packed, call it.
    pub name: &'static str,
    /// As compilers and emulators call it.
    pub machine: &'static str,
    /// Rust's target.
    pub target: &'static str,
}

/// All of them.
pub const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "amd64",
        machine: "x86_64",
        target: "x86_64-unknown-linux-musl",
    },
    Architecture {
        name: "arm64",
        machine: "aarch64",
        target: "aarch64-unknown-linux-musl",
    },
];

/// The programs that ship.
pub const PROGRAMS: [&str; 2] = ["nydusify", "nydus-image"];

/// Where a release is made: a clone, and what is built of it.
pub struct Place {
    /// The clone.
    pub workspace: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
}

impl Place {
    /// The clone that this program belongs to.
    fn here() -> Self {
        Self {
            workspace: testkit::workspace(),
            target: system::target_directory(),
        }
    }

    /// What the release consists of.
    pub fn dist(&self) -> PathBuf {
        self.target.join("dist")
    }

    /// Below it, a tree for `/usr/local`, and for an image's `/usr`.
    pub fn tree(&self, architecture: &Architecture) -> PathBuf {
        self.dist().join(architecture.name)
    }

    /// Git in the clone; what it says.
    fn git(&self, arguments: &[&str]) -> Result<String> {
        system::output(
            Command::new("git")
                .args(arguments)
                .current_dir(&self.workspace),
        )
    }
}

/// What a release is called, and when its source was made.
pub struct Release {
    /// Such as `v0.1.0`.
    pub version: String,
    /// Seconds since 1970.
    pub time: u64,
}

impl Release {
    fn of(place: &Place) -> Result<Self> {
        let time = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(time) => time,
            Err(_) => place
                .git(&["show", "--no-patch", "--format=%ct", "HEAD"])
                .context("no commit tells the time of the source; give SOURCE_DATE_EPOCH")?,
        };
        Ok(Self {
            version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            time: time
                .trim()
                .parse()
                .with_context(|| format!("{time} is no number of seconds"))?,
        })
    }

    /// The beginning of all names.
    pub fn name(&self) -> String {
        format!("nydus-tools-{}", self.version)
    }

    /// The time in ISO 8601.
    pub fn date(&self) -> Result<String> {
        let time = format!("@{}", self.time);
        let date = system::output(Command::new("date").args(["-u", "-d", &time, "+%FT%TZ"]))?;
        Ok(date.trim().to_owned())
    }
}

/// Makes a release; with `check`, proves what is said of it; with `twice`, makes it again elsewhere, and compares.
pub fn run(check: bool, twice: bool) -> Result<()> {
    let place = Place::here();
    if twice {
        let changes = place.git(&["status", "--porcelain", "--untracked-files=no"])?;
        if !changes.is_empty() {
            bail!("a clone would lack what is not committed:\n{changes}");
        }
    }
    let zig = zig::Zig::find(&place.target)?;
    make(&place, &zig)?;
    if check {
        check::check(&place)?;
    }
    if twice {
        again(&place, &zig)?;
    }
    Ok(())
}

/// Makes everything, and lists it.
fn make(place: &Place, zig: &zig::Zig) -> Result<()> {
    let release = Release::of(place)?;
    let dist = place.dist();
    if dist.exists() {
        std::fs::remove_dir_all(&dist).with_context(|| dist.display().to_string())?;
    }
    build::build(place, zig)?;
    let sbom = sbom::bill(place, &release)?;
    let notices = notices::notices(&sbom.linked, zig)?;
    write(
        &dist.join(format!("{}.cdx.json", release.name())),
        sbom.json.as_bytes(),
    )?;
    for architecture in &ARCHITECTURES {
        pack::pack(place, &release, architecture, &notices)?;
    }
    container::archive(place, &release)?;
    let sums = list(&dist)?
        .iter()
        .map(|name| Ok(format!("{}  {name}\n", sha256(&read(&dist.join(name))?))))
        .collect::<Result<String>>()?;
    write(&dist.join("SHA256SUMS"), sums.as_bytes())?;
    println!("in {}:\n{sums}", dist.display());
    Ok(())
}

/// Makes everything in a clone with another path and compares.
fn again(place: &Place, zig: &zig::Zig) -> Result<()> {
    let clone = place.target.join("dist-again/a-clone-elsewhere");
    if clone.exists() {
        std::fs::remove_dir_all(&clone).with_context(|| clone.display().to_string())?;
    }
    system::run(
        Command::new("git")
            .args(["clone", "--quiet"])
            .args([&place.workspace, &clone]),
    )?;
    let second = Place {
        target: clone.join("target"),
        workspace: clone,
    };
    make(&second, zig)?;
    let (first, second) = (place.dist(), second.dist());
    let names = list(&first)?;
    if names != list(&second)? {
        bail!("{} has other files", second.display());
    }
    for name in &names {
        system::run(
            Command::new("cmp")
                .arg(first.join(name))
                .arg(second.join(name)),
        )?;
    }
    println!(
        "made twice, in two directories: {} are equal",
        names.join(", ")
    );
    Ok(())
}

/// The names of the files in a directory, in order.
pub fn list(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a file whole.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Writes a file, and makes its directory.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}
