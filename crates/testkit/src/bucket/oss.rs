//! A bucket of Aliyun's protocol, as far as blobs need it. It trusts no request whose signature it does not find itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response};
use s3s::Body;
use sha1::{Digest as _, Sha1};

use super::{Bucket, KEY_ID, NAME, SECRET, lock, reply};

/// Largest object that is copied in one go; really it is 1 GiB.
const COPY_MAX: usize = 1 << 30;

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    count: usize,
}

pub(super) fn start() -> Bucket {
    let store = Arc::new(Mutex::new(Store::default()));
    let (objects, uploads) = (Arc::clone(&store), Arc::clone(&store));
    Bucket::start(
        "oss",
        Arc::new(move |request| {
            let store = Arc::clone(&store);
            Box::pin(async move { answer(&store, request).await })
        }),
        Box::new(move || lock(&objects).objects.clone()),
        Box::new(move || lock(&uploads).uploads.len()),
    )
}

/// HMAC as RFC 2104 has it, for keys that are not longer than a block.
fn hmac_sha1(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        for (out, key) in block.iter_mut().zip(key) {
            *out ^= key;
        }
        block
    };
    let inner = Sha1::new()
        .chain_update(pad(0x36))
        .chain_update(text)
        .finalize();
    let outer = Sha1::new().chain_update(pad(0x5c)).chain_update(inner);
    outer.finalize().to_vec()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || {
            char::from(rest.next().unwrap_or(b'0'))
                .to_digit(16)
                .unwrap_or(0)
        };
        bytes.push(match byte {
            b'%' => u8::try_from(digit() * 16 + digit()).unwrap_or(0),
            other => other,
        });
    }
    String::from_utf8(bytes).expect("names are UTF-8")
}

fn is_signed(
    method: &str,
    path: &str,
    query: &BTreeMap<String, String>,
    headers: &HeaderMap,
) -> bool {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut text = String::new();
    for line in [
        method,
        header("content-md5"),
        header("content-type"),
        header("date"),
    ] {
        writeln!(text, "{line}").expect("write to a string");
    }
    let own: BTreeMap<&str, &str> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-oss-"))
        .map(|name| (name.as_str(), header(name.as_str())))
        .collect();
    for (name, value) in own {
        writeln!(text, "{name}:{value}").expect("write to a string");
    }
    text.push_str(path);
    for (number, (name, value)) in query.iter().enumerate() {
        text.push(if number == 0 { '?' } else { '&' });
        text.push_str(name);
        if !value.is_empty() {
            write!(text, "={value}").expect("write to a string");
        }
    }
    let signature = hmac_sha1(SECRET.as_bytes(), text.as_bytes());
    let signature = base64::engine::general_purpose::STANDARD.encode(signature);
    header("authorization") == format!("OSS {KEY_ID}:{signature}")
        && header("date").ends_with(" GMT")
}

fn error(status: u16, code: &str) -> Response<Body> {
    reply(
        status,
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>"),
    )
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", crate::sha256(bytes))
}

async fn answer(store: &Mutex<Store>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return reply(400, "");
    };
    let body = body.to_bytes().to_vec();
    let path = decoded(parts.uri.path());
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    if !is_signed(parts.method.as_str(), &path, &query, &parts.headers) {
        return error(403, "SignatureDoesNotMatch");
    }
    let Some(name) = path.strip_prefix(&format!("/{NAME}/")) else {
        return error(404, "NoSuchBucket");
    };
    let mut store = lock(store);
    match (parts.method.as_str(), query.get("uploadId")) {
        ("HEAD" | "GET", None) => read(&store, name, &parts.headers),
        ("POST", None) if query.contains_key("uploads") => {
            store.count += 1;
            // What a name may have in it: it has to be escaped in documents, and encoded in addresses.
            let id = format!("U&{}/+=", store.count);
            store
                .uploads
                .insert(id.clone(), (name.to_owned(), BTreeMap::new()));
            reply(
                200,
                format!("<R><UploadId>{}</UploadId></R>", id.replace('&', "&amp;")),
            )
        }
        ("PUT", None) => {
            let bytes = match source(&store, &parts.headers) {
                None => body,
                Some(Ok(bytes)) => bytes,
                Some(Err(answer)) => return answer,
            };
            store.objects.insert(name.to_owned(), bytes);
            reply(200, "")
        }
        ("DELETE", None) => {
            store.objects.remove(name);
            reply(204, "")
        }
        (method, Some(id)) => {
            if store.uploads.get(id).is_none_or(|(of, _)| of != name) {
                return error(404, "NoSuchUpload");
            }
            upload(
                &mut store,
                (method, name, id),
                query.get("partNumber"),
                &parts.headers,
                body,
            )
        }
        _ => error(405, "MethodNotAllowed"),
    }
}

fn upload(
    store: &mut Store,
    (method, name, id): (&str, &str, &str),
    number: Option<&String>,
    headers: &HeaderMap,
    body: Vec<u8>,
) -> Response<Body> {
    match (method, number) {
        ("PUT", Some(number)) => {
            let bytes = match source(store, headers) {
                None => body,
                Some(Ok(bytes)) => bytes,
                Some(Err(answer)) => return answer,
            };
            let tag = tag(&bytes);
            let number = number.parse().expect("the number of a part");
            let (_, parts) = store.uploads.get_mut(id).expect("looked for before");
            parts.insert(number, bytes);
            let mut answer = reply(
                200,
                format!("<R><ETag>{}</ETag></R>", tag.replace('"', "&quot;")),
            );
            answer
                .headers_mut()
                .insert("etag", tag.parse().expect("a tag is a header"));
            answer
        }
        ("POST", None) => {
            let (_, parts) = store.uploads.get(id).expect("looked for before");
            let wanted: String = parts
                .iter()
                .map(|(number, bytes)| {
                    format!(
                        "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>",
                        tag(bytes)
                    )
                })
                .collect();
            if String::from_utf8_lossy(&body)
                != format!("<CompleteMultipartUpload>{wanted}</CompleteMultipartUpload>")
            {
                return error(400, "InvalidPart");
            }
            let (_, parts) = store.uploads.remove(id).expect("looked for before");
            let whole = parts.into_values().collect::<Vec<_>>().concat();
            store.objects.insert(name.to_owned(), whole);
            reply(200, "<R></R>")
        }
        ("DELETE", None) => {
            store.uploads.remove(id);
            reply(204, "")
        }
        _ => error(405, "MethodNotAllowed"),
    }
}

/// `bytes=0-9`: start and end, behind the last byte.
fn range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some((start.parse().ok()?, end.parse::<usize>().ok()? + 1))
}

/// The bytes that are to be copied, if the request is a copy.
fn source(store: &Store, headers: &HeaderMap) -> Option<Result<Vec<u8>, Response<Body>>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let path = decoded(text("x-oss-copy-source")?);
    let name = path.strip_prefix(&format!("/{NAME}/")).unwrap_or_default();
    let Some(bytes) = store.objects.get(name) else {
        return Some(Err(error(404, "NoSuchKey")));
    };
    let part = match text("x-oss-copy-source-range") {
        Some(text) => range(text).and_then(|(start, end)| bytes.get(start..end)),
        None if bytes.len() > COPY_MAX => None,
        None => Some(&bytes[..]),
    };
    Some(
        part.map(<[u8]>::to_vec)
            .ok_or_else(|| error(400, "InvalidArgument")),
    )
}

fn read(store: &Store, name: &str, headers: &HeaderMap) -> Response<Body> {
    let Some(bytes) = store.objects.get(name) else {
        return error(404, "NoSuchKey");
    };
    let asked = headers
        .get("range")
        .and_then(|value| range(value.to_str().ok()?));
    match asked {
        None => {
            let mut answer = reply(200, bytes.clone());
            let length = bytes
                .len()
                .to_string()
                .parse()
                .expect("a number is a header");
            answer.headers_mut().insert("content-length", length);
            answer
        }
        Some((start, end)) => match bytes.get(start..end.min(bytes.len())) {
            Some(part) => {
                let mut answer = reply(206, part.to_vec());
                let told = format!("bytes {start}-{}/{}", end.min(bytes.len()) - 1, bytes.len());
                answer
                    .headers_mut()
                    .insert("content-range", told.parse().expect("a header"));
                answer
            }
            None => error(416, "InvalidRange"),
        },
    }
}
