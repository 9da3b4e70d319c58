//! The licences of all code that is in the binaries, word by word, as most of them ask for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::sbom::Crate;
use super::zig::Zig;

/// How names of files with licences begin, in capitals.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// Every text once, below the crates that it is of.
pub fn notices(crates: &[Crate], zig: &Zig) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut out = String::from(
        "The programs contain code of these crates, of Rust's standard library (MIT OR Apache-2.0) and of musl (MIT).\n\
         The texts of the licences follow.\n\n",
    );
    for package in crates {
        writeln!(out, "{}: {}", package.name, package.licence)?;
        for file in files(&package.directory)? {
            let text =
                std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let users = texts.entry(text.trim().to_owned()).or_default();
            if !users.contains(&package.name.as_str()) {
                users.push(&package.name);
            }
        }
    }
    let musl = zig.musl_licence()?;
    texts
        .entry(musl.trim().to_owned())
        .or_default()
        .push("musl");
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1));
    for (text, users) in texts {
        writeln!(out, "\n{}\n{}:\n\n{text}", "-".repeat(80), users.join(", "))?;
    }
    Ok(out)
}

/// The files with licences of a crate and of the C library in it, which lies one level below.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut out = named(directory)?;
    for below in entries(directory)?.into_iter().filter(|path| path.is_dir()) {
        out.extend(named(&below)?);
    }
    Ok(out)
}

fn named(directory: &Path) -> Result<Vec<PathBuf>> {
    let is_named = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        NAMES
            .iter()
            .any(|start| name.to_uppercase().starts_with(start))
    };
    let entries = entries(directory)?.into_iter();
    Ok(entries
        .filter(|path| path.is_file() && is_named(path))
        .collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut out = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    out.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_of_c_libraries_inside_crates_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "LICENSE-MIT",
            "src/lib.rs",
            "zstd/LICENSE",
            "zstd/lib/zstd.c",
            "README.md",
        ] {
            super::super::write(&dir.path().join(name), b"text").unwrap();
        }
        let found = files(dir.path()).unwrap();
        let names = ["LICENSE-MIT", "zstd/LICENSE"].map(|name| dir.path().join(name));
        assert_eq!(found, names);
    }
}
