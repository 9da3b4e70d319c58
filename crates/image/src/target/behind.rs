//! Writing out early what was written.

use std::fs::File;

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
        let fresh = end.saturating_sub(self.begun);
        if fresh < STEP {
            return;
        }
        // On Linux this starts to write dirty pages, and drops clean ones, of which there are none yet. It is advice:
        // if it fails, the sync has more to do.
        let _ = fadvise(
            file,
            self.begun,
            std::num::NonZeroU64::new(fresh),
            Advice::DontNeed,
        );
        self.begun = end;
    }
}
