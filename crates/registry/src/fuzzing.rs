//! Parsers that are no part of the interface, for the fuzz targets.

use reqwest::header::{HeaderMap, HeaderValue, LINK, WWW_AUTHENTICATE};

use crate::challenge::Challenge;
use crate::credentials::{self, Config};
use crate::error::Refusal;
use crate::{auth, blob, referrers, time};

/// Reads a header of an answer in all the ways that there are.
pub fn headers(value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value.clone())]);
        let _ = Challenge::find(&headers);
        let _ = referrers::next(&HeaderMap::from_iter([(LINK, value)]));
    }
    if let Ok(text) = std::str::from_utf8(value) {
        let _ = blob::parse_content_range(text);
        let _ = time::parse_iso(text);
        let _ = time::parse_http(text);
        let _ = time::parse_epoch(text);
    }
}

/// Reads an answer of a registry, a token server or an object store in all the ways that there are.
pub fn answer(body: &[u8]) {
    let refusal = Refusal::parse(400, body);
    for text in [&refusal.code, &refusal.message] {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
    let _ = auth::Answer::parse(body);
    let _ = referrers::parse(body);
}

/// Reads docker's configuration and looks a registry up in it; asks no helper.
pub fn docker_config(json: &[u8], host: &str) {
    if let Ok(config) = Config::parse(json) {
        let _ = (config.helper(host), config.credential(host));
    }
}

/// Reads the answer of a credential helper.
pub fn helper_answer(json: &[u8]) {
    let _ = credentials::parse_answer(json);
}
