//! Archives that may be compressed.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use image::{Location, Source};
use layer::Compression;
use progress::Cancel;

use crate::Error;

/// Opens the only image of an OCI or docker archive. One that is compressed with gzip or zstd is first decompressed to
/// a file without a name in the system's directory for temporary files, as it is read at random.
///
/// # Errors
/// What makes the archive unreadable; [`Error::Cancelled`].
pub fn open_archive(path: &Path, cancel: &Cancel) -> Result<Source, Error> {
    let io = |action: &'static str| {
        move |source| {
            Error::Image(image::Error::Io {
                action,
                path: path.to_owned(),
                source,
            })
        }
    };
    if !path.is_file() {
        // Says what it is instead.
        return Ok(Source::open(&Location::DockerArchive {
            file: path.to_owned(),
            tag: None,
        })?);
    }
    let mut file = File::open(path).map_err(io("open"))?;
    let mut first = Vec::new();
    (&file)
        .take(4)
        .read_to_end(&mut first)
        .and_then(|_| file.rewind())
        .map_err(io("read"))?;
    let kind = layer::detect(&first);
    if kind == Compression::None {
        return Ok(Source::open_decompressed(path, file)?);
    }
    let mut plain = tempfile::tempfile().map_err(io("decompress"))?;
    let mut stream = layer::decompress(file, kind).map_err(io("decompress"))?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        cancel.check()?;
        let got = stream.read(&mut buffer).map_err(io("decompress"))?;
        if got == 0 {
            return Ok(Source::open_decompressed(path, plain)?);
        }
        plain.write_all(&buffer[..got]).map_err(io("decompress"))?;
    }
}
