//! How `nydusify cache` says what it has found.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use convert::KeptIndex;
use serde_json::{Value, json};
use storage::{CachedBlob, CheckedBlob};

/// A blob for a program.
pub(super) fn blob(blob: &CachedBlob) -> Value {
    let last_used = blob.last_used.duration_since(UNIX_EPOCH);
    json!({
        "id": blob.id,
        "size": blob.size,
        "cached_bytes": blob.cached,
        "disk_bytes": blob.disk,
        "chunks": blob.chunks,
        "missing_chunks": blob.missing,
        "complete": blob.is_complete(),
        "sealed": blob.sealed,
        "in_use": blob.in_use,
        "processes": blob.processes,
        "last_used": last_used.map_or(0, |time| time.as_secs()),
    })
}

/// An index of an image that nobody converted, for a program.
pub(super) fn index(index: &KeptIndex) -> Value {
    let last_used = index.last_used.duration_since(UNIX_EPOCH);
    json!({
        "image": index.image.to_string(),
        "disk_bytes": index.disk,
        "in_use": index.in_use,
        "last_used": last_used.map_or(0, |time| time.as_secs()),
    })
}

/// A number of indexes.
pub(super) fn indexes(number: usize) -> String {
    match number {
        1 => "1 index".to_owned(),
        _ => format!("{number} indexes"),
    }
}

/// What some things take on the disk, for a person.
pub(super) fn usage(disk: u64, things: &str, in_use: u64) -> String {
    let (disk, in_use) = (bytes(disk), bytes(in_use));
    format!("{disk} on the disk for {things}, of which {in_use} in use\n")
}

/// All blobs for a person.
pub(super) fn table(blobs: &[CachedBlob]) -> String {
    let head = [
        "BLOB",
        "SIZE",
        "CACHED",
        "DISK",
        "COMPLETE",
        "LAST USED",
        "IN USE BY",
    ];
    let rows = blobs.iter().map(|blob| {
        [
            short(&blob.id),
            bytes(blob.size),
            bytes(blob.cached),
            bytes(blob.disk),
            complete(blob).to_owned(),
            age(blob.last_used),
            users(blob),
        ]
    });
    aligned(head, rows)
}

/// All indexes for a person, under the blobs; nothing if there are none.
pub(super) fn index_table(indexes: &[KeptIndex]) -> String {
    if indexes.is_empty() {
        return String::new();
    }
    let rows = indexes.iter().map(|index| {
        let in_use = if index.in_use { "yes" } else { "no" };
        [
            short(&index.image.hex()),
            bytes(index.disk),
            age(index.last_used),
            in_use.to_owned(),
        ]
    });
    let head = ["INDEX OF IMAGE", "DISK", "LAST USED", "IN USE"];
    format!("\n{}", aligned(head, rows))
}

/// As much of a digest as tells it from others.
fn short(hex: &str) -> String {
    hex.get(..16).unwrap_or(hex).to_owned()
}

fn aligned<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned))
        .chain(rows)
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
    text
}

fn complete(blob: &CachedBlob) -> &'static str {
    match (blob.is_complete(), blob.sealed) {
        (true, true) => "sealed",
        (true, false) => "yes",
        (false, _) => "no",
    }
}

fn users(blob: &CachedBlob) -> String {
    let ids: Vec<String> = blob.processes.iter().map(u32::to_string).collect();
    match (blob.in_use, ids.is_empty()) {
        (false, _) => "-".to_owned(),
        (true, true) => "somebody".to_owned(),
        (true, false) => ids.join(","),
    }
}

/// What was verified of a blob, for a program.
pub(super) fn checked(blob: &CheckedBlob) -> Value {
    let bad = blob
        .bad
        .iter()
        .map(|chunk| json!({ "index": chunk.index, "offset": chunk.offset, "size": chunk.size }));
    json!({
        "id": blob.id,
        "good_chunks": blob.good,
        "lost_chunks": blob.lost,
        "bad_chunks": bad.collect::<Vec<_>>(),
        "dropped": blob.dropped,
    })
}

/// What was verified of a blob, for a person: a line for each chunk that is wrong.
pub(super) fn findings(blob: &CheckedBlob) -> String {
    let mut text = String::new();
    let then = match blob.dropped {
        true => "dropped, to be fetched again",
        false => "left, for the blob is in use",
    };
    for chunk in &blob.bad {
        let (id, index, size, offset) = (&blob.id, chunk.index, chunk.size, chunk.offset);
        let _ = writeln!(
            text,
            "blob {id}: chunk {index} ({size} bytes at {offset:#x}) is not what its digest says: {then}"
        );
    }
    if blob.lost != 0 {
        let _ = writeln!(
            text,
            "blob {}: {} not on the disk when the machine went down: {then}",
            blob.id,
            count(usize::try_from(blob.lost).unwrap_or(usize::MAX), "chunk"),
        );
    }
    text
}

/// What was verified of an index, for a program.
pub(super) fn checked_index(index: &KeptIndex, wrong: Option<&str>, removed: bool) -> Value {
    json!({
        "image": index.image.to_string(),
        "wrong": wrong,
        "removed": removed,
    })
}

/// The same for a person, if it is wrong.
pub(super) fn index_finding(index: &KeptIndex, wrong: &str, removed: bool) -> String {
    let then = match removed {
        true => "removed, to be made again",
        false => "left, for it is in use",
    };
    format!("the index of {}: {wrong}: {then}\n", index.image)
}

/// A number of things.
pub(super) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A number of bytes.
pub(super) fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// How long ago that was.
fn age(time: SystemTime) -> String {
    if time == UNIX_EPOCH {
        return "never".to_owned();
    }
    let age = time.elapsed().unwrap_or_default();
    let age = std::time::Duration::from_secs(age.as_secs());
    format!("{} ago", indicatif::HumanDuration(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_blob() {
        let blob = CachedBlob {
            id: "ab".repeat(32),
            size: 3 << 20,
            cached: 1 << 20,
            disk: 1 << 20,
            chunks: 1,
            missing: 2,
            in_use: true,
            processes: vec![11, 12],
            last_used: UNIX_EPOCH,
            sealed: false,
        };
        let idle = CachedBlob {
            id: "short".to_owned(),
            missing: 0,
            in_use: false,
            ..blob.clone()
        };
        assert_eq!(
            table(&[blob, idle]),
            "BLOB              SIZE      CACHED    DISK      COMPLETE  LAST USED  IN USE BY\n\
             abababababababab  3.00 MiB  1.00 MiB  1.00 MiB  no        never      11,12\n\
             short             3.00 MiB  1.00 MiB  1.00 MiB  yes       never      -\n"
        );
    }
}
