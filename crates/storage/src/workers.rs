use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A thread that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(1);

/// How much less of a busy processor a thread gets whose work nobody waits for, as nice(1) counts it.
const GIVES_WAY: i32 = 10;

type Task = Box<dyn FnOnce() + Send>;

/// Threads that come with the work and go when there is none: mounts may be many, and most of them idle.
pub(crate) struct Workers {
    name: &'static str,
    most: usize,
    gives_way: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    present: usize,
    idle: usize,
}

impl Workers {
    /// At most `most` threads called `name`, 0 for one per core.
    pub fn new(name: &'static str, most: usize) -> Arc<Self> {
        Self::with(name, most, false)
    }

    /// The same for work that nobody waits for.
    pub fn giving_way(name: &'static str, most: usize) -> Arc<Self> {
        Self::with(name, most, true)
    }

    fn with(name: &'static str, most: usize, gives_way: bool) -> Arc<Self> {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            name,
            most: if most == 0 { cores() } else { most },
            gives_way,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Has a thread do the work as soon as one is free. This thread does it if there is none at all.
    pub fn spawn(self: &Arc<Self>, task: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        state.tasks.push_back(Box::new(task));
        if state.tasks.len() > state.idle && state.present < self.most {
            let workers = Arc::clone(self);
            let thread = thread::Builder::new().name(self.name.to_owned());
            state.present += usize::from(thread.spawn(move || workers.work()).is_ok());
        }
        if state.present == 0
            && let Some(task) = state.tasks.pop_back()
        {
            drop(state);
            return task();
        }
        drop(state);
        self.changed.notify_one();
    }

    fn work(&self) {
        if self.gives_way {
            give_way();
        }
        loop {
            let mut state = self.lock();
            state.idle += 1;
            let none = |state: &mut State| state.tasks.is_empty();
            let waited = self.changed.wait_timeout_while(state, IDLE, none);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
            let Some(task) = state.tasks.pop_front() else {
                // Within the same lock, or a task that comes just now would count on this thread.
                state.present -= 1;
                return;
            };
            drop(state);
            // A panic has been told of. It must not keep those waiting who wait for the tasks behind it.
            let _ = catch_unwind(AssertUnwindSafe(task));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves a busy processor to others: to those who read, and to the program that they are.
pub(crate) fn give_way() {
    // On Linux this is about the calling thread alone. Without it the others only share the processor.
    let _ = rustix::process::nice(GIVES_WAY);
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_task_that_panics_keeps_no_other_waiting() {
        let workers = Workers::new("test-worker", 1);
        let begin = Arc::new(Barrier::new(2));
        let begun = Arc::clone(&begin);
        workers.spawn(move || {
            begun.wait();
            panic!("what it was told to do");
        });
        let (done, wait) = std::sync::mpsc::channel();
        workers.spawn(move || done.send(()).unwrap());
        begin.wait();
        wait.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn threads_come_with_the_work_and_go() {
        let workers = Workers::new("test-worker", 3);
        let all = Arc::new(Barrier::new(4));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let all = Arc::clone(&all);
            workers.spawn(move || {
                all.wait();
            });
        }
        // All three work at once, or this would never end.
        all.wait();
        for _ in 0..100 {
            let done = Arc::clone(&done);
            workers.spawn(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert!(workers.lock().present <= 3);
        let gone = || workers.lock().present == 0;
        for _ in 0..500 {
            if gone() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert!(gone());
        assert_eq!(done.load(Ordering::SeqCst), 100);
    }
}
