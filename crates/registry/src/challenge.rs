//! What a registry asks for in `WWW-Authenticate`.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With user and password in every request.
    Basic,
    /// With a token from a token server.
    Bearer {
        /// Address of the token server.
        realm: String,
        /// What to call the registry there.
        service: Option<String>,
        /// The access that the refused request needs.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge of an answer; tokens are preferred to passwords.
    pub(crate) fn find(headers: &HeaderMap) -> Option<Self> {
        let mut found = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            for (scheme, parameters) in parse(&String::from_utf8_lossy(value.as_bytes())) {
                if scheme.eq_ignore_ascii_case("basic") {
                    found.get_or_insert(Self::Basic);
                }
                let get = |name: &str| {
                    let mut all = parameters.iter();
                    all.find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = get("realm")
                {
                    return Some(Self::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope").filter(|scope| !scope.is_empty()),
                    });
                }
            }
        }
        found
    }
}

type Parameters = Vec<(String, String)>;

/// Challenges of one header: schemes with their parameters. What makes no sense is skipped.
fn parse(text: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest
            .find(|c: char| c.is_ascii_whitespace() || c == ',' || c == '=')
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            match after.chars().next() {
                // A stray character.
                Some(c) => rest = &after[c.len_utf8()..],
                None => return found,
            }
            continue;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = take_value(value.trim_start());
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_owned(), value));
        }
        rest = after;
    }
}

/// A token or a quoted string, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c.is_ascii_whitespace() || c == ',')
            .unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::find(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_are_found_in_all_spellings() {
        let full = r#"Bearer realm="https://a/token",service="r",scope="repository:a/b:pull,push""#;
        let expected = bearer(
            "https://a/token",
            Some("r"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(find(&[full]), expected);
        assert_eq!(find(&["Basic realm=\"x\"", full]), expected);
        assert_eq!(find(&[&format!("Basic realm=\"x, y\", {full}")]), expected);
        assert_eq!(
            find(&["bearer Realm = https://a , error=\"x\\\"y\""]),
            bearer("https://a", None, None)
        );
        assert_eq!(find(&["Basic"]), Some(Challenge::Basic));
        assert_eq!(find(&["Negotiate, basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(find(&[]), None);
        assert_eq!(find(&["Negotiate"]), None);
    }

    #[test]
    fn nonsense_is_no_challenge_and_no_panic() {
        for text in [
            "",
            ",",
            "=",
            "=\"",
            "Bearer",
            "Bearer realm",
            "Bearer =x",
            "Bearer realm=\"",
            "a=b",
            "\"",
        ] {
            let found = find(&[text]);
            assert!(found.is_none() || found == bearer("", None, None), "{text}");
        }
    }
}
