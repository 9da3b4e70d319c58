//! The file system: FUSE requests answered from the bootstrap in memory and from the chunk store.
//!
//! Nothing ever changes, so there are no locks and no state per open file; the kernel may cache all it likes for as
//! long as it likes.

pub mod fuzzing;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use rafs_format::{Bootstrap, ChunkPointer, Inode, NAME_MAX};
use storage::ChunkStore;
use trace::Recorder;

use crate::error::Fault;
use crate::fuse::Flights;
use crate::inode::{Numbers, attributes, kind};
use crate::log::DamageLog;
use crate::stats::{Counters, add};

/// How long the kernel may believe a name or an attribute: as good as for ever.
const TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// An inode number is never used for a second file.
const GENERATION: Generation = Generation(0);
/// Requests the kernel may have waiting in the background (its read-ahead) at once.
const BACKGROUND: u16 = 64;
/// Most file data beyond a request that the store may fetch along with it, in bytes. How much, the size of the request
/// says: the kernel asks for much at once where a reader goes on, and for little where one jumps about.
const NEIGHBOURS_MAX: u64 = 4 << 20;
/// Bytes that may be fetched along for each byte of a request.
const NEIGHBOURS_PER_BYTE: u64 = 4;

/// What a session serves; shared by its threads.
pub(crate) struct RafsFs {
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    numbers: Numbers,
    counters: Arc<Counters>,
    log: DamageLog,
    /// Process id of the process that keeps the mount, 0 if none does; for whoever unmounts, see [`crate::unmount`].
    keeper: Arc<AtomicU32>,
    /// Notes what is being answered: another process may have to go on.
    flights: Flights,
    trace: Option<Arc<Recorder>>,
    no_open: bool,
    no_opendir: bool,
}

/// Buffers that a thread uses again for every read.
#[derive(Default)]
struct Scratch {
    data: Vec<u8>,
    chunks: Vec<ChunkPointer>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl RafsFs {
    pub(crate) fn new(
        bootstrap: Arc<Bootstrap<Vec<u8>>>,
        store: Arc<ChunkStore>,
        counters: Arc<Counters>,
        keeper: Arc<AtomicU32>,
        flights: Flights,
        trace: Option<Arc<Recorder>>,
    ) -> Self {
        Self {
            numbers: Numbers::new(bootstrap.root()),
            bootstrap,
            store,
            counters,
            log: DamageLog::default(),
            keeper,
            flights,
            trace,
            no_open: false,
            no_opendir: false,
        }
    }

    /// The errno of a fault; damage is counted and logged.
    fn errno(&self, what: &'static str, ino: INodeNo, fault: &Fault) -> Errno {
        if fault.is_damage() {
            let bootstrap = matches!(fault, Fault::Bootstrap(_));
            add(&self.counters.bootstrap_errors, u64::from(bootstrap));
            add(&self.counters.errors, 1);
            self.log.report(what, self.numbers.nid(ino), fault);
        }
        fault.errno()
    }

    fn inode(&self, ino: INodeNo) -> Result<Inode, Fault> {
        Ok(self.bootstrap.inode(self.numbers.nid(ino))?)
    }

    fn directory(&self, ino: INodeNo) -> Result<Inode, Fault> {
        let inode = self.inode(ino)?;
        if inode.is_dir() {
            Ok(inode)
        } else {
            Err(Fault::NotDirectory)
        }
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Fault> {
        Ok(attributes(ino, &self.inode(ino)?))
    }

    fn find(&self, parent: INodeNo, name: &[u8]) -> Result<FileAttr, Fault> {
        let directory = self.directory(parent)?;
        // The kernel lets names of a page through.
        if name.len() > NAME_MAX {
            return Err(Fault::NameTooLong);
        }
        let entry = self
            .bootstrap
            .lookup(&directory, name)?
            .ok_or(Fault::NoEntry)?;
        self.attr(self.numbers.ino(entry.nid))
    }

    /// Calls `add` with number, name and type of each entry from the `offset`-th on, until it returns true ("full").
    fn list(
        &self,
        ino: INodeNo,
        offset: u64,
        mut add: impl FnMut(u64, INodeNo, fuser::FileType, &OsStr) -> bool,
    ) -> Result<(), Fault> {
        let directory = self.directory(ino)?;
        for (position, entry) in (offset..).zip(self.bootstrap.entries_from(&directory, offset)?) {
            let entry = entry?;
            let next = position.saturating_add(1);
            if add(
                next,
                self.numbers.ino(entry.nid),
                kind(entry.file_type),
                OsStr::from_bytes(entry.name),
            ) {
                break;
            }
        }
        Ok(())
    }

    /// Where a link leads.
    fn target(&self, ino: INodeNo) -> Result<Vec<u8>, Fault> {
        let inode = self.inode(ino)?;
        if !inode.is_symlink() {
            return Err(Fault::WrongType);
        }
        Ok(self.bootstrap.symlink(&inode)?.into_owned())
    }

    /// Reads into `scratch.data` and returns how many bytes of it count.
    fn read_file(
        &self,
        ino: INodeNo,
        offset: u64,
        size: u32,
        scratch: &mut Scratch,
    ) -> Result<usize, Fault> {
        let inode = self.inode(ino)?;
        if !inode.is_regular() {
            return Err(if inode.is_dir() {
                Fault::IsDirectory
            } else {
                Fault::WrongType
            });
        }
        let end = offset.saturating_add(size.into()).min(inode.size);
        let Some(len) = end.checked_sub(offset).filter(|&len| len > 0) else {
            return Ok(0);
        };
        let len = usize::try_from(len).map_err(|_| Fault::WrongType)?;
        if scratch.data.len() < len {
            scratch.data.resize(len, 0);
        }
        self.read_range(
            &inode,
            offset..end,
            &mut scratch.chunks,
            &mut scratch.data[..len],
        )?;
        Ok(len)
    }

    /// Fills `buffer` with the bytes `range` of a file, which lie within its size.
    fn read_range(
        &self,
        inode: &Inode,
        range: Range<u64>,
        chunks: &mut Vec<ChunkPointer>,
        buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let chunk_size = self.bootstrap.superblock().chunk_size;
        let size = u64::from(chunk_size);
        let first = range.start / size;
        let ahead = ((range.end - range.start) * NEIGHBOURS_PER_BYTE).min(NEIGHBOURS_MAX);
        let last = (range.end - 1).saturating_add(ahead) / size;
        let position = |chunk: u64| usize::try_from(chunk).unwrap_or(usize::MAX);
        chunks.clear();
        for chunk in self
            .bootstrap
            .chunks(inode)?
            .skip(position(first))
            .take(position(last - first + 1))
        {
            chunks.push(chunk?);
        }
        Ok(self
            .store
            .read_file_range(chunks, chunk_size, range.start - first * size, buffer)?)
    }

    fn xattr(&self, ino: INodeNo, name: &[u8]) -> Result<Vec<u8>, Fault> {
        if ino == INodeNo::ROOT && name == crate::unmount::PID_ATTRIBUTE.as_bytes() {
            let keeper = self.keeper.load(Ordering::Relaxed);
            return Ok(crate::unmount::processes(keeper).into_bytes());
        }
        let inode = self.inode(ino)?;
        let found = self
            .bootstrap
            .xattrs(&inode)?
            .into_iter()
            .find(|xattr| xattr.name == name);
        Ok(found.ok_or(Fault::NoAttribute)?.value.to_vec())
    }

    fn xattr_names(&self, ino: INodeNo) -> Result<Vec<u8>, Fault> {
        let inode = self.inode(ino)?;
        let mut names = Vec::new();
        for xattr in self.bootstrap.xattrs(&inode)? {
            names.extend_from_slice(&xattr.name);
            names.push(0);
        }
        Ok(names)
    }

    /// Answers a request for an attribute or the list of them: its length if `size` is 0, else the bytes.
    fn reply_xattr(
        &self,
        what: &'static str,
        ino: INodeNo,
        value: Result<Vec<u8>, Fault>,
        size: u32,
        reply: ReplyXattr,
    ) {
        match value {
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(Fault::TooSmall.errno()),
            Ok(value) => reply.data(&value),
            Err(fault) => reply.error(self.errno(what, ino, &fault)),
        }
    }
}

impl Filesystem for RafsFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_POSIX_ACL;
        let granted = wanted & config.capabilities();
        // Every bit is known to be on offer.
        let _ = config.add_capabilities(granted);
        self.no_open = granted.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = granted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let _ = config.set_max_background(BACKGROUND);
        if let Err(most) = config.set_max_readahead(u32::MAX) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _flight = self.flights.begin(request);
        add(&self.counters.lookups, 1);
        match self.find(parent, name.as_bytes()) {
            Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
            // Inode number 0 says "no such name", and unlike an error the kernel remembers it.
            Err(Fault::NoEntry) => reply.entry(&TTL, &NOTHING, GENERATION),
            Err(fault) => reply.error(self.errno("lookup", parent, &fault)),
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _flight = self.flights.begin(request);
        match self.attr(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(fault) => reply.error(self.errno("getattr", ino, &fault)),
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let _flight = self.flights.begin(request);
        match self.target(ino) {
            Ok(target) => reply.data(&target),
            Err(fault) => reply.error(self.errno("readlink", ino, &fault)),
        }
    }

    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _flight = self.flights.begin(request);
        if self.no_open {
            // The kernel never asks again, and keeps its page cache from one open to the next.
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            );
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _flight = self.flights.begin(request);
        let _timer = self.counters.read_times.start();
        let recording = self.trace.as_ref().map(|trace| (trace, Instant::now()));
        SCRATCH.with_borrow_mut(|scratch| match self.read_file(ino, offset, size, scratch) {
            Ok(len) => {
                add(&self.counters.reads, 1);
                add(&self.counters.bytes, len as u64);
                reply.data(&scratch.data[..len]);
                if let Some((trace, began)) = recording.filter(|_| len != 0) {
                    let end = offset.saturating_add(len as u64);
                    trace.read(self.numbers.nid(ino), offset..end, began);
                }
            }
            Err(fault) => reply.error(self.errno("read", ino, &fault)),
        });
    }

    fn flush(&self, request: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let _flight = self.flights.begin(request);
        // Nothing is ever written; the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _flight = self.flights.begin(request);
        if self.no_opendir {
            // The kernel never asks again, and caches listings.
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            );
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _flight = self.flights.begin(request);
        let listed = self.list(ino, offset, |next, ino, kind, name| {
            reply.add(ino, next, kind, name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(fault) => reply.error(self.errno("readdir", ino, &fault)),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _flight = self.flights.begin(request);
        let mut count = 0;
        let listed = self.list(ino, offset, |next, ino, kind, name| {
            count += 1;
            // A damaged inode must not hide the names after it: number 0 lists the name and says no more.
            let (known, attr) = match self.attr(ino) {
                Ok(attr) => (ino, attr),
                Err(_) => (
                    INodeNo(0),
                    FileAttr {
                        ino,
                        kind,
                        ..NOTHING
                    },
                ),
            };
            reply.add(known, next, name, &TTL, &attr, GENERATION)
        });
        add(&self.counters.lookups, count);
        match listed {
            Ok(()) => reply.ok(),
            Err(fault) => reply.error(self.errno("readdir", ino, &fault)),
        }
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let _flight = self.flights.begin(request);
        let bytes = self.bootstrap.blobs().iter().fold(0_u64, |sum, blob| {
            sum.saturating_add(blob.uncompressed_size)
        });
        reply.statfs(
            bytes.div_ceil(4096),
            0,
            0,
            self.bootstrap.superblock().inos,
            0,
            4096,
            NAME_MAX as u32,
            4096,
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let _flight = self.flights.begin(request);
        self.reply_xattr(
            "getxattr",
            ino,
            self.xattr(ino, name.as_bytes()),
            size,
            reply,
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _flight = self.flights.begin(request);
        self.reply_xattr("listxattr", ino, self.xattr_names(ino), size, reply);
    }
}

/// Attributes that stand for "no such name".
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: std::time::UNIX_EPOCH,
    mtime: std::time::UNIX_EPOCH,
    ctime: std::time::UNIX_EPOCH,
    crtime: std::time::UNIX_EPOCH,
    kind: fuser::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};
