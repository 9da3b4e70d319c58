//! Where the time of a start went.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::{ChunkId, Event, Header, Purpose, Trace};

/// What a trace says, put together. Times are in microseconds since the mount began, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How the image was called.
    pub image: String,
    /// SHA-256 of its bootstrap in v6 layout, in hex.
    pub bootstrap: String,
    /// How it was mounted: `fuse` or `erofs`.
    pub mode: String,
    /// Processes that served it, one after the other.
    pub servers: u64,
    /// Events that were left out of the trace.
    pub dropped: u64,
    /// When the first read began, and when the last one ended.
    pub first_read: u64,
    /// See above; everything is counted until then.
    pub last_read: u64,
    /// What the time between the two went for.
    pub phases: Phases,
    /// The same one after the other.
    #[serde(skip)]
    pub moments: Vec<Moment>,
    /// All together.
    pub totals: Totals,
    /// Files that were read, in the order of their first reads.
    pub files: Vec<FileReport>,
    /// Requests to blobs, in the order in which they were made.
    pub requests: Vec<RequestReport>,
    /// What came for nothing: fetched and not read, by file, the largest first.
    pub unread: Vec<Unread>,
    /// Files that none of the earlier traces has; `None` if there was no earlier trace.
    pub new_files: Option<Vec<String>>,
}

/// What each moment from the first read to the last went for. They add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Phases {
    /// No read was under way: the program ran.
    pub running: u64,
    /// Reads waited for the answer to a request that brought one of their chunks.
    pub network: u64,
    /// Reads waited, no longer for an answer, but until their chunks were decoded.
    pub decoding: u64,
    /// Reads waited, and their requests for memory.
    pub memory: u64,
    /// Reads were answered out of the cache, or waited for something that is not recorded.
    pub serving: u64,
}

/// What a moment goes for; see [`Phases`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The program ran.
    Running,
    /// Reads waited for the network.
    Network,
    /// Reads waited for decoding.
    Decoding,
    /// Reads waited for memory.
    Memory,
    /// Reads were answered.
    Serving,
}

/// A time of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// When it began.
    pub from: u64,
    /// When it ended.
    pub to: u64,
    /// What it went for.
    pub phase: Phase,
}

/// Sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Reads of files.
    pub reads: u64,
    /// Bytes that were asked for.
    pub read_bytes: u64,
    /// Time of all reads together; they overlap.
    pub read_time: u64,
    /// Requests to blobs.
    pub requests: u64,
    /// How many were not answered.
    pub failed: u64,
    /// How many were made before anybody waited.
    pub ahead: u64,
    /// Stored bytes that came.
    pub fetched_bytes: u64,
    /// How many of them had come already.
    pub fetched_twice: u64,
    /// Time of all requests together.
    pub request_time: u64,
    /// Chunks that came.
    pub chunks: u64,
    /// How many of them were read.
    pub chunks_read: u64,
    /// Stored bytes of those.
    pub used_bytes: u64,
    /// Time that decoding took, all threads together.
    pub decode_time: u64,
    /// Stored bytes that came for each that was used; 0 if none was.
    pub amplification: f64,
}

/// A file that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its path.
    pub path: String,
    /// When it was first read.
    pub at: u64,
    /// How often.
    pub reads: u64,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// How long its reads took together.
    pub time: u64,
    /// The longest one.
    pub longest: u64,
    /// Stored bytes of its chunks that came.
    pub fetched: u64,
    /// How long decoding them took.
    pub decoding: u64,
    /// Whether no earlier trace has it, if there is one.
    pub new: bool,
}

/// A request to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestReport {
    /// When it was decided on.
    pub at: u64,
    /// How long it waited for memory.
    pub waited: u64,
    /// How long the answer took.
    pub took: u64,
    /// What it was made for.
    pub purpose: Purpose,
    /// Id of the blob.
    pub blob: String,
    /// Its first byte.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
    /// Whether there was no answer.
    pub failed: bool,
    /// Chunks that it brought.
    pub chunks: u64,
    /// How many of them were read.
    pub chunks_read: u64,
    /// How long decoding them took.
    pub decoding: u64,
    /// The first file that it brought a chunk of.
    pub file: String,
}

/// Chunks of a file that came and were not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Path of the file.
    pub path: String,
    /// How many chunks.
    pub chunks: u64,
    /// Their bytes as they are stored.
    pub bytes: u64,
}

impl Report {
    /// What the trace says; `earlier` traces say which files are usual.
    pub fn new(trace: &Trace, earlier: &[Trace]) -> Self {
        let usual = earlier.iter().flat_map(Trace::reads);
        let usual: HashSet<&str> = usual.map(|(path, ..)| path).collect();
        let used: HashSet<ChunkId> = trace
            .reads()
            .iter()
            .flat_map(|(.., chunks)| chunks.iter().copied())
            .collect();
        let mut report = Self::empty(&trace.header);
        let mut files = Files::default();
        let mut requests = Requests::default();
        let mut unread: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for event in &trace.events {
            match event {
                Event::Serving { mode, .. } => {
                    report.servers += 1;
                    report.mode.clone_from(mode);
                }
                Event::Read {
                    at,
                    took,
                    file,
                    size,
                    ..
                } => files.read(file, (*at, *took), *size),
                Event::Fetch { .. } => requests.add(&trace.header, event),
                Event::Chunk {
                    took,
                    fetch,
                    chunk,
                    stored,
                    file,
                    ..
                } => {
                    let read = used.contains(chunk);
                    requests.chunk(*fetch, read, *took, file);
                    files.chunk(file, *stored, *took);
                    report.totals.chunk(read, *stored, *took);
                    if !read {
                        let (chunks, bytes) = unread.entry(file).or_default();
                        *chunks += 1;
                        *bytes = bytes.saturating_add(*stored);
                    }
                }
                Event::Dropped { count, .. } => report.dropped = *count,
            }
        }
        report.files = files.finish();
        let ends = trace.events.iter().map(|event| match event {
            Event::Read { at, took, .. } => at.saturating_add(*took),
            _ => 0,
        });
        report.last_read = ends.max().unwrap_or(0);
        report.requests = requests.all;
        report.requests.sort_by_key(|request| request.at);
        report.sum_up();
        report.moments = moments(trace, report.first_read, report.last_read);
        report.phases = Phases::of(&report.moments);
        let unread = unread.into_iter().map(|(path, (chunks, bytes))| Unread {
            path: path.to_owned(),
            chunks,
            bytes,
        });
        report.unread = unread.collect();
        report
            .unread
            .sort_by_key(|file| std::cmp::Reverse(file.bytes));
        if !earlier.is_empty() {
            for file in &mut report.files {
                file.new = !usual.contains(&*file.path);
            }
            let new = report.files.iter().filter(|file| file.new);
            report.new_files = Some(new.map(|file| file.path.clone()).collect());
        }
        report
    }

    /// Stored bytes that came and were not read.
    pub fn unread_bytes(&self) -> u64 {
        let bytes = self.unread.iter().map(|file| file.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    fn empty(header: &Header) -> Self {
        Self {
            image: header.image.clone(),
            bootstrap: header.bootstrap.clone(),
            mode: String::new(),
            servers: 0,
            dropped: 0,
            first_read: 0,
            last_read: 0,
            phases: Phases::default(),
            moments: Vec::new(),
            totals: Totals::default(),
            files: Vec::new(),
            requests: Vec::new(),
            unread: Vec::new(),
            new_files: None,
        }
    }

    /// Sums up files and requests.
    fn sum_up(&mut self) {
        let totals = &mut self.totals;
        for file in &self.files {
            totals.reads += file.reads;
            totals.read_bytes = totals.read_bytes.saturating_add(file.bytes);
            totals.read_time = totals.read_time.saturating_add(file.time);
        }
        let first = self.files.iter().map(|file| file.at);
        self.first_read = first.min().unwrap_or(0);
        let mut ranges: Vec<(&str, u64, u64)> = Vec::new();
        for request in &self.requests {
            totals.requests += 1;
            totals.failed += u64::from(request.failed);
            totals.ahead += u64::from(request.purpose != Purpose::Read);
            totals.request_time = totals.request_time.saturating_add(request.took);
            if !request.failed {
                totals.fetched_bytes = totals.fetched_bytes.saturating_add(request.size);
                let end = request.offset.saturating_add(request.size);
                ranges.push((&request.blob, request.offset, end));
            }
        }
        ranges.sort_unstable();
        let mut before = ("", 0);
        for (blob, start, end) in ranges {
            if before.0 == blob {
                let again = before.1.min(end).saturating_sub(start);
                totals.fetched_twice = totals.fetched_twice.saturating_add(again);
            }
            let reached = if before.0 == blob { before.1 } else { 0 };
            before = (blob, end.max(reached));
        }
        if totals.used_bytes != 0 {
            totals.amplification = totals.fetched_bytes as f64 / totals.used_bytes as f64;
        }
    }
}

impl Totals {
    fn chunk(&mut self, read: bool, stored: u64, took: u64) {
        self.chunks += 1;
        self.chunks_read += u64::from(read);
        self.decode_time = self.decode_time.saturating_add(took);
        if read {
            self.used_bytes = self.used_bytes.saturating_add(stored);
        }
    }
}

#[derive(Default)]
struct Files<'a> {
    by_path: HashMap<&'a str, FileReport>,
}

impl<'a> Files<'a> {
    fn of(&mut self, path: &'a str) -> &mut FileReport {
        self.by_path.entry(path).or_insert_with(|| FileReport {
            path: path.to_owned(),
            at: u64::MAX,
            ..FileReport::default()
        })
    }

    fn read(&mut self, path: &'a str, (at, took): (u64, u64), size: u64) {
        let file = self.of(path);
        file.at = file.at.min(at);
        file.reads += 1;
        file.bytes = file.bytes.saturating_add(size);
        file.time = file.time.saturating_add(took);
        file.longest = file.longest.max(took);
    }

    fn chunk(&mut self, path: &'a str, stored: u64, took: u64) {
        let file = self.of(path);
        file.fetched = file.fetched.saturating_add(stored);
        file.decoding = file.decoding.saturating_add(took);
    }

    /// Those that were read.
    fn finish(self) -> Vec<FileReport> {
        let read = self.by_path.into_values().filter(|file| file.reads != 0);
        let mut files: Vec<FileReport> = read.collect();
        files.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
        files
    }
}

#[derive(Default)]
struct Requests {
    all: Vec<RequestReport>,
    /// By number; the next process counts from the beginning again.
    last: HashMap<u64, usize>,
}

impl Requests {
    fn add(&mut self, header: &Header, event: &Event) {
        let &Event::Fetch {
            at,
            waited,
            took,
            number,
            purpose,
            blob,
            offset,
            size,
            failed,
        } = event
        else {
            return;
        };
        let id = usize::try_from(blob)
            .ok()
            .and_then(|at| header.blobs.get(at));
        self.last.insert(number, self.all.len());
        self.all.push(RequestReport {
            at,
            waited,
            took,
            purpose,
            blob: id.map_or_else(|| format!("blob index {blob}"), String::clone),
            offset,
            size,
            failed,
            chunks: 0,
            chunks_read: 0,
            decoding: 0,
            file: String::new(),
        });
    }

    fn chunk(&mut self, fetch: u64, read: bool, took: u64, file: &str) {
        let request = self.last.get(&fetch).and_then(|&at| self.all.get_mut(at));
        if let Some(request) = request {
            request.chunks += 1;
            request.chunks_read += u64::from(read);
            request.decoding = request.decoding.saturating_add(took);
            if request.file.is_empty() {
                file.clone_into(&mut request.file);
            }
        }
    }
}

/// What is under way, as indexes of [`moments`]'s counts.
const READ: usize = 0;
const NETWORK: usize = 1;
const MEMORY: usize = 2;
const DECODING: usize = 3;

/// What brought a chunk: when its request was decided on, when the blob was asked, when the answer was there, and when
/// the chunk was decoded.
type Arrival = (u64, u64, u64, u64);

/// How each chunk came that did; the last time, if it came again.
fn arrivals(trace: &Trace) -> HashMap<ChunkId, Arrival> {
    let mut fetches: HashMap<u64, (u64, u64, u64)> = HashMap::new();
    let mut arrivals = HashMap::new();
    for event in &trace.events {
        match *event {
            Event::Fetch {
                at,
                waited,
                took,
                number,
                ..
            } => {
                let asked = at.saturating_add(waited);
                // The next process counts from the beginning again.
                fetches.insert(number, (at, asked, asked.saturating_add(took)));
            }
            Event::Chunk {
                at,
                took,
                fetch,
                chunk,
                ..
            } => {
                if let Some(&(began, asked, answered)) = fetches.get(&fetch) {
                    let decoded = at.saturating_add(took);
                    arrivals.insert(chunk, (began, asked, answered, decoded));
                }
            }
            _ => {}
        }
    }
    arrivals
}

/// Goes through all beginnings and ends in time. A read waits for what brings its chunks, and for nothing else.
fn moments(trace: &Trace, first: u64, last: u64) -> Vec<Moment> {
    let arrivals = arrivals(trace);
    let mut edges: Vec<(u64, usize, i64)> = Vec::new();
    for event in &trace.events {
        let Event::Read {
            at, took, chunks, ..
        } = event
        else {
            continue;
        };
        let (from, to) = (*at, at.saturating_add(*took));
        let mut span = |kind, start: u64, end: u64| {
            let (start, end) = (start.max(from), end.min(to));
            if start < end {
                edges.extend([(start, kind, 1), (end, kind, -1)]);
            }
        };
        span(READ, from, to);
        for chunk in chunks {
            if let Some(&(began, asked, answered, decoded)) = arrivals.get(chunk) {
                span(MEMORY, began, asked);
                span(NETWORK, asked, answered);
                span(DECODING, answered, decoded);
            }
        }
    }
    // The last read may have taken no time at all.
    edges.push((last, READ, 0));
    edges.sort_unstable_by_key(|(at, ..)| *at);
    let mut moments: Vec<Moment> = Vec::new();
    let mut under_way = [0_i64; 4];
    let mut from = first;
    for (at, kind, change) in edges {
        let to = at.clamp(first, last);
        let phase = phase(&under_way);
        if to > from {
            match moments.last_mut() {
                Some(before) if before.phase == phase => before.to = to,
                _ => moments.push(Moment { from, to, phase }),
            }
            from = to;
        }
        if let Some(count) = under_way.get_mut(kind) {
            *count = count.saturating_add(change);
        }
    }
    moments
}

/// What a moment goes for in which so many of each kind are under way.
fn phase(under_way: &[i64; 4]) -> Phase {
    let busy = under_way.map(|count| count > 0);
    match busy {
        [false, ..] => Phase::Running,
        [_, true, ..] => Phase::Network,
        [.., true] => Phase::Decoding,
        [_, _, true, _] => Phase::Memory,
        _ => Phase::Serving,
    }
}

impl Phases {
    fn of(moments: &[Moment]) -> Self {
        let mut phases = Self::default();
        for moment in moments {
            let phase = match moment.phase {
                Phase::Running => &mut phases.running,
                Phase::Network => &mut phases.network,
                Phase::Decoding => &mut phases.decoding,
                Phase::Memory => &mut phases.memory,
                Phase::Serving => &mut phases.serving,
            };
            *phase = phase.saturating_add(moment.to.saturating_sub(moment.from));
        }
        phases
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn read(at: u64, took: u64, file: &str, chunk: u32) -> Event {
        Event::Read {
            at,
            took,
            file: file.to_owned(),
            offset: 0,
            size: 100,
            chunks: vec![ChunkId(0, chunk)],
        }
    }

    fn fetch(at: u64, took: u64, number: u64, range: (u64, u64)) -> Event {
        Event::Fetch {
            at,
            waited: 0,
            took,
            number,
            purpose: Purpose::Read,
            blob: 0,
            offset: range.0,
            size: range.1,
            failed: false,
        }
    }

    fn chunk(at: u64, took: u64, fetch: u64, index: u32, file: &str) -> Event {
        Event::Chunk {
            at,
            took,
            fetch,
            chunk: ChunkId(0, index),
            size: 100,
            stored: 50,
            file: file.to_owned(),
            offset: 0,
        }
    }

    fn trace(events: Vec<Event>) -> Trace {
        Trace {
            header: Header {
                version: 1,
                image: "image".to_owned(),
                bootstrap: String::new(),
                started: 0,
                blobs: vec!["id".to_owned()],
            },
            events,
        }
    }

    #[test]
    fn every_moment_is_counted_once() {
        // Read from 10 to 40: 5 of nothing, 20 of a request, 3 of decoding, 2 of nothing. Then 20 of the program, and
        // two reads at once, while a request is under way that they do not wait for.
        let trace = trace(vec![
            fetch(15, 20, 0, (0, 100)),
            chunk(35, 3, 0, 1, "/a"),
            chunk(36, 10, 0, 2, "/b"),
            fetch(30, 100, 1, (200, 100)),
            read(10, 30, "/a", 1),
            read(60, 10, "/a", 1),
            read(65, 15, "/a", 1),
        ]);
        let report = Report::new(&trace, &[]);
        assert_eq!((report.first_read, report.last_read), (10, 80));
        let expected = Phases {
            running: 20,
            network: 20,
            decoding: 3,
            memory: 0,
            serving: 27,
        };
        assert_eq!(report.phases, expected);
    }

    #[test]
    fn a_read_may_take_no_time() {
        let report = Report::new(
            &trace(vec![read(10, 0, "/a", 1), read(30, 0, "/b", 2)]),
            &[],
        );
        assert_eq!((report.first_read, report.last_read), (10, 30));
        assert_eq!(report.phases.running, 20);
    }

    #[test]
    fn what_came_for_nothing_is_named() {
        let events = vec![
            fetch(0, 5, 0, (0, 120)),
            chunk(5, 1, 0, 1, "/a"),
            chunk(6, 1, 0, 2, "/b"),
            read(0, 7, "/a", 1),
            // Another process.
            fetch(10, 5, 0, (100, 100)),
            chunk(15, 1, 0, 3, "/b"),
            read(10, 9, "/b", 3),
        ];
        let report = Report::new(&trace(events), &[]);
        let unread = Unread {
            path: "/b".to_owned(),
            chunks: 1,
            bytes: 50,
        };
        assert_eq!(report.unread, [unread]);
        let totals = &report.totals;
        assert_eq!((totals.requests, totals.fetched_bytes), (2, 220));
        assert_eq!((totals.fetched_twice, totals.used_bytes), (20, 100));
        assert!((totals.amplification - 2.2).abs() < 1e-9);
        let brought: Vec<_> = report
            .requests
            .iter()
            .map(|r| (r.chunks, r.chunks_read))
            .collect();
        assert_eq!(brought, [(2, 1), (1, 1)]);
        assert_eq!(report.new_files, None);
    }

    #[test]
    fn files_that_no_earlier_trace_has_are_new() {
        let usual = trace(vec![read(0, 1, "/a", 1), read(1, 1, "/b", 2)]);
        let now = trace(vec![read(0, 1, "/c", 3), read(1, 1, "/a", 1)]);
        let report = Report::new(&now, &[usual]);
        assert_eq!(report.new_files.unwrap(), ["/c"]);
        assert!(report.files[0].new && !report.files[1].new);
    }
}
