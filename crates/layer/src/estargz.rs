//! eStargz layers: gzipped tars whose files can be read one by one.
//!
//! Each file, and each chunk of a large one, begins a gzip member of its own. The last member but one holds a tar with
//! the file `stargz.index.json`, the table of contents ("TOC"): a JSON object with `version` 1 and one item in
//! `entries` per tar entry, and one more per chunk behind a file's first. The last member is the footer, of which only
//! the gzip header counts: it says where the TOC begins.
//!
//! ```text
//! member ... member | member with the TOC | footer (51 bytes; 47 in old stargz)
//! ```
//!
//! A member goes on behind its chunk: with padding and the headers of the tar entries before the next chunk. So of the
//! member of a chunk only the first bytes are the chunk.
//!
//! Source: the eStargz specification of stargz-snapshotter (`docs/estargz.md`) and files made by its library.

mod contents;
mod footer;
mod time;
mod toc;

pub use contents::{Contents, StoredChunk, read_contents};
pub use footer::{FOOTER_SIZE, FOOTER_SIZE_LEGACY, Footer, read_toc_member};
pub use toc::{Chunk, EntryKind, TOC_NAME, TocEntry, read_toc};
