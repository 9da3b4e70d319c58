//! System interfaces for which no safe wrapper exists: fanotify's pre-content events, memory shared between
//! processes, locks on ranges of files, descriptors without events, asking whether anybody else has a file open, giving
//! an owned descriptor another file, and large pages.
//!
//! This is the only crate with unsafe code. Each function is a thin and safe face of one system call.

mod descriptor;
pub mod fanotify;
mod large_pages;
mod lease;
mod quiet;
mod range_lock;
mod shared;

pub use descriptor::substitute;
pub use large_pages::prefer_large_pages;
pub use lease::is_open_elsewhere;
pub use quiet::open_quietly;
pub use range_lock::{RangeLock, lock_range, range_lock_of_others, unlock_range};
pub use shared::SharedWords;
