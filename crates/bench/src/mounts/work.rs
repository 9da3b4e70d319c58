//! What is done on a mounted tree.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::tools::{read_all, run, walk, walk_all};

/// Reads of a random workload, per job.
const SMALL_READS: u64 = 20_000;
const LARGE_READS: u64 = 4_000;
/// The largest files, which random reads go to.
const FILES: usize = 8;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// `python3 -c 'print(1)'` in the tree.
    Hello,
    /// `python3 -c 'import tensorflow'` in the tree.
    Start,
    /// Every byte of every file.
    ReadAll,
    /// Every name.
    Find,
    /// The metadata of every file.
    Stat,
    /// The names of every file's extended attributes.
    ListXattr,
    /// Random reads of (bytes, jobs).
    Random(usize, usize),
}

impl Work {
    /// What is done on warm trees only.
    pub const WARM: [Self; 7] = [
        Self::Find,
        Self::Stat,
        Self::ListXattr,
        Self::Random(4 << 10, 1),
        Self::Random(4 << 10, 4),
        Self::Random(128 << 10, 1),
        Self::Random(128 << 10, 4),
    ];

    /// How it is called in the table.
    pub fn name(self) -> String {
        match self {
            Self::Hello => "mount and `print(1)`".to_owned(),
            Self::Start => "`import tensorflow`".to_owned(),
            Self::ReadAll => "read all".to_owned(),
            Self::Find => "find".to_owned(),
            Self::Stat => "stat all".to_owned(),
            Self::ListXattr => "listxattr all".to_owned(),
            Self::Random(bytes, jobs) => {
                format!("random reads of {} KiB, jobs: {jobs}", bytes >> 10)
            }
        }
    }

    /// Does it; how many seconds it took.
    pub fn run(self, root: &Path) -> Result<f64> {
        let prepared = match self {
            Self::Random(..) => largest_files(root)?,
            _ => Vec::new(),
        };
        let start = Instant::now();
        match self {
            Self::Hello => python(root, "print(1)")?,
            Self::Start => python(root, "import tensorflow")?,
            Self::ReadAll => drop(read_all(root)?),
            Self::Find => walk_all(root, &mut |_, _| Ok(()))?,
            Self::Stat => walk(root, &mut |_| Ok(()))?,
            Self::ListXattr => walk_all(root, &mut |path, kind| {
                if !kind.is_symlink() {
                    rustix::fs::listxattr(path, &mut [0; 4096][..])
                        .with_context(|| format!("list attributes of {}", path.display()))?;
                }
                Ok(())
            })?,
            Self::Random(bytes, jobs) => random(&prepared, bytes, jobs)?,
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Runs a program of Python in the tree, with a `/tmp` of its own: TensorFlow looks for one.
fn python(root: &Path, program: &str) -> Result<()> {
    let line = r#"mount -t tmpfs tmpfs "$0/tmp" && exec chroot "$0" /usr/bin/env \
        PYTHONPATH=/usr/lib/python3 PYTHONDONTWRITEBYTECODE=1 python3 -c "$1""#;
    run(Command::new("unshare")
        .args(["--mount", "sh", "-c", line])
        .arg(root)
        .arg(program))
}

fn largest_files(root: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    walk_all(root, &mut |path, kind| {
        if kind.is_file() {
            files.push((path.to_owned(), path.symlink_metadata()?.len()));
        }
        Ok(())
    })?;
    files.sort_by_key(|(path, size)| (std::cmp::Reverse(*size), path.clone()));
    files.truncate(FILES);
    Ok(files)
}

fn random(files: &[(PathBuf, u64)], bytes: usize, jobs: usize) -> Result<()> {
    let reads = if bytes <= 4 << 10 {
        SMALL_READS
    } else {
        LARGE_READS
    };
    let job = |seed: u64| -> Result<()> {
        let files = files
            .iter()
            .map(|(path, size)| Ok((File::open(path)?, *size)))
            .collect::<Result<Vec<_>>>()?;
        let (mut buffer, mut state) = (vec![0; bytes], seed);
        for read in 0..reads {
            // The generator of Knuth's MMIX: the same places in every run.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (file, size) = &files[read as usize % files.len()];
            let blocks = (size / bytes as u64).max(1);
            file.read_at(&mut buffer, (state >> 16) % blocks * bytes as u64)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = (0..jobs as u64)
            .map(|seed| scope.spawn(move || job(seed)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a job does not panic"))
    })
}
