//! Bringing chunks in: which stored bytes to ask for, and what to do with them.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rafs_format::blob_meta::{Placement, StoredChunk};

use super::blob::{Blob, Extent, Group, Remote};
use super::budget::Share;
use super::flight::{Claim, Duty, Landing};
use super::observer::Watched;
use super::stats::add;
use super::{Inner, Key, Purpose};
use crate::cache::{Ask, State};
use crate::{ChunkError, KnownChunk, OpenSlice, ReadCause, ReadError, VerifiedChunk};

/// Neighbours that are looked at for one request.
pub(super) const NEIGHBOURS_MAX: usize = 512;

/// Which part of the budget the stored bytes of one request may take, and which its decoded neighbours.
const BUDGET_SHARE: u64 = 4;
/// How long the bytes of a request in the background may take while reads wait now and again.
const CONTENDED_TIME: Duration = Duration::from_millis(40);
/// So many bytes it may have in any case.
const CONTENDED_REQUEST: u64 = 256 << 10;
/// How long to wait for another process that fetches a chunk, and for one that writes it.
const FETCH_PATIENCE: Duration = Duration::from_secs(5);
const WRITE_PATIENCE: Duration = Duration::from_millis(100);
/// The first pause between two looks whether it has, and the longest.
const TURN_PAUSE: Duration = Duration::from_micros(500);
const TURN_PAUSE_MAX: Duration = Duration::from_millis(10);

/// A chunk that is being brought in.
struct Member {
    claim: Claim,
    record: StoredChunk,
}

/// A unit of stored bytes with the chunks in it that somebody wants.
struct Unit {
    extent: Extent,
    members: Vec<Member>,
}

/// Stored bytes that a request has brought.
struct Stored {
    bytes: Vec<u8>,
    /// Where they begin in the blob.
    base: u64,
    /// The request's number.
    fetch: u64,
}

/// One request to a blob.
struct Plan {
    first: Unit,
    others: Vec<Unit>,
    range: Range<u64>,
}

impl Inner {
    /// The chunk `key`, from memory or from its blob, and with it those of `want` that one request can bring too.
    pub fn chunk(self: &Arc<Self>, key: Key, want: &[Key]) -> Landing {
        loop {
            if let Some(chunk) = self.recent.get(key) {
                return Ok(chunk);
            }
            match self.flights.join(key) {
                Duty::Mine(claim) => return self.bring(claim, want, Purpose::Read),
                Duty::Other(flight) => {
                    if let Some(landing) = flight.wait() {
                        return landing;
                    }
                }
            }
        }
    }

    /// The chunk `key` for a read that waits for it.
    pub fn chunk_now(self: &Arc<Self>, key: Key, want: &[Key]) -> Landing {
        let _busy = self.hold_back(key);
        self.chunk(key, want)
    }

    /// Brings the chunk `key` into the cache, and some of `want` with it, unless another thread is about to.
    pub fn chunk_in_background(
        self: &Arc<Self>,
        key: Key,
        want: &[Key],
        purpose: Purpose,
    ) -> Result<(), ReadError> {
        match self.flights.claim(key) {
            Some(claim) => self.bring(claim, want, purpose).map(drop),
            None => Ok(()),
        }
    }

    pub fn bring(self: &Arc<Self>, mut claim: Claim, want: &[Key], purpose: Purpose) -> Landing {
        // Whoever had the duty before may have landed since the caller looked.
        let there = self.recent.get(claim.key);
        let there = there.or_else(|| self.reverify(claim.key));
        match there.or_else(|| self.take_turn(&mut claim)) {
            Some(chunk) => {
                claim.land(Ok(Arc::clone(&chunk)));
                Ok(chunk)
            }
            None => match (self.copy_from_elsewhere(claim.key), self.known(claim.key)) {
                (Some(chunk), Some((blob, _))) => self.land(blob, claim, Ok(chunk)),
                _ => self.fetch(claim, want, purpose),
            },
        }
    }

    /// Waits until no other process brings in the chunk; the chunk, if one has. For the rest see [`crate::cache::Turn`].
    fn take_turn(&self, claim: &mut Claim) -> Option<Arc<VerifiedChunk>> {
        let key = claim.key;
        let (blob, known) = self.known(key)?;
        let cache = blob.cache.as_ref()?;
        let (start, mut pause) = (Instant::now(), TURN_PAUSE);
        let mut writing = None;
        loop {
            let busy = match cache.ask_turn(known) {
                Ask::Mine(turn) => {
                    claim.turn = Some(turn);
                    false
                }
                Ask::Free => false,
                Ask::Fetching => {
                    writing = None;
                    start.elapsed() < FETCH_PATIENCE
                }
                Ask::Writing => writing.get_or_insert_with(Instant::now).elapsed() < WRITE_PATIENCE,
            };
            if self.look(blob, key.slot) != State::Absent || !busy {
                return self.reverify(key);
            }
            thread::sleep(pause);
            pause = TURN_PAUSE_MAX.min(pause * 2);
        }
    }

    /// The chunk out of the cache file, if what lies there is the chunk.
    pub(super) fn reverify(&self, key: Key) -> Option<Arc<VerifiedChunk>> {
        let (blob, known) = self.known(key)?;
        let cache = blob.cache.as_ref()?;
        let state = cache.state(key.slot);
        if state == State::Absent {
            return None;
        }
        let mut bytes = vec![0; known.size as usize];
        let chunk = cache.read(&mut bytes, known.offset).ok().and_then(|()| {
            add(&self.counters.reverified, 1);
            VerifiedChunk::verify(blob.info.digester, known, bytes).ok()
        });
        let Some(chunk) = chunk.map(Arc::new) else {
            add(&self.counters.verify_failures, 1);
            cache.forget(key.slot, known);
            return None;
        };
        if state == State::Suspect && cache.confirm(key.slot, known).is_err() {
            add(&self.counters.cache_errors, 1);
            self.recent.insert(key, Arc::clone(&chunk));
        }
        Some(chunk)
    }

    fn fetch(self: &Arc<Self>, claim: Claim, want: &[Key], purpose: Purpose) -> Landing {
        let background = purpose != Purpose::Read;
        let key = claim.key;
        let Some((blob, known)) = self.known(key) else {
            unreachable!("a claim is for a known chunk")
        };
        let start = || {
            let remote = self.remote(blob, background)?;
            let record = remote.record(known)?;
            let extent = remote.extent(&record)?;
            Ok((remote, record, extent))
        };
        let (remote, record, extent) = match start() {
            Ok(start) => start,
            Err(cause) => return self.land(blob, claim, Err(cause)),
        };
        let mut request_max = self
            .options
            .request_max
            .min(self.options.memory / BUDGET_SHARE);
        if purpose == Purpose::Prefetch && self.prefetch.is_contended() {
            let quick = self.line.bytes_within(CONTENDED_TIME);
            request_max = request_max.min(quick.max(CONTENDED_REQUEST));
        }
        let first = Member { claim, record };
        let mut plan = self.plan(blob, &remote, first, extent, want, request_max);
        let request = self.watch.begin(purpose);
        let share = self.budget.take(plan.cost(self), background);
        let mut stored = self.read_range(key.blob, &remote, &plan.range, (request, background));
        if stored.is_err() && !plan.others.is_empty() {
            // The neighbours may be to blame. Whoever wants them asks again.
            plan.others.clear();
            plan.range = plan.first.extent.range();
            let request = self.watch.begin(purpose);
            stored = self.read_range(key.blob, &remote, &plan.range, (request, background));
        }
        let stored = match stored {
            Ok(stored) => Arc::new(stored),
            Err(cause) => {
                // Dropping the group's other members lets them begin anew.
                let first = plan.first.members.swap_remove(0);
                return self.land(blob, first.claim, Err(cause));
            }
        };
        if background {
            let count = plan.units().map(|unit| unit.members.len() as u64).sum();
            add(&self.counters.prefetch_fetched, count);
        }
        let share = Arc::new(share);
        let first = self.decode(&remote, plan.first, &stored);
        for unit in plan.others {
            self.decode_later(&remote, unit, &stored, (purpose, &share));
        }
        first
    }

    /// Chooses what to ask the blob for: the unit of `first`, and the units of wanted chunks near it.
    fn plan(
        self: &Arc<Self>,
        blob: &Blob,
        remote: &Remote,
        first: Member,
        extent: Extent,
        want: &[Key],
        request_max: u64,
    ) -> Plan {
        let key = first.claim.key;
        let mut near: Vec<(Extent, Key)> = want
            .iter()
            .take(NEIGHBOURS_MAX)
            .filter(|other| {
                other.blob == key.blob
                    && other.slot != key.slot
                    && self.is_absent(**other)
                    && !self.is_elsewhere(**other)
            })
            .filter_map(|&other| {
                let record = remote.record(blob.known.get(other.slot)?).ok()?;
                Some((remote.extent(&record).ok()?, other)).filter(|(other, _)| *other != extent)
            })
            .collect();
        near.sort_unstable_by_key(|(extent, key)| (extent.offset, key.slot));
        near.dedup_by_key(|(extent, _)| (extent.offset, extent.group));

        let mut range = extent.range();
        let (mut others, mut room) = (Vec::new(), self.options.memory / BUDGET_SHARE);
        let split = near.partition_point(|(other, _)| other.offset < extent.offset);
        let (before, after) = near.split_at(split);
        for (other, key) in after.iter().chain(before.iter().rev()) {
            let joined = range.start.min(other.offset)..range.end.max(other.range().end);
            let gap = (joined.end - joined.start)
                .saturating_sub(range.end - range.start)
                .saturating_sub(other.size);
            let size = blob.known.get(key.slot).map_or(0, |known| known.size);
            let left = room.checked_sub(size.into());
            if let Some(left) = left
                && gap <= self.options.gap_max
                && joined.end - joined.start <= request_max
                // What is on its way already would come twice.
                && let Some(unit) = self.claim_unit(blob, remote, *other, *key)
            {
                (range, room) = (joined, left);
                others.push(unit);
            }
        }
        let mut first = Unit {
            extent,
            members: vec![first],
        };
        self.claim_group(blob, remote, &mut first, key);
        Plan {
            first,
            others,
            range,
        }
    }

    fn claim_unit(
        self: &Arc<Self>,
        blob: &Blob,
        remote: &Remote,
        extent: Extent,
        key: Key,
    ) -> Option<Unit> {
        let mut unit = Unit {
            extent,
            members: self.claim_member(blob, remote, key).into_iter().collect(),
        };
        self.claim_group(blob, remote, &mut unit, key);
        (!unit.members.is_empty()).then_some(unit)
    }

    /// Claims the other members of the batch or slice that `key` is in.
    fn claim_group(self: &Arc<Self>, blob: &Blob, remote: &Remote, unit: &mut Unit, key: Key) {
        let (Some(group), Some(known)) = (unit.extent.group, blob.known.get(key.slot)) else {
            return;
        };
        let others = remote
            .members(group, known.index)
            .filter(|&index| index != known.index);
        let slots = others.filter_map(|index| Some(blob.known.find(index)?.0));
        unit.members
            .extend(slots.filter_map(|slot| self.claim_member(blob, remote, Key { slot, ..key })));
    }

    fn claim_member(self: &Arc<Self>, blob: &Blob, remote: &Remote, key: Key) -> Option<Member> {
        let known = blob.known.get(key.slot)?;
        let record = remote.record(known).ok()?;
        let mut claim = self.flights.claim(key)?;
        if !self.is_absent(key) {
            return None;
        }
        match blob.cache.as_ref().map(|cache| cache.ask_turn(known)) {
            Some(Ask::Mine(turn)) => claim.turn = Some(turn),
            // Another process is bringing it in.
            Some(Ask::Fetching | Ask::Writing) => return None,
            Some(Ask::Free) | None => {}
        }
        (self.look(blob, key.slot) == State::Absent).then_some(Member { claim, record })
    }

    fn read_range(
        &self,
        blob: usize,
        remote: &Remote,
        range: &Range<u64>,
        (mut request, background): (Watched, bool),
    ) -> Result<Stored, ReadCause> {
        let (offset, size) = (range.start, range.end - range.start);
        let failed = |source| ReadCause::Fetch {
            offset,
            size,
            source,
        };
        if range.end > remote.reader.size() {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = vec![
            0;
            usize::try_from(size)
                .map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?
        ];
        let _permit = self.requests.take(1, background);
        add(&self.counters.fetches, 1);
        self.watch.ask(&mut request);
        let read = || {
            let asked = Instant::now();
            let answer = remote.reader.read_exact_at(&mut bytes, offset);
            if answer.is_ok() {
                self.line.note(size, asked.elapsed());
            }
            answer
        };
        let more = &self.counters.more;
        let answer = more.fetch(blob, size, read);
        self.watch.fetched(&request, blob, range, answer.is_err());
        answer.map_err(failed)?;
        add(&self.counters.fetched_bytes, size);
        Ok(Stored {
            bytes,
            base: offset,
            fetch: request.number,
        })
    }

    fn decode_later(
        self: &Arc<Self>,
        remote: &Arc<Remote>,
        unit: Unit,
        stored: &Arc<Stored>,
        (purpose, share): (Purpose, &Arc<Share>),
    ) {
        let (this, remote, stored, share) = (
            Arc::clone(self),
            Arc::clone(remote),
            Arc::clone(stored),
            Arc::clone(share),
        );
        let task = move || {
            let _ = this.decode(&remote, unit, &stored);
            drop(share);
        };
        match purpose {
            Purpose::Prefetch => self.background.spawn(task),
            Purpose::Read | Purpose::First => self.decoders.spawn(task),
        }
    }

    /// Decodes a unit of the stored bytes, and lands all its chunks; says how the first did.
    fn decode(&self, remote: &Remote, unit: Unit, stored: &Stored) -> Landing {
        let Unit {
            extent,
            mut members,
        } = unit;
        let slice = stored
            .slice(extent)
            .ok_or(ChunkError::Record("the stored bytes were not asked for"));
        let fetch = stored.fetch;
        let index = match extent.group {
            Some(Group::Slice(index)) => {
                return self.decode_slice(remote, (index, extent), members, slice, fetch);
            }
            Some(Group::Batch(index)) => Some(index),
            None => None,
        };
        let first = members.remove(0);
        let Some((blob, known)) = self.known(first.claim.key) else {
            unreachable!("a claim is for a known chunk")
        };
        let began = self.watch.now();
        let watch = |began, key: Key, known: &KnownChunk, record: &StoredChunk| {
            self.watch.decoded(fetch, began, key.blob, known, record);
        };
        let Some(index) = index else {
            let decode = |stored: &[u8]| remote.decoder.chunk(&first.record, known, stored);
            let chunk = slice.and_then(|stored| self.twice(remote, extent, stored, decode));
            watch(began, first.claim.key, known, &first.record);
            return self.land(blob, first.claim, chunk.map_err(ReadCause::from));
        };
        let decode = |stored: &[u8]| {
            let context = remote.batch(index)?;
            let encrypted = first.record.encrypted;
            let batch = remote.decoder.batch(&context, encrypted, stored)?;
            let chunk = batch.member(&first.record, known)?;
            Ok((batch, chunk))
        };
        let decoded = slice.and_then(|stored| self.twice(remote, extent, stored, decode));
        let (batch, chunk) = match decoded {
            Ok(decoded) => decoded,
            // The other members are dropped, and whoever wants one begins anew and learns the same.
            Err(error) => return self.land(blob, first.claim, Err(error.into())),
        };
        watch(began, first.claim.key, known, &first.record);
        for member in members {
            let began = self.watch.now();
            if let Some((blob, known)) = self.known(member.claim.key)
                // One that is wrong is dropped as well.
                && let Ok(chunk) = batch.member(&member.record, known)
            {
                watch(began, member.claim.key, known, &member.record);
                let _ = self.land(blob, member.claim, Ok(chunk));
            }
        }
        self.land(blob, first.claim, Ok(chunk))
    }

    /// Decodes stored bytes; if they are not what the image records, those of the place that has the last word.
    fn twice<T>(
        &self,
        remote: &Remote,
        extent: Extent,
        stored: &[u8],
        mut decode: impl FnMut(&[u8]) -> Result<T, ChunkError>,
    ) -> Result<T, ChunkError> {
        decode(stored).or_else(|error| {
            let mut again = stored.to_vec();
            let permit = self.requests.take(1, false);
            let asked = remote.reader.read_again(&mut again, extent.offset);
            drop(permit);
            match asked {
                Ok(true) => {
                    add(&self.counters.verify_failures, 1);
                    add(&self.counters.fetched_again, 1);
                    decode(&again)
                }
                Ok(false) | Err(_) => Err(error),
            }
        })
    }

    /// Inflates a slice of a gzip layer and lands its chunks one by one, so that no more than one of them is in memory;
    /// says how the first of `members` did.
    fn decode_slice(
        &self,
        remote: &Remote,
        (index, extent): (u32, Extent),
        mut members: Vec<Member>,
        stored: Result<&[u8], ChunkError>,
        fetch: u64,
    ) -> Landing {
        let wanted = members.first().map(|member| member.claim.key);
        members.sort_by_key(|member| match member.record.placement {
            Placement::Zran { offset, .. } => offset,
            _ => 0,
        });
        let bytes = stored.as_ref().ok().copied();
        let mut slice = stored.and_then(|stored| open_slice(remote, index, stored));
        let mut outcome = None;
        for member in members {
            let Some((blob, known)) = self.known(member.claim.key) else {
                continue;
            };
            let is_wanted = Some(member.claim.key) == wanted;
            let began = self.watch.now();
            let chunk = match &mut slice {
                Ok(slice) => slice.member(&member.record, known),
                // As with a batch, only the wanted one learns of it.
                Err(_) if !is_wanted => continue,
                Err(_) => {
                    let failed = ChunkError::Record("the chunk's slice cannot be inflated");
                    let error = std::mem::replace(&mut slice, Err(failed)).err();
                    Err(error.unwrap_or(ChunkError::Record("the chunk's slice has no error")))
                }
            };
            let chunk = match (chunk, bytes) {
                (Err(_), _) if !is_wanted => continue,
                (Err(error), Some(stored)) => {
                    let mut first = Some(error);
                    self.twice(remote, extent, stored, |stored| match first.take() {
                        Some(error) => Err(error),
                        None => open_slice(remote, index, stored)?.member(&member.record, known),
                    })
                }
                (chunk, _) => chunk,
            };
            let (blob_index, record) = (member.claim.key.blob, &member.record);
            self.watch.decoded(fetch, began, blob_index, known, record);
            let landing = self.land(blob, member.claim, chunk.map_err(ReadCause::from));
            if is_wanted {
                outcome = Some(landing);
            }
        }
        outcome.unwrap_or_else(|| unreachable!("a unit has a first member, which was claimed"))
    }

    /// Keeps what came in and tells all who wait for it.
    fn land(
        &self,
        blob: &Blob,
        claim: Claim,
        outcome: Result<VerifiedChunk, ReadCause>,
    ) -> Landing {
        let Some(known) = blob.known.get(claim.key.slot) else {
            unreachable!("a claim is for a known chunk")
        };
        let landing = match outcome {
            Ok(chunk) => {
                add(&self.counters.chunks_verified, 1);
                let chunk = Arc::new(chunk);
                if let Some(turn) = &claim.turn {
                    turn.writes();
                }
                self.keep(blob, claim.key, &chunk);
                Ok(chunk)
            }
            Err(cause) => {
                if matches!(cause, ReadCause::Decode(_)) {
                    add(&self.counters.verify_failures, 1);
                }
                Err(blob.error(known, cause))
            }
        };
        claim.land(landing.clone());
        landing
    }

    pub(super) fn keep(&self, blob: &Blob, key: Key, chunk: &Arc<VerifiedChunk>) {
        if let (Some(cache), Some(known)) = (&blob.cache, blob.known.get(key.slot))
            && (!self.refusal.holds() || self.limit.keeps_all())
            && self.has_room(chunk.len() as u64)
        {
            match cache.store(key.slot, known, chunk) {
                Ok(()) => return self.barrier.written(chunk.len() as u64),
                Err(_) => {
                    // A full or failing disk must not keep anyone from reading.
                    add(&self.counters.cache_errors, 1);
                    self.refusal.note();
                }
            }
        }
        self.recent.insert(key, Arc::clone(chunk));
    }

    pub fn is_absent(&self, key: Key) -> bool {
        let absent = self
            .blobs
            .get(key.blob)
            .is_some_and(|blob| blob.state(key.slot) == State::Absent);
        absent && !self.recent.contains(key)
    }
}

impl Plan {
    fn units(&self) -> impl Iterator<Item = &Unit> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Bytes of memory that the plan takes: the stored ones, and the decoded ones.
    fn cost(&self, inner: &Inner) -> u64 {
        let members = self.units().flat_map(|unit| &unit.members);
        let decoded =
            members.filter_map(|member| Some(u64::from(inner.known(member.claim.key)?.1.size)));
        (self.range.end - self.range.start) + decoded.sum::<u64>()
    }
}

impl Extent {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.size)
    }
}

fn open_slice<'a>(
    remote: &'a Remote,
    index: u32,
    stored: &'a [u8],
) -> Result<OpenSlice<'a>, ChunkError> {
    let context = remote.slice(index)?;
    let dictionary = remote.meta.dictionary(&context);
    let dictionary = dictionary.ok_or(ChunkError::Record("the slice has no dictionary"))?;
    remote.decoder.slice(&context, dictionary, stored)
}

impl Stored {
    fn slice(&self, extent: Extent) -> Option<&[u8]> {
        let start = usize::try_from(extent.offset.checked_sub(self.base)?).ok()?;
        let end = start.checked_add(usize::try_from(extent.size).ok()?)?;
        self.bytes.get(start..end)
    }
}
