//! System interfaces for which no safe wrapper exists: fanotify's pre-content events, memory shared between
//! processes, locks on ranges of files, descriptors without events, asking whether anybody else has a file open, sealing a file
//! by fs-verity, and giving an owned descriptor another file.
//!
//! This is the only crate with unsafe code. Each function is a thin and safe face of one system call.

mod descriptor;
pub mod fanotify;
mod lease;
mod quiet;
mod range_lock;
mod seal;
mod shared;

pub use descriptor::substitute;
pub use lease::is_open_elsewhere;
pub use quiet::open_quietly;
pub use range_lock::{RangeLock, lock_range, range_lock_of_others, unlock_range};
pub use seal::seal;
pub use shared::SharedWords;
