//! What goes wrong around a mount, in both modes: processes that stop, a disk that is full, a cache that is deleted or
//! damaged, users that do not let go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::run::{Ran, is_mounted, output, read_uncached, run, wait_until};
use testkit::{oracle, skip};

use crate::kernel::{self, holders};
use crate::support::*;

/// Files of [`noisy`] that are so far from one another that neither is fetched along with the other.
const APART: usize = 16;

/// A mount at `root` in a place, served in the background.
struct Faulty<'a> {
    place: &'a Place,
    mode: &'a str,
}

impl<'a> Faulty<'a> {
    /// Mounts with an empty cache.
    #[track_caller]
    fn new(place: &'a Place, mode: &'a str, target: &str) -> Self {
        let _ = std::fs::remove_dir_all(place.path("cache"));
        let mount = Self { place, mode };
        mount.again(target, &[]).ok();
        mount
    }

    /// Mounts with the cache as it is.
    #[track_caller]
    fn again(&self, target: &str, options: &[&str]) -> Ran {
        let mut command = self.place.mount_command(target);
        command.args(["--mode", self.mode, "--detach", "--no-prefetch"]);
        output(command.args(options))
    }

    fn root(&self) -> PathBuf {
        self.place.path("root")
    }

    /// All its processes, the one that fetches first.
    #[track_caller]
    fn processes(&self) -> Vec<i32> {
        match self.mode {
            "fuse" => {
                let Pair { server, keeper } = Pair::of(&self.root());
                vec![server, keeper]
            }
            _ => {
                let found = kernel::complete(&self.place.path("cache"));
                [found.fillers, found.guardians].concat()
            }
        }
    }

    /// Takes it away; no process may be left.
    #[track_caller]
    fn umount(&self, processes: &[i32]) {
        run(NYDUSIFY, ["umount", self.root().to_str().unwrap()]).ok();
        assert!(!is_mounted(&self.root()));
        self.is_over(processes);
    }

    #[track_caller]
    fn is_over(&self, processes: &[i32]) {
        wait_until("the end of all processes", || {
            let cache = self.place.path("cache");
            !processes.iter().any(|&id| lives(id))
                && holders(&cache) == kernel::Processes::default()
        });
    }
}

const EIO: Option<i32> = Some(rustix::io::Errno::IO.raw_os_error());

/// Reads all files, each right or not at all; how many could not be read.
#[track_caller]
fn unreadable(root: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>) -> usize {
    let failed = expected
        .iter()
        .filter(|(name, data)| match read_uncached(&root.join(name)) {
            Ok(content) => {
                assert!(content == **data, "{} has other content", name.display());
                false
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), EIO, "{}: {error}", name.display());
                true
            }
        });
    failed.count()
}

/// Each process in turn is stopped and goes on, then all together, as on a machine that was suspended. Whoever reads
/// waits, and nobody takes the place of a process that lives.
#[test]
fn privileged_readers_wait_for_a_stopped_process() {
    let name = "privileged_readers_wait_for_a_stopped_process";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 4 * APART as u64 + 1);
    for mode in modes(name, &place) {
        let mount = Faulty::new(&place, mode, &target);
        let processes = mount.processes();
        let mut victims: Vec<Vec<i32>> = processes.iter().map(|&id| vec![id]).collect();
        victims.push(processes.clone());
        let root = mount.root();
        let mut waited = Vec::new();
        for (victims, (name, data)) in victims.iter().zip(expected.iter().step_by(APART)) {
            stop(victims);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| std::fs::read(root.join(name)));
                std::thread::sleep(Duration::from_millis(700));
                waited.push(!reader.is_finished());
                victims.iter().for_each(|&id| send(id, Signal::CONT));
                let begun = Instant::now();
                let content = reader.join().unwrap().unwrap();
                assert!(content == *data, "{mode}: {}", name.display());
                assert!(begun.elapsed() < Duration::from_secs(5), "{mode}");
            });
        }
        assert!(waited[0], "{mode}: nobody else fetches");
        assert!(waited[waited.len() - 1], "{mode}: nobody is there");
        if mode == "erofs" {
            let on_duty = waited[1..3].iter().filter(|&&waited| waited).count();
            assert_eq!(on_duty, 1, "one guardian is asked, the other one waits");
        }
        assert_eq!(mount.processes(), processes, "{mode}");
        mount.umount(&processes);
    }
}

/// Maps files and reads all of them over and over, at places that no other reader has been to.
const MAPPER: &str = r#"
import hashlib, mmap, os, random, sys
root, wanted = sys.argv[1], {}
for line in sys.stdin:
    digest, name = line.split()
    if name == "go":
        break
    wanted[name] = digest
print("mapped", flush=True)
maps = {}
for name in wanted:
    with open(os.path.join(root, name), "rb") as file:
        maps[name] = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
order = list(maps)
random.Random(7).shuffle(order)
for name in order:
    page = [maps[name][at] for at in range(0, len(maps[name]), 4096)]
    if hashlib.sha256(maps[name]).hexdigest() != wanted[name]:
        sys.exit(name + " has other content")
print("right")
"#;

/// A page fault has no way to tell of an error but a signal: it must wait as well.
#[test]
fn privileged_a_program_that_maps_files_outlives_any_process() {
    let name = "privileged_a_program_that_maps_files_outlives_any_process";
    let Some(place) = Place::new(name) else {
        return;
    };
    if oracle::program("python3").is_none() {
        return skip(name, "no python3");
    }
    let (target, expected) = noisy(&place, 60);
    for mode in modes(name, &place) {
        let mount = Faulty::new(&place, mode, &target);
        let mut program = Command::new("python3")
            .args(["-c", MAPPER])
            .arg(mount.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = program.stdin.take().unwrap();
        for (name, data) in &expected {
            writeln!(input, "{} {}", testkit::sha256(data), name.display()).unwrap();
        }
        input.write_all(b"- go\n").unwrap();
        let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "mapped");
        let count = mount.processes().len();
        let mut rounds = 0;
        while program.try_wait().unwrap().is_none() && rounds < 3 * count {
            send(mount.processes()[rounds % count], Signal::KILL);
            rounds += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(rounds > 1, "{mode}: it was too fast");
        assert_eq!(said.next().unwrap().unwrap(), "right", "{mode}");
        assert!(program.wait().unwrap().success());
        let last = mount.processes();
        mount.umount(&last);
    }
}

/// An ext4 of its own in a file.
struct Disk(PathBuf);

impl Disk {
    fn new(file: &Path, at: &Path, size: u64) -> Self {
        File::create(file).unwrap().set_len(size).unwrap();
        let (file, path) = (file.to_str().unwrap(), at.to_str().unwrap());
        run("mkfs.ext4", ["-q", "-m", "0", "-O", "^has_journal", file]).ok();
        run("mount", ["-o", "loop", file, path]).ok();
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Reads through FUSE need no disk. The kernel reads the cache file, so what does not fit there is an error, and never
/// zeros. Either goes on once there is room.
#[test]
fn privileged_a_full_disk_of_the_cache_is_no_wrong_data() {
    let name = "privileged_a_full_disk_of_the_cache_is_no_wrong_data";
    let Some(place) = Place::new(name) else {
        return;
    };
    if oracle::program("mkfs.ext4").is_none() {
        return skip(name, "no mkfs.ext4");
    }
    let (target, expected) = noisy(&place, 40);
    for mode in modes(name, &place) {
        let cache = place.directory("cache");
        let disk = Disk::new(&place.path("disk"), &cache, 20 << 20);
        let ballast = cache.join("ballast");
        std::fs::write(&ballast, vec![1; 16 << 20]).unwrap();
        let mount = Faulty {
            place: &place,
            mode,
        };
        mount.again(&target, &[]).ok();
        let root = mount.root();
        let failed = unreadable(&root, &expected);
        assert_eq!(failed > 0, mode == "erofs", "{mode}: {failed} files");
        std::fs::remove_file(&ballast).unwrap();
        wait_until("all files to be readable and kept", || {
            unreadable(&root, &expected) == 0 && stored(&cache) >= 40 * 150_000
        });
        let processes = mount.processes();
        mount.umount(&processes);
        drop(disk);
    }
}

/// What is open goes on; a process that takes the place of a dead one, too.
#[test]
fn privileged_a_mount_outlives_its_cache_directory() {
    let name = "privileged_a_mount_outlives_its_cache_directory";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 3 * APART as u64);
    for mode in modes(name, &place) {
        let mount = Faulty::new(&place, mode, &target);
        let (root, mut files) = (mount.root(), expected.iter().step_by(APART));
        let mut next = || {
            let (name, data) = files.next().unwrap();
            assert!(
                read_uncached(&root.join(name)).unwrap() == *data,
                "{mode}: {}",
                name.display()
            );
        };
        next();
        let processes = mount.processes();
        std::fs::remove_dir_all(place.path("cache")).unwrap();
        next();
        send(processes[0], Signal::KILL);
        next();
        assert_eq!(unreadable(&root, &expected), 0, "{mode}");
        mount.umount(&processes);
        // The next mount makes it again.
        mount.again(&target, &[]).ok();
        assert_eq!(unreadable(&root, &expected), 0, "{mode}");
        let processes = mount.processes();
        mount.umount(&processes);
    }
}

/// An unmount that would take files away from under their users is refused; asked for, they keep what they have open.
#[test]
fn privileged_whoever_holds_a_file_may_finish_with_it() {
    let name = "privileged_whoever_holds_a_file_may_finish_with_it";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 3);
    for mode in modes(name, &place) {
        let mount = Faulty::new(&place, mode, &target);
        let (processes, root) = (mount.processes(), mount.root());
        let (name, data) = expected.iter().next_back().unwrap();
        let mut file = File::open(root.join(name)).unwrap();
        let root = root.to_str().unwrap();
        let busy = run(NYDUSIFY, ["umount", root]);
        busy.exits(1).fails_with(&["in use", root]);
        run(NYDUSIFY, ["umount", "--lazy", root]).ok();
        assert!(!is_mounted(&mount.root()));
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(content == *data, "{mode}");
        drop(file);
        mount.is_over(&processes);
    }
}

/// Mounts that begin at the same moment share a cache that is empty, or does not exist.
#[test]
fn privileged_mounts_that_begin_at_once_agree() {
    let name = "privileged_mounts_that_begin_at_once_agree";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 12);
    for mode in modes(name, &place) {
        std::fs::remove_dir_all(place.path("cache")).unwrap();
        let roots = ["one", "two", "three"].map(|name| place.path(name));
        std::thread::scope(|scope| {
            for root in &roots {
                let mut command = place.mount_command(&target);
                command.args(["--mode", mode, "--detach", "--no-prefetch", "--mount-path"]);
                command.arg(root);
                let expected = &expected;
                scope.spawn(move || {
                    output(&mut command).ok();
                    assert_eq!(unreadable(root, expected), 0, "{mode}");
                });
            }
        });
        for root in &roots {
            run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
        }
        // At one place one of them is refused, and the other one is whole.
        let both = [(); 2].map(|()| {
            let mut command = place.mount_command(&target);
            command.args(["--mode", mode, "--detach", "--no-prefetch"]);
            let (out, error) = (Stdio::piped(), Stdio::piped());
            command.stdout(out).stderr(error).spawn().unwrap()
        });
        let ended = both.map(|child| child.wait_with_output().unwrap());
        let refused: Vec<_> = ended.iter().filter(|one| !one.status.success()).collect();
        assert_eq!(refused.len(), 1, "{mode}: {ended:?}");
        let said = String::from_utf8_lossy(&refused[0].stderr);
        assert!(said.contains("mounted there already"), "{mode}: {said}");
        let mount = Faulty {
            place: &place,
            mode,
        };
        assert_eq!(unreadable(&mount.root(), &expected), 0, "{mode}");
        let processes = mount.processes();
        mount.umount(&processes);
    }
}

/// What somebody changed in a complete cache is found by `--verify-cache`, and fetched again.
#[test]
fn privileged_a_cache_that_was_changed_is_found_out_when_asked() {
    let name = "privileged_a_cache_that_was_changed_is_found_out_when_asked";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 6);
    for mode in modes(name, &place) {
        let mount = Faulty::new(&place, mode, &target);
        assert_eq!(unreadable(&mount.root(), &expected), 0);
        let processes = mount.processes();
        mount.umount(&processes);
        for file in std::fs::read_dir(place.path("cache")).unwrap().flatten() {
            if file.file_name().to_str().unwrap().ends_with(".blob.data") {
                let mut bytes = std::fs::read(file.path()).unwrap();
                (0..bytes.len())
                    .step_by(200_000)
                    .for_each(|at| bytes[at] ^= 1);
                std::fs::write(file.path(), &bytes).unwrap();
            }
        }
        let said = mount.again(&target, &["--verify-cache"]).ok();
        assert!(said.stderr.contains("were wrong"), "{mode}: {said}");
        assert_eq!(unreadable(&mount.root(), &expected), 0, "{mode}");
        let processes = mount.processes();
        mount.umount(&processes);
    }
}
