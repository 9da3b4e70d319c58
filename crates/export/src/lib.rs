//! Images out of RAFS: as a tar stream ([`write_tar`]).
//!
//! Every byte of file data comes through a [`storage::ChunkStore`] and is therefore verified; what is written is the
//! same in every run. Nothing is written twice or out of order, so the output may be a pipe.
#![forbid(unsafe_code)]

mod error;
mod tar;

pub use error::Error;
pub use tar::{TarSummary, write_tar};
