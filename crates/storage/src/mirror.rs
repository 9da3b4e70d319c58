//! Copies of blobs: mirrors are asked before the place that has the last word, the origin.
//!
//! A mirror that fails is passed over for that read, and after some failures for a while; one that gives other bytes than
//! the origin is not asked again. Nothing depends on what mirrors give: whoever reads verifies, and asks for the origin's
//! bytes by [`BlobReader::read_again`].

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::{BlobReader, BlobSource};

/// Reads of which it is remembered who answered them.
const SERVED_MAX: usize = 256;
/// How long a mirror is not asked again for a blob that it did not have.
const ABSENCE: Duration = Duration::from_secs(60);
/// Blobs of which it is remembered that a mirror does not have them.
const ABSENT_MAX: usize = 4096;

/// A place with copies of blobs.
pub trait Mirror: Send + Sync {
    /// A reader of the blob `id`, which has `size` bytes. Nothing is asked for yet.
    ///
    /// # Errors
    /// If no such blob can be there.
    fn open(&self, id: &str, size: u64) -> io::Result<Arc<dyn BlobReader>>;

    /// How the mirror does.
    fn standing(&self) -> &Standing;

    /// Sees to it that somebody asks the mirror how it does, if it is time to.
    fn look_after(&self) {}
}

/// The mirrors of a place, which may be others from read to read.
pub trait Mirrors: Send + Sync {
    /// Those there are now, the one to ask first in front.
    fn current(&self) -> Vec<Arc<dyn Mirror>>;
}

impl Mirrors for Vec<Arc<dyn Mirror>> {
    fn current(&self) -> Vec<Arc<dyn Mirror>> {
        self.clone()
    }
}

/// When a mirror is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tolerance {
    /// Failures one after the other that are one too many.
    pub failures: u32,
    /// How long the mirror is passed over then, before it is tried again.
    pub pause: Duration,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            failures: 5,
            pause: Duration::from_secs(5),
        }
    }
}

/// What a mirror has done since it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorStats {
    /// The mirror; no secret is part of it.
    pub name: String,
    /// Reads that it answered.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Reads that it failed to answer, and that others did.
    pub failures: u64,
    /// Reads of blobs that it does not have.
    pub missing: u64,
    /// Reads that it answered with other bytes than the origin has.
    pub lies: u64,
    /// Whether it is asked at the moment.
    pub in_use: bool,
}

/// How a mirror does: what it has done, and whether it is to be asked.
#[derive(Debug)]
pub struct Standing {
    name: String,
    tolerance: Tolerance,
    state: Mutex<State>,
    reads: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    missing: AtomicU64,
    lies: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Failures one after the other.
    failures: u32,
    /// Until when it is passed over.
    until: Option<Instant>,
    /// Somebody asked, and it did not say that it is well.
    ill: bool,
    lied: bool,
    /// Blobs that it does not have, and until when that counts.
    absent: HashMap<String, Instant>,
}

impl Standing {
    /// A mirror that nothing bad is known of. `name` is for messages.
    pub fn new(name: impl Into<String>, tolerance: Tolerance) -> Self {
        Self {
            name: name.into(),
            tolerance,
            state: Mutex::default(),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            missing: AtomicU64::new(0),
            lies: AtomicU64::new(0),
        }
    }

    /// The mirror, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether to ask it for the blob `id`. When a pause is over, one reader finds out how it is, and all others if that goes
    /// well.
    pub fn is_usable(&self, id: &str) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        if state.lied || state.ill || state.absent.get(id).is_some_and(|&until| now < until) {
            return false;
        }
        match state.until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                state.until = Some(now + self.tolerance.pause);
                true
            }
        }
    }

    /// It answered a read of so many bytes.
    pub fn answered(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.gave(bytes);
    }

    /// So many more bytes of a stream came from it.
    fn gave(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut state = self.state();
        state.failures = 0;
        if state.until.take().is_some() {
            tracing::info!("mirror {}: it answers again", self.name);
        }
    }

    /// It failed to answer a read of the blob `id`.
    pub fn failed(&self, id: &str, error: &io::Error) {
        if error.kind() == io::ErrorKind::NotFound {
            self.missing.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("mirror {}: it does not have blob {id}: {error}", self.name);
            let mut state = self.state();
            if state.absent.len() >= ABSENT_MAX {
                state.absent.clear();
            }
            let until = Instant::now() + ABSENCE;
            state.absent.insert(id.to_owned(), until);
            return;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        let (name, failures) = (&self.name, state.failures);
        let too_many = failures >= self.tolerance.failures;
        if too_many {
            let begins = state.until.is_none();
            state.until = Some(Instant::now() + self.tolerance.pause);
            if begins {
                tracing::warn!("mirror {name}: passed over after {failures} failures: {error}");
            }
        } else if failures == 1 {
            tracing::warn!("mirror {name}: a read failed and goes on elsewhere: {error}");
        }
    }

    /// It gave other bytes than the origin: it is not asked any more.
    pub fn lied(&self, about: &str) {
        self.lies.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        if !state.lied {
            let name = &self.name;
            tracing::warn!(
                "mirror {name}: it gave wrong bytes of {about}, and is not asked any more"
            );
        }
        state.lied = true;
    }

    /// What came of asking how it does: why it is not well, if it is not.
    pub fn examined(&self, why: Option<&str>) {
        let mut state = self.state();
        match why {
            Some(why) if !state.ill => {
                tracing::warn!("mirror {}: not asked for now: {why}", self.name);
            }
            None if state.ill => {
                tracing::info!("mirror {}: it is well again", self.name);
                (state.failures, state.until) = (0, None);
            }
            _ => {}
        }
        state.ill = why.is_some();
    }

    /// What it has done so far.
    pub fn stats(&self) -> MirrorStats {
        let state = self.state();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MirrorStats {
            name: self.name.clone(),
            reads: load(&self.reads),
            bytes: load(&self.bytes),
            failures: load(&self.failures),
            missing: load(&self.missing),
            lies: load(&self.lies),
            in_use: !state.lied && !state.ill && state.until.is_none(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read that a mirror answered: from where on, how many bytes, and who.
type Served = (u64, u64, Arc<dyn Mirror>);

/// A stream, and the mirror that it is of, or else of the origin.
type Current = (Box<dyn Read + Send>, Option<Arc<dyn Mirror>>);

/// A blob of which mirrors have copies.
pub struct MirroredBlob {
    id: String,
    origin: Arc<dyn BlobReader>,
    mirrors: Arc<dyn Mirrors>,
    /// The last reads that mirrors answered.
    served: Mutex<VecDeque<Served>>,
}

impl MirroredBlob {
    /// The blob `id` that `origin` reads, by way of `mirrors`.
    pub fn new(id: &str, origin: Arc<dyn BlobReader>, mirrors: Arc<dyn Mirrors>) -> Self {
        Self {
            id: id.to_owned(),
            origin,
            mirrors,
            served: Mutex::default(),
        }
    }

    fn served(&self) -> MutexGuard<'_, VecDeque<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `get` gets from the first mirror that can.
    fn ask_mirrors<T>(
        &self,
        mut get: impl FnMut(Arc<dyn BlobReader>) -> io::Result<T>,
    ) -> Option<(T, Arc<dyn Mirror>)> {
        for mirror in self.mirrors.current() {
            mirror.look_after();
            if !mirror.standing().is_usable(&self.id) {
                continue;
            }
            match mirror.open(&self.id, self.size()).and_then(&mut get) {
                Ok(got) => return Some((got, mirror)),
                Err(error) => mirror.standing().failed(&self.id, &error),
            }
        }
        None
    }
}

impl BlobReader for MirroredBlob {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let got = self.ask_mirrors(|blob| blob.read_exact_at(buf, offset));
        let Some(((), mirror)) = got else {
            return self.origin.read_exact_at(buf, offset);
        };
        mirror.standing().answered(buf.len() as u64);
        let mut served = self.served();
        if served.len() >= SERVED_MAX {
            served.pop_front();
        }
        served.push_back((offset, buf.len() as u64, mirror));
        Ok(())
    }

    fn size(&self) -> u64 {
        self.origin.size()
    }

    fn read_again(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let (len, end) = (buf.len() as u64, offset.saturating_add(buf.len() as u64));
        let covers = |from: u64, size: u64| from <= offset && end <= from.saturating_add(size);
        let mirror = self
            .served()
            .iter()
            .rev()
            .find_map(|(from, size, mirror)| covers(*from, *size).then(|| Arc::clone(mirror)));
        let Some(mirror) = mirror else {
            return Ok(false);
        };
        let mut right = vec![0; buf.len()];
        self.origin.read_exact_at(&mut right, offset)?;
        if right == buf {
            return Ok(false);
        }
        buf.copy_from_slice(&right);
        let last = end.saturating_sub(1);
        let about = format!("blob {} ({len} bytes, {offset} to {last})", self.id);
        mirror.standing().lied(&about);
        Ok(true)
    }

    /// From a mirror as far as that goes, and on from the origin. A whole blob whose id is its SHA-256 is
    /// compared with that: if mirrors gave any of it and it is another, the stream ends with an error, and the next one
    /// is without them.
    fn stream(self: Arc<Self>, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let id = hex::decode(&self.id).ok().filter(|id| id.len() == 32);
        Ok(Box::new(MirroredStream {
            digest: id.filter(|_| offset == 0),
            hash: Sha256::new(),
            position: offset,
            current: None,
            helpers: Vec::new(),
            blob: self,
        }))
    }
}

/// See [`MirroredBlob::stream`].
struct MirroredStream {
    blob: Arc<MirroredBlob>,
    position: u64,
    /// Where it comes from at the moment: a mirror, or else the origin.
    current: Option<Current>,
    /// The mirrors that gave any of it.
    helpers: Vec<Arc<dyn Mirror>>,
    /// What its SHA-256 is to be, and that of what came.
    digest: Option<Vec<u8>>,
    hash: Sha256,
}

impl MirroredStream {
    fn open(&mut self) -> io::Result<()> {
        let position = self.position;
        let got = self.blob.ask_mirrors(|blob| blob.stream(position));
        self.current = Some(match got {
            Some((stream, mirror)) => {
                mirror.standing().reads.fetch_add(1, Ordering::Relaxed);
                self.helpers.push(Arc::clone(&mirror));
                (stream, Some(mirror))
            }
            None => (Arc::clone(&self.blob.origin).stream(position)?, None),
        });
        Ok(())
    }

    /// Takes note of what came, and of whether it was right when it was the last of it.
    fn note(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        let Some(digest) = &self.digest else {
            return Ok(());
        };
        self.hash.update(bytes);
        let ended = !bytes.is_empty() && self.position == self.blob.size();
        if !ended || self.helpers.is_empty() || self.hash.clone().finalize()[..] == digest[..] {
            return Ok(());
        }
        let id = &self.blob.id;
        let names: Vec<&str> = self.helpers.iter().map(|m| m.standing().name()).collect();
        let reason = format!(
            "blob {id} has another digest, as it came from mirror {}",
            names.join(", ")
        );
        let about = format!("blob {id}");
        self.helpers
            .iter()
            .for_each(|mirror| mirror.standing().lied(&about));
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

impl Read for MirroredStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size().saturating_sub(self.position);
        if left == 0 || buf.is_empty() {
            return Ok(0);
        }
        loop {
            let Some((stream, mirror)) = &mut self.current else {
                self.open()?;
                continue;
            };
            let failure = match (stream.read(buf), &mirror) {
                (Ok(0), Some(_)) => io::ErrorKind::UnexpectedEof.into(),
                (Err(error), Some(_)) => error,
                (Err(error), None) => return Err(error),
                (Ok(read), _) => {
                    if let Some(mirror) = mirror {
                        mirror.standing().gave(read as u64);
                    }
                    self.note(buf.get(..read).unwrap_or_default())?;
                    return Ok(read);
                }
            };
            if let Some(mirror) = mirror {
                mirror.standing().failed(&self.blob.id, &failure);
            }
            // Another mirror might fail as well, and so on without end.
            let rest = Arc::clone(&self.blob.origin).stream(self.position)?;
            self.current = Some((rest, None));
        }
    }
}

/// Blobs of which mirrors have copies.
pub struct MirroredSource {
    origin: Arc<dyn BlobSource>,
    mirrors: Arc<dyn Mirrors>,
}

impl MirroredSource {
    /// The blobs of `origin`, by way of `mirrors`.
    pub fn new(origin: Arc<dyn BlobSource>, mirrors: Arc<dyn Mirrors>) -> Self {
        Self { origin, mirrors }
    }
}

impl BlobSource for MirroredSource {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        let origin = self.origin.open(id)?;
        let blob = MirroredBlob::new(id, origin, Arc::clone(&self.mirrors));
        Ok(Arc::new(blob))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mirror that gives these bytes, as long as it works.
    struct Fake {
        standing: Standing,
        bytes: Vec<u8>,
        works: Mutex<bool>,
    }

    impl Fake {
        fn new(bytes: &[u8], tolerance: Tolerance) -> Arc<Self> {
            Arc::new(Self {
                standing: Standing::new("fake", tolerance),
                bytes: bytes.to_vec(),
                works: Mutex::new(true),
            })
        }

        fn works(&self, works: bool) {
            *self.works.lock().unwrap() = works;
        }
    }

    impl Mirror for Fake {
        fn open(&self, _: &str, _: u64) -> io::Result<Arc<dyn BlobReader>> {
            match *self.works.lock().unwrap() {
                true => Ok(Arc::new(self.bytes.clone())),
                false => Err(io::Error::other("away")),
            }
        }

        fn standing(&self) -> &Standing {
            &self.standing
        }
    }

    fn blob(id: &str, origin: &[u8], mirrors: &[&Arc<Fake>]) -> Arc<MirroredBlob> {
        let mirrors: Vec<Arc<dyn Mirror>> = mirrors
            .iter()
            .map(|mirror| Arc::clone(mirror) as Arc<dyn Mirror>)
            .collect();
        let origin = Arc::new(origin.to_vec());
        Arc::new(MirroredBlob::new(id, origin, Arc::new(mirrors)))
    }

    fn read(blob: &MirroredBlob, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        blob.read_exact_at(&mut buf, offset).unwrap();
        buf
    }

    const DATA: &[u8] = b"0123456789";

    #[test]
    fn a_mirror_that_fails_is_passed_over_and_comes_back() {
        let tolerance = Tolerance {
            failures: 2,
            pause: Duration::from_millis(50),
        };
        let (first, second) = (Fake::new(DATA, tolerance), Fake::new(DATA, tolerance));
        let blob = blob("b", DATA, &[&first, &second]);
        assert_eq!(read(&blob, 2, 3), b"234");
        first.works(false);
        for _ in 0..5 {
            assert_eq!(read(&blob, 2, 3), b"234");
        }
        let stats = first.standing.stats();
        assert_eq!((stats.reads, stats.failures, stats.in_use), (1, 2, false));
        assert_eq!(second.standing.stats().reads, 5);
        first.works(true);
        std::thread::sleep(tolerance.pause);
        assert_eq!(read(&blob, 0, 1), b"0");
        assert!(first.standing.stats().in_use);
        second.works(false);
        first.works(false);
        assert_eq!(read(&blob, 0, 10), DATA, "the origin is the last");
    }

    #[test]
    fn a_mirror_is_asked_once_for_a_blob_that_it_does_not_have() {
        let mirror = Fake::new(DATA, Tolerance::default());
        mirror.standing.failed("b", &io::ErrorKind::NotFound.into());
        assert_eq!(read(&blob("b", DATA, &[&mirror]), 0, 1), b"0");
        assert_eq!(mirror.standing.stats().reads, 0);
        assert_eq!(read(&blob("c", DATA, &[&mirror]), 0, 1), b"0");
        let stats = mirror.standing.stats();
        assert_eq!((stats.reads, stats.missing, stats.failures), (1, 1, 0));
    }

    #[test]
    fn a_mirror_that_is_ill_is_not_asked() {
        let mirror = Fake::new(DATA, Tolerance::default());
        let blob = blob("b", DATA, &[&mirror]);
        mirror.standing.examined(Some("status 500"));
        assert_eq!(read(&blob, 0, 1), b"0");
        assert_eq!(mirror.standing.stats().reads, 0);
        mirror.standing.examined(None);
        assert_eq!(read(&blob, 0, 1), b"0");
        assert_eq!(mirror.standing.stats().reads, 1);
    }

    #[test]
    fn a_mirror_that_lies_is_found_out_and_asked_no_more() {
        let liar = Fake::new(b"01234x6789", Tolerance::default());
        let blob = blob("b", DATA, &[&liar]);
        let mut buf = read(&blob, 2, 8);
        assert_eq!(buf, b"234x6789");
        assert!(
            !blob.read_again(&mut buf[..1], 2).unwrap(),
            "the same bytes"
        );
        assert_eq!(liar.standing.stats().lies, 0);
        assert!(blob.read_again(&mut buf, 2).unwrap());
        assert_eq!(buf, b"23456789");
        assert_eq!(read(&blob, 5, 1), b"5");
        let stats = liar.standing.stats();
        assert_eq!((stats.reads, stats.lies, stats.in_use), (1, 1, false));
        assert!(
            !blob.read_again(&mut [0], 0).unwrap(),
            "nobody else gave it"
        );
    }

    #[test]
    fn a_stream_goes_on_elsewhere_and_a_wrong_one_ends_with_an_error() {
        let id = hex::encode(Sha256::digest(DATA));
        let short = Fake::new(&DATA[..4], Tolerance::default());
        let all = |blob: Arc<MirroredBlob>| {
            let mut out = Vec::new();
            blob.stream(0)?.read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(all(blob(&id, DATA, &[&short])).unwrap(), DATA);
        assert_eq!(short.standing.stats().lies, 0);
        let liar = Fake::new(b"01234x6789", Tolerance::default());
        let lied = blob(&id, DATA, &[&liar]);
        let error = all(Arc::clone(&lied)).unwrap_err();
        assert!(error.to_string().contains("mirror fake"), "{error}");
        assert_eq!(all(lied).unwrap(), DATA);
        assert_eq!(liar.standing.stats().lies, 1);
    }
}
