//! What our programs and tools are made of: the crates that cargo resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::system;

/// A crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// As an SPDX expression.
    pub licence: Option<String>,
    /// Where it comes from, as cargo writes it; `None` if from the workspace.
    pub source: Option<String>,
    /// The names of the crates that depend on it.
    pub used_by: BTreeSet<String>,
}

/// The crates that are built for some targets, those of tests and tools included, as `Cargo.lock` has them. What is not
/// here yet is fetched.
pub fn packages(targets: &[&str]) -> Result<Vec<Package>> {
    parse(&metadata(&testkit::workspace(), targets)?)
}

/// What cargo knows of all crates that are built for some targets of a workspace.
pub fn metadata(workspace: &Path, targets: &[&str]) -> Result<Value> {
    let mut cargo = system::cargo();
    cargo
        .current_dir(workspace)
        .args(["metadata", "--format-version", "1", "--locked"]);
    for target in targets {
        cargo.args(["--filter-platform", target]);
    }
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The crates in cargo's own words.
pub fn parse(metadata: &Value) -> Result<Vec<Package>> {
    let list = |value: &Value| value.as_array().cloned().context("no list");
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let mut packages = BTreeMap::new();
    for package in list(&metadata["packages"])? {
        let id = text(&package["id"])?;
        let package = Package {
            name: text(&package["name"])?,
            version: text(&package["version"])?,
            licence: text(&package["license"]).ok(),
            source: text(&package["source"]).ok(),
            used_by: BTreeSet::new(),
        };
        packages.insert(id, package);
    }
    for node in list(&metadata["resolve"]["nodes"])? {
        let id = text(&node["id"])?;
        let name = packages
            .get(&id)
            .map(|package| package.name.clone())
            .with_context(|| format!("{id} is no package"))?;
        for dependency in list(&node["deps"])? {
            if let Some(package) = packages.get_mut(&text(&dependency["pkg"])?) {
                package.used_by.insert(name.clone());
            }
        }
    }
    Ok(packages.into_values().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_uses_a_crate_is_known() {
        let package = |name: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT", "source": null });
        let metadata = json!({
            "packages": [package("program"), package("below"), package("aside")],
            "resolve": { "nodes": [
                { "id": "program", "deps": [{ "pkg": "below" }] },
                { "id": "below", "deps": [] },
                { "id": "aside", "deps": [{ "pkg": "below" }] },
            ] },
        });
        let packages = parse(&metadata).unwrap();
        let below = packages.iter().find(|package| package.name == "below");
        let users = ["aside", "program"].map(str::to_owned);
        assert_eq!(below.unwrap().used_by, BTreeSet::from(users));
    }
}
