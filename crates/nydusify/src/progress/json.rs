//! Progress as lines of JSON: `{"schema":"nydusify.progress/1","event":...,"task":...}` with `total` (event
//! `started`), `done` (event `advanced`, at most one line per task and 100 ms) or `summary` (event `finished`).

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use progress::Progress;
use serde_json::{Value, json};

const SCHEMA: &str = "nydusify.progress/1";
const INTERVAL: Duration = Duration::from_millis(100);

/// Lines of JSON.
pub struct Lines<W>(Mutex<State<W>>);

struct State<W> {
    out: W,
    tasks: BTreeMap<String, Task>,
}

struct Task {
    done: u64,
    told: Instant,
}

impl<W: Write + Send> Lines<W> {
    /// Lines to `out`.
    pub fn new(out: W) -> Self {
        Self(Mutex::new(State {
            out,
            tasks: BTreeMap::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write> State<W> {
    fn tell(&mut self, line: &Value) {
        // A reader that is gone is no reason to stop.
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn started(&self, task: &str, total: Option<u64>) {
        let mut state = self.state();
        state.tasks.insert(
            task.to_owned(),
            Task {
                done: 0,
                told: Instant::now(),
            },
        );
        state.tell(&json!({"schema": SCHEMA, "event": "started", "task": task, "total": total}));
    }

    fn advanced(&self, task: &str, bytes: u64) {
        let mut state = self.state();
        let Some(entry) = state.tasks.get_mut(task) else {
            return;
        };
        entry.done += bytes;
        if entry.told.elapsed() >= INTERVAL {
            entry.told = Instant::now();
            let done = entry.done;
            state.tell(&json!({"schema": SCHEMA, "event": "advanced", "task": task, "done": done}));
        }
    }

    fn finished(&self, task: &str, summary: &str) {
        let mut state = self.state();
        let done = state.tasks.remove(task).map_or(0, |entry| entry.done);
        state.tell(&json!({"schema": SCHEMA, "event": "finished", "task": task, "done": done, "summary": summary}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_json_with_the_schema() {
        let lines = Lines::new(Vec::new());
        lines.started("a", Some(7));
        lines.advanced("a", 7);
        lines.advanced("never started", 7);
        lines.finished("a", "done \"well\"");
        let out = lines.0.into_inner().unwrap().out;
        let events: Vec<Value> = String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(events.len(), 2);
        assert_eq!(
            events[0],
            json!({"schema": SCHEMA, "event": "started", "task": "a", "total": 7})
        );
        assert_eq!(events[1]["done"], 7);
        assert_eq!(events[1]["summary"], "done \"well\"");
    }
}
