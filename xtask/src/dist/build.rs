//! The static binaries, manual pages and completions.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{ARCHITECTURES, Architecture, PROGRAMS, Place, zig::Zig};
use crate::system;

/// Builds everything and puts it into the trees of the architectures.
pub fn build(place: &Place, zig: &Zig) -> Result<()> {
    for architecture in &ARCHITECTURES {
        if let Some(why) = system::missing_target(architecture.target)? {
            anyhow::bail!("{}: {why}", architecture.target);
        }
    }
    compile(place, zig, &PROGRAMS, &ARCHITECTURES)?;
    let own = native()?;
    compile(place, zig, &["manual"], std::slice::from_ref(own))?;
    for architecture in &ARCHITECTURES {
        let tree = place.tree(architecture);
        for program in PROGRAMS {
            let to = tree.join("bin").join(program);
            std::fs::create_dir_all(tree.join("bin"))?;
            std::fs::copy(binary(place, architecture, program), &to)
                .with_context(|| to.display().to_string())?;
        }
        system::run(Command::new(binary(place, own, "manual")).arg(tree.join("share")))?;
    }
    Ok(())
}

/// The architecture of this machine.
pub fn native() -> Result<&'static Architecture> {
    ARCHITECTURES
        .iter()
        .find(|architecture| architecture.machine == std::env::consts::ARCH)
        .with_context(|| format!("releases are not made on {}", std::env::consts::ARCH))
}

fn binary(place: &Place, architecture: &Architecture, program: &str) -> PathBuf {
    place
        .target
        .join(architecture.target)
        .join("release")
        .join(program)
}

fn compile(
    place: &Place,
    zig: &Zig,
    packages: &[&str],
    architectures: &[Architecture],
) -> Result<()> {
    let mut cargo = system::cargo();
    cargo
        .current_dir(&place.workspace)
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(&place.target);
    for package in packages {
        cargo.args(["--package", package]);
    }
    for architecture in architectures {
        cargo.args(["--target", architecture.target]);
    }
    let paths = paths(place)?;
    let mut c_flags = flags(&paths, "-ffile-prefix-map=");
    // Without optimisation, zig adds checks that call a library of its own.
    c_flags.push("-fno-sanitize=undefined".to_owned());
    zig.set(&mut cargo);
    cargo
        .env("CFLAGS", c_flags.join(" "))
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&paths).join("\x1f"))
        // They would change what is built.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    system::run(&mut cargo)
}

/// Rust's own linker needs no C compiler for the target; it strips, too.
fn rust_flags(paths: &[(PathBuf, &str)]) -> Vec<String> {
    let mut out: Vec<String> = [
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Cstrip=symbols",
    ]
    .map(str::to_owned)
    .to_vec();
    out.extend(flags(paths, "--remap-path-prefix="));
    out
}

fn flags(paths: &[(PathBuf, &str)], option: &str) -> Vec<String> {
    paths
        .iter()
        .map(|(path, name)| format!("{option}{}={name}", path.display()))
        .collect()
}

/// Paths of this machine that compilers would put into binaries, and what stands for them; the last that fits counts.
fn paths(place: &Place) -> Result<Vec<(PathBuf, &'static str)>> {
    let sysroot = system::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    Ok(vec![
        (PathBuf::from(sysroot.trim()), "/rust"),
        (home, "/cargo"),
        (place.target.clone(), "/nydus/target"),
        (place.workspace.clone(), "/nydus"),
    ])
}
