//! Blobs outside of the image's registry: in a bucket of an object store, or in a directory.
//!
//! A [`Backend`] is opened from a [`Config`], which is what `--backend-type` and `--backend-config` say. It writes blobs
//! as an [`image::Target`] ([`Backend::target`]), and reads them as an [`image::Store`] or a [`storage::BlobSource`]. A
//! blob is an object whose name is a prefix and the hexadecimal SHA-256 of the blob.
//!
//! * `s3`: signature version 4, objects addressed by path.
//! * `oss`: Aliyun's signature version 1.
//! * `localfs`: files, written under a temporary name, synced and renamed.
//!
//! [`open_source`] reads from three more: a `registry`, a `localdisk` whose partitions are blobs, and an `http-proxy` that passes
//! blobs on, if need be over a socket.
//! [`DaemonConfig`] finds the backend in the configuration of a daemon.
//!
//! The digest of a blob, and with it the object's name, is known when the last byte is. What fits into one part is kept
//! in memory until then. A larger blob goes in parts to an object with a temporary name, which the store copies to its
//! own name in the end; whatever fails gives the parts and the temporary object up. A killed process leaves an
//! unfinished upload, which buckets can be told to remove after some days.
//!
//! Connections, time limits, proxies and attempts are those of the [`registry`] client. Secrets are part of no error,
//! log line or debug output.
#![forbid(unsafe_code)]

mod access;
mod bucket;
mod config;
mod copy;
mod daemon;
mod date;
mod detour;
mod disk;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod hosts;
mod keys;
mod local;
mod mirrors;
mod object;
mod oss;
mod place;
mod proxy;
mod s3;
mod sign;
mod source;
mod upload;

pub use config::{Config, Kind, read_config};
pub use daemon::DaemonConfig;
pub use error::Error;
pub use mirrors::MirrorList;
pub use place::Backend;
pub use source::{Blobs, open_source};
