//! What the binaries are made of, as a bill of materials in CycloneDX's JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ARCHITECTURES, PROGRAMS, Place, Release, read};
use crate::packages;

/// The bill, and the crates whose code is in the binaries.
pub struct Bill {
    pub json: String,
    pub linked: Vec<Crate>,
}

/// A crate of others.
pub struct Crate {
    /// Name and version.
    pub name: String,
    pub licence: String,
    /// Where its source lies.
    pub directory: PathBuf,
}

/// What is looked at of cargo's metadata.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    #[serde(default)]
    license: Option<String>,
    /// None for our own.
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None for what code is compiled against, else `build` or `dev`.
    kind: Option<String>,
}

/// The digests that `Cargo.lock` has of packages.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Makes the bill of a clone.
pub fn bill(place: &Place, release: &Release) -> Result<Bill> {
    let targets = ARCHITECTURES
        .each_ref()
        .map(|architecture| architecture.target);
    let metadata = packages::metadata(&place.workspace, &targets)?;
    let lock = String::from_utf8(read(&place.workspace.join("Cargo.lock"))?)?;
    of(
        &serde_json::from_value(metadata).context("cargo metadata")?,
        &toml::from_str(&lock).context("Cargo.lock")?,
        &release.version,
        &release.date()?,
    )
}

fn of(metadata: &Metadata, lock: &Lock, version: &str, date: &str) -> Result<Bill> {
    let packages: BTreeMap<&str, &Package> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package))
        .collect();
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let roots: Vec<&str> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_none() && PROGRAMS.contains(&package.name.as_str()))
        .map(|package| package.id.as_str())
        .collect();
    let linked = reached(&roots, &nodes, |id, kind| {
        kind.is_none() && packages.get(id).is_some_and(|package| !package.is_macro())
    });
    let built = reached(&roots, &nodes, |_, kind| kind != Some("dev"));

    let checksums: BTreeMap<(&str, &str), &str> = lock
        .package
        .iter()
        .filter_map(|it| {
            Some((
                (it.name.as_str(), it.version.as_str()),
                it.checksum.as_deref()?,
            ))
        })
        .collect();
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    let mut crates = BTreeMap::new();
    for id in &built {
        let package = packages
            .get(id)
            .with_context(|| format!("{id}: no package"))?;
        let name = package.reference();
        let checksum = checksums.get(&(package.name.as_str(), package.version.as_str()));
        let component = package.component(linked.contains(id), checksum.copied());
        components.insert(name.clone(), component);
        let below = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let below: BTreeSet<String> = below
            .filter(|dependency| built.contains(dependency.pkg.as_str()))
            .filter_map(|dependency| Some(packages.get(dependency.pkg.as_str())?.reference()))
            .collect();
        dependencies.insert(name.clone(), json!({ "ref": name, "dependsOn": below }));
        if package.source.is_some() && linked.contains(id) {
            crates.insert(name, package.to_crate());
        }
    }
    let roots: BTreeSet<String> = roots
        .iter()
        .filter_map(|id| Some(packages.get(id)?.reference()))
        .collect();
    let own = format!("nydus-tools@{version}");
    dependencies.insert(own.clone(), json!({ "ref": own, "dependsOn": roots }));
    let bill = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": date,
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "nydus-tools",
                "version": version,
                "licenses": [{ "license": { "id": "Apache-2.0" } }],
            },
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    });
    Ok(Bill {
        json: serde_json::to_string_pretty(&bill)? + "\n",
        linked: crates.into_values().collect(),
    })
}

/// The packages that dependencies lead to which `follow` says yes to, given a package and how it is used.
fn reached<'a>(
    roots: &[&'a str],
    nodes: &BTreeMap<&'a str, &'a Node>,
    follow: impl Fn(&str, Option<&str>) -> bool,
) -> BTreeSet<&'a str> {
    let mut found: BTreeSet<&str> = roots.iter().copied().collect();
    let mut next = roots.to_vec();
    while let Some(id) = next.pop() {
        for dependency in nodes.get(id).into_iter().flat_map(|node| &node.deps) {
            let mut kinds = dependency.dep_kinds.iter();
            if kinds.any(|kind| follow(&dependency.pkg, kind.kind.as_deref()))
                && found.insert(&dependency.pkg)
            {
                next.push(&dependency.pkg);
            }
        }
    }
    found
}

impl Package {
    /// Whether its code runs in the compiler alone.
    fn is_macro(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }

    /// Its name in the bill: where packages of others come from, too.
    fn reference(&self) -> String {
        match self.source {
            Some(_) => format!(
                "pkg:cargo/{}@{}",
                self.name,
                self.version.replace('+', "%2B")
            ),
            None => format!("{}@{}", self.name, self.version),
        }
    }

    /// Older crates separate licences that one may choose from by a slash.
    fn licence(&self) -> String {
        let licence = self.license.as_deref().unwrap_or("NOASSERTION");
        licence.replace('/', " OR ").replace("  ", " ")
    }

    fn component(&self, linked: bool, checksum: Option<&str>) -> Value {
        let mut component = json!({
            "type": "library",
            "bom-ref": self.reference(),
            "name": self.name,
            "version": self.version,
            "scope": if linked { "required" } else { "excluded" },
        });
        if let Some(checksum) = checksum {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        component["licenses"] = json!([{ "expression": self.licence() }]);
        if self.source.is_some() {
            component["purl"] = self.reference().into();
        }
        component
    }

    fn to_crate(&self) -> Crate {
        let directory = self.manifest_path.parent().unwrap_or(&self.manifest_path);
        Crate {
            name: format!("{} {}", self.name, self.version),
            licence: self.licence(),
            directory: directory.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, source: Option<&str>, kind: &str) -> Value {
        json!({
            "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source,
            "manifest_path": format!("/src/{name}/Cargo.toml"), "targets": [{ "kind": [kind] }],
        })
    }

    #[test]
    fn what_is_linked_and_what_only_builds_is_told_apart() {
        let uses = |name: &str, kind: Option<&str>| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("nydusify", None, "lib"), package("tool", Some("r"), "lib"),
                package("derive", Some("r"), "proc-macro"), package("quote", Some("r"), "lib"),
                package("cc", Some("r"), "lib"), package("proptest", Some("r"), "lib"),
            ],
            "resolve": { "nodes": [
                { "id": "nydusify", "deps": [
                    uses("tool", None), uses("derive", None), uses("proptest", Some("dev")),
                ] },
                { "id": "tool", "deps": [uses("cc", Some("build"))] },
                { "id": "derive", "deps": [uses("quote", None)] },
            ] },
        });
        let lock = "[[package]]\nname = \"tool\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        let bill = of(
            &serde_json::from_value(metadata).unwrap(),
            &toml::from_str(lock).unwrap(),
            "v1",
            "2024-01-01T00:00:00Z",
        )
        .unwrap();
        let linked: Vec<&str> = bill.linked.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(linked, ["tool 1.0.0"]);
        let json: Value = serde_json::from_str(&bill.json).unwrap();
        let components = json["components"].as_array().unwrap();
        let scopes: Vec<(&str, &str)> = components
            .iter()
            .map(|it| (it["name"].as_str().unwrap(), it["scope"].as_str().unwrap()))
            .collect();
        assert_eq!(
            scopes,
            [
                ("nydusify", "required"),
                ("cc", "excluded"),
                ("derive", "excluded"),
                ("quote", "excluded"),
                ("tool", "required"),
            ]
        );
        let tool = &components[4];
        assert_eq!(tool["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(tool["hashes"][0]["content"], "abc");
        assert_eq!(
            json["dependencies"][0]["dependsOn"],
            json!(["nydusify@1.0.0"])
        );
    }
}
