//! Programs of images, run in namespaces of their own.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::run::{Ran, code, output, run, wait_until};
use testkit::shared_or_skip;

use crate::support::*;

/// The command that runs `words` in an image, with its cache in `cache`.
fn command(place: &Place, image: &str, options: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(NYDUSIFY);
    command.args(["run", image]).args(options);
    command.arg("--cache-dir").arg(place.path("cache"));
    command.arg("--").args(words);
    command
}

fn ran(place: &Place, image: &str, options: &[&str], words: &[&str]) -> Ran {
    output(&mut command(place, image, options, words))
}

/// Processes whose command line has the text.
fn processes(text: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let has = |line: &Vec<u8>| String::from_utf8_lossy(line).contains(text);
    lines.filter(has).count()
}

#[test]
fn privileged_programs_of_real_images_run_and_their_changes_stay() {
    const NAME: &str = "privileged_programs_of_real_images_run_and_their_changes_stay";
    let Some(images) = shared_or_skip(NAME).map(|shared| shared.join("images")) else {
        return;
    };
    let programs = [
        (
            "base",
            "bash",
            "-c",
            "for i in 1 2 3; do echo $i >> /data/$MODE; done; mapfile -t a < /data/$MODE; echo ${#a[@]}; exit 7",
        ),
        (
            "python",
            "python3",
            "-c",
            "import os,sys,json\nopen('/data/'+os.environ['MODE'],'w').write(json.dumps([1,2,3]))\nprint(len(json.load(open('/data/'+os.environ['MODE'])))); sys.exit(7)",
        ),
        // This one has Node's modules, and no node.
        (
            "node",
            "bash",
            "-c",
            "cat /srv/nodeapp/node_modules/debug/package.json > /data/$MODE; grep -q '\"name\": \"debug\"' /data/$MODE && echo 3; exit 7",
        ),
    ];
    for (tag, program, flag, script) in programs {
        let Some(place) = Place::new(NAME) else {
            return;
        };
        let image = place.converted(&format!("oci:{}:{tag}", images.display()), &[]);
        let changes = place.path("changes");
        for mode in modes(NAME, &place) {
            let variable = format!("MODE={mode}");
            let options = [
                "--mode",
                mode,
                "--env",
                &variable,
                "--workdir",
                "/data",
                "--upper",
            ];
            let options = [&options[..], &[changes.to_str().unwrap()]].concat();
            let ran = ran(&place, &image, &options, &[program, flag, script]).exits(7);
            assert_eq!(ran.stdout, "3\n", "{ran}");
        }
        for mode in modes(NAME, &place) {
            let kept = changes.join("upper/data").join(mode);
            assert!(kept.metadata().unwrap().len() > 0, "{tag}: {mode}");
        }
    }
}

#[test]
fn privileged_a_program_finds_what_it_expects() {
    const NAME: &str = "privileged_a_program_finds_what_it_expects";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = place.converted(&fixture(), &[]);
    let script = "set -e\n\
        echo x > /dev/null; test -c /dev/zero; test -w /dev/shm; test -e /dev/pts/ptmx; head -c 4 /dev/urandom > /tmp/four\n\
        test $(wc -c < /tmp/four) = 4; test -r /proc/self/status; grep -q localhost /etc/hosts; test -f /etc/resolv.conf\n\
        test -d /sys/class; ! touch /sys/x 2>/dev/null; ! echo 1 > /proc/sys/kernel/panic\n\
        test $(hostname) = nydusify; test $HOME; pwd; echo $HOSTNAME; ls /proc | grep -c '^[0-9]'; grep CapEff /proc/self/status";
    for mode in modes(NAME, &place) {
        let ran = ran(
            &place,
            &image,
            &["--mode", mode],
            &["/bin/busybox", "sh", "-c", script],
        )
        .ok();
        let lines: Vec<&str> = ran.stdout.lines().collect();
        assert_eq!(lines[..2], ["/app", "nydusify"], "{ran}");
        let seen: usize = lines[2].parse().unwrap();
        assert!(seen < 8, "it sees processes of its own alone: {ran}");
        assert!(
            lines[3].ends_with("a00425fb"),
            "it has few privileges: {ran}"
        );
    }
    // Nothing of it is seen outside, and nothing stays.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("nydusify"), "{table}");
}

#[test]
fn privileged_exit_codes_and_streams_are_the_programs() {
    const NAME: &str = "privileged_exit_codes_and_streams_are_the_programs";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = place.converted(&fixture(), &[]);
    let shell = |script| ran(&place, &image, &[], &["/bin/busybox", "sh", "-c", script]);
    let both = shell("echo out; echo err >&2; exit 3").exits(3);
    assert_eq!(
        (&*both.stdout, both.stderr.contains("err")),
        ("out\n", true)
    );
    shell("kill -TERM $$").exits(128 + 15);
    ran(&place, &image, &[], &["/no/such"])
        .exits(127)
        .says(&["/no/such"]);
    ran(&place, &image, &[], &["/etc/passwd"]).exits(126);
    let absent = place.oci("nydus", "absent");
    ran(&place, &absent, &[], &["true"])
        .exits(125)
        .says(&["absent"]);
    ran(&place, &image, &["--user", "ghost"], &["true"])
        .exits(125)
        .says(&["ghost"]);
    run(NYDUSIFY, ["run"]).exits(2);

    let mut cat = command(
        &place,
        &image,
        &["--user", "7:8"],
        &["/bin/busybox", "sh", "-c", "id -u; id -g; cat"],
    );
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin
        .take()
        .unwrap()
        .write_all(&[b'x'; 30_000])
        .unwrap();
    let cat = cat.wait_with_output().unwrap();
    assert_eq!(cat.stdout.len(), 30_000 + 4);
    assert!(cat.stdout.starts_with(b"7\n8\n"));
}

/// A program that says that it waits.
fn waiting(place: &Place, image: &str, mode: &str, script: &str) -> Child {
    let ready = place.path("changes/upper/ready");
    let _ = std::fs::remove_file(&ready);
    let changes = place.path("changes");
    let options = ["--mode", mode, "--upper", changes.to_str().unwrap()];
    let script = format!("{script}; echo > /ready; while :; do /bin/busybox sleep 0.05; done");
    let child = command(
        place,
        image,
        &options,
        &["/bin/busybox", "sh", "-c", &script],
    )
    .spawn();
    wait_until("the program to wait", || ready.exists());
    child.unwrap()
}

#[test]
fn privileged_signals_reach_the_program_and_death_of_the_runner_ends_it() {
    const NAME: &str = "privileged_signals_reach_the_program_and_death_of_the_runner_ends_it";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = place.converted(&fixture(), &[]);
    let here = place.path("");
    for mode in modes(NAME, &place) {
        for (signal, name, number) in [
            (Signal::TERM, "TERM", 15),
            (Signal::INT, "INT", 2),
            (Signal::USR1, "USR1", 10),
        ] {
            let script = format!("trap 'exit {}' {name}", number + 20);
            let mut child = waiting(&place, &image, mode, &script);
            kill_process(Pid::from_child(&child), signal).unwrap();
            assert_eq!(code(child.wait().unwrap()), number + 20, "{name}");
        }
        // What it does not handle ends it, as anywhere.
        let mut child = waiting(&place, &image, mode, ":");
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
        assert_eq!(code(child.wait().unwrap()), 128 + 1);

        let mut child = waiting(&place, &image, mode, "trap '' TERM HUP INT");
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        wait_until("the end of all processes", || {
            processes(here.to_str().unwrap()) == 0 && processes("echo > /ready") == 0
        });
        // However early it dies.
        for delay in [10, 40, 70, 100, 150] {
            let words = ["/bin/busybox", "sleep", "1000"];
            let mut child = command(&place, &image, &["--mode", mode], &words)
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(delay));
            child.kill().unwrap();
            child.wait().unwrap();
            wait_until("the end of all processes", || {
                processes(here.to_str().unwrap()) == 0
            });
        }
        // The cache and the directory for changes are free again.
        let mut child = waiting(&place, &image, mode, "trap 'exit 0' TERM");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(code(child.wait().unwrap()), 0);
    }
}

/// Kills the process that serves the image of a runner while a program of it runs; all that this one reads, it reads
/// later. `command` runs [`READS_LATER`].
fn kill_server_of(command: &mut Command) {
    let mut runner = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(runner.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let first = children(runner.id());
    assert_eq!(first.len(), 1, "{first:?}");
    for _ in 0..2 {
        let server = server_of(runner.id());
        send(server, Signal::KILL);
        wait_until("another server", || {
            let now = servers_of(runner.id());
            now.len() == 1 && now[0] != server
        });
    }
    runner.stdin.take().unwrap().write_all(b"word\n").unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(code(runner.wait().unwrap()), 6, "{rest}");
    assert!(rest.ends_with("word\n"), "{rest}");
    assert_eq!(rest.lines().count(), 3, "{rest}");
}

const READS_LATER: &str = "echo ready; read line; md5sum /usr/share/words/alpha /app/main && echo $line > /kept && cat /kept; exit 6";

/// The processes that serve the image of a runner: children of it that are no part of the program.
fn servers_of(runner: u32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{runner}/task")).into_iter();
    let texts = threads
        .flatten()
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let numbers: Vec<i32> = texts
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let serves = |id: &i32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0)
            .any(|word| word == b"--resume")
            && lives(*id)
    };
    numbers.into_iter().filter(serves).collect()
}

fn server_of(runner: u32) -> i32 {
    let mut found = Vec::new();
    wait_until("a server", || {
        found = servers_of(runner);
        found.len() == 1
    });
    found[0]
}

#[test]
fn privileged_a_program_outlives_the_process_that_serves_its_image() {
    const NAME: &str = "privileged_a_program_outlives_the_process_that_serves_its_image";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let image = place.converted(&fixture(), &["--fs-chunk-size", "0x1000"]);
    let changes = place.path("changes");
    for options in [
        &["--no-prefetch"][..],
        &["--no-prefetch", "--upper", changes.to_str().unwrap()],
    ] {
        let words = ["/bin/busybox", "sh", "-c", READS_LATER];
        kill_server_of(&mut command(&place, &image, options, &words));
    }
    wait_until("the end of all processes", || {
        processes(place.path("").to_str().unwrap()) == 0
    });
}

#[test]
fn privileged_a_user_runs_programs_without_root() {
    const NAME: &str = "privileged_a_user_runs_programs_without_root";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    if run(
        "setpriv",
        [
            "--reuid",
            "65534",
            "--clear-groups",
            "unshare",
            "--user",
            "true",
        ],
    )
    .code
        != 0
    {
        return testkit::skip(NAME, "users can't make user namespaces here");
    }
    let _open = OpenToAll::new(Path::new("/dev/fuse"));
    let image = place.converted(&fixture(), &[]);
    let here = place.path("");
    // The target directory may lie where the user cannot go.
    let program = place.path("nydusify");
    std::fs::copy(NYDUSIFY, &program).unwrap();
    run("chown", ["-R", "65534:65534", here.to_str().unwrap()]).ok();
    let as_user = |options: &[&str], script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(&program).args(["run", &image]).args(options);
        command.arg("--cache-dir").arg(place.path("cache"));
        command.args(["--", "/bin/busybox", "sh", "-c", script]);
        command.env("XDG_RUNTIME_DIR", &here);
        command
    };
    let user = |options: &[&str], script: &str| output(&mut as_user(options, script));
    let changes = place.path("changes");
    let options = ["--upper", changes.to_str().unwrap()];
    let script = "set -e; id -u; echo text > /etc/new; rm /etc/passwd; echo x > /dev/null; test -r /proc/1/status; test -d /sys/class; exit 5";
    let ran = user(&options, script).exits(5);
    assert_eq!(ran.stdout, "0\n", "{ran}");
    let ran = user(&options, "cat /etc/new; test ! -e /etc/passwd").ok();
    assert_eq!(ran.stdout, "text\n", "{ran}");
    let owner =
        std::os::unix::fs::MetadataExt::uid(&changes.join("upper/etc/new").metadata().unwrap());
    assert_eq!(owner, 65_534);
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    kill_server_of(&mut as_user(&["--no-prefetch"], READS_LATER));
    // Other users are not in this namespace, unless the machine gives some.
    let other = user(&["--user", "1000"], "id -u");
    assert!(
        other.code == 0 || other.code == 125 && other.stderr.contains("subordinate"),
        "{other}"
    );
    user(&["--mode", "erofs"], "true")
        .exits(125)
        .says(&["--mode fuse"]);
}
