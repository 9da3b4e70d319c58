//! Running commands and reading trees.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::measure::{Runs, Usage, usage};

/// Runs a command, with what is in the way removed before, once without and `runs` times with counting.
pub fn repeat(runs: usize, clean: &[&Path], command: &[OsString]) -> Result<Runs> {
    let run = || -> Result<Usage> {
        for path in clean {
            remove(path)?;
        }
        usage(command)
    };
    run()?; // a first run that does not count
    Ok(Runs::of((0..runs).map(|_| run()).collect::<Result<_>>()?))
}

/// Words as a command.
pub fn args(words: &[&std::ffi::OsStr]) -> Vec<OsString> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// Runs a command to its good end.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// The same; what it printed.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output()?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// Removes a file or directory, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Wall times of something this process does itself.
pub fn timed(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Runs> {
    let mut all = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        all.push(Usage {
            wall: start.elapsed().as_secs_f64(),
            cpu: 0.0,
            peak_kib: 0,
        });
    }
    Ok(Runs::of(all))
}

/// Visits every name below a directory, with its type read, as `find` does.
pub fn walk_all(
    root: &Path,
    visit: &mut dyn FnMut(&Path, std::fs::FileType) -> Result<()>,
) -> Result<()> {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("list {}", directory.display()))?
        {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            visit(&path, kind)?;
            if kind.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(())
}

/// Visits every regular file below a directory, with the metadata of every name read, as `find -ls` does.
pub fn walk(root: &Path, file: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    walk_all(root, &mut |path, _| {
        if path.symlink_metadata()?.is_file() {
            file(path)?;
        }
        Ok(())
    })
}

/// Reads every regular file below a directory; how many bytes there were.
pub fn read_all(root: &Path) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    walk(root, &mut |path| {
        let mut file = File::open(path)?;
        loop {
            match file
                .read(&mut buffer)
                .with_context(|| format!("read {}", path.display()))?
            {
                0 => return Ok(()),
                read => total += read as u64,
            }
        }
    })?;
    Ok(total)
}

/// The largest regular file below a directory.
pub fn largest_file(root: &Path) -> Result<PathBuf> {
    let mut largest = (0, PathBuf::new());
    walk(root, &mut |path| {
        largest =
            std::mem::take(&mut largest).max((path.symlink_metadata()?.len(), path.to_owned()));
        Ok(())
    })?;
    Ok(largest.1)
}

/// Reads the first MiB of a file.
pub fn read_start(path: &Path) -> Result<()> {
    let mut buffer = Vec::new();
    File::open(path)?.take(1 << 20).read_to_end(&mut buffer)?;
    Ok(())
}

/// Bytes of a file, or of all files in a directory.
pub fn size(path: &Path) -> Result<u64> {
    if path.is_file() {
        return Ok(path.metadata()?.len());
    }
    let mut total = 0;
    walk(path, &mut |file| {
        total += file.metadata()?.len();
        Ok(())
    })?;
    Ok(total)
}
