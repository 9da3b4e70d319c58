//! Uploads: sessions, segments, monolithic ones and mounts.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::answer::Answer;
use super::faults::Fault;
use super::route::{Call, parse_digest};
use super::state::{State, lock};
use super::storage::Incoming;

/// The sessions of a registry.
#[derive(Default)]
pub(super) struct Uploads {
    open: Mutex<BTreeMap<String, Arc<Mutex<Session>>>>,
    opened: AtomicU64,
    deleted: AtomicU64,
    states: AtomicU64,
}

/// A blob on its way in.
struct Session {
    repository: String,
    bytes: Incoming,
    /// The `_state` parameters of the URLs that were given out, and where the session stood then.
    states: BTreeMap<String, u64>,
}

impl Uploads {
    /// Sessions that are open.
    pub fn open(&self) -> u64 {
        lock(&self.open).len() as u64
    }

    /// Sessions that were ever opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::SeqCst)
    }

    /// Sessions that clients deleted.
    pub fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::SeqCst)
    }

    /// Forgets a session, if it is there.
    pub fn forget(&self, id: &str) -> bool {
        lock(&self.open).remove(id).is_some()
    }

    /// Forgets all sessions.
    pub fn forget_all(&self) {
        lock(&self.open).clear();
    }

    fn find(&self, call: &Call, name: &str, id: &str) -> Result<Arc<Mutex<Session>>, Answer> {
        if call
            .picked
            .is_some_and(|picked| picked.fault == Fault::SessionVanishes)
        {
            self.forget(id);
        }
        let found = lock(&self.open).get(id).cloned();
        let unknown = || Answer::error(404, "BLOB_UPLOAD_UNKNOWN", id);
        let session = found.ok_or_else(unknown)?;
        let held = lock(&session);
        if held.repository != name {
            return Err(unknown());
        }
        let state = call.head.parameter("_state").unwrap_or_default();
        let invalid = |what| Err(Answer::error(404, "BLOB_UPLOAD_INVALID", what));
        match held.states.get(state) {
            None => return invalid("this is not a URL that Location gave"),
            Some(at) if call.state.options.offset_in_url && *at != held.bytes.len() => {
                return invalid("the upload is not where it was when Location gave this URL");
            }
            Some(_) => {}
        }
        drop(held);
        Ok(session)
    }
}

impl Session {
    /// An answer that says where the session stands and goes on.
    fn answer(&mut self, state: &State, status: u16, id: &str) -> Answer {
        let number = state.uploads.states.fetch_add(1, Ordering::SeqCst);
        let token = crate::sha256(format!("state {number}").as_bytes())[..16].to_owned();
        let path = format!("/v2/{}/blobs/uploads/{id}?_state={token}", self.repository);
        self.states.insert(token, self.bytes.len());
        // The distribution project's registry says 0-0 for nothing, too.
        let last = self.bytes.len().saturating_sub(1);
        Answer::new(status)
            .header("Location", location(state, &path))
            .header("Range", format!("0-{last}"))
            .header("Docker-Upload-UUID", id)
    }
}

fn location(state: &State, path: &str) -> String {
    match state.registry_url.get() {
        Some(url) if !state.options.relative_locations => format!("{url}{path}"),
        _ => path.to_owned(),
    }
}

fn stored(state: &State, name: &str, hex: &str) -> Answer {
    Answer::new(201)
        .header(
            "Location",
            location(state, &format!("/v2/{name}/blobs/sha256:{hex}")),
        )
        .header("Docker-Content-Digest", format!("sha256:{hex}"))
}

/// POST: starts a session, takes a whole blob, or mounts one.
pub(super) fn post(call: &mut Call, name: &str) -> io::Result<Answer> {
    let state = call.state;
    if let Some(digest) = call.head.parameter("mount") {
        let hex = match parse_digest(digest) {
            Ok(hex) => hex,
            Err(refusal) => return Ok(refusal),
        };
        let from = call.head.parameter("from").unwrap_or_default();
        let mut storage = lock(&state.storage);
        if state.options.mounts && storage.blob(from, hex).is_some() {
            storage.link(name, hex);
            state.mounts.fetch_add(1, Ordering::SeqCst);
            return Ok(stored(state, name, hex));
        }
    }
    let mut bytes = lock(&state.storage).incoming()?;
    if call.head.parameter("mount").is_none()
        && let Some(digest) = call.head.parameter("digest")
    {
        let hex = match parse_digest(digest) {
            Ok(hex) => hex,
            Err(refusal) => return Ok(refusal),
        };
        bytes.append(call.body)?;
        return finish(state, name, hex, bytes);
    }
    let number = state.uploads.opened.fetch_add(1, Ordering::SeqCst);
    let id = crate::sha256(format!("upload {number}").as_bytes())[..32].to_owned();
    let mut session = Session {
        repository: name.to_owned(),
        bytes,
        states: BTreeMap::new(),
    };
    let answer = session.answer(state, 202, &id);
    lock(&state.uploads.open).insert(id, Arc::new(Mutex::new(session)));
    Ok(answer)
}

/// GET: where a session stands.
pub(super) fn get(call: &Call, name: &str, id: &str) -> Answer {
    match call.state.uploads.find(call, name, id) {
        Ok(session) => lock(&session).answer(call.state, 204, id),
        Err(refusal) => refusal,
    }
}

/// DELETE: ends a session.
pub(super) fn delete(call: &Call, name: &str, id: &str) -> Answer {
    match call.state.uploads.find(call, name, id) {
        Ok(_) => {
            call.state.uploads.forget(id);
            call.state.uploads.deleted.fetch_add(1, Ordering::SeqCst);
            Answer::new(204)
        }
        Err(refusal) => refusal,
    }
}

/// PATCH: a segment.
pub(super) fn patch(call: &mut Call, name: &str, id: &str) -> io::Result<Answer> {
    let session = match call.state.uploads.find(call, name, id) {
        Ok(session) => session,
        Err(refusal) => return Ok(refusal),
    };
    let content_type = call.head.header("content-type");
    if content_type.is_some_and(|given| given != "application/octet-stream") {
        // This, and the status, are the distribution project's.
        return Ok(Answer::error(500, "UNKNOWN", "Content-Type"));
    }
    let mut session = lock(&session);
    if let Err(refusal) = append(call, &mut session, id)? {
        return Ok(refusal);
    }
    Ok(session.answer(call.state, 202, id))
}

/// PUT: ends a session with a blob, maybe after a last segment.
pub(super) fn put(call: &mut Call, name: &str, id: &str) -> io::Result<Answer> {
    let session = match call.state.uploads.find(call, name, id) {
        Ok(session) => session,
        Err(refusal) => return Ok(refusal),
    };
    let digest = call.head.parameter("digest").unwrap_or_default();
    let hex = match parse_digest(digest) {
        Ok(hex) => hex,
        Err(refusal) => return Ok(refusal),
    };
    let bytes = {
        let mut held = lock(&session);
        if let Err(refusal) = append(call, &mut held, id)? {
            return Ok(refusal);
        }
        if call.state.options.offset_in_url && held.bytes.sha256() != hex {
            // Refused, and the upload stays where nobody gets at it any more: so it is with Debian's registry.
            return Ok(wrong_digest());
        }
        let empty = lock(&call.state.storage).incoming()?;
        std::mem::replace(&mut held.bytes, empty)
    };
    // Right or wrong, the session is over: so it is with the distribution project's registry.
    call.state.uploads.forget(id);
    finish(call.state, name, hex, bytes)
}

/// Makes a blob of what came in if it is what it is said to be.
fn finish(state: &State, name: &str, hex: &str, bytes: Incoming) -> io::Result<Answer> {
    if bytes.sha256() != hex {
        return Ok(wrong_digest());
    }
    lock(&state.storage).store(name, hex, bytes)?;
    Ok(stored(state, name, hex))
}

fn wrong_digest() -> Answer {
    let what = "the digest is not that of the content";
    Answer::error(400, "DIGEST_INVALID", what)
}

/// Appends the request's body to a session, or says why not.
fn append(call: &mut Call, session: &mut Session, id: &str) -> io::Result<Result<(), Answer>> {
    let at = session.bytes.len();
    if let Some(text) = call.head.header("content-range") {
        let range = text.split_once('-').and_then(|(first, last)| {
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        let Some((first, last)) = range else {
            return Ok(Err(Answer::error(400, "BLOB_UPLOAD_INVALID", text)));
        };
        if call.state.options.append_twice {
            if first != at {
                let what = format!("a segment for {first} was appended at {at}: upload {id}");
                call.state.violation(what);
            }
        } else if first != at {
            let mut answer = session.answer(call.state, 416, id);
            answer.content = Answer::error(416, "RANGE_INVALID", text).content;
            return Ok(Err(answer));
        } else if let Some(length) = call.head.length()?
            && last.checked_sub(first).map(|len| len + 1) != Some(length)
        {
            return Ok(Err(Answer::error(400, "SIZE_INVALID", text)));
        }
    }
    let partly = call
        .picked
        .filter(|picked| picked.fault == Fault::PartialAck);
    match partly {
        Some(picked) => {
            let keep = picked.inside(call.head.length()?.unwrap_or(0));
            session.bytes.append(&mut call.body.take(keep))?;
        }
        None => session.bytes.append(call.body)?,
    }
    Ok(Ok(()))
}
