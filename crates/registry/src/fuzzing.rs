//! Parsers that are no part of the interface, for the fuzz targets.

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use crate::challenge::Challenge;
use crate::credentials::{self, Config};
use crate::{blob, time};

/// Reads a header of an answer in all the ways that there are.
pub fn headers(value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]);
        let _ = Challenge::find(&headers);
    }
    if let Ok(text) = std::str::from_utf8(value) {
        let _ = blob::parse_content_range(text);
        let _ = time::parse_iso(text);
        let _ = time::parse_http(text);
        let _ = time::parse_epoch(text);
    }
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
