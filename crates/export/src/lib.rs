//! Images out of RAFS: as a tar stream ([`write_tar`]), or as a disk that the kernel mounts ([`write_disk`]).
//!
//! Every byte of file data comes through a [`storage::ChunkStore`] and is therefore verified (but for tarfs images, whose
//! chunks have no digests); what is written is the same in every run. A tar is written front to back, so it may go to
//! a pipe.
#![forbid(unsafe_code)]

mod disk;
mod error;
mod tar;
mod verity;

pub use disk::{DiskData, DiskSummary, Verity, write_disk};
pub use error::Error;
pub use tar::{TarSummary, write_tar};
