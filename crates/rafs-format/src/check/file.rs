//! What an inode holds: chunks, link target, attributes.

use std::ops::Deref;

use super::tables::{ChunkIndex, check_index, check_place};
use crate::bootstrap::SYMLINK_MAX;
use crate::{Bootstrap, Error, Inode, Layout, SuperFlags, xattr};

/// What is wrong with a file: words, and the cause where something could not be decoded.
pub(crate) struct Fault(pub(crate) String, pub(crate) Option<Error>);

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self(what, None)
    }
}

impl Fault {
    pub(crate) fn undecodable(what: &str) -> impl FnOnce(Error) -> Self {
        let what = what.to_owned();
        move |error| Self(what, Some(error))
    }
}

/// Checks what goes for every type of inode.
pub(super) fn check_inode<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    inode: &Inode,
) -> Result<(), Fault> {
    if inode.mtime_nsec >= 1_000_000_000 {
        return Err(format!(
            "nanoseconds of the modification time are {}",
            inode.mtime_nsec
        )
        .into());
    }
    let block = bootstrap.superblock().block_size();
    let tail = inode.size % block;
    let end = inode.offset() % block + inode.head_size() + tail;
    if inode.layout == Layout::FlatInline && tail != 0 && end > block {
        return Err(format!(
            "inode, attributes and inline data end at byte {end} of a block of {block}"
        )
        .into());
    }
    check_xattrs(bootstrap, inode)
}

fn check_xattrs<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    inode: &Inode,
) -> Result<(), Fault> {
    if !inode.has_xattrs() {
        return Ok(());
    }
    if !bootstrap.superblock().flags.contains(SuperFlags::HAS_XATTR) {
        return Err(
            "has extended attributes, but the superblock says that there are none"
                .to_owned()
                .into(),
        );
    }
    let xattrs = bootstrap
        .xattrs(inode)
        .map_err(Fault::undecodable("the extended attributes are damaged"))?;
    Ok(xattr::check_names(&xattrs)?)
}

/// Checks the target of a symbolic link.
pub(super) fn check_symlink<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    inode: &Inode,
) -> Result<(), Fault> {
    if inode.size == 0 || inode.size > SYMLINK_MAX {
        return Err(format!(
            "the link target has {} bytes, expected 1 to {SYMLINK_MAX}",
            inode.size
        )
        .into());
    }
    if inode.layout == Layout::FlatInline && inode.size >= bootstrap.superblock().block_size() {
        return Err(
            "the link target is in two pieces, which daemons cannot read"
                .to_owned()
                .into(),
        );
    }
    let target = bootstrap
        .symlink(inode)
        .map_err(Fault::undecodable("the link target is damaged"))?;
    if target.contains(&0) {
        return Err(format!("the link target {} has a NUL", target.escape_ascii()).into());
    }
    Ok(())
}

/// Checks chunk format and chunks of a regular file; returns the number of chunks.
pub(super) fn check_regular<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    inode: &Inode,
    index: &ChunkIndex,
) -> Result<u64, Fault> {
    let chunk_size = u64::from(bootstrap.superblock().chunk_size);
    let chunks = bootstrap
        .chunks(inode)
        .map_err(Fault::undecodable("the chunk indexes are damaged"))?;
    let count = chunks.len() as u64;
    let mut expected_next = None;
    let mut contiguous = true;
    for (i, pointer) in chunks.enumerate() {
        let pointer = pointer.map_err(Fault::undecodable("a chunk index is damaged"))?;
        let here = (pointer.blob_index, pointer.uncompressed_offset);
        contiguous &= expected_next.is_none_or(|next| next == here);
        expected_next = Some((
            pointer.blob_index,
            pointer.uncompressed_offset.saturating_add(chunk_size),
        ));
        let size = chunk_size.min(inode.size - i as u64 * chunk_size);
        let blob = bootstrap.blobs().get(pointer.blob_index as usize);
        let blob = blob.ok_or_else(|| {
            format!(
                "chunk {i} is in blob {}, which is not there",
                pointer.blob_index
            )
        })?;
        check_index(pointer.index, blob)
            .and_then(|()| check_place(pointer.uncompressed_offset, size, blob))
            .and_then(|()| index.check(&pointer, size, blob))
            .map_err(|what| {
                format!(
                    "chunk {i} (number {} of blob {}): {what}",
                    pointer.index, blob.id
                )
            })?;
    }
    check_format(bootstrap, inode, contiguous)?;
    Ok(count)
}

/// The chunk size that the kernel sees is that of the image, or covers a file whose chunks are contiguous.
fn check_format<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    inode: &Inode,
    contiguous: bool,
) -> Result<(), Fault> {
    let superblock = bootstrap.superblock();
    let Some(word) = inode.chunk_format() else {
        return Ok(());
    };
    let bits = (word & 0x1f) + u32::from(superblock.block_bits);
    let covers = bits > superblock.chunk_size.ilog2()
        && 1u64
            .checked_shl(bits)
            .is_some_and(|size| size >= inode.size);
    if word >> 5 == 1 && (bits == superblock.chunk_size.ilog2() || (covers && contiguous)) {
        return Ok(());
    }
    Err(format!(
        "the chunk format word is {word:#x}, expected {:#x}, or the whole size if the chunks are contiguous",
        0x20 | (superblock.chunk_size.ilog2() - u32::from(superblock.block_bits))
    )
    .into())
}
