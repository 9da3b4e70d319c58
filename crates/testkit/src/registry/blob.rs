//! Blobs, whole and in ranges.

use std::io;

use super::answer::{Answer, Content};
use super::http::Head;
use super::redirect;
use super::route::{Call, parse_digest};
use super::state::lock;
use super::storage::Stored;

/// GET and HEAD.
pub(super) fn get(call: &Call, name: &str, digest: &str) -> io::Result<Answer> {
    let hex = match parse_digest(digest) {
        Ok(hex) => hex,
        Err(refusal) => return Ok(refusal),
    };
    let Some(blob) = lock(&call.state.storage).blob(name, hex) else {
        return Ok(Answer::error(404, "BLOB_UNKNOWN", digest));
    };
    if call.state.options.redirect.is_some() && call.head.method == "GET" {
        return Ok(redirect::to(call, name, hex));
    }
    Ok(serve(call.head, &blob, digest, call.state.options.ranges))
}

/// The bytes that a request asks for.
pub(super) fn serve(head: &Head, blob: &Stored, digest: &str, ranges: bool) -> Answer {
    let total = blob.len();
    let asked = head
        .header("range")
        .filter(|_| ranges && head.method == "GET")
        .and_then(|range| parse_range(range, total));
    let (status, start, len) = match asked {
        None => (200, 0, total),
        Some(Some((start, len))) => (206, start, len),
        Some(None) => {
            return Answer::error(416, "RANGE_INVALID", "no such bytes")
                .header("Docker-Content-Digest", digest)
                .header("Content-Range", format!("bytes */{total}"));
        }
    };
    let mut answer = Answer::new(status)
        .header("Content-Type", "application/octet-stream")
        .header("Docker-Content-Digest", digest)
        .header("ETag", format!("\"{digest}\""));
    if ranges {
        answer = answer.header("Accept-Ranges", "bytes");
    }
    if status == 206 {
        let range = format!("bytes {start}-{}/{total}", start + len - 1);
        answer = answer.header("Content-Range", range);
    }
    answer.content = Content::Blob {
        blob: blob.clone(),
        start,
        len,
    };
    answer
}

/// Start and length of a range; `Some(None)` if it lies outside, `None` if it is none that we serve.
fn parse_range(text: &str, total: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let count = last.parse::<u64>().ok()?.min(total);
        return Some((count > 0).then_some((total - count, count)));
    }
    let first = first.parse::<u64>().ok()?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        last.parse::<u64>().ok().filter(|last| *last >= first)?
    };
    Some((first < total).then(|| (first, last.min(total - 1) - first + 1)))
}

/// DELETE.
pub(super) fn delete(call: &Call, name: &str, digest: &str) -> Answer {
    if !call.state.options.delete {
        return Answer::error(405, "UNSUPPORTED", "nothing is deleted here");
    }
    let hex = match parse_digest(digest) {
        Ok(hex) => hex,
        Err(refusal) => return refusal,
    };
    let mut storage = lock(&call.state.storage);
    let known = storage
        .repositories
        .get_mut(name)
        .is_some_and(|repository| repository.blobs.remove(hex));
    if known {
        Answer::new(202)
    } else {
        Answer::error(404, "BLOB_UNKNOWN", digest)
    }
}
