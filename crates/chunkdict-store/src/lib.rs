//! A chunk dictionary that lasts: the chunks of many images, in a directory.
//!
//! [`Store`] is the directory. A [`Writer`] adds images ([`Import`], made of a bootstrap of RAFS v5 or v6) and takes them out;
//! each change makes a new [`Snapshot`], a file that never changes. A build reads one snapshot, whose id depends on the
//! images alone and not on the order in which they came. Nothing here knows registries: whoever adds images reads their
//! bootstraps, and looks whether blobs are still there.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (dir, bootstrap, manifest) = (std::path::Path::new("d"), Vec::new(), [0; 32]);
//! use chunkdict_store::{Import, Store};
//! let store = Store::create(dir)?;
//! let import = Import::new("registry.example/app:1", manifest, bootstrap, &Default::default())?;
//! store.writer(&Default::default())?.add(vec![import])?;
//! let (snapshot, _) = store.snapshot()?;
//! println!("{} chunks in {} bytes", snapshot.index().len(), snapshot.index().memory());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod catalogue;
mod coding;
mod draft;
mod error;
mod export;
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod kind;
mod rows;
mod sharing;
mod snapshot;
mod store;
mod writer;

pub use catalogue::{Catalogue, Entry, Removed};
pub use chunkdict::Kind;
pub use error::Error;
pub use import::{ImageId, Import};
pub use sharing::{Amount, Share, Sharing};
pub use snapshot::{ImageBlob, Snapshot, SnapshotImage};
pub use store::Store;
pub use writer::{Changed, Collected, Stays, Writer};
