//! Who may do what: basic and bearer authentication, and the server that hands out tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::Answer;
use super::http::{Body, Head, form, parameter};
use super::state::lock;

/// What a client has to show.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Nothing.
    #[default]
    None,
    /// Name and password with each request.
    Basic(Vec<User>),
    /// A token from the token server.
    Bearer(Bearer),
}

/// Somebody with a password.
#[derive(Debug, Clone)]
pub struct User {
    name: String,
    password: String,
    rights: Option<Vec<(String, Vec<String>)>>,
}

impl User {
    /// A user who may do everything.
    pub fn new(name: &str, password: &str) -> Self {
        Self {
            name: name.to_owned(),
            password: password.to_owned(),
            rights: None,
        }
    }

    /// Restricts the user to what is listed like this: actions (`pull`, `push`, `delete`) in one repository.
    #[must_use]
    pub fn may(mut self, repository: &str, actions: &[&str]) -> Self {
        let actions = actions.iter().map(|&action| action.to_owned()).collect();
        self.rights
            .get_or_insert_default()
            .push((repository.to_owned(), actions));
        self
    }

    fn has(&self, repository: &str, action: &str) -> bool {
        self.rights.as_ref().is_none_or(|rights| {
            rights.iter().any(|(name, actions)| {
                name == repository && actions.iter().any(|own| own == action)
            })
        })
    }
}

/// How the token server behaves.
#[derive(Debug, Clone, Default)]
pub struct Bearer {
    /// Who gets tokens for other things than what anybody may.
    pub users: Vec<User>,
    /// Whether a token to pull is given without credentials.
    pub anonymous_pull: bool,
    /// Whether only POST works; GET is answered by 405.
    pub post_only: bool,
    /// Whether only GET works; POST is answered by 404, as token servers of the older protocol do.
    pub get_only: bool,
    /// After so many requests a token is good no longer.
    pub requests_per_token: Option<u64>,
    /// So many seconds after it was made a token is good no longer; answers say so. Without it answers say nothing,
    /// which means 60 s, and tokens last.
    pub expires_in: Option<u64>,
}

#[derive(Debug)]
struct Token {
    scopes: BTreeSet<(String, String)>,
    made: Instant,
    requests: u64,
}

/// The tokens that are about.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    access: Mutex<BTreeMap<String, Token>>,
    /// Identity (refresh) token to the user's name.
    identity: Mutex<BTreeMap<String, String>>,
    made: AtomicU64,
}

/// What a request needs: repository and action.
pub(super) type Need = (String, &'static str);

/// Authentication as one registry does it.
#[derive(Debug)]
pub(super) struct Guard {
    auth: Auth,
    tokens: Tokens,
}

impl Guard {
    pub fn new(auth: Auth) -> Self {
        Self {
            auth,
            tokens: Tokens::default(),
        }
    }

    /// Whether anything is asked for.
    pub fn active(&self) -> bool {
        !matches!(self.auth, Auth::None)
    }

    /// Lets a request pass or refuses it; `realm` is the token server's URL.
    pub fn check(&self, head: &Head, needs: &[Need], realm: &str) -> Result<(), Answer> {
        match &self.auth {
            Auth::None => Ok(()),
            Auth::Basic(users) => {
                let Some(user) = credentials(head).and_then(|given| find(users, &given)) else {
                    return Err(self.refuse(needs, realm, None));
                };
                if needs
                    .iter()
                    .all(|(repository, action)| user.has(repository, action))
                {
                    Ok(())
                } else {
                    Err(Answer::error(403, "DENIED", "this user may not do that"))
                }
            }
            Auth::Bearer(bearer) => self
                .check_token(bearer, head, needs)
                .map_err(|why| self.refuse(needs, realm, why)),
        }
    }

    fn check_token(
        &self,
        bearer: &Bearer,
        head: &Head,
        needs: &[Need],
    ) -> Result<(), Option<&'static str>> {
        let Some(text) = head.header("authorization") else {
            return Err(None);
        };
        let given = text.strip_prefix("Bearer ").ok_or(Some("invalid_token"))?;
        let mut tokens = lock(&self.tokens.access);
        let token = tokens.get_mut(given).ok_or(Some("invalid_token"))?;
        let late = bearer
            .expires_in
            .is_some_and(|seconds| token.made.elapsed() >= Duration::from_secs(seconds));
        let used_up = bearer
            .requests_per_token
            .is_some_and(|requests| token.requests >= requests);
        if late || used_up {
            return Err(Some("invalid_token"));
        }
        token.requests += 1;
        let covered = |(repository, action): &Need| {
            token
                .scopes
                .contains(&(repository.clone(), (*action).to_owned()))
        };
        if needs.iter().all(covered) {
            Ok(())
        } else {
            Err(Some("insufficient_scope"))
        }
    }

    /// The 401 that says what to show.
    pub fn refuse(&self, needs: &[Need], realm: &str, why: Option<&str>) -> Answer {
        let challenge = match &self.auth {
            Auth::None => return Answer::error(401, "UNAUTHORIZED", "authentication required"),
            Auth::Basic(_) => r#"Basic realm="registry of the tests""#.to_owned(),
            Auth::Bearer(_) => {
                let mut text = format!(r#"Bearer realm="{realm}",service="{SERVICE}""#);
                if !needs.is_empty() {
                    text.push_str(&format!(r#",scope="{}""#, scope(needs)));
                }
                if let Some(why) = why {
                    text.push_str(&format!(r#",error="{why}""#));
                }
                text
            }
        };
        Answer::error(401, "UNAUTHORIZED", "authentication required")
            .header("WWW-Authenticate", challenge)
    }

    /// A new identity token of a user, such as `docker login` keeps in place of a password.
    pub fn identity_token(&self, user: &str) -> String {
        let token = self.tokens.name("identity");
        lock(&self.tokens.identity).insert(token.clone(), user.to_owned());
        token
    }

    /// Makes all access tokens useless.
    pub fn revoke(&self) {
        lock(&self.tokens.access).clear();
    }

    /// Answers a request to the token server.
    pub fn hand_out(&self, head: &Head, body: &mut Body) -> std::io::Result<Answer> {
        let Auth::Bearer(bearer) = &self.auth else {
            return Ok(Answer::error(404, "UNSUPPORTED", "no tokens here"));
        };
        match head.method.as_str() {
            _ if head.path != "/token" => Ok(Answer::new(404)),
            "GET" if bearer.post_only => Ok(Answer::new(405)),
            "POST" if bearer.get_only => Ok(Answer::new(404)),
            "GET" => Ok(self.get(bearer, head)),
            "POST" => {
                let mut text = String::new();
                body.read_to_string(&mut text)?;
                Ok(self.post(bearer, head, &form(&text)))
            }
            _ => Ok(Answer::new(405)),
        }
    }

    fn get(&self, bearer: &Bearer, head: &Head) -> Answer {
        if head.parameter("service") != Some(SERVICE) {
            return Answer::json(400, &json!({ "error": "invalid_request" }));
        }
        let user = match credentials(head) {
            Some(given) => match find(&bearer.users, &given) {
                Some(user) => Some(user),
                None => return Answer::json(401, &json!({ "error": "invalid_grant" })),
            },
            None if head.header("authorization").is_some() => {
                return Answer::json(401, &json!({ "error": "invalid_grant" }));
            }
            None => None,
        };
        let (token, _) = self.access(bearer, user, &head.query);
        let mut out = json!({ "token": token });
        if let Some(seconds) = bearer.expires_in {
            out["expires_in"] = seconds.into();
        }
        if let Some(user) = user.filter(|_| head.parameter("offline_token") == Some("true")) {
            out["refresh_token"] = self.identity_token(&user.name).into();
        }
        Answer::json(200, &out)
    }

    fn post(&self, bearer: &Bearer, head: &Head, form: &[(String, String)]) -> Answer {
        let given = |name| parameter(form, name).unwrap_or_default();
        let typed = head
            .header("content-type")
            .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"));
        if !typed || given("service") != SERVICE || given("client_id").is_empty() {
            return Answer::json(400, &json!({ "error": "invalid_request" }));
        }
        let user = match given("grant_type") {
            "password" => {
                let given = (given("username").to_owned(), given("password").to_owned());
                find(&bearer.users, &given)
            }
            "refresh_token" => {
                let identity = lock(&self.tokens.identity);
                let name = identity.get(given("refresh_token"));
                name.and_then(|name| bearer.users.iter().find(|user| user.name == *name))
            }
            _ => return Answer::json(400, &json!({ "error": "unsupported_grant_type" })),
        };
        let Some(user) = user else {
            return Answer::json(401, &json!({ "error": "invalid_grant" }));
        };
        let (token, scopes) = self.access(bearer, Some(user), form);
        let mut out = json!({ "access_token": token, "scope": scopes });
        if let Some(seconds) = bearer.expires_in {
            out["expires_in"] = seconds.into();
        }
        if given("grant_type") == "refresh_token" {
            out["refresh_token"] = given("refresh_token").into();
        } else if given("access_type") == "offline" {
            out["refresh_token"] = self.identity_token(&user.name).into();
        }
        Answer::json(200, &out)
    }

    /// Makes a token for what was asked for, as far as the user may; the token and its scope.
    fn access(
        &self,
        bearer: &Bearer,
        user: Option<&User>,
        asked: &[(String, String)],
    ) -> (String, String) {
        let asked = asked
            .iter()
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, value)| value.split(' '));
        let mut scopes = BTreeSet::new();
        for scope in asked {
            let Some((repository, actions)) = scope
                .strip_prefix("repository:")
                .and_then(|rest| rest.rsplit_once(':'))
            else {
                continue;
            };
            for action in actions.split(',') {
                let may = match user {
                    Some(user) => user.has(repository, action),
                    None => bearer.anonymous_pull && action == "pull",
                };
                if may {
                    scopes.insert((repository.to_owned(), action.to_owned()));
                }
            }
        }
        let text: Vec<String> = scopes
            .iter()
            .map(|(repository, action)| format!("repository:{repository}:{action}"))
            .collect();
        let name = self.tokens.name("access");
        let token = Token {
            scopes,
            made: Instant::now(),
            requests: 0,
        };
        lock(&self.tokens.access).insert(name.clone(), token);
        (name, text.join(" "))
    }
}

/// The name of the registry at the token server.
const SERVICE: &str = "registry.test";

impl Tokens {
    fn name(&self, kind: &str) -> String {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        crate::sha256(format!("{kind} token {number}").as_bytes())
    }
}

fn scope(needs: &[Need]) -> String {
    let mut by_repository: Vec<(&str, Vec<&str>)> = Vec::new();
    for (repository, action) in needs {
        match by_repository
            .iter_mut()
            .find(|(name, _)| name == repository)
        {
            Some((_, actions)) => actions.push(action),
            None => by_repository.push((repository, vec![action])),
        }
    }
    let parts: Vec<String> = by_repository
        .iter()
        .map(|(repository, actions)| format!("repository:{repository}:{}", actions.join(",")))
        .collect();
    parts.join(" ")
}

fn find<'a>(users: &'a [User], (name, password): &(String, String)) -> Option<&'a User> {
    users
        .iter()
        .find(|user| user.name == *name && user.password == *password)
}

/// Name and password of basic authentication.
fn credentials(head: &Head) -> Option<(String, String)> {
    let text = head.header("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(base64(text)?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// Decodes base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}
