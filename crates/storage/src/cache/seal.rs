//! Sealing cache files: once a blob is complete, fs-verity keeps its data from ever being changed, by us or by anybody
//! else, and has the kernel verify what the disk gives. Such a file can be opened for reading only, and removed.

use std::fs::File;
use std::io;
use std::path::Path;

use rafs_format::BlobInfo;
use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags, fcntl_getfl, statx};
use rustix::io::Errno;

use super::map::{AGREED, Record};
use super::open::{each_row, lease, open_or_make, paths};
use crate::Error;

/// Seals the data of a blob if the cache directory `dir` has all of it: of every image's chunks in it, since none can be added
/// later.
///
/// # Errors
/// Where the file system has no fs-verity, or while others have the file open for writing.
pub(crate) fn seal(dir: &Path, info: &BlobInfo) -> Result<(), Error> {
    let [data_path, map_path] = paths(dir, info);
    let fail = |source| Error::io("seal the cache file", &data_path)(source);
    let map = match File::open(&map_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(fail)?,
    };
    let Some(map) = lease(map, &map_path)? else {
        return Ok(());
    };
    let mut there = 0;
    each_row(&map, info.chunk_count, |index, row| {
        let record = Record::decode(row, index);
        there += u32::from(record.is_some_and(|record| record.boot != AGREED));
        Ok(())
    })
    .map_err(fail)?;
    if there < info.chunk_count || info.chunk_count == 0 {
        return Ok(());
    }
    let data = File::open(&data_path);
    data.and_then(|data| sys::seal(&data)).map_err(fail)
}

/// Whether the file at `path` is sealed.
pub(super) fn is_sealed(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::VERITY))
}

/// Whether `file` is open for reading only.
pub(super) fn is_read_only(file: &File) -> bool {
    fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDONLY)
}

/// Opens a blob's data, or makes the file. One that is sealed is open for reading only.
pub(super) fn open_data(path: &Path) -> Result<File, Error> {
    match open_or_make(path) {
        Err(Error::Io { source, .. }) if is_refusal(&source) => {
            File::open(path).map_err(Error::io("open the cache file", path))
        }
        other => other,
    }
}

/// Opens a blob's data if there is any. One that is sealed is open for reading only.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    match File::options().read(true).write(true).open(path) {
        Err(error) if is_refusal(&error) => File::open(path),
        other => other,
    }
}

/// Whether the kernel said that the file may not be changed, whoever asks.
fn is_refusal(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::PERM)
}
