//! A line of text when a task begins and when it ends.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::BinaryBytes;
use progress::Progress;

/// Lines on standard error.
#[derive(Default)]
pub struct Lines(Mutex<BTreeMap<String, Instant>>);

impl Progress for Lines {
    fn started(&self, task: &str, total: Option<u64>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(task.to_owned(), Instant::now());
        match total {
            Some(total) => eprintln!("{task}: started, {}", BinaryBytes(total)),
            None => eprintln!("{task}: started"),
        }
    }

    fn advanced(&self, _: &str, _: u64) {}

    fn finished(&self, task: &str, summary: &str) {
        let begun = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(task);
        let seconds = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        eprintln!("{task}: {summary}, {seconds:.1} s");
    }
}
