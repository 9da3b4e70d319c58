//! Tells the binary what it was built from, for `--version`. Missing facts are no error.

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
    println!("cargo::rerun-if-changed=../../.git/HEAD");
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
