//! What goes wrong, and when: a schedule that depends on a seed and the number of the request alone.

use std::collections::BTreeMap;
use std::time::Duration;

/// A thing that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The answer comes late.
    Latency,
    /// The connection ends before the request is worked on.
    CutBeforeAnswer,
    /// The connection ends in the middle of a blob or manifest that is fetched.
    CutBody,
    /// The connection ends in the middle of bytes that are uploaded; those before stay.
    CutRequest,
    /// `Content-Range` names other bytes than those that were asked for and are sent.
    WrongContentRange,
    /// Other bytes than those asked for are sent, and `Content-Range` says so.
    WrongRange,
    /// The whole blob is sent with 200 where a range was asked for.
    RangeIgnored,
    /// A blob is too short, and `Content-Length` agrees.
    ShortLength,
    /// A blob is too long, and `Content-Length` agrees.
    LongLength,
    /// 401 in spite of good credentials.
    Unauthorised,
    /// 404 for a manifest or blob that is there.
    NotFound,
    /// 429 with `Retry-After`.
    TooMany,
    /// 500, 502 or 503.
    ServerError,
    /// The storage host's URL has expired when it is used.
    ExpiredRedirect,
    /// An upload session is forgotten: 404 when it is used next.
    SessionVanishes,
    /// Only a part of a segment is kept; `Range` says so.
    PartialAck,
    /// The work is done, then the connection ends without an answer.
    AnswerLost,
    /// A byte of a blob is another one.
    CorruptBody,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Latency,
        Self::CutBeforeAnswer,
        Self::CutBody,
        Self::CutRequest,
        Self::WrongContentRange,
        Self::WrongRange,
        Self::RangeIgnored,
        Self::ShortLength,
        Self::LongLength,
        Self::Unauthorised,
        Self::NotFound,
        Self::TooMany,
        Self::ServerError,
        Self::ExpiredRedirect,
        Self::SessionVanishes,
        Self::PartialAck,
        Self::AnswerLost,
        Self::CorruptBody,
    ];

    /// Whether it is done to the body of an answer.
    pub(super) fn in_answer(self) -> bool {
        matches!(
            self,
            Self::CutBody
                | Self::WrongContentRange
                | Self::WrongRange
                | Self::RangeIgnored
                | Self::ShortLength
                | Self::LongLength
                | Self::CorruptBody
        )
    }

    /// Whether it is done while a request is worked on, so that a request that is refused has none.
    pub(super) fn in_work(self) -> bool {
        matches!(
            self,
            Self::CutRequest
                | Self::ExpiredRedirect
                | Self::SessionVanishes
                | Self::PartialAck
                | Self::AnswerLost
        )
    }

    fn applies(self, to: &Facts) -> bool {
        let fetches = to.method == "GET" && to.sends_blob;
        match self {
            Self::Latency | Self::CutBeforeAnswer | Self::TooMany | Self::ServerError => true,
            Self::CutBody => fetches || (to.method == "GET" && to.manifest),
            Self::CutRequest => to.upload && to.has_body,
            Self::WrongContentRange | Self::WrongRange | Self::RangeIgnored => fetches && to.ranged,
            Self::ShortLength | Self::LongLength | Self::CorruptBody => fetches,
            Self::Unauthorised => to.guarded,
            Self::NotFound => to.reads && (to.manifest || to.blob),
            Self::ExpiredRedirect => to.method == "GET" && to.redirects,
            Self::SessionVanishes => to.session && to.method != "DELETE",
            Self::PartialAck => to.session && to.method == "PATCH" && to.has_body,
            Self::AnswerLost => !to.reads,
        }
    }
}

/// What the schedule needs to know of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub method: String,
    pub target: String,
    pub reads: bool,
    pub has_body: bool,
    pub ranged: bool,
    /// Credentials are asked for here.
    pub guarded: bool,
    pub manifest: bool,
    pub blob: bool,
    /// The answer is a blob's bytes, not a redirect to them.
    pub sends_blob: bool,
    pub redirects: bool,
    pub upload: bool,
    /// An upload session is named.
    pub session: bool,
}

/// A plan of faults. The same plan and the same requests in the same order give the same faults.
///
/// A request draws from the kinds that are switched on, not used up and make sense for it; the token server has none.
#[derive(Debug, Clone)]
pub struct Faults {
    seed: u64,
    rate: f64,
    kinds: BTreeMap<Fault, Option<u64>>,
    skip: u64,
    matching: Option<String>,
    latency: Duration,
    retry_after: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self::none()
    }
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::of(0, 0.0, &[])
    }

    /// Everything can go wrong, in this share of the requests (0 to 1).
    pub fn all(seed: u64, rate: f64) -> Self {
        Self::of(seed, rate, &Fault::ALL)
    }

    /// These kinds, in this share of the requests (0 to 1).
    pub fn of(seed: u64, rate: f64, kinds: &[Fault]) -> Self {
        Self {
            seed,
            rate,
            kinds: kinds.iter().map(|kind| (*kind, None)).collect(),
            skip: 0,
            matching: None,
            latency: Duration::from_millis(50),
            retry_after: 1,
        }
    }

    /// One fault, on the first request that it can be done to.
    pub fn once(kind: Fault) -> Self {
        Self::of(0, 1.0, &[kind]).limit(kind, 1)
    }

    /// Switches a kind off.
    #[must_use]
    pub fn without(mut self, kind: Fault) -> Self {
        self.kinds.remove(&kind);
        self
    }

    /// Switches a kind on, to happen at most `times`.
    #[must_use]
    pub fn limit(mut self, kind: Fault, times: u64) -> Self {
        self.kinds.insert(kind, Some(times));
        self
    }

    /// Spares the first requests to which any of the kinds could be done.
    #[must_use]
    pub fn skip(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Only for requests whose `METHOD /path?query` holds this text.
    #[must_use]
    pub fn matching(mut self, text: &str) -> Self {
        self.matching = Some(text.to_owned());
        self
    }

    /// How late a late answer is.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// The seconds in `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = seconds;
        self
    }

    /// The fault of a request, and a number that decides where in it or which variant; counts it.
    pub(super) fn pick(&mut self, number: u64, facts: &Facts) -> Option<Picked> {
        let text = format!("{} {}", facts.method, facts.target);
        if self
            .matching
            .as_ref()
            .is_some_and(|part| !text.contains(part))
        {
            return None;
        }
        let possible: Vec<Fault> = self
            .kinds
            .iter()
            .filter(|(kind, left)| **left != Some(0) && kind.applies(facts))
            .map(|(kind, _)| *kind)
            .collect();
        if possible.is_empty() {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if draw(self.seed, number, 0) as f64 / u64::MAX as f64 >= self.rate {
            return None;
        }
        let fault = possible[(draw(self.seed, number, 1) % possible.len() as u64) as usize];
        if let Some(Some(left)) = self.kinds.get_mut(&fault) {
            *left -= 1;
        }
        Some(Picked {
            fault,
            draw: draw(self.seed, number, 2),
            latency: self.latency,
            retry_after: self.retry_after,
        })
    }

    /// A fault that was picked could not be done after all.
    pub(super) fn give_back(&mut self, fault: Fault) {
        if let Some(Some(left)) = self.kinds.get_mut(&fault) {
            *left += 1;
        }
    }
}

/// A fault that is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picked {
    pub fault: Fault,
    draw: u64,
    pub latency: Duration,
    pub retry_after: u64,
}

impl Picked {
    /// A place inside of `len` bytes: after the first and before the last where there is room.
    pub fn inside(&self, len: u64) -> u64 {
        match len {
            0 | 1 => 0,
            len => 1 + self.draw % (len - 1),
        }
    }

    /// One of several variants.
    pub fn variant<T: Copy, const N: usize>(&self, of: [T; N]) -> T {
        of[(self.draw % N as u64) as usize]
    }
}

/// A number that looks random (splitmix64).
fn draw(seed: u64, number: u64, what: u64) -> u64 {
    let mut x = seed
        .wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add((what + 1).wrapping_mul(0xd1b5_4a32_d192_ed03));
    for multiplier in [0xbf58_476d_1ce4_e5b9_u64, 0x94d0_49bb_1331_11eb] {
        x ^= x >> 30;
        x = x.wrapping_mul(multiplier);
        x ^= x >> 27;
    }
    x ^ (x >> 31)
}
