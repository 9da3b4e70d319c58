//! A bootstrap and its data as the published reader sees them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nydus_api::ConfigV2;
use nydus_rafs::metadata::{RafsInodeExt, RafsInodeWalkAction, RafsSuper};
use nydus_storage::device::{BlobChunkInfo, BlobDevice, BlobInfo};

use crate::listing::{Attributes, Chunk, Listing};

/// An image that the reader opened.
pub struct Opened {
    rafs: RafsSuper,
    config: Arc<ConfigV2>,
    v5: bool,
}

impl Opened {
    /// Opens a bootstrap, or a blob with a bootstrap in it. Digests of v5's inodes are validated.
    pub fn new(bootstrap: &Path, blobs: &Path, cache: &Path) -> Result<Self> {
        // v6 has no digests of inodes, and the reader refuses to be asked for them.
        let v5 = starts_as_v5(bootstrap)?;
        let config = format!(
            "version = 2\nid = \"oracle\"\n\
             backend.type = \"localfs\"\nbackend.localfs.dir = {blobs:?}\n\
             cache.type = \"filecache\"\ncache.compressed = false\ncache.validate = true\n\
             cache.filecache.work_dir = {cache:?}\n\
             rafs.mode = \"direct\"\nrafs.validate = {v5}\nrafs.prefetch.enable = false\n"
        );
        let config = Arc::new(ConfigV2::from_str(&config).context("configuration")?);
        let (rafs, _) = RafsSuper::load_from_file(bootstrap, config.clone(), false)
            .context("the reader refuses the bootstrap")?;
        ensure!(
            rafs.meta.is_v5() == v5,
            "the reader takes it for the other version"
        );
        Ok(Self { rafs, config, v5 })
    }

    /// All that the bootstrap says.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for info in self.rafs.superblock.get_blob_infos() {
            listing.blobs.push(blob(&info));
        }
        self.walk(|path, inode| {
            listing
                .paths
                .insert(path.to_vec(), attributes(inode)?.line());
            Ok(())
        })?;
        Ok(listing)
    }

    /// Reads every file; `check` is given path and data.
    pub fn read_all(&self, mut check: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        self.config.internal.set_blob_accessible(true);
        let blobs = self.rafs.superblock.get_blob_infos();
        let device =
            BlobDevice::new(&self.config, &blobs).context("the reader refuses the blobs")?;
        self.walk(|path, inode| {
            if !inode.is_reg() || inode.size() == 0 {
                return Ok(());
            }
            check(path, &read(inode, &device)?)
        })
    }

    fn walk(&self, mut visit: impl FnMut(&[u8], &dyn RafsInodeExt) -> Result<()>) -> Result<()> {
        let root = self.rafs.superblock.root_ino();
        let root = self
            .rafs
            .get_extended_inode(root, self.v5)
            .context("the root")?;
        let mut rest = vec![(b"/".to_vec(), root)];
        while let Some((path, inode)) = rest.pop() {
            let place = || format!("the reader at {}", path.escape_ascii());
            // Of v5, this validates the digest.
            self.rafs
                .get_inode(inode.ino(), self.v5)
                .with_context(place)?;
            inode
                .validate(self.rafs.get_max_ino(), self.rafs.meta.chunk_size.into())
                .with_context(place)?;
            visit(&path, inode.as_ref()).with_context(place)?;
            if !inode.is_dir() {
                continue;
            }
            let mut names = Vec::new();
            inode.walk_children_inodes(0, &mut |_, name, ino, _| {
                names.push((name, ino));
                Ok(RafsInodeWalkAction::Continue)
            })?;
            names.retain(|(name, _)| name != "." && name != "..");
            for (name, ino) in names {
                let child = inode.get_child_by_name(&name);
                let child = child.with_context(|| format!("{}: looking {name:?} up", place()))?;
                ensure!(
                    child.ino() == ino,
                    "{}: {name:?} is another inode when looked up",
                    place()
                );
                let slash: &[u8] = if path == b"/" { b"" } else { b"/" };
                rest.push(([&path, slash, name.as_bytes()].concat(), child));
            }
        }
        Ok(())
    }
}

fn starts_as_v5(bootstrap: &Path) -> Result<bool> {
    let mut magic = [0; 8];
    File::open(bootstrap)
        .and_then(|mut file| file.read_exact(&mut magic))
        .with_context(|| bootstrap.display().to_string())?;
    Ok(magic == *b"SFAR\0\x05\0\0")
}

fn read(inode: &dyn RafsInodeExt, device: &BlobDevice) -> Result<Vec<u8>> {
    // What the reader writes data to needs a file or unsafe code.
    let mut file = tempfile::tempfile()?;
    let mut size = 0;
    let length = usize::try_from(inode.size())?;
    for mut part in inode.alloc_bio_vecs(device, 0, length, true)? {
        size += device.read_to(&mut file, &mut part)?;
    }
    file.rewind()?;
    let mut data = Vec::new();
    file.read_to_end(&mut data)?;
    if size != length || data.len() != length {
        bail!("{size} and {} of {length} bytes", data.len());
    }
    Ok(data)
}

fn attributes(inode: &dyn RafsInodeExt) -> Result<Attributes> {
    let attr = inode.get_attr();
    let mut xattrs = BTreeMap::new();
    for name in inode.get_xattrs()? {
        let value = inode.get_xattr(OsStr::from_bytes(&name))?;
        xattrs.insert(name, value.context("an attribute without value")?);
    }
    let target = if inode.is_symlink() {
        inode.get_symlink()?.into_vec()
    } else {
        Vec::new()
    };
    let mut chunks = Vec::new();
    if inode.is_reg() {
        for i in 0..inode.get_chunk_count() {
            chunks.push(chunk(
                inode
                    .get_chunk_info(i)
                    .with_context(|| format!("chunk {i}"))?
                    .as_ref(),
            ));
        }
    }
    Ok(Attributes {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: tree::mode::device_number(attr.mode, attr.rdev),
        mtime: (attr.mtime, attr.mtimensec),
        nlink: attr.nlink,
        size: if inode.is_dir() { 0 } else { attr.size },
        target,
        xattrs,
        chunks,
    })
}

fn chunk(chunk: &dyn BlobChunkInfo) -> Chunk {
    let mut digest = [0; 32];
    digest.copy_from_slice(chunk.chunk_id().as_ref());
    Chunk {
        blob: chunk.blob_index(),
        index: chunk.id(),
        compressed: (chunk.compressed_offset(), chunk.compressed_size()),
        uncompressed: (chunk.uncompressed_offset(), chunk.uncompressed_size()),
        digest,
        is_compressed: chunk.is_compressed(),
        is_batch: chunk.is_batch(),
        is_encrypted: chunk.is_encrypted(),
    }
}

fn blob(blob: &BlobInfo) -> String {
    format!(
        "{} features {:#x} {}/{} chunks {}*{:#x} {:?} {:?} {:?} meta {:?} {}+{} of {} toc {} blob.meta {}",
        blob.blob_id(),
        blob.features().bits(),
        blob.compressed_size(),
        blob.uncompressed_size(),
        blob.chunk_count(),
        blob.chunk_size(),
        blob.compressor(),
        blob.digester(),
        blob.cipher(),
        blob.meta_ci_compressor(),
        blob.meta_ci_offset(),
        blob.meta_ci_compressed_size(),
        blob.meta_ci_uncompressed_size(),
        blob.blob_toc_size(),
        blob.blob_meta_size(),
    )
    .to_lowercase()
}
