//! Where the bytes of blobs come from.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Random access to the stored bytes of one blob. Retrying is the reader's own business.
pub trait BlobReader: Send + Sync {
    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the blob ends before `buf` is full, else what the place reports.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Size of the blob in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` once more. It holds what an earlier read gave for the bytes from `offset` on, and that was not what it
    /// should be; so they are taken from the place that has the last word. `false` if that is where they came from, or if
    /// it has the same: then no other read will help.
    ///
    /// # Errors
    /// As [`BlobReader::read_exact_at`].
    fn read_again(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// The bytes from `offset` to the end, front to back: one request, where requests cost something.
    ///
    /// # Errors
    /// What the place reports; reads may fail later as well.
    fn stream(self: Arc<Self>, offset: u64) -> io::Result<Box<dyn Read + Send>>
    where
        Self: 'static,
    {
        Ok(Box::new(Stream {
            blob: self,
            position: offset,
        }))
    }
}

/// Reads a blob front to back by position: many streams of one blob can be read side by side.
struct Stream<B: ?Sized> {
    blob: Arc<B>,
    position: u64,
}

impl<B: BlobReader + ?Sized> Read for Stream<B> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size().saturating_sub(self.position);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..want).unwrap_or_default();
        self.blob.read_exact_at(part, self.position)?;
        self.position += want as u64;
        Ok(want)
    }
}

/// Reads a blob by position for those who go from front to back: as one stream, begun anew only after a jump.
pub struct Forward {
    blob: Arc<dyn BlobReader>,
    stream: Option<Box<dyn Read + Send>>,
    position: u64,
}

impl Forward {
    /// Will read `blob` from wherever the first read begins.
    pub fn new(blob: Arc<dyn BlobReader>) -> Self {
        Self {
            blob,
            stream: None,
            position: 0,
        }
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// As [`BlobReader::read_exact_at`].
    pub fn read_exact_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let begun = self.stream.take().filter(|_| offset == self.position);
        let mut stream = match begun {
            Some(stream) => stream,
            None => Arc::clone(&self.blob).stream(offset)?,
        };
        stream.read_exact(buf)?;
        (self.stream, self.position) = (Some(stream), offset + buf.len() as u64);
        Ok(())
    }

    /// Size of the blob in bytes.
    pub fn size(&self) -> u64 {
        self.blob.size()
    }
}

/// Opens blobs by their id.
pub trait BlobSource: Send + Sync {
    /// A reader of the blob `id`.
    ///
    /// # Errors
    /// `NotFound` if there is no such blob here, else what the place reports.
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>>;
}

/// A blob that is a file, or a run of bytes inside one (a member of an archive).
#[derive(Debug, Clone)]
pub struct FileBlob {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl FileBlob {
    /// The whole file at `path`.
    ///
    /// # Errors
    /// What opening the file reports; `InvalidInput` if it is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(Self {
            file: Arc::new(file),
            offset: 0,
            len: metadata.len(),
        })
    }

    /// The `len` bytes of `file` from `offset` on.
    pub fn window(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { file, offset, len }
    }
}

impl BlobReader for FileBlob {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .filter(|&end| end <= self.len);
        let start = end
            .and(self.offset.checked_add(offset))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(buf, start)
    }

    fn size(&self) -> u64 {
        self.len
    }
}

impl BlobReader for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start
            .checked_add(buf.len())
            .and_then(|end| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

/// Blobs that are files of one directory, each named by its id.
#[derive(Debug, Clone)]
pub struct DirSource(pub PathBuf);

impl BlobSource for DirSource {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        if id.is_empty() || id.starts_with('.') || id.contains(['/', '\0']) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("blob id {id:?} is no file name"),
            ));
        }
        let path = self.0.join(id);
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        Ok(Arc::new(FileBlob::open(&path).map_err(named)?))
    }
}

/// Blobs that are named one by one, before those of another source.
#[derive(Clone, Default)]
pub struct NamedSource {
    blobs: HashMap<String, Arc<dyn BlobReader>>,
    rest: Option<Arc<dyn BlobSource>>,
}

impl NamedSource {
    /// Blobs that are named by [`NamedSource::insert`], and those of `rest` for every other id.
    pub fn new(rest: Option<Arc<dyn BlobSource>>) -> Self {
        Self {
            blobs: HashMap::new(),
            rest,
        }
    }

    /// Lets `reader` serve the blob `id`.
    pub fn insert(&mut self, id: impl Into<String>, reader: Arc<dyn BlobReader>) {
        self.blobs.insert(id.into(), reader);
    }
}

impl BlobSource for NamedSource {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        match (self.blobs.get(id), &self.rest) {
            (Some(reader), _) => Ok(Arc::clone(reader)),
            (None, Some(rest)) => rest.open(id),
            (None, None) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no place is known for blob {id}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_it_ends() {
        let dir = std::env::temp_dir().join(format!("storage-window-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("blob"), b"0123456789").unwrap();
        let file = Arc::new(File::open(dir.join("blob")).unwrap());
        let window = FileBlob::window(file, 2, 5);
        let mut buf = [0; 3];
        window.read_exact_at(&mut buf, 2).unwrap();
        assert_eq!(&buf, b"456");
        assert_eq!(
            window.read_exact_at(&mut buf, 3).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            window.read_exact_at(&mut buf, u64::MAX).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(DirSource(dir.clone()).open("blob").unwrap().size(), 10);
        assert!(DirSource(dir.clone()).open("../blob").is_err());
        assert!(
            DirSource(dir.clone())
                .open("none")
                .is_err_and(|error| error.to_string().contains("none"))
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn going_forward_takes_one_stream() {
        struct Counting(Vec<u8>, std::sync::atomic::AtomicUsize);
        impl BlobReader for Counting {
            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                self.0.read_exact_at(buf, offset)
            }
            fn size(&self) -> u64 {
                self.0.size()
            }
            fn stream(self: Arc<Self>, offset: u64) -> io::Result<Box<dyn Read + Send>> {
                self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(Box::new(Stream {
                    blob: self,
                    position: offset,
                }))
            }
        }
        let blob = Arc::new(Counting(b"0123456789".to_vec(), 0.into()));
        let mut forward = Forward::new(Arc::clone(&blob) as Arc<dyn BlobReader>);
        let mut read = |offset: u64, len: usize| {
            let mut buf = vec![0; len];
            forward.read_exact_at(&mut buf, offset).map(|()| buf)
        };
        let streams = || blob.1.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(read(2, 3).unwrap(), b"234");
        assert_eq!(read(5, 4).unwrap(), b"5678");
        assert_eq!(streams(), 1);
        assert_eq!(read(1, 2).unwrap(), b"12");
        assert_eq!(streams(), 2);
        assert!(read(3, 20).is_err());
        assert_eq!(read(3, 2).unwrap(), b"34", "an error ends a stream");
    }

    #[test]
    fn named_blobs_come_before_the_rest() {
        let mut rest = NamedSource::new(None);
        rest.insert("a", Arc::new(b"rest".to_vec()));
        rest.insert("b", Arc::new(b"rest".to_vec()));
        let mut source = NamedSource::new(Some(Arc::new(rest)));
        source.insert("a", Arc::new(b"own".to_vec()));
        assert_eq!(source.open("a").unwrap().size(), 3);
        assert_eq!(source.open("b").unwrap().size(), 4);
        assert!(source.open("c").is_err());
    }
}
