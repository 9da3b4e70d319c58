//! Signature version 1 of Aliyun's object store, in the `Authorization` header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::access::Key;
use crate::date::Moment;
use crate::sign::{Signed, ToSign, hmac_sha1};

/// Signs a request for `now`. All parameters that are used here are part of what is signed.
pub(crate) fn sign(key: Option<&Key>, request: &ToSign<'_>, now: Moment) -> Signed {
    let date = now.http();
    let mut headers = request.headers.to_vec();
    let token = key.and_then(|key| key.token.as_ref());
    let token = token.map(|token| ("x-oss-security-token", token.0.clone()));
    headers.extend(token.clone());
    let authorization = key.map(|key| {
        let request = ToSign {
            headers: &headers,
            ..*request
        };
        authorization(key, &request, &date)
    });
    Signed {
        headers: [("date", date)].into_iter().chain(token).collect(),
        authorization,
    }
}

fn authorization(key: &Key, request: &ToSign<'_>, date: &str) -> String {
    let header = |wanted: &str| {
        let mut all = request.headers.iter();
        all.find(|(name, _)| *name == wanted)
            .map_or("", |(_, value)| value)
    };
    // By name: in whole lines, one name that begins with another would come first.
    let mut own: Vec<(&str, &str)> = request
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-oss-"))
        .map(|(name, value)| (*name, value.trim()))
        .collect();
    own.sort_unstable();
    let own: String = own
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let mut query: Vec<&(&str, String)> = request.query.iter().collect();
    query.sort_unstable();
    let query: Vec<String> = query
        .iter()
        .map(|(name, value)| match value.is_empty() {
            true => (*name).to_owned(),
            false => format!("{name}={value}"),
        })
        .collect();
    let query = match query.is_empty() {
        true => String::new(),
        false => format!("?{}", query.join("&")),
    };
    let text = format!(
        "{}\n{}\n{}\n{date}\n{own}{}{query}",
        request.method,
        header("content-md5"),
        header("content-type"),
        request.resource
    );
    let signature = STANDARD.encode(hmac_sha1(key.secret.0.as_bytes(), &text));
    format!("OSS {}:{signature}", key.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    /// The example in Aliyun's own description of the signature.
    #[test]
    fn the_signature_is_that_of_the_published_example() {
        let key = Key {
            id: "44CF9590006BF252F707".to_owned(),
            secret: Secret("OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV".to_owned()),
            token: None,
        };
        let headers = [
            (
                "content-md5",
                "ODBGOERFMDMzQTczRUY3NUE3NzA5QzdFNUYzMDQxNEM=",
            ),
            ("content-type", "text/html"),
            ("x-oss-meta-author", "foo@bar.com"),
            ("x-oss-magic", "abracadabra"),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        let request = ToSign {
            method: "PUT",
            host: "",
            path: "",
            resource: "/oss-example/nelson",
            query: &[],
            headers: &headers,
            payload: "",
        };
        let header = authorization(&key, &request, "Thu, 17 Nov 2005 18:49:58 GMT");
        assert_eq!(
            header,
            "OSS 44CF9590006BF252F707:26NBxoKdsyly4EDv6inkoDft/yA="
        );
    }

    /// The expected value is by a script of the same description.
    #[test]
    fn the_token_of_a_session_is_sent_and_signed() {
        let key = Key {
            id: "44CF9590006BF252F707".to_owned(),
            secret: Secret("OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV".to_owned()),
            token: Some(Secret("CAIS+token/with=chars".to_owned())),
        };
        let request = ToSign {
            method: "PUT",
            host: "",
            path: "",
            resource: "/oss-example/nelson",
            query: &[("uploadId", "u".to_owned()), ("partNumber", "1".to_owned())],
            headers: &[("x-oss-copy-source", "/oss-example/other".to_owned())],
            payload: "",
        };
        let signed = sign(Some(&key), &request, Moment::at(1_132_253_398));
        let token = key.token.unwrap().0;
        assert_eq!(
            signed.headers,
            [
                ("date", "Thu, 17 Nov 2005 18:49:58 GMT".to_owned()),
                ("x-oss-security-token", token)
            ]
        );
        assert_eq!(
            signed.authorization.unwrap(),
            "OSS 44CF9590006BF252F707:Es1N674zP6ZUmYCf34Zon0BuIX4="
        );
    }
}
