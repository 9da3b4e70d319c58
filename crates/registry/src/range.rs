//! Reading parts of blobs, for images that are fetched lazily.

use std::time::{Duration, SystemTime};

use image::Digest;
use reqwest::header::RANGE;
use reqwest::{Method, Url};

use crate::blob::{Checked, check, range_header};
use crate::client::{Core, Failure, Retry};
use crate::retry::{lock, may_pass, retry_after};
use crate::transport::{Answer, Fault, Request, Target, is, peer};
use crate::{Error, Repository, Subject, time};

/// How long an address is used that does not say when it ends.
const LIFETIME: Duration = Duration::from_secs(300);
/// Addresses are not used for their last seconds.
const MARGIN: Duration = Duration::from_secs(30);

/// Where a registry sent us for a blob.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    url: Url,
    until: SystemTime,
}

impl Repository {
    /// Reads the bytes of a blob from `offset` on into the whole of `buf`. Where the registry sends us for it is
    /// remembered until that address nears its end.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Answer`] if the blob ends before, and all that can go wrong on the way.
    pub fn read_range(&self, digest: &Digest, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        if buf.is_empty() {
            return Ok(());
        }
        self.client.wait(self.fill(digest, offset, buf))
    }

    async fn fill(&self, digest: &Digest, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let end = offset.saturating_add(buf.len() as u64);
        let mut filled = 0;
        let mut retry = Retry::new(self.core());
        loop {
            let before = filled;
            let failure = match self.part(digest, (offset, end), buf, &mut filled).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if filled > before {
                retry.reset();
            }
            retry.after(failure).await?;
        }
    }

    /// Fills `buf` as far as one answer goes.
    async fn part(
        &self,
        digest: &Digest,
        (offset, end): (u64, u64),
        buf: &mut [u8],
        filled: &mut usize,
    ) -> Result<(), Failure> {
        let subject = self.blob_call(digest, Method::GET).subject;
        let range = (offset + *filled as u64, end);
        let answer = self.connect(digest, range).await?;
        if !is(answer.response.status(), &[200, 206, 416]) {
            let call = self.blob_call(digest, Method::GET);
            return Err(Failure::last(self.core().refuse(&call, answer).await));
        }
        let wanted = Wanted {
            range,
            parts_as_whole: false,
        };
        take(self.core(), answer, &subject, wanted, buf, filled).await
    }

    async fn connect(&self, digest: &Digest, range: (u64, u64)) -> Result<Answer, Failure> {
        let header = range_header(range.0, range.1);
        let now = SystemTime::now();
        let known = lock(&self.resolved).get(digest).cloned();
        if let Some(known) = known.filter(|known| now < known.until) {
            let mut request = Request::new(Method::GET, Target::Url(known.url));
            request.headers.insert(RANGE, header.clone());
            let subject = self.blob_call(digest, Method::GET).subject;
            let sent = self.core().transport.send(&self.host, &request, None).await;
            let answer = sent.map_err(|fault| Failure::of(fault, &subject))?;
            let status = answer.response.status();
            let peer = peer(&answer.url);
            // An address that ended is answered in many ways; then the registry is asked again.
            if !is(status, &[400, 401, 403, 404, 410]) {
                if may_pass(status) {
                    let call = self.blob_call(digest, Method::GET);
                    return Err(Failure {
                        asked: retry_after(answer.response.headers()),
                        may_pass: true,
                        peer,
                        error: self.core().refuse(&call, answer).await,
                    });
                }
                self.core().budget(&peer).refund();
                return Ok(answer);
            }
        }
        lock(&self.resolved).remove(digest);
        let mut call = self.blob_call(digest, Method::GET);
        call.request.headers.insert(RANGE, header);
        let answer = self.core().attempt(&call).await?;
        if !answer.direct
            && is(answer.response.status(), &[200, 206])
            && let Some(until) = end(&answer.url, now).checked_sub(MARGIN)
        {
            let url = answer.url.clone();
            lock(&self.resolved).insert(*digest, Resolved { url, until });
        }
        Ok(answer)
    }
}

/// Which bytes of an object were asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// From the first one to before the last.
    pub(crate) range: (u64, u64),
    /// Whether an answer that does not call itself a part is one nevertheless.
    pub(crate) parts_as_whole: bool,
}

/// Fills `buf` behind its first `filled` bytes as far as one answer goes, which is for these bytes of the object.
pub(crate) async fn take(
    core: &Core,
    mut answer: Answer,
    subject: &Subject,
    wanted: Wanted,
    buf: &mut [u8],
    filled: &mut usize,
) -> Result<(), Failure> {
    let Wanted { range, .. } = wanted;
    let mut skip = match check(&answer, subject, Some(range), None) {
        Checked::Good { skip: true } if wanted.parts_as_whole => 0,
        Checked::Good { skip: true } => range.0,
        Checked::Good { skip: false } => 0,
        Checked::WrongRange(failure) | Checked::Bad(failure) => return Err(failure),
        Checked::Refused => {
            let reason = format!("HTTP {} to a read", answer.response.status().as_u16());
            return Err(Failure::of(
                Fault::answer(peer(&answer.url), reason),
                subject,
            ));
        }
    };
    while *filled < buf.len() {
        let chunk = core.transport.chunk(&mut answer).await;
        let Some(mut chunk) = chunk.map_err(|fault| Failure::of(fault, subject))? else {
            let fault = Fault::answer(peer(&answer.url), "the blob ended early");
            return Err(Failure {
                may_pass: true,
                ..Failure::of(fault, subject)
            });
        };
        let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
        skip -= skipped as u64;
        let _ = chunk.split_to(skipped);
        let length = chunk.len().min(buf.len() - *filled);
        buf[*filled..*filled + length].copy_from_slice(&chunk[..length]);
        *filled += length;
    }
    if wanted.parts_as_whole {
        // A converter's proxy notes how far it went after the last byte, and ends its answer then. Whoever asks before
        // gets bytes of another place. What else is wrong with the answer does not matter any more.
        let _ = core.transport.chunk(&mut answer).await;
    }
    Ok(())
}

/// When a signed address ends, as the signatures of the usual stores tell.
fn end(url: &Url, now: SystemTime) -> SystemTime {
    let get = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.into_owned())
    };
    for (date, lifetime) in [
        ("x-amz-date", "x-amz-expires"),
        ("x-goog-date", "x-goog-expires"),
        ("x-oss-date", "x-oss-expires"),
    ] {
        if let (Some(date), Some(lifetime)) = (get(date), get(lifetime))
            && let (Some(date), Ok(lifetime)) = (time::parse_iso(&date), lifetime.parse())
            && let Some(end) = date.checked_add(Duration::from_secs(lifetime))
        {
            return end;
        }
    }
    let told = get("expires")
        .and_then(|text| time::parse_epoch(&text))
        .or_else(|| get("se").and_then(|text| time::parse_iso(&text)))
        // Docker Hub's: the time comes first.
        .or_else(|| get("verify").and_then(|text| time::parse_epoch(text.split('-').next()?)));
    told.unwrap_or(now + LIFETIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_address_is_read_from_its_signature() {
        let now = time::parse_epoch("1795654000").unwrap();
        for (query, expected) in [
            (
                "X-Amz-Date=20261126T010203Z&X-Amz-Expires=1200&X-Amz-Signature=x",
                1_795_656_123,
            ),
            (
                "x-goog-date=20261126T010203Z&x-goog-expires=60",
                1_795_654_983,
            ),
            ("Expires=1795654999&Signature=x", 1_795_654_999),
            ("sv=1&se=2026-11-26T01%3A02%3A03Z&sig=x", 1_795_654_923),
            ("verify=1795654111-abc%3D", 1_795_654_111),
            ("a=b", 1_795_654_300),
            ("Expires=never", 1_795_654_300),
            (
                "X-Amz-Date=x&X-Amz-Expires=99999999999999999999",
                1_795_654_300,
            ),
        ] {
            let url = Url::parse(&format!("https://store/blob?{query}")).unwrap();
            let expected = time::parse_epoch(&expected.to_string()).unwrap();
            assert_eq!(end(&url, now), expected, "{query}");
        }
    }
}
