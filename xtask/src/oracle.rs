//! `cargo xtask oracle`: whether readers that are deployed see our images as we do.

use anyhow::Result;

use crate::system;

/// The published reader, in a workspace of its own.
const READER: &str = "tests/consumers/nydus-rafs/Cargo.toml";

/// Builds `nydus-image` and the reader, and has it open images; those whose names contain `filter`.
pub fn run(filter: Option<String>) -> Result<()> {
    system::run(system::cargo().args(["build", "--package", "nydus-image"]))?;
    let target = system::target_directory();
    let mut reader = system::cargo();
    reader.args(["run", "--locked", "--manifest-path", READER]);
    reader.arg("--target-dir").arg(target.join("oracle"));
    reader.arg("--").arg(target.join("debug/nydus-image"));
    system::run(reader.args(filter))
}
