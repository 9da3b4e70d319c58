//! What registries are shown: docker's configuration, and what is in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::{Credentials, fuzzing};

use crate::Target;

/// A kind of text, told by the first byte, and the text: an `auth`, docker's configuration behind a line with the host that is
/// looked for, the answer of a credential helper, the answer of a program that gives access keys or its command line.
pub const CREDENTIALS: Target = Target {
    name: "credentials",
    run: |input| match input.split_first() {
        Some((0, text)) => auth(text),
        Some((1, text)) => docker_config(text),
        Some((2, json)) => fuzzing::helper_answer(json),
        Some((3, text)) => backend::fuzzing::credential_process(text),
        _ => {}
    },
    samples: || {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNz"},"http://a:5000/v2/":{"auth":"dTpwOnE"},"b":{"username":"u","password":"p"},"c":{"auth":"dTpw","identitytoken":"refresh"},"d":{"registrytoken":"t"}},"credsStore":"secretservice","credHelpers":{"e":"ecr-login"}}"#;
        let mut samples: Vec<Vec<u8>> = ["docker.io", "a:5000", "b", "c", "d", "e", "f"]
            .map(|host| format!("\u{1}{host}\n{config}").into_bytes())
            .to_vec();
        samples.push(b"\0dXNlcjpwYXNz".to_vec());
        // With the zeros that docker pads passwords with.
        samples.push(b"\0dTpwAAAA".to_vec());
        samples.push(b"\x02{\"Username\":\"<token>\",\"Secret\":\"s\"}".to_vec());
        samples.push(b"\x03{\"Version\":1,\"AccessKeyId\":\"i\",\"SecretAccessKey\":\"s\",\"SessionToken\":\"t\",\"Expiration\":\"2026-11-26T01:02:03+01:00\"}".to_vec());
        samples.push(b"\x03sts --for \"my \\\"bucket\" 'a b'\\ c".to_vec());
        samples
    },
    changes: 20_000,
};

/// An `auth` that is taken is one of USER:PASSWORD, and the same when it is written again.
fn auth(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Some(Credentials::Fixed { username, password }) = Credentials::from_auth(text) else {
        return;
    };
    let again = STANDARD.encode(format!("{username}:{}", password.reveal()));
    match Credentials::from_auth(&again) {
        Some(Credentials::Fixed {
            username: user,
            password: secret,
        }) => assert!(user == username && secret == password),
        other => panic!("{again} was {other:?}"),
    }
}

fn docker_config(input: &[u8]) {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let host = lines.next().and_then(|host| std::str::from_utf8(host).ok());
    if let (Some(host), Some(json)) = (host, lines.next()) {
        fuzzing::docker_config(json, host);
    }
}
