//! One request and its answer: number, fault, authentication, work, log.

use std::io;
use std::sync::atomic::Ordering;

use super::answer::{Answer, Content, Damage};
use super::auth::Need;
use super::faults::{Facts, Fault, Picked};
use super::http::{Body, Connection, Head};
use super::route::{Call, Route};
use super::state::{Host, Request, State, lock};
use super::{redirect, route};

/// Serves one request; whether the connection goes on.
pub(super) fn exchange(state: &State, host: Host, connection: &mut Connection) -> io::Result<bool> {
    let Some(head) = connection.head()? else {
        return Ok(false);
    };
    state.requests.up();
    let done = answer(state, host, connection, &head);
    state.requests.down();
    done
}

fn answer(state: &State, host: Host, connection: &mut Connection, head: &Head) -> io::Result<bool> {
    let number = state.numbers.fetch_add(1, Ordering::SeqCst) + 1;
    let route = Route::parse(&head.path);
    let facts = facts(state, host, head, &route);
    let picked = match host {
        Host::Token => None,
        Host::Registry | Host::Storage => lock(&state.faults).pick(number, &facts),
    };
    let mut note = Request {
        number,
        host,
        method: head.method.clone(),
        path: head.target.clone(),
        status: 0,
        range: head.header("range").map(str::to_owned),
        content_range: head.header("content-range").map(str::to_owned),
        received: 0,
        sent: 0,
        authorization: head
            .header("authorization")
            .map(|value| value.split(' ').next().unwrap_or_default().to_owned()),
        authorised: false,
        user_agent: head.header("user-agent").map(str::to_owned),
        fault: picked.map(|picked| picked.fault),
    };
    let made = work(state, host, connection, head, &route, picked, &mut note);
    // Noted before the client can see the answer: who has it finds the request in the log.
    state.note(note);
    let Ok(Some(Made {
        answer,
        damage,
        goes_on,
    })) = made
    else {
        connection.cut();
        return made.map(|_| false);
    };
    connection.send(&answer, head.method == "HEAD", damage)?;
    Ok(goes_on)
}

/// An answer that is to be sent.
struct Made {
    answer: Answer,
    damage: Damage,
    /// Whether the connection can be used for another request.
    goes_on: bool,
}

/// Does all but sending the answer; `None` if there is to be none.
fn work(
    state: &State,
    host: Host,
    connection: &mut Connection,
    head: &Head,
    route: &Route,
    mut picked: Option<Picked>,
    note: &mut Request,
) -> io::Result<Option<Made>> {
    match picked {
        Some(picked) if picked.fault == Fault::Latency => std::thread::sleep(picked.latency),
        Some(picked) if picked.fault == Fault::CutBeforeAnswer => return Ok(None),
        _ => {}
    }
    let mut body = connection.body(head)?;
    if let Some(picked) = picked
        && picked.fault == Fault::CutRequest
    {
        body.cut_at = Some(picked.inside(head.length()?.unwrap_or(64 << 10)));
    }
    let handled = handle(state, host, head, route, picked, &mut body, note);
    if let Some(due) = picked.filter(|due| due.fault.in_work())
        && !note.authorised
    {
        // It came to no work: the fault is for the next try.
        lock(&state.faults).give_back(due.fault);
        (picked, note.fault, body.cut_at) = (None, None, None);
    }
    let reusable = handled.is_ok() && body.drain();
    note.received = body.received;
    let mut answer = handled?;
    let damage = match picked {
        Some(picked) if picked.fault == Fault::AnswerLost => return Ok(None),
        Some(picked) if picked.fault.in_answer() => {
            let damage = damage(&mut answer, picked);
            if damage.is_none() {
                lock(&state.faults).give_back(picked.fault);
                note.fault = None;
            }
            damage.unwrap_or_default()
        }
        _ => Damage::default(),
    };
    let goes_on = reusable && !head.closes();
    if !goes_on {
        answer = answer.header("Connection", "close");
    }
    note.status = answer.status;
    note.sent = match head.method.as_str() {
        "HEAD" => 0,
        _ => {
            let cut_or_declared = damage.cut_after.or(damage.declared);
            cut_or_declared.unwrap_or(answer.content.len())
        }
    };
    Ok(Some(Made {
        answer,
        damage,
        goes_on,
    }))
}

fn facts(state: &State, host: Host, head: &Head, route: &Route) -> Facts {
    let method = head.method.clone();
    let is_blob = host == Host::Storage || matches!(route, Route::Blob { .. });
    let redirects = host == Host::Registry && is_blob && state.options.redirect.is_some();
    let session = matches!(route, Route::Upload { .. });
    Facts {
        reads: matches!(method.as_str(), "GET" | "HEAD"),
        has_body: head.has_body(),
        ranged: head.header("range").is_some(),
        guarded: host == Host::Registry && state.guard.active(),
        manifest: matches!(route, Route::Manifest { .. }),
        blob: is_blob,
        sends_blob: is_blob && !redirects,
        redirects,
        upload: session || matches!(route, Route::Uploads { .. }),
        session,
        target: head.target.clone(),
        method,
    }
}

fn handle(
    state: &State,
    host: Host,
    head: &Head,
    route: &Route,
    picked: Option<Picked>,
    body: &mut Body,
    note: &mut Request,
) -> io::Result<Answer> {
    let needs = match host {
        Host::Registry => route.needs(head),
        Host::Token | Host::Storage => Vec::new(),
    };
    if let Some(refusal) = picked.and_then(|picked| refusal(state, picked, &needs)) {
        return Ok(refusal);
    }
    match host {
        Host::Token => {
            let answer = state.guard.hand_out(head, body)?;
            note.authorised = answer.status == 200;
            Ok(answer)
        }
        Host::Storage => {
            note.authorised = true;
            redirect::serve(state, head)
        }
        Host::Registry => {
            if let Err(refused) = state.guard.check(head, &needs, &state.realm()) {
                return Ok(refused);
            }
            note.authorised = true;
            route::call(Call {
                state,
                head,
                route,
                picked,
                body,
            })
        }
    }
}

/// The answer of a fault that needs no work.
fn refusal(state: &State, picked: Picked, needs: &[Need]) -> Option<Answer> {
    Some(match picked.fault {
        Fault::Unauthorised => {
            let realm = state.realm();
            state.guard.refuse(needs, &realm, Some("invalid_token"))
        }
        Fault::NotFound => Answer::error(404, "NOT_FOUND", "not here just now"),
        Fault::TooMany => Answer::error(429, "TOOMANYREQUESTS", "slow down")
            .header("Retry-After", picked.retry_after.to_string()),
        Fault::ServerError => {
            match picked.variant([500, 502, 503]) {
                // What stands before registries does not speak their language.
                502 => Answer::new(502).bytes("text/html", b"<h1>502 Bad Gateway</h1>\n".to_vec()),
                status => Answer::error(status, "UNKNOWN", "something broke"),
            }
        }
        _ => return None,
    })
}

/// Does a fault to an answer; `None` if it is none that has the bytes for it.
fn damage(answer: &mut Answer, picked: Picked) -> Option<Damage> {
    let len = answer.content.len();
    if !matches!(answer.status, 200 | 206) || len == 0 {
        return None;
    }
    let mut damage = Damage::default();
    let inside = picked.inside(len);
    match picked.fault {
        Fault::CutBody => damage.cut_after = Some(inside),
        Fault::ShortLength => damage.declared = Some(inside),
        Fault::LongLength => damage.declared = Some(len + inside.max(1)),
        Fault::CorruptBody => damage.corrupt = Some(inside),
        fault => {
            let Content::Blob { blob, start, len } = &mut answer.content else {
                return None;
            };
            if answer.status != 206 {
                return None;
            }
            let total = blob.len();
            if fault == Fault::RangeIgnored {
                (*start, *len) = (0, total);
                answer.status = 200;
                answer.headers.retain(|(name, _)| *name != "Content-Range");
                return Some(damage);
            }
            // As many other bytes: those before, else those after.
            let other = match *start {
                0 => 1,
                start => start - 1,
            };
            let shown = (*len).min(total - other.min(total));
            if shown == 0 {
                return None;
            }
            if fault == Fault::WrongRange {
                (*start, *len) = (other, shown);
            }
            let last = other + shown - 1;
            answer.replace("Content-Range", format!("bytes {other}-{last}/{total}"));
        }
    }
    Some(damage)
}
