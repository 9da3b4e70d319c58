//! OCI images in local files: layouts, OCI archives and `docker save` archives.
//!
//! A [`Source`] reads an image wherever it lies and verifies every byte it hands out: manifests, indexes and
//! configurations at once, blobs while they stream. A [`Target`] writes an image so that its tag appears last, when
//! everything it names is in place; what was not committed is taken away again. [`nydus`] knows what makes an image
//! a Nydus image.
//!
//! The document types keep fields they do not know ([`Descriptor`], [`Manifest`], [`Index`]), and their maps are
//! ordered: the same input always gives the same bytes, hence the same digest. That is why they are not the types of
//! `oci-spec`, which hash their annotations and drop unknown fields.
#![forbid(unsafe_code)]

mod blob;
mod digest;
mod error;
mod gzip;
mod location;
pub mod media;
mod metered;
mod model;
pub mod nydus;
mod platform;
mod source;
mod target;

pub use blob::Verifying;
pub use digest::{Digest, Hasher};
pub use error::Error;
pub use location::Location;
pub use model::{Descriptor, Index, Manifest, Node};
pub use platform::{Platform, PlatformChoice};
pub use source::{Origin, Selected, Source, Store, layout_images};
pub use target::{Arrival, BlobSink, BlobWriter, Sink, Target, remove_images};

/// Largest manifest, index or configuration that is read, in bytes.
pub const DOCUMENT_SIZE_MAX: u64 = 8 << 20;
/// Annotation of an index entry: the tag.
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of an index entry: the full name of the image, as containerd writes it.
pub const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";
