//! The layer that carries the bootstrap: a gzip-compressed tar with `image/image.boot` and, per blob, the chunk
//! table that a runtime would else have to fetch from the blob's tail.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, Read};

use crate::metered::{HEADERS_MAX, Metered};
use crate::{Digest, Error, gzip};

/// Largest bootstrap that is read from a layer, in bytes.
pub const BOOTSTRAP_SIZE_MAX: u64 = 1 << 30;

/// Name of the bootstrap in its layer.
const BOOTSTRAP: &str = "image/image.boot";
/// Size of a tar block, in bytes.
const BLOCK: usize = 512;
/// Size that chunk tables are padded to, in bytes.
const META_ALIGNMENT: usize = 4096;

/// A bootstrap layer, ready to be stored.
#[derive(Debug, Clone)]
pub struct BootstrapLayer {
    /// The compressed tar.
    pub bytes: Vec<u8>,
    /// Digest of `bytes`.
    pub digest: Digest,
    /// Digest of the tar before compression.
    pub diff_id: Digest,
}

/// The chunk table of a blob, to be packed beside the bootstrap.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// The blob.
    pub blob: Digest,
    /// Its chunk table before compression.
    pub table: &'a [u8],
    /// The 4096-byte header behind it.
    pub header: &'a [u8],
}

impl BootstrapLayer {
    /// Packs a bootstrap and the chunk tables of its blobs. The bytes do not depend on the threads of `pool`.
    ///
    /// # Errors
    /// What the compressor reports.
    pub fn pack(
        bootstrap: &[u8],
        tables: &[Table<'_>],
        pool: &rayon::ThreadPool,
    ) -> io::Result<Self> {
        Self::pack_with(bootstrap, tables, &[], pool)
    }

    /// Packs further files (by name), too.
    ///
    /// # Errors
    /// As [`BootstrapLayer::pack`].
    pub fn pack_with(
        bootstrap: &[u8],
        tables: &[Table<'_>],
        files: &[(&str, &[u8])],
        pool: &rayon::ThreadPool,
    ) -> io::Result<Self> {
        let mut tar = Tar::default();
        tar.entry("image/", tar::EntryType::Directory, 0o755, 0)?;
        tar.file(BOOTSTRAP, &[bootstrap])?;
        for Table {
            blob,
            table,
            header,
        } in tables
        {
            let padding = table.len().next_multiple_of(META_ALIGNMENT) - table.len();
            tar.file(
                &format!("image/{}.blob.meta", blob.hex()),
                &[table, &[0; META_ALIGNMENT][..padding], header],
            )?;
        }
        for (name, content) in files {
            tar.file(name, &[content])?;
        }
        tar.pieces.push(Cow::Borrowed(&[0; 2 * BLOCK]));
        let pieces: Vec<&[u8]> = tar.pieces.iter().map(|piece| &**piece).collect();
        let (diff_id, bytes) = pool.join(
            || {
                let mut hasher = crate::Hasher::new();
                pieces.iter().for_each(|piece| hasher.update(piece));
                hasher.finish()
            },
            || gzip::compress(&pieces, pool),
        );
        let bytes = bytes?;
        Ok(Self {
            digest: Digest::of(&bytes),
            bytes,
            diff_id,
        })
    }
}

/// A tar in pieces, most of them borrowed.
#[derive(Default)]
struct Tar<'a> {
    pieces: Vec<Cow<'a, [u8]>>,
}

impl<'a> Tar<'a> {
    fn entry(&mut self, name: &str, kind: tar::EntryType, mode: u32, size: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.pieces.push(Cow::Owned(header.as_bytes().to_vec()));
        Ok(())
    }

    fn file(&mut self, name: &str, content: &[&'a [u8]]) -> io::Result<()> {
        let size: usize = content.iter().map(|piece| piece.len()).sum();
        self.entry(name, tar::EntryType::Regular, 0o444, size as u64)?;
        let padding = &[0; BLOCK][..size.next_multiple_of(BLOCK) - size];
        let pieces = content.iter().copied().chain([padding]);
        self.pieces.extend(pieces.map(Cow::Borrowed));
        Ok(())
    }
}

/// Reads the bootstrap from its layer (compressed, as stored) to the layer's end. Also gives the diff id of the layer.
/// Other entries do not matter, nor do `./` and a missing directory entry.
///
/// # Errors
/// If the layer is no gzip-compressed tar, holds no bootstrap or one beyond [`BOOTSTRAP_SIZE_MAX`]; `what` names it.
/// An [`Error`] inside a failed read (a digest mismatch) comes out as it is.
pub fn unpack_bootstrap(layer: impl Read, what: &str) -> Result<(Vec<u8>, Digest), Error> {
    let mut tar = Counting {
        inner: flate2::read::MultiGzDecoder::new(layer),
        hasher: crate::Hasher::new(),
    };
    let bootstrap = find(&mut tar, what).map_err(|error| unpacked(error, what))?;
    io::copy(&mut tar, &mut io::sink()).map_err(|error| unpacked(error.into(), what))?;
    Ok((bootstrap, tar.hasher.finish()))
}

fn find(tar: &mut impl Read, what: &str) -> Result<Vec<u8>, FindError> {
    let allowance = Cell::new(HEADERS_MAX);
    let mut archive = tar::Archive::new(Metered::new(tar, &allowance));
    for entry in archive.entries()? {
        let mut entry = entry?;
        allowance.set(u64::MAX);
        let name = entry.path_bytes().into_owned();
        let name = name
            .strip_prefix(b"./")
            .or(name.strip_prefix(b"/"))
            .unwrap_or(&name);
        if name != BOOTSTRAP.as_bytes() || !entry.header().entry_type().is_file() {
            io::copy(&mut entry, &mut io::sink())?;
            allowance.set(HEADERS_MAX);
            continue;
        }
        if entry.size() > BOOTSTRAP_SIZE_MAX {
            let what = format!("the bootstrap in {what}");
            return Err(FindError::Other(Error::TooLarge {
                what,
                size: entry.size(),
                limit: BOOTSTRAP_SIZE_MAX,
            }));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let reason = format!("it has no {BOOTSTRAP}");
    Err(FindError::Other(Error::Document {
        what: what.to_owned(),
        reason,
    }))
}

enum FindError {
    Io(io::Error),
    Other(Error),
}

impl From<io::Error> for FindError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn unpacked(error: FindError, what: &str) -> Error {
    match error {
        FindError::Other(error) => error,
        FindError::Io(error) => match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Error::Io {
                action: "unpack",
                path: what.into(),
                source,
            },
        },
    }
}

/// Digests what is read through it.
struct Counting<R> {
    inner: R,
    hasher: crate::Hasher,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.hasher.update(&buf[..got]);
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::write::GzEncoder;

    use super::*;

    fn pool() -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().build().unwrap()
    }

    #[test]
    fn a_bootstrap_comes_back_out_of_its_layer() {
        let boot = vec![7; 5000];
        let table = Table {
            blob: Digest::of(b"blob"),
            table: &[1; 24],
            header: &[2; 4096],
        };
        let layer = BootstrapLayer::pack(&boot, &[table], &pool()).unwrap();
        let (read, diff_id) = unpack_bootstrap(&layer.bytes[..], "layer").unwrap();
        assert_eq!(read, boot);
        assert_eq!(diff_id, layer.diff_id);
        assert_eq!(
            BootstrapLayer::pack(&boot, &[table], &pool())
                .unwrap()
                .digest,
            layer.digest
        );

        let names: Vec<(String, u64, u32)> =
            tar::Archive::new(flate2::read::GzDecoder::new(&layer.bytes[..]))
                .entries()
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                    (name, entry.size(), entry.header().mode().unwrap())
                })
                .collect();
        let meta = format!("image/{}.blob.meta", Digest::of(b"blob").hex());
        assert_eq!(
            names,
            [
                ("image/".to_owned(), 0, 0o755),
                (BOOTSTRAP.to_owned(), 5000, 0o444),
                (meta, 8192, 0o444)
            ]
        );
    }

    #[test]
    fn odd_but_readable_layers_are_read() {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, data) in [
            ("image/backend.json", &b"{}"[..]),
            ("./image/image.boot", b"boot"),
            ("x", b"y"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, data).unwrap();
        }
        let layer = tar.into_inner().unwrap().finish().unwrap();
        assert_eq!(unpack_bootstrap(&layer[..], "layer").unwrap().0, b"boot");
        let error = unpack_bootstrap(&layer[..layer.len() - 20], "layer 5").unwrap_err();
        assert!(error.to_string().contains("layer 5"), "{error}");
    }

    #[test]
    fn endless_names_are_not_read() {
        for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 36);
            header.set_cksum();
            let gzip = |bytes: &[u8]| {
                let mut out = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            };
            // Members repeat for ever; only what was read tells that it ends.
            let (head, more) = (gzip(header.as_bytes()), gzip(&[b'n'; 1 << 16]));
            let endless = std::iter::repeat_n(more, 1 << 10).flatten();
            let mut layer = head;
            layer.extend(endless);
            let mut layer = &layer[..];
            let whole = layer.len();
            let error = unpack_bootstrap(&mut layer, "layer 5").unwrap_err();
            assert!(error.to_string().contains("layer 5"), "{error}");
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("headers"), "{cause}");
            assert!(layer.len() > whole / 2, "{} of {whole} left", layer.len());
        }
    }

    #[test]
    fn an_entry_of_any_size_may_precede_the_bootstrap() {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, size) in [("image/big.blob.meta", 3 << 20), (BOOTSTRAP, 4)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, io::repeat(1).take(size))
                .unwrap();
        }
        let layer = tar.into_inner().unwrap().finish().unwrap();
        assert_eq!(unpack_bootstrap(&layer[..], "layer").unwrap().0, [1; 4]);
    }

    #[test]
    fn a_layer_without_bootstrap_is_refused_by_name() {
        let empty = GzEncoder::new(Vec::new(), flate2::Compression::fast())
            .finish()
            .unwrap();
        let error = unpack_bootstrap(&empty[..], "layer sha256:1").unwrap_err();
        assert!(
            error.to_string().contains("layer sha256:1")
                && error.to_string().contains("image.boot"),
            "{error}"
        );
    }
}
