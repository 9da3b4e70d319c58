//! Which request is for what, what it needs, and who answers it.

use std::io;

use super::answer::Answer;
use super::auth::Need;
use super::faults::Picked;
use super::http::{Body, Head};
use super::state::{State, lock};
use super::{blob, manifest, referrers, upload};

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/NAME/tags/list`
    Tags { name: String },
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest { name: String, reference: String },
    /// `/v2/NAME/blobs/DIGEST`
    Blob { name: String, digest: String },
    /// `/v2/NAME/blobs/uploads/`
    Uploads { name: String },
    /// `/v2/NAME/blobs/uploads/ID`
    Upload { name: String, id: String },
    /// `/v2/NAME/referrers/DIGEST`
    Referrers { name: String, digest: String },
    /// Anything else.
    Unknown,
}

impl Route {
    /// Takes a path apart.
    pub fn parse(path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/v2") else {
            return Self::Unknown;
        };
        if matches!(rest, "" | "/") {
            return Self::Base;
        }
        let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
        let name = |parts: &[&str]| parts.join("/");
        match parts.as_slice() {
            [first @ .., "tags", "list"] if !first.is_empty() => Self::Tags { name: name(first) },
            [first @ .., "manifests", reference] if !first.is_empty() => Self::Manifest {
                name: name(first),
                reference: (*reference).replace("%3A", ":"),
            },
            [first @ .., "blobs", "uploads"] | [first @ .., "blobs", "uploads", ""]
                if !first.is_empty() =>
            {
                Self::Uploads { name: name(first) }
            }
            [first @ .., "blobs", "uploads", id] if !first.is_empty() => Self::Upload {
                name: name(first),
                id: (*id).to_owned(),
            },
            [first @ .., "blobs", digest] if !first.is_empty() => Self::Blob {
                name: name(first),
                digest: (*digest).replace("%3A", ":"),
            },
            [first @ .., "referrers", digest] if !first.is_empty() => Self::Referrers {
                name: name(first),
                digest: (*digest).replace("%3A", ":"),
            },
            _ => Self::Unknown,
        }
    }

    /// The repository, where one is named.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Unknown => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }

    /// What one must be allowed, by the same rules as those of the distribution project's registry.
    pub fn needs(&self, head: &Head) -> Vec<Need> {
        let Some(name) = self.name() else {
            return Vec::new();
        };
        let actions: &[&str] = match head.method.as_str() {
            "GET" | "HEAD" => &["pull"],
            "DELETE" => &["delete"],
            _ => &["pull", "push"],
        };
        let mut needs: Vec<Need> = actions
            .iter()
            .map(|action| (name.to_owned(), *action))
            .collect();
        if let (Self::Uploads { .. }, Some(from)) = (self, head.parameter("from")) {
            needs.push((from.to_owned(), "pull"));
        }
        needs
    }
}

/// A request that passed authentication.
pub(super) struct Call<'a, 'b> {
    pub state: &'a State,
    pub head: &'a Head,
    pub route: &'a Route,
    pub picked: Option<Picked>,
    pub body: &'a mut Body<'b>,
}

/// Answers a request; `Err` when the connection broke meanwhile.
pub(super) fn call(mut call: Call) -> io::Result<Answer> {
    if let Some(name) = call.route.name()
        && !is_name(name)
    {
        return Ok(Answer::error(400, "NAME_INVALID", name));
    }
    let method = call.head.method.as_str();
    match call.route {
        Route::Base if method == "GET" => Ok(Answer::json(200, &serde_json::json!({}))),
        Route::Tags { name } if method == "GET" => Ok(tags(&call, name)),
        Route::Manifest { name, reference } => match method {
            "GET" | "HEAD" => Ok(manifest::get(&call, name, reference)),
            "PUT" => manifest::put(&mut call, name, reference),
            "DELETE" => Ok(manifest::delete(&call, name, reference)),
            _ => Ok(Answer::error(405, "UNSUPPORTED", method)),
        },
        Route::Blob { name, digest } => match method {
            "GET" | "HEAD" => blob::get(&call, name, digest),
            "DELETE" => Ok(blob::delete(&call, name, digest)),
            _ => Ok(Answer::error(405, "UNSUPPORTED", method)),
        },
        Route::Uploads { name } if method == "POST" => upload::post(&mut call, name),
        Route::Upload { name, id } => match method {
            "GET" => Ok(upload::get(&call, name, id)),
            "PATCH" => upload::patch(&mut call, name, id),
            "PUT" => upload::put(&mut call, name, id),
            "DELETE" => Ok(upload::delete(&call, name, id)),
            _ => Ok(Answer::error(405, "UNSUPPORTED", method)),
        },
        Route::Referrers { name, digest } if method == "GET" => {
            Ok(referrers::get(&call, name, digest))
        }
        Route::Unknown => Ok(Answer::error(404, "NOT_FOUND", &call.head.path)),
        _ => Ok(Answer::error(405, "UNSUPPORTED", method)),
    }
}

/// Whether this is a repository's name.
fn is_name(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() < 256
        && name.split('/').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|byte| word(*byte))
                && bytes.last().is_some_and(|byte| word(*byte))
                && bytes
                    .iter()
                    .all(|byte| word(*byte) || b"._-".contains(byte))
        })
}

/// The hex digits of a digest that we know how to check.
pub(super) fn parse_digest(digest: &str) -> Result<&str, Answer> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            hex.len() == 64 && hex.bytes().all(digit)
        })
        .ok_or_else(|| Answer::error(400, "DIGEST_INVALID", digest))
}

fn tags(call: &Call, name: &str) -> Answer {
    let storage = lock(&call.state.storage);
    let Some(repository) = storage.repositories.get(name) else {
        return Answer::error(404, "NAME_UNKNOWN", name);
    };
    let after = call.head.parameter("last").unwrap_or_default();
    let all: Vec<&String> = repository
        .tags
        .keys()
        .filter(|tag| tag.as_str() > after)
        .collect();
    let wanted = match call.head.parameter("n").map(str::parse) {
        None => all.len(),
        Some(Ok(n)) => n,
        Some(Err(_)) => return Answer::error(400, "PAGINATION_NUMBER_INVALID", "n"),
    };
    let page = &all[..wanted.min(all.len())];
    let answer = Answer::json(200, &serde_json::json!({ "name": name, "tags": page }));
    match page.last() {
        Some(last) if page.len() < all.len() => {
            let link = format!(r#"</v2/{name}/tags/list?last={last}&n={wanted}>; rel="next""#);
            answer.header("Link", link)
        }
        _ => answer,
    }
}
