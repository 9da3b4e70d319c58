//! What a mount says of itself, to Prometheus and to people.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use testkit::run::{output, run, wait_until};

use crate::support::*;

/// The answer to a request for the metrics.
fn scrape(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The sum of all samples of this name.
fn sample(answer: &str, name: &str) -> f64 {
    let of_name = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    };
    let lines: Vec<&str> = answer.lines().filter(of_name).collect();
    assert!(!lines.is_empty(), "no {name} in {answer}");
    let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    lines.into_iter().map(value).sum()
}

fn stat(root: &Path) -> Value {
    let root = root.to_str().unwrap();
    let said = run(NYDUSIFY, ["stat", root, "--output", "json"]).ok();
    serde_json::from_str(&said.stdout).unwrap()
}

#[test]
fn privileged_a_mount_counts_on_when_its_process_is_killed() {
    let name = "privileged_a_mount_counts_on_when_its_process_is_killed";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 40);
    for mode in modes(name, &place) {
        let (root, socket) = (place.path("root"), place.path("metrics.sock"));
        let _ = std::fs::remove_dir_all(place.path("cache"));
        let mut command = place.mount_command(&target);
        command.args(["--detach", "--no-prefetch", "--mode", mode, "--metrics"]);
        output(command.arg(&socket)).ok();
        let mut files = expected.iter();
        // Far from one another, so that each is fetched by itself.
        let mut read = || {
            let (name, data) = files.nth(15).unwrap();
            assert!(std::fs::read(root.join(name)).unwrap() == *data);
        };
        read();
        let answer = scrape(&socket).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(&format!(r#"image="{target}""#)), "{answer}");
        let fetched = sample(&answer, "nydusify_store_fetched_bytes_total");
        assert!(fetched >= 150_000.0, "{answer}");
        assert!(sample(&answer, "nydusify_fetch_seconds_count") >= 1.0);
        assert_eq!(sample(&answer, "nydusify_servers_total"), 1.0);

        let before = stat(&root);
        assert_eq!(before["mode"], mode);
        assert_eq!(before["image"], target.as_str());
        assert_eq!(before["fetches"]["bytes"], fetched as u64);
        let processes = before["processes"].as_array().unwrap();
        let server = processes
            .iter()
            .find(|process| process["role"] == "server" || process["role"] == "filler")
            .unwrap();
        send(server["pid"].as_i64().unwrap() as i32, Signal::KILL);
        // The next one begins when it is asked for something.
        read();
        // The one that dies may take a connection yet, and resets it.
        let mut answer = String::new();
        wait_until("the figures of the next process", || {
            answer = scrape(&socket).unwrap_or_default();
            answer.contains("nydusify_servers_total")
                && sample(&answer, "nydusify_servers_total") == 2.0
        });
        let later = sample(&answer, "nydusify_store_fetched_bytes_total");
        assert!(later >= fetched + 150_000.0, "{answer}");
        let text = run(NYDUSIFY, ["stat", root.to_str().unwrap()]).ok();
        for row in ["image", "cached", "reads", "served by the second process"] {
            assert!(text.stdout.contains(row), "{text}");
        }
        run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
        wait_until("the socket to go", || !socket.exists());
        run(NYDUSIFY, ["stat", root.to_str().unwrap()]).exits(1);
    }
}
