//! `check` and `inspect` on the deployed builder's files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nydus-image"))
}

fn golden(test: &str) -> Option<PathBuf> {
    Some(testkit::shared_or_skip(test)?.join("golden"))
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The shape of a document: keys in order, and types of scalars.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), shape(value)))
            .collect(),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::String(_) => "string".into(),
        Value::Number(_) => "number".into(),
        other => other.clone(),
    }
}

#[test]
fn check_writes_the_report_of_the_deployed_tool() {
    let Some(golden) = golden("check_writes_the_report_of_the_deployed_tool") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for name in ["v6-separate", "merged/v6", "v5-separate", "merged/v5"] {
        let json = dir.path().join("check.json");
        let boot = golden.join(format!("{name}.boot"));
        let output = program()
            .args(["check", "--log-level", "warn", "--output-json"])
            .arg(&json)
            .arg("--bootstrap")
            .arg(&boot)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let ours = fs::read_to_string(&json).unwrap();
        assert!(
            !ours.contains('\n') && ours.contains("\"blobs\":[\""),
            "{ours}"
        );
        let ours: Value = serde_json::from_str(&ours).unwrap();
        let theirs = fs::read(golden.join(format!("{name}.check.json"))).unwrap();
        let theirs: Value = serde_json::from_slice(&theirs).unwrap();
        assert_eq!(shape(&ours), shape(&theirs));
        for key in [
            "blobs",
            "fs_version",
            "compressor",
            "external_bootstrap",
            "external_blobs",
        ] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
        assert_eq!(ours["bootstrap"], boot.to_str().unwrap());
        assert!(ours["version"].as_str().unwrap().starts_with('v'));
        let mut lines = stdout(&output).lines();
        assert!(lines.next().unwrap().contains("valid"));
        assert_eq!(lines.count(), theirs["blobs"].as_array().unwrap().len());
    }
}

#[test]
fn check_takes_native_layers_and_lists_everything() {
    let Some(golden) = golden("check_takes_native_layers_and_lists_everything") else {
        return;
    };
    let mut checked = 0;
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("v6") || !name.ends_with(".blob") || name == "v6-separate.blob" {
            continue;
        }
        let output = program()
            .arg("check")
            .arg("-v")
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        // The id of a layer that refers to a tarball is the tarball's.
        let own = format!(": {}, ", name.trim_end_matches(".blob"));
        assert!(
            stdout(&output).contains(&own) || name == "v6-zran.blob",
            "{name}"
        );
        assert!(stdout(&output).starts_with("inode 128 "), "{name}");
        checked += 1;
    }
    assert!(checked >= 9, "{checked}");
}

#[test]
fn check_says_what_is_wrong_and_exits_with_1() {
    let Some(golden) = golden("check_says_what_is_wrong_and_exits_with_1") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let check = |path: &Path| program().arg("check").arg(path).output().unwrap();
    let mut bytes = fs::read(golden.join("v6-separate.boot")).unwrap();
    bytes[2 * 4096 + 4096 + 44] ^= 1;
    let damaged = dir.path().join("damaged.boot");
    fs::write(&damaged, bytes).unwrap();
    let output = check(&damaged);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("damaged.boot is not valid"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("/ (nid 128, byte 0x3000): link count is 8"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "");
    assert_eq!(check(&golden.join("SHA256SUMS")).status.code(), Some(1));
    assert_eq!(check(&golden.join("not-there")).status.code(), Some(1));
    assert_eq!(
        program().arg("check").output().unwrap().status.code(),
        Some(2)
    );
}

#[test]
fn check_compares_with_blobs_that_can_be_reached() {
    let Some(golden) = golden("check_compares_with_blobs_that_can_be_reached") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let boot = golden.join("v6-separate.boot");
    let check = || {
        program()
            .arg("check")
            .arg(&boot)
            .arg("-D")
            .arg(dir.path())
            .output()
            .unwrap()
    };
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("blob a54e801e"),
        "{}",
        stderr(&output)
    );
    let id = "a54e801e574a7e1e8f153ec1366b45cfa4b6655d10ef6373f82bfa0511016990";
    fs::copy(golden.join("v6-separate.blob"), dir.path().join(id)).unwrap();
    let output = check();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn requests_are_silent_on_stderr() {
    let Some(golden) = golden("requests_are_silent_on_stderr") else {
        return;
    };
    let boot = golden.join("v6-separate.boot");
    for line in [
        vec!["-R", "blobs"],
        vec!["--request", "blobs"],
        vec!["-R blobs"],
    ] {
        let output = program()
            .arg("inspect")
            .args(&line)
            .arg(&boot)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let id = "a54e801e574a7e1e8f153ec1366b45cfa4b6655d10ef6373f82bfa0511016990";
        assert!(
            stdout(&output).starts_with(&format!("[{{\"blob_id\":\"{id}\",")),
            "{}",
            stdout(&output)
        );
        assert!(stdout(&output).ends_with("}]"));
        assert_eq!(stderr(&output), "", "{line:?}");
    }
    let output = program()
        .arg("inspect")
        .arg("-B")
        .arg(&boot)
        .args(["-R", "help"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("help is not supported"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn dialogues_end_with_the_input() {
    let Some(golden) = golden("dialogues_end_with_the_input") else {
        return;
    };
    for (input, prompts) in [("ls\nstats\n", 3), ("cd home\nq\nls\n", 2), ("", 1)] {
        let mut child = program()
            .arg("inspect")
            .arg(golden.join("v6-zstd.blob"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(
            stdout(&output).matches("Inspecting RAFS :> ").count(),
            prompts,
            "{input:?}"
        );
        assert_eq!(
            stdout(&output).contains("\"home\""),
            input.starts_with("ls")
        );
    }
}
