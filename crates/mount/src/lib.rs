//! Mounting a RAFS image lazily: FUSE in front of the bootstrap in memory and of the chunk store.
//!
//! [`mount()`] attaches an image to a directory and serves it from threads of its own; [`Mounted::serve`] is the rest
//! of such a program's life: it waits for signals or for the unmount, and leaves the mount point clean.
//! [`unmount`] is the other side, for another process, and [`replace`] upgrades the program under a mount.
//!
//! [`keep`] and [`Seat`] do the same with two processes, of which either may be killed, see the module `fuse`.
//!
//! [`mount_kernel`] mounts by the kernel's EROFS instead, see the module `erofs`.
//!
//! The file system is read-only and immutable, so the kernel is told to keep whatever it has once seen. Metadata
//! is answered from memory without locks; file data comes from [`storage::ChunkStore`], verified. Damage in the
//! bootstrap or in a blob gives EIO at the place that is damaged, never wrong data.
#![forbid(unsafe_code)]

mod channel;
mod device;
mod erofs;
mod error;
mod events;
mod fs;
mod fscontext;
mod fuse;
mod inode;
mod log;
mod metrics;
mod mountinfo;
mod mountpoint;
mod overlay;
mod prefetch;
mod program;
mod record;
mod replace;
mod runtime;
mod serve;
mod session;
mod stat;
mod stats;
mod unmount;

pub use erofs::{
    Finding, KernelOptions, Resumed, ResumedSocket, examine, guard, mount_kernel, resume_kernel,
};
pub use error::Error;
#[doc(hidden)]
pub use fs::fuzzing;
pub use fuse::{Kept, Orphan, Seat, ToKeep, keep, keep_beside, keep_on};
pub use metrics::{Sample, Samples, Upstream};
pub use mountinfo::{MountEntry, find_mount};
pub use program::Program;
pub use replace::replace;
pub use runtime::runtime_dir;
pub use serve::{Ending, Signals};
pub use session::{Mounted, Options, Prefetch, mount};
pub use stat::{Process, Stat, stat};
pub use stats::Stats;
pub use unmount::{Unmount, unmount};
