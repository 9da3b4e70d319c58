//! Finds out what the programs are built from. Missing facts are no error.

use std::path::Path;
use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let profile = std::env::var("PROFILE").unwrap_or_default();
    // The time of the commit instead of the time of the build: the same source gives the same binary.
    let facts = [
        ("BUILD_COMMIT", output("git", &["rev-parse", "HEAD"])),
        (
            "BUILD_TIME",
            output("git", &["show", "--no-patch", "--format=%cI", "HEAD"]),
        ),
        ("BUILD_RUSTC", output(&rustc, &["--version"])),
        ("BUILD_PROFILE", profile),
    ];
    for (name, value) in facts {
        println!(
            "cargo::rustc-env={name}={}",
            if value.is_empty() { "unknown" } else { &value }
        );
    }
    println!("cargo::rerun-if-changed=build.rs");
    // Both change with a commit or a switch to another branch, wherever git keeps them. One that is not there would
    // make cargo run this every time.
    for name in ["HEAD", "logs/HEAD"] {
        let path = output("git", &["rev-parse", "--git-path", name]);
        if !path.is_empty() && Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success());
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
