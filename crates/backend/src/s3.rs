//! Signature version 4 of Amazon's object store.

use crate::access::Key;
use crate::date::Moment;
use crate::sign::{Signed, ToSign, encode, hmac_sha256, sha256};

/// Signs a request for `now`.
pub(crate) fn sign(key: Option<&Key>, region: &str, request: &ToSign<'_>, now: Moment) -> Signed {
    let date = now.basic();
    let mut headers = vec![
        ("x-amz-content-sha256", request.payload.to_owned()),
        ("x-amz-date", date.clone()),
    ];
    if let Some(token) = key.and_then(|key| key.token.as_ref()) {
        headers.push(("x-amz-security-token", token.0.clone()));
    }
    let authorization = key.map(|key| {
        let mut signed: Vec<(&str, &str)> = vec![("host", request.host)];
        let own = request.headers.iter().chain(&headers);
        signed.extend(own.map(|(name, value)| (*name, &**value)));
        authorization(key, region, request, &date, signed)
    });
    Signed {
        headers,
        authorization,
    }
}

/// The header for a request with these headers, all of them signed.
fn authorization(
    key: &Key,
    region: &str,
    request: &ToSign<'_>,
    date: &str,
    mut headers: Vec<(&str, &str)>,
) -> String {
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut query: Vec<(String, String)> = request
        .query
        .iter()
        .map(|(name, value)| (encode(name, b""), encode(value, b"")))
        .collect();
    query.sort_unstable();
    let query: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{names}\n{}",
        request.method,
        request.path,
        query.join("&"),
        request.payload
    );
    let day = &date[..8];
    let scope = format!("{day}/{region}/s3/aws4_request");
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        sha256(canonical.as_bytes())
    );
    let secret = format!("AWS4{}", key.secret.0);
    let key_for = ["s3", "aws4_request"].iter().fold(
        hmac_sha256(&hmac_sha256(secret.as_bytes(), day), region),
        |key, part| hmac_sha256(&key, part),
    );
    let signature = hex::encode(hmac_sha256(&key_for, &text));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
        key.id
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    /// The examples in Amazon's own description of the signature.
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        let key = Key {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            token: None,
        };
        let nothing = sha256(b"");
        let text = sha256(b"Welcome to Amazon S3.");
        let (range, date) = (
            ("range", "bytes=0-9"),
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        );
        let class = ("x-amz-storage-class", "REDUCED_REDUNDANCY");
        let pairs = |pairs: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
            pairs
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect()
        };
        for (method, path, query, headers, payload, signature) in [
            (
                "GET",
                "/test.txt",
                pairs(&[]),
                pairs(&[range]),
                &nothing,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test%24file.text",
                pairs(&[]),
                pairs(&[date, class]),
                &text,
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/",
                pairs(&[("lifecycle", "")]),
                pairs(&[]),
                &nothing,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/",
                pairs(&[("prefix", "J"), ("max-keys", "2")]),
                pairs(&[]),
                &nothing,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let request = ToSign {
                method,
                host: "examplebucket.s3.amazonaws.com",
                path,
                resource: "",
                query: &query,
                headers: &headers,
                payload,
            };
            let signed = sign(Some(&key), "us-east-1", &request, Moment::at(1_369_353_600));
            let header = signed.authorization.unwrap();
            assert!(
                header.ends_with(&format!("Signature={signature}")),
                "{header}"
            );
            assert!(
                header.contains(
                    "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
                )
            );
        }
    }

    /// The expected value is by a script of the same description, which gives the published example's without the token.
    #[test]
    fn the_token_of_a_session_is_sent_and_signed() {
        let key = Key {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            token: Some(Secret("FwoGZXIvYXdzEJr//wEaD+token/with=chars".to_owned())),
        };
        let request = ToSign {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            resource: "",
            query: &[],
            headers: &[("range", "bytes=0-9".to_owned())],
            payload: &sha256(b""),
        };
        let signed = sign(Some(&key), "us-east-1", &request, Moment::at(1_369_353_600));
        let token = key.token.unwrap().0;
        assert!(signed.headers.contains(&("x-amz-security-token", token)));
        assert_eq!(
            signed.authorization.unwrap(),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date;x-amz-security-token,\
             Signature=d49162a2a80539bb1cd33732349415754a5b40df56d991d8a6843ae3224ac897"
        );
    }

    #[test]
    fn without_a_key_nothing_is_signed() {
        let request = ToSign {
            method: "GET",
            host: "h",
            path: "/b/k",
            resource: "/b/k",
            query: &[],
            headers: &[],
            payload: "",
        };
        assert!(
            sign(None, "r", &request, Moment::at(0))
                .authorization
                .is_none()
        );
    }
}
