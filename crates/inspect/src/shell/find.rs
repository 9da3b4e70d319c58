//! Searches over the whole tree.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;

use rafs_format::Nid;
use storage::LoadedBootstrap;

use super::show;
use crate::Error;
use crate::report::{ChunkRecords, file_chunks, number};
use crate::walk::walk;

/// An inode that is to be fetched first, and all its paths.
pub(super) type Prefetched = (u64, Vec<Vec<u8>>);

/// What is to be fetched first, in the order of the table.
pub(super) fn prefetch(loaded: &LoadedBootstrap) -> Result<Vec<Prefetched>, Error> {
    let bootstrap = &loaded.bootstrap;
    let mut paths: BTreeMap<Nid, Prefetched> = bootstrap
        .prefetch()
        .map(|nid| (nid, (nid.0, Vec::new())))
        .collect();
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    walk(bootstrap, |path, inode| {
        if let Some((known, found)) = paths.get_mut(&inode.nid) {
            *known = number(loaded, inode);
            found.push(path.to_vec());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(bootstrap
        .prefetch()
        .filter_map(|nid| paths.get(&nid).cloned())
        .collect())
}

/// Files with a chunk that is stored at `offset` of its blob.
pub(super) fn chunk(
    loaded: &LoadedBootstrap,
    offset: u64,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let bootstrap = &loaded.bootstrap;
    let records = ChunkRecords::load(loaded)?;
    walk(bootstrap, |path, inode| {
        if inode.is_regular() {
            for chunk in file_chunks(bootstrap, path, inode, &records)? {
                let Some(record) = chunk
                    .record
                    .filter(|record| record.compressed_offset == offset)
                else {
                    continue;
                };
                let blob = bootstrap
                    .blobs()
                    .get(chunk.blob_index as usize)
                    .map_or("?", |info| info.id.as_str());
                write!(
                    out,
                    "{}    file offset {}, chunk index {}",
                    path.escape_ascii(),
                    chunk.file_offset,
                    chunk.index
                )?;
                writeln!(
                    out,
                    ", compressed size {}, blob {blob}, chunk id {}",
                    record.compressed_size,
                    hex::encode(record.digest)
                )?;
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// All paths of an inode, and what is known of it.
pub(super) fn inode(
    loaded: &LoadedBootstrap,
    wanted: u64,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let bootstrap = &loaded.bootstrap;
    let mut found = None;
    let mut directories = BTreeMap::new();
    walk(bootstrap, |path, inode| {
        if inode.is_dir() {
            directories.insert(path.to_vec(), number(loaded, inode));
        }
        if number(loaded, inode) == wanted {
            writeln!(out, "{}", path.escape_ascii())?;
            found.get_or_insert_with(|| (path.to_vec(), *inode));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let Some((path, inode)) = found else {
        return Ok(writeln!(out, "inode {wanted} is not there")?);
    };
    let cut = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
    let (dir, name) = path.split_at(cut);
    let name = if path == b"/" {
        b"/"
    } else {
        name.get(1..).unwrap_or_default()
    };
    let dir: &[u8] = if dir.is_empty() { b"/" } else { dir };
    let parent = directories.get(dir).copied().unwrap_or_default();
    show::inode(loaded, name, &inode, parent, out)
}
