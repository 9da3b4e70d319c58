//! The hash tree of dm-verity, format 1, with SHA-256 and without salt.
//!
//! Every block of data has a digest; 128 digests fill a hash block of 4096 bytes, and every hash block has a digest in the
//! level above, up to a level of one block, whose digest is the root. The levels lie in the file from the top down.
//! All their places follow from the number of data blocks, so one pass over the data writes all of them and
//! keeps one block of each.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use codec::digest;
use progress::Cancel;
use rafs_format::{Digest, Digester};

use crate::Error;

/// Size of a hash block in bytes.
pub(crate) const HASH_BLOCK: usize = 4096;
/// Digests in a hash block.
const PER_BLOCK: u64 = (HASH_BLOCK / size_of::<Digest>()) as u64;
/// Blocks of zeros between two looks at whether to stop.
const ZEROS: u64 = 1 << 16;

/// A tree in the making.
pub(crate) struct HashTree<'a> {
    file: &'a File,
    /// From the bottom up.
    levels: Vec<Level>,
    /// End of the top level's block, in bytes: the size of the tree and what lies before it.
    end: u64,
    /// Data that fills no block yet.
    partial: Vec<u8>,
    block_size: usize,
    zeros: Digest,
    root: Option<Digest>,
}

struct Level {
    /// Where the next hash block belongs.
    position: u64,
    block: Vec<u8>,
}

impl<'a> HashTree<'a> {
    /// A tree over `blocks` blocks of `block_size` bytes, to be written to `file` from `offset` on.
    pub(crate) fn new(file: &'a File, offset: u64, blocks: u64, block_size: usize) -> Self {
        let mut levels = Vec::new();
        let mut count = blocks;
        while count > 1 {
            count = count.div_ceil(PER_BLOCK);
            levels.push((count, Vec::with_capacity(HASH_BLOCK)));
        }
        let mut end = offset;
        let mut placed: Vec<Level> = levels
            .into_iter()
            .rev()
            .map(|(count, block)| {
                let position = end;
                end += count * HASH_BLOCK as u64;
                Level { position, block }
            })
            .collect();
        placed.reverse();
        Self {
            file,
            levels: placed,
            end,
            partial: Vec::with_capacity(block_size),
            block_size,
            zeros: digest(Digester::Sha256, &vec![0; block_size]),
            root: None,
        }
    }

    /// Where the tree ends, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Takes the next bytes of the data.
    pub(crate) fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= self.block_size {
                let (block, rest) = bytes.split_at(self.block_size);
                self.push(digest(Digester::Sha256, block))?;
                bytes = rest;
                continue;
            }
            let missing = self.block_size - self.partial.len();
            let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if self.partial.len() == self.block_size {
                let full = digest(Digester::Sha256, &self.partial);
                self.partial.clear();
                self.push(full)?;
            }
        }
        Ok(())
    }

    /// Takes zeros as the next `count` bytes of the data.
    pub(crate) fn zeros(&mut self, mut count: u64, cancel: &Cancel) -> Result<(), Error> {
        if !self.partial.is_empty() {
            let rest = (self.block_size - self.partial.len()) as u64;
            let rest = rest.min(count);
            self.data(&vec![0; rest as usize])?;
            count -= rest;
        }
        let size = self.block_size as u64;
        for at in 0..count / size {
            if at % ZEROS == 0 {
                cancel.check()?;
            }
            self.push(self.zeros)?;
        }
        Ok(self.data(&vec![0; (count % size) as usize])?)
    }

    /// Writes what is left; the root. The data must have been complete.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        for level in 0..self.levels.len() {
            if !self.levels[level].block.is_empty() {
                self.write(level)?;
            }
        }
        let incomplete = io::Error::new(io::ErrorKind::UnexpectedEof, "the hash tree has no root");
        self.root.ok_or(incomplete)
    }

    /// Takes the digest of the next block of data.
    fn push(&mut self, mut found: Digest) -> io::Result<()> {
        for level in 0..self.levels.len() {
            let block = &mut self.levels[level].block;
            block.extend_from_slice(&found);
            if block.len() < HASH_BLOCK {
                return Ok(());
            }
            found = self.store(level)?;
        }
        self.root = Some(found);
        Ok(())
    }

    /// Writes the last block of a level.
    fn write(&mut self, level: usize) -> io::Result<()> {
        let found = self.store(level)?;
        match self.levels.get_mut(level + 1) {
            Some(above) => above.block.extend_from_slice(&found),
            None => self.root = Some(found),
        }
        Ok(())
    }

    /// Writes the block of a level, zeros behind its digests, and begins the next; its digest.
    fn store(&mut self, level: usize) -> io::Result<Digest> {
        let Level { position, block } = &mut self.levels[level];
        block.resize(HASH_BLOCK, 0);
        self.file.write_all_at(block, *position)?;
        let found = digest(Digester::Sha256, block);
        *position += HASH_BLOCK as u64;
        block.clear();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Every third block is zeros, the others tell their number.
    fn block(number: u64, size: usize) -> Vec<u8> {
        let mut block = vec![0; size];
        if !number.is_multiple_of(3) {
            block.fill(0xa5);
            block[..8].copy_from_slice(&(number + 1).to_le_bytes());
        }
        block
    }

    /// Builds a tree in pieces of this size; end and root.
    fn build(file: &File, offset: u64, blocks: u64, size: usize, piece: usize) -> (u64, Digest) {
        let mut tree = HashTree::new(file, offset, blocks, size);
        let data: Vec<u8> = (0..blocks).flat_map(|at| block(at, size)).collect();
        for piece in data.chunks(piece) {
            if piece.iter().all(|&byte| byte == 0) {
                tree.zeros(piece.len() as u64, &Cancel::default()).unwrap();
            } else {
                tree.data(piece).unwrap();
            }
        }
        (tree.end(), tree.finish().unwrap())
    }

    #[test]
    fn roots_and_sizes_are_those_of_veritysetup() {
        // veritysetup format --no-superblock --format=1 -s - --hash=sha256 --hash-block-size=4096
        for (size, blocks, offset, end, root) in [
            (
                4096,
                1,
                4096,
                4096,
                "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7",
            ),
            (
                4096,
                2,
                8192,
                12288,
                "f093d517c29f023ef0b0fb871e141b8067eca6f726684ddd6324a183db8a23cf",
            ),
            (
                4096,
                128,
                524_288,
                528_384,
                "156c0e0b56d15fca2d01715753bfd7d0b0b448cb82feb1c622a76fa4d5b7cebe",
            ),
            (
                512,
                1,
                4096,
                4096,
                "076a27c79e5ace2a3d47f9dd2e83e4ff6ea8872b3c2218f66c92b89b55f36560",
            ),
            (
                512,
                128,
                65_536,
                69_632,
                "2f2325cfd69b4c96497f43af9a6171a10856a5b9df739af45b1d5a0536098ba3",
            ),
            (
                512,
                129,
                69_632,
                81_920,
                "89c74114e9242c6f6b7f5ce7d248f65aef86ed0fb9766296afe0e681c23f4eb5",
            ),
            (
                512,
                16_384,
                8_388_608,
                8_916_992,
                "28416dece232c4f404b5b0a0578e3f61f3b6ad9fe3b3179e07643dd83e378f27",
            ),
            (
                512,
                16_385,
                8_392_704,
                8_933_376,
                "ccf7d581bd58564f94d37fa65fe4aca6375a3796c5f6e0ad1eead1f507a280ac",
            ),
        ] {
            let file = tempfile::tempfile().unwrap();
            let (ours, found) = build(&file, offset, blocks, size, size);
            let what = format!("{blocks} blocks of {size}");
            assert_eq!((ours, hex::encode(found)), (end, root.to_owned()), "{what}");
            let written = file.metadata().unwrap().size();
            assert_eq!(written, if blocks == 1 { 0 } else { end }, "{what}");
        }
    }

    #[test]
    fn it_does_not_matter_how_the_data_comes() {
        let file = tempfile::tempfile().unwrap();
        let whole = build(&file, 0, 300, 512, 300 * 512);
        for piece in [1, 511, 513, 1000, 4096, 7 * 512] {
            assert_eq!(build(&file, 0, 300, 512, piece), whole, "pieces of {piece}");
        }
        let tree = HashTree::new(&file, 0, 300, 512);
        assert!(tree.finish().is_err(), "without its data");
    }
}
