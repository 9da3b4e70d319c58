//! Builds RAFS images: file data into chunks and blobs, file trees into bootstraps.
//!
//! [`build_tar`] and [`build_directory`] turn one source into one blob and an [`Image`](tree::Image): the tree with
//! the chunks its files are made of. [`encode`] writes the bootstrap of such an image, [`load_image`] reads one
//! back, [`merge`] lays images over each other. [`CompactPlan`] and [`Selection`] say which chunks of an image had better be
//! in another blob; [`compact_group`] and [`write_prefetch_blob`] write it. All work on chunks happens in the one pool of [`BuildOptions`], under
//! one byte [`Budget`]; what comes out depends on the input and the options alone.
#![forbid(unsafe_code)]

mod attributes;
mod budget;
mod build;
mod compact;
mod directory;
mod encryption;
mod error;
mod external;
mod merge;
mod optimize;
mod options;
mod parent;
mod pipeline;
mod prefetch;
mod reference;
mod relocate;
mod size;
mod tail;
mod transcode;
mod turn;

pub use attributes::{Attributes, AttributesError, ExternalFile};
pub use bootstrap::{encode, encode_v5, encode_v6, load_image};
pub use budget::Budget;
pub use build::{BuiltLayer, Stats, build_tar, stored_by_blob};
pub use compact::{CompactOptions, CompactPlan, compact_group};
pub use directory::build_directory;
pub use encryption::{BlobKey, Encryption};
pub use error::Error;
pub use external::{ExternalBlob, ExternalImage};
pub use merge::{check_compatible, merge};
pub use optimize::{PrefetchFile, Selection, parse_prefetch_list, write_prefetch_blob};
pub use options::BuildOptions;
pub use parent::Parent;
pub use prefetch::resolve_prefetch;
pub use reference::{Onlooker, build_estargz, build_tarfs, build_targz, build_targz_with};
pub use relocate::{NewBlob, Origin};
pub use size::{SizeError, parse_size};
pub use tail::ChunkTable;
pub use transcode::{TableBlob, transcode};
pub use tree::Whiteouts;
pub use turn::{Dedup, Turn};
