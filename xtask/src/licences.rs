//! Licences, sources and bans of dependencies, by the lists of `deny.toml`. `cargo deny` knows more rules; these are checked
//! on every machine.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::packages::{self, Package};
use crate::system;

/// Where packages come from that need no entry in `deny.toml`.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What is looked at of `deny.toml`.
#[derive(Deserialize)]
struct Rules {
    graph: Targets,
    licenses: Licences,
    bans: Bans,
}

#[derive(Deserialize)]
struct Targets {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// Checks all crates that are built for the targets of `deny.toml`, those of tests and tools included.
pub fn check() -> Result<()> {
    let path = testkit::workspace().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rules: Rules = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let targets: Vec<&str> = rules.graph.targets.iter().map(String::as_str).collect();
    let packages = packages::packages(&targets)?;
    let faults = faults(&rules, &packages)?;
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    println!(
        "{} crates have licences of the list and come from where they may; in several versions: {}",
        packages.len(),
        several(&packages).join(", ")
    );
    if testkit::oracle::program("cargo-deny").is_some() {
        system::run(system::cargo().args(["deny", "check", "licenses", "bans", "sources"]))?;
    } else {
        println!("SKIPPED (no cargo-deny): its further rules; cargo install cargo-deny --locked");
    }
    Ok(())
}

/// What is wrong with each package.
fn faults(rules: &Rules, packages: &[Package]) -> Result<Vec<String>> {
    let allowed: Vec<Expression> = rules
        .licenses
        .allow
        .iter()
        .map(|name| Expression::parse(name).with_context(|| format!("deny.toml: {name}")))
        .collect::<Result<_>>()?;
    let allowed: Vec<&spdx::LicenseReq> = allowed
        .iter()
        .flat_map(Expression::requirements)
        .map(|requirement| &requirement.req)
        .collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        let mut fault = |what: String| faults.push(format!("{name}: {what}"));
        match package.licence.as_deref() {
            None => fault("states no licence".to_owned()),
            Some(text) => match Expression::parse_mode(text, ParseMode::LAX) {
                Err(error) => fault(format!("licence {text}: {}", error.reason)),
                Ok(licence) if !licence.evaluate(|req| allowed.contains(&req)) => {
                    fault(format!("licence {text} is not allowed"));
                }
                Ok(_) => {}
            },
        }
        if let Some(source) = package.source.as_deref().filter(|s| *s != REGISTRY) {
            fault(format!("comes from {source}"));
        }
        if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == package.name) {
            let users: Vec<&str> = package.used_by.iter().map(String::as_str).collect();
            fault(format!("{}, but {} has it", ban.reason, users.join(", ")));
        }
    }
    Ok(faults)
}

/// The names that several packages have.
fn several(packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, u32> = BTreeMap::new();
    for package in packages {
        *versions.entry(&package.name).or_default() += 1;
    }
    versions.retain(|_, count| *count > 1);
    versions.into_keys().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules() -> Rules {
        let text = "[graph]\ntargets = []\n[licenses]\nallow = [\"MIT\", \"Apache-2.0 WITH LLVM-exception\"]\n\
                    [bans]\ndeny = [{ crate = \"openssl-sys\", reason = \"TLS is rustls\" }]\n";
        toml::from_str(text).unwrap()
    }

    fn faults_of(name: &str, licence: Option<&str>, source: &str) -> Vec<String> {
        let metadata = json!({
            "packages": [{
                "id": "it", "name": name, "version": "1.0.0", "license": licence, "source": source,
            }],
            "resolve": { "nodes": [{ "id": "it", "deps": [] }] },
        });
        faults(&rules(), &packages::parse(&metadata).unwrap()).unwrap()
    }

    #[test]
    fn one_licence_of_several_is_enough_where_there_is_a_choice() {
        for licence in [
            "MIT",
            "GPL-2.0-only OR MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(
                faults_of("a", Some(licence), REGISTRY),
                [""; 0],
                "{licence}"
            );
        }
        for licence in ["GPL-2.0-only", "MIT AND Zlib", "Apache-2.0"] {
            let faults = faults_of("a", Some(licence), REGISTRY);
            assert_eq!(
                faults,
                [format!("a 1.0.0: licence {licence} is not allowed")]
            );
        }
        let faults = faults_of("a", None, REGISTRY);
        assert_eq!(faults, ["a 1.0.0: states no licence"]);
    }

    #[test]
    fn other_sources_and_banned_crates_are_named() {
        let faults = faults_of("a", Some("MIT"), "git+https://example/a");
        assert_eq!(faults, ["a 1.0.0: comes from git+https://example/a"]);
        let faults = faults_of("openssl-sys", Some("MIT"), REGISTRY);
        assert_eq!(faults, ["openssl-sys 1.0.0: TLS is rustls, but  has it"]);
    }
}
