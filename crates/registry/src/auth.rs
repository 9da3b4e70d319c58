//! Authentication: which header a request carries, and how it is renewed, once for all who wait.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};

use crate::challenge::Challenge;
use crate::client::{Core, Failure, Retry};
use crate::credentials::{self, Credential, Found};
use crate::error::Refusal;
use crate::host::{Host, Token};
use crate::retry::lock;
use crate::transport::{Fault, Request, Target, peer};
use crate::{Error, Secret, Subject};

/// How long a token is good for unless its server says otherwise.
const LIFETIME: u64 = 60;
/// Tokens are renewed this long before they end.
const MARGIN: Duration = Duration::from_secs(15);
/// Largest answer of a token server.
const ANSWER_MAX: u64 = 1 << 20;
/// What this program calls itself to token servers.
const CLIENT: &str = "nydusify";

/// Access to one repository, as registries write it.
pub(crate) fn scope(repository: &str, push: bool) -> String {
    let actions = if push { "pull,push" } else { "pull" };
    format!("repository:{repository}:{actions}")
}

impl Core {
    /// The header for a request, as far as the registry's wishes are known.
    pub(crate) async fn authorization(
        &self,
        host: &Host,
        scopes: &[String],
        subject: &Subject,
    ) -> Result<Option<Arc<Token>>, Error> {
        let Some(challenge) = lock(&host.challenge).clone() else {
            return Ok(None);
        };
        let slot = host.slot(scopes);
        let mut token = slot.lock().await;
        if let Some(token) = token.as_ref().filter(|token| token.is_fresh()) {
            return Ok(Some(Arc::clone(token)));
        }
        *token = self.token(host, &challenge, scopes, subject, None).await?;
        Ok(token.clone())
    }

    /// A new header after a request with `refused` was answered 401; `None` if there is no other.
    pub(crate) async fn renew(
        &self,
        host: &Host,
        scopes: &[String],
        subject: &Subject,
        challenge: Challenge,
        refused: Option<&Arc<Token>>,
    ) -> Result<Option<Arc<Token>>, Error> {
        *lock(&host.challenge) = Some(challenge.clone());
        let slot = host.slot(scopes);
        let mut token = slot.lock().await;
        // Another request may have renewed it meanwhile.
        if let Some(current) = token.as_ref()
            && current.is_fresh()
            && refused.is_none_or(|refused| !Arc::ptr_eq(refused, current))
        {
            return Ok(Some(Arc::clone(current)));
        }
        let new = self
            .token(host, &challenge, scopes, subject, refused)
            .await?;
        if let (Some(new), Some(refused)) = (&new, refused)
            && new.header == refused.header
        {
            return Ok(None);
        }
        token.clone_from(&new);
        Ok(new)
    }

    /// The credentials of a registry, looked up when they are first needed.
    pub(crate) async fn credential(&self, host: &Host) -> Result<Arc<Found>, Error> {
        self.look_up(host, None).await
    }

    /// The credentials of a registry; looked up anew if the last ones are those that were `refused`.
    async fn look_up(
        &self,
        host: &Host,
        refused: Option<&Arc<Found>>,
    ) -> Result<Arc<Found>, Error> {
        let _turn = host.looking.lock().await;
        let known = lock(&host.credential).clone();
        let good = |found: &Arc<Found>| refused.is_none_or(|refused| !Arc::ptr_eq(refused, found));
        if let Some(found) = known.filter(good) {
            return Ok(found);
        }
        let settings = self.settings.credentials.clone();
        let name = host.login().to_owned();
        let lookup = tokio::task::spawn_blocking(move || credentials::find(&settings, &name));
        let found = lookup.await.map_err(|error| Error::Credentials {
            host: host.name.clone(),
            place: "a credential helper".to_owned(),
            reason: error.to_string(),
        })?;
        let found = Arc::new(found?);
        *lock(&host.credential) = Some(Arc::clone(&found));
        Ok(found)
    }

    /// A header by the credentials of a registry. If those that are known do for none but `refused`, they may have ended
    /// meanwhile, as those of credential helpers do: they are looked up once more.
    async fn token(
        &self,
        host: &Host,
        challenge: &Challenge,
        scopes: &[String],
        subject: &Subject,
        refused: Option<&Arc<Token>>,
    ) -> Result<Option<Arc<Token>>, Error> {
        let was_known = lock(&host.credential).is_some();
        let found = self.credential(host).await?;
        let first = self
            .token_by(&found, host, challenge, scopes, subject)
            .await;
        let in_vain = match &first {
            Ok(Some(token)) => refused.is_some_and(|refused| refused.header == token.header),
            Ok(None) => false,
            Err(error) => matches!(error, Error::Unauthorized { .. }),
        };
        if !(was_known && in_vain) {
            return first;
        }
        let again = self.look_up(host, Some(&found)).await?;
        if again.credential == found.credential {
            return first;
        }
        tracing::debug!(host = host.name, "the credentials have changed");
        self.token_by(&again, host, challenge, scopes, subject)
            .await
    }

    async fn token_by(
        &self,
        found: &Found,
        host: &Host,
        challenge: &Challenge,
        scopes: &[String],
        subject: &Subject,
    ) -> Result<Option<Arc<Token>>, Error> {
        let credential = found.credential.as_ref();
        let (realm, service, wanted) = match (challenge, credential) {
            (_, Some(Credential::Token(token))) => {
                return header(subject, format!("Bearer {}", token.reveal()), None).map(Some);
            }
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                return header(subject, basic(username, password), None).map(Some);
            }
            (Challenge::Basic, _) => return Ok(None),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => (realm, service, scope),
        };
        let mut all = scopes.to_vec();
        all.extend(missing(scopes, wanted.as_deref().unwrap_or_default()));
        let server = TokenServer {
            host,
            subject,
            realm: self.realm(host, realm, credential.is_some(), subject)?,
            service: service.as_deref().unwrap_or_default(),
            scopes: all,
        };
        self.fetch_token(&server, found).await.map(Some)
    }

    /// The address of the token server, if it may get credentials.
    fn realm(
        &self,
        host: &Host,
        realm: &str,
        secret: bool,
        subject: &Subject,
    ) -> Result<Url, Error> {
        let unusable = |reason: &str| Error::Answer {
            subject: Box::new(subject.clone()),
            peer: host.name.clone(),
            reason: reason.to_owned(),
        };
        let base = host.base();
        let url = match &base {
            Some(base) => base.join(realm),
            None => Url::parse(realm),
        };
        let url = url.map_err(|_| unusable("the address of its token server is none"))?;
        let over_tls = base.is_some_and(|base| base.scheme() == "https");
        match url.scheme() {
            "https" => Ok(url),
            "http" if !(secret && over_tls) || self.settings.insecure => Ok(url),
            "http" => Err(unusable(
                "it wants the credentials sent without TLS to its token server; --insecure permits it",
            )),
            _ => Err(unusable("its token server speaks no HTTP")),
        }
    }

    async fn fetch_token(
        &self,
        server: &TokenServer<'_>,
        found: &Found,
    ) -> Result<Arc<Token>, Error> {
        let asked = Instant::now();
        let (requests, authorization) = server.requests(found.credential.as_ref())?;
        let mut refusal = Refusal::default();
        for request in requests {
            let (status, body) = self.ask(server, &request, authorization.as_ref()).await?;
            if status == 200 {
                return server.parse(&body, asked);
            }
            refusal = Refusal::parse(status, &body);
            // Some servers know only one of the two ways to ask.
            if matches!(status, 403 | 429 | 500..) {
                break;
            }
        }
        Err(Error::Unauthorized {
            subject: Box::new(server.subject.clone()),
            refusal,
            tried: format!(
                "{} at the token server {}",
                found.source,
                peer(&server.realm)
            ),
        })
    }

    async fn ask(
        &self,
        server: &TokenServer<'_>,
        request: &Request,
        authorization: Option<&HeaderValue>,
    ) -> Result<(u16, Vec<u8>), Error> {
        let mut retry = Retry::new(self);
        loop {
            // The header belongs to a GET; a POST has its secret in the body.
            let header = authorization.filter(|_| request.method == Method::GET);
            let result = async {
                let mut answer = self.transport.send(server.host, request, header).await?;
                let status = answer.response.status();
                let asked = crate::retry::retry_after(answer.response.headers());
                match self.transport.body(&mut answer, ANSWER_MAX).await? {
                    Some(body) => Ok((status, asked, body)),
                    None => Err(Fault::answer(
                        peer(&answer.url),
                        "a token beyond all bounds",
                    )),
                }
            };
            let failure = match result.await {
                Ok((status, asked, body)) if crate::retry::may_pass(status) => Failure {
                    error: Error::Refused {
                        subject: Box::new(server.subject.clone()),
                        action: "give a token",
                        refusal: Refusal::parse(status.as_u16(), &body),
                    },
                    peer: peer(&server.realm),
                    may_pass: true,
                    asked,
                },
                Ok((status, _, body)) => {
                    self.budget(&peer(&server.realm)).refund();
                    return Ok((status.as_u16(), body));
                }
                Err(fault) => Failure::of(fault, server.subject),
            };
            retry.after(failure).await?;
        }
    }
}

/// Where a token is asked for, and what for.
struct TokenServer<'a> {
    host: &'a Host,
    subject: &'a Subject,
    realm: Url,
    service: &'a str,
    scopes: Vec<String>,
}

impl TokenServer<'_> {
    /// The requests to try one after the other, and the header for those that are GETs.
    fn requests(
        &self,
        credential: Option<&Credential>,
    ) -> Result<(Vec<Request>, Option<HeaderValue>), Error> {
        Ok(match credential {
            None | Some(Credential::Token(_)) => (vec![self.get(None)], None),
            Some(Credential::Identity(token)) => {
                let fields = [
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.reveal()),
                ];
                (vec![self.post(&fields)], None)
            }
            Some(Credential::Basic { username, password }) => {
                let fields = [
                    ("grant_type", "password"),
                    ("username", username),
                    ("password", password.reveal()),
                ];
                let token = header(self.subject, basic(username, password), None)?;
                let requests = vec![self.get(Some(username)), self.post(&fields)];
                (requests, Some(token.header.clone()))
            }
        })
    }

    fn get(&self, account: Option<&str>) -> Request {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !self.service.is_empty() {
                query.append_pair("service", self.service);
            }
            for scope in &self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(account) = account {
                query.append_pair("account", account);
            }
        }
        Request::new(Method::GET, Target::Url(url))
    }

    fn post(&self, fields: &[(&str, &str)]) -> Request {
        let mut form = self.realm.clone();
        form.set_query(None);
        {
            let mut query = form.query_pairs_mut();
            query.extend_pairs(fields);
            query.append_pair("client_id", CLIENT);
            if !self.service.is_empty() {
                query.append_pair("service", self.service);
            }
            if !self.scopes.is_empty() {
                query.append_pair("scope", &self.scopes.join(" "));
            }
        }
        let mut request = Request::new(Method::POST, Target::Url(self.realm.clone()));
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers.insert(CONTENT_TYPE, kind);
        request.body = form.query().unwrap_or_default().to_owned().into();
        request.secret = true;
        request
    }

    fn parse(&self, body: &[u8], asked: Instant) -> Result<Arc<Token>, Error> {
        let Answer { token, lifetime } = Answer::parse(body);
        let Some(token) = token else {
            return Err(Error::Answer {
                subject: Box::new(self.subject.clone()),
                peer: peer(&self.realm),
                reason: "it gave no token".to_owned(),
            });
        };
        let until = asked.checked_add(lifetime.saturating_sub(MARGIN.min(lifetime / 4)));
        header(self.subject, format!("Bearer {token}"), until)
    }
}

/// What a token server says.
pub(crate) struct Answer {
    token: Option<String>,
    lifetime: Duration,
}

impl Answer {
    pub(crate) fn parse(body: &[u8]) -> Self {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Document {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let document: Document = serde_json::from_slice(body).unwrap_or_default();
        let filled = |text: &String| !text.is_empty();
        let token = document.token.filter(filled);
        Self {
            token: token.or(document.access_token.filter(filled)),
            lifetime: Duration::from_secs(document.expires_in.unwrap_or(LIFETIME)),
        }
    }
}

fn basic(username: &str, password: &Secret) -> String {
    let pair = format!("{username}:{}", password.reveal());
    format!("Basic {}", STANDARD.encode(pair))
}

fn header(subject: &Subject, text: String, until: Option<Instant>) -> Result<Arc<Token>, Error> {
    let mut header = HeaderValue::try_from(text).map_err(|_| Error::Credentials {
        host: subject.host.clone(),
        place: "the token or password".to_owned(),
        reason: "it has characters that no header can hold".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(Arc::new(Token {
        header,
        until,
        accepted: AtomicBool::new(false),
    }))
}

/// The scopes of a challenge that go beyond those asked for anyway.
fn missing(scopes: &[String], wanted: &str) -> Vec<String> {
    let split = |scope: &str| {
        let (name, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        let actions: Vec<_> = actions.split(',').map(str::to_owned).collect();
        (name.to_owned(), actions)
    };
    let ours: Vec<_> = scopes.iter().map(|scope| split(scope)).collect();
    let covered = |scope: &str| {
        let (name, actions) = split(scope);
        ours.iter().any(|(our_name, our_actions)| {
            *our_name == name && actions.iter().all(|action| our_actions.contains(action))
        })
    };
    let wanted = wanted.split(' ').filter(|scope| !scope.is_empty());
    wanted
        .filter(|scope| !covered(scope))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenges_scopes_are_added_where_ours_do_not_cover_them() {
        let ours = [scope("a/b", true), scope("c", false)];
        assert_eq!(ours[0], "repository:a/b:pull,push");
        for (wanted, extra) in [
            ("", vec![]),
            ("repository:a/b:push,pull", vec![]),
            ("repository:a/b:pull repository:c:pull", vec![]),
            ("repository:c:pull,push", vec!["repository:c:pull,push"]),
            ("registry:catalog:*", vec!["registry:catalog:*"]),
        ] {
            assert_eq!(missing(&ours, wanted), extra, "{wanted}");
        }
    }

    #[test]
    fn a_tokens_life_is_what_its_server_says() {
        let host = Host::new("h", false, None);
        let subject = Subject {
            host: "h".to_owned(),
            repository: "r".to_owned(),
            object: "blob".to_owned(),
        };
        let server = TokenServer {
            host: &host,
            subject: &subject,
            realm: Url::parse("https://auth/token?a=b").unwrap(),
            service: "s",
            scopes: vec![scope("r", false)],
        };
        let now = Instant::now();
        let life = |body: &str| {
            let token = server.parse(body.as_bytes(), now).unwrap();
            assert!(token.header.is_sensitive());
            assert!(!format!("{token:?}").contains("geheim"));
            token.until.unwrap().duration_since(now).as_secs()
        };
        assert_eq!(life(r#"{"token":"geheim","expires_in":300}"#), 285);
        assert_eq!(life(r#"{"access_token":"geheim","token":""}"#), 45);
        assert_eq!(life(r#"{"token":"geheim","expires_in":4}"#), 3);
        for bad in ["", "{}", r#"{"token":""}"#, "[]"] {
            let error = server.parse(bad.as_bytes(), now).unwrap_err();
            assert!(error.to_string().contains("no token"));
        }
        assert_eq!(
            match server.get(Some("me")).target {
                Target::Url(url) => url.to_string(),
                Target::Path(path) => path,
            },
            "https://auth/token?a=b&service=s&scope=repository%3Ar%3Apull&account=me"
        );
        let post = server.post(&[("refresh_token", "a&b")]);
        assert_eq!(
            post.body,
            "refresh_token=a%26b&client_id=nydusify&service=s&scope=repository%3Ar%3Apull"
        );
    }
}
