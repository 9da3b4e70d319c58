//! Writing out early what was written.

use std::fs::File;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};

/// Bytes after which the kernel is asked to start writing them to the disk.
const STEP: u64 = 8 << 20;

/// Keeps a growing file on its way to the disk, so that the sync before the tag finds little left to wait for.
#[derive(Debug, Default)]
pub(super) struct WriteBehind {
    begun: u64,
}

impl WriteBehind {
    /// A file whose bytes from `start` on will be written in order.
    pub(super) fn from(start: u64) -> Self {
        Self { begun: start }
    }

    /// `file` is now written up to `end`.
    pub(super) fn reached(&mut self, file: &File, end: u64) {
        if end.saturating_sub(self.begun) >= STEP {
            self.start(file, end);
        }
    }

    /// `file` is complete and ends at `end`.
    pub(super) fn ended(mut self, file: &File, end: u64) {
        self.start(file, end);
    }

    fn start(&mut self, file: &File, end: u64) {
        let Some(fresh) = NonZeroU64::new(end.saturating_sub(self.begun)) else {
            return;
        };
        // On Linux this starts to write dirty pages, and drops clean ones, of which there are none yet. It is advice:
        // if it fails, the sync has more to do.
        let _ = fadvise(file, self.begun, Some(fresh), Advice::DontNeed);
        self.begun = end;
    }
}
