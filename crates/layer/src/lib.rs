//! OCI layers in: inflating them, reading their tar streams, and building the file tree that a container engine
//! would have unpacked.
#![forbid(unsafe_code)]

mod apply;
mod compression;
mod error;
pub mod estargz;
pub mod path;
pub mod piece;
pub mod tar;

pub use apply::{DataSink, FileInfo, Options, TreeBuilder, read_tree};
pub use compression::{
    Boundary, Checksums, Compression, FramingReader, GzipIndex, IndexingReader, Place, decompress,
    decompress_apart, detect, detecting,
};
pub use error::Error;
