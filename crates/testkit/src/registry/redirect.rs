//! The storage host: blobs by signed URLs that expire, to be fetched without credentials.

use std::io;

use super::answer::Answer;
use super::blob;
use super::faults::Fault;
use super::http::Head;
use super::route::Call;
use super::state::{State, lock};

/// What signs URLs.
const SECRET: &str = "known to registry and storage host alone";

/// Sends the client to the storage host.
pub(super) fn to(call: &Call, name: &str, hex: &str) -> Answer {
    let state = call.state;
    let lifetime = state.options.redirect.unwrap_or_default();
    let expired = call
        .picked
        .is_some_and(|picked| picked.fault == Fault::ExpiredRedirect);
    let expires = if expired {
        0
    } else {
        (state.started.elapsed() + lifetime).as_millis() + 1
    };
    let url = state.storage_url.get().map_or("", String::as_str);
    let signature = sign(name, hex, &expires.to_string());
    Answer::new(307).header(
        "Location",
        format!("{url}/{hex}?repository={name}&expires={expires}&signature={signature}"),
    )
}

fn sign(name: &str, hex: &str, expires: &str) -> String {
    crate::sha256(format!("{SECRET} {name} {hex} {expires}").as_bytes())
}

/// Answers as the storage host.
pub(super) fn serve(state: &State, head: &Head) -> io::Result<Answer> {
    if head.header("authorization").is_some() {
        let what = format!(
            "credentials were sent to the storage host: {} {}",
            head.method, head.path
        );
        state.violation(what);
        return Ok(Answer::error(
            400,
            "INVALID_ARGUMENT",
            "two kinds of authentication",
        ));
    }
    let hex = head.path.trim_start_matches('/');
    let given = |name| head.parameter(name).unwrap_or_default();
    let (name, expires) = (given("repository"), given("expires"));
    if given("signature") != sign(name, hex, expires) {
        return Ok(Answer::error(403, "ACCESS_DENIED", "a bad signature"));
    }
    let until = expires.parse::<u128>().unwrap_or(0);
    if state.started.elapsed().as_millis() >= until {
        return Ok(Answer::error(
            403,
            "ACCESS_DENIED",
            "the request has expired",
        ));
    }
    if !matches!(head.method.as_str(), "GET" | "HEAD") {
        return Ok(Answer::new(405));
    }
    match lock(&state.storage).blob(name, hex) {
        Some(stored) => {
            let digest = format!("sha256:{hex}");
            let mut answer = blob::serve(head, &stored, &digest, state.options.ranges);
            // Object stores know nothing of registries.
            answer
                .headers
                .retain(|(name, _)| !name.starts_with("Docker-"));
            Ok(answer)
        }
        None => Ok(Answer::error(404, "NO_SUCH_KEY", hex)),
    }
}
