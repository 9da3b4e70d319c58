//! The list of what a container needs first, out of traces of its starts.

use std::collections::HashSet;

use serde::Serialize;

use crate::{ChunkId, Trace};

#[derive(Serialize)]
struct List<'a> {
    version: &'static str,
    files: Vec<File<'a>>,
}

#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    ranges: Vec<(u64, u64)>,
}

/// The list of what these starts read, as `optimize` takes it: in the order in which it was read, each chunk once; what only
/// a later trace has comes after what the ones before it have.
pub fn prefetch_list<'a>(traces: impl IntoIterator<Item = &'a Trace>) -> Vec<u8> {
    let mut seen: HashSet<ChunkId> = HashSet::new();
    let mut files: Vec<File<'_>> = Vec::new();
    for (path, offset, size, chunks) in traces.into_iter().flat_map(Trace::reads) {
        let new = chunks.iter().filter(|chunk| seen.insert(**chunk)).count();
        if new == 0 || path.is_empty() {
            continue;
        }
        match files.last_mut() {
            Some(last) if last.path == path => match last.ranges.last_mut() {
                Some((start, len)) if start.saturating_add(*len) == offset => {
                    *len = len.saturating_add(size);
                }
                _ => last.ranges.push((offset, size)),
            },
            _ => files.push(File {
                path,
                ranges: vec![(offset, size)],
            }),
        }
    }
    let list = List {
        version: "v1",
        files,
    };
    // Strings and numbers always serialise.
    serde_json::to_vec(&list).unwrap_or_default()
}

/// The files that these starts read, in the order in which they did so first, each once. Good for other versions of
/// the image as well.
pub fn files_read<'a>(traces: impl IntoIterator<Item = &'a Trace>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    let reads = traces.into_iter().flat_map(Trace::reads);
    let files = reads.map(|(path, ..)| path);
    files
        .filter(|path| !path.is_empty() && seen.insert(*path))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{Event, Header};

    fn trace(reads: &[(u64, &str, u64, u64, &[ChunkId])]) -> Trace {
        let event =
            |&(at, file, offset, size, chunks): &(u64, &str, u64, u64, &[ChunkId])| Event::Read {
                at,
                took: 1,
                file: file.to_owned(),
                offset,
                size,
                chunks: chunks.to_vec(),
            };
        Trace {
            header: Header {
                version: 1,
                image: String::new(),
                bootstrap: String::new(),
                started: 0,
                blobs: Vec::new(),
            },
            events: reads.iter().map(event).collect(),
        }
    }

    #[test]
    fn chunks_come_once_in_the_order_of_the_reads() {
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| ChunkId(0, index));
        let first = trace(&[
            (30, "/b", 0, 5, &[d]),
            (10, "/a", 0, 10, &[a]),
            (11, "/a", 10, 10, &[a, b]),
            (20, "/a", 40, 10, &[c]),
            // Nothing new.
            (40, "/a", 0, 10, &[a]),
            (50, "/same as b", 0, 5, &[d]),
            (60, "", 0, 5, &[ChunkId(1, 1)]),
        ]);
        let second = trace(&[(1, "/b", 0, 5, &[d]), (2, "/c", 0, 1, &[ChunkId(2, 0)])]);
        let list = prefetch_list([&first, &second]);
        let expected = r#"{"version":"v1","files":[{"path":"/a","ranges":[[0,20],[40,10]]},{"path":"/b","ranges":[[0,5]]},{"path":"/c","ranges":[[0,1]]}]}"#;
        assert_eq!(String::from_utf8(list).unwrap(), expected);
        let files = files_read([&first, &second]);
        assert_eq!(files, ["/a", "/b", "/same as b", "/c"]);
    }
}
