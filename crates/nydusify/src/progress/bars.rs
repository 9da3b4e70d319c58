//! One bar per task, and one for the total with rate and time left.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use progress::Progress;

use convert::TOTAL;

/// Bars on a terminal.
pub struct Bars {
    terminal: MultiProgress,
    bars: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Bars {
    /// Bars of `terminal`.
    pub fn new(terminal: MultiProgress) -> Self {
        Self {
            terminal,
            bars: Mutex::default(),
        }
    }

    fn bars(&self) -> MutexGuard<'_, BTreeMap<String, ProgressBar>> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Bars {
    fn started(&self, task: &str, total: Option<u64>) {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        bar.set_style(style(task == TOTAL, total.is_some()));
        bar.set_prefix(label(task));
        let mut bars = self.bars();
        // The total stays below all others.
        let bar = match bars.get(TOTAL) {
            Some(sum) => self.terminal.insert_before(sum, bar),
            None => self.terminal.add(bar),
        };
        bars.insert(task.to_owned(), bar);
    }

    fn advanced(&self, task: &str, bytes: u64) {
        if let Some(bar) = self.bars().get(task) {
            bar.inc(bytes);
        }
    }

    fn finished(&self, task: &str, summary: &str) {
        if let Some(bar) = self.bars().remove(task) {
            bar.set_style(template("{prefix:18} {wide_msg}"));
            bar.finish_with_message(summary.to_owned());
        }
    }
}

/// A name that fits in front of a bar: digests are cut to their first digits.
fn label(task: &str) -> String {
    let name = task.strip_prefix("sha256:").unwrap_or(task);
    if name.len() >= 64 {
        name.chars().take(12).collect()
    } else {
        task.to_owned()
    }
}

fn style(total: bool, known: bool) -> ProgressStyle {
    template(match (total, known) {
        (true, _) => {
            "{prefix:18} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
        }
        (false, true) => "{prefix:18} [{wide_bar}] {binary_bytes}/{binary_total_bytes}",
        (false, false) => "{prefix:18} {spinner} {binary_bytes}",
    })
}

fn template(text: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

impl Drop for Bars {
    /// Bars of work that was given up go away.
    fn drop(&mut self) {
        for bar in self.bars().values() {
            bar.finish_and_clear();
        }
    }
}
