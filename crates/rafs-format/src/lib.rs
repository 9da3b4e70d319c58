//! The RAFS on-disk format: types, strict parsing and encoding.
//!
//! A RAFS image is a small *bootstrap* (superblock, tables, inodes, directory entries) and content-addressed
//! *chunks* in *blobs*. Version 6 bootstraps are valid EROFS images as well. This crate knows every byte of the
//! bootstrap ([`Bootstrap`] in version 6, [`v5::Bootstrap`] in version 5), of a blob's chunk table ([`blob_meta`]) and of a blob's tail ([`toc`]). It does no
//! I/O, starts no thread and depends on no other crate of the workspace: parsers take bytes and never panic,
//! encoders append to a `Vec<u8>`.
//!
//! All integers on disk are little-endian; all offsets are in bytes unless a name says blocks.
#![forbid(unsafe_code)]

pub mod blob;
pub mod blob_meta;
mod blob_table;
pub mod bootstrap;
pub mod check;
pub mod chunk;
pub mod directory;
pub mod encode;
mod error;
pub mod inode;
pub mod kind;
pub mod layout;
mod raw;
pub mod superblock;
pub mod toc;
pub mod v5;
pub mod xattr;

pub use blob::{BlobFeatures, BlobId, BlobInfo};
pub use bootstrap::{Bootstrap, ChunkPointer, Nid};
pub use check::{CheckError, Summary};
pub use chunk::{ChunkFlags, ChunkRecord, Digest};
pub use directory::DirEntry;
pub use error::Error;
pub use inode::{FileType, Inode, Layout};
pub use kind::{Cipher, Compressor, Digester, Version};
pub use superblock::{DeviceSlot, SuperFlags, Superblock, version};
pub use xattr::Xattr;

/// Size of an EROFS block and alignment of every chunk in a blob's uncompressed address space, in bytes.
pub const BLOCK_SIZE: u64 = 4096;
/// Size of an EROFS block in a tarfs image, in bytes: a block of a tar archive.
pub const TARFS_BLOCK_SIZE: u64 = 512;
/// Smallest chunk size an image may have, in bytes.
pub const CHUNK_SIZE_MIN: u32 = 0x1000;
/// Largest chunk size an image may have, in bytes.
pub const CHUNK_SIZE_MAX: u32 = 0x100_0000;
/// Chunk size when none is asked for, in bytes.
pub const CHUNK_SIZE_DEFAULT: u32 = 0x10_0000;
/// Most blobs that one image can name: device ids have 8 bits, 0 is the bootstrap and index 255 is unusable.
pub const BLOBS_MAX: usize = 255;
/// Most chunks that one blob can hold.
pub const CHUNKS_PER_BLOB_MAX: u32 = 1 << 24;
/// Longest file name, in bytes.
pub const NAME_MAX: usize = 255;
