use reqwest::Method;

use crate::challenge::Challenge;
use crate::client::Call;
use crate::transport::Target;
use crate::{Client, Error, Reference, auth};

/// What a registry wants for access to a repository, and what there is to show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The registry.
    pub host: String,
    /// The repository.
    pub repository: String,
    /// `https` or `http`.
    pub scheme: &'static str,
    /// Where credentials were found, in words; never a secret.
    pub credentials: String,
    /// Whether any were found.
    pub has_credentials: bool,
    /// The status of the registry's answer to an anonymous `GET /v2/`.
    pub status: u16,
    /// What it asked for, if anything.
    pub challenge: Option<Challenged>,
    /// Why access was not granted; `None` if it was.
    pub refused: Option<String>,
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenged {
    /// `Basic` or `Bearer`.
    pub scheme: &'static str,
    /// Address of the token server.
    pub realm: Option<String>,
    /// What the registry is called there.
    pub service: Option<String>,
}

impl Client {
    /// Finds out how the registry of a reference authenticates, and whether the credentials found for it do for
    /// reading the repository.
    ///
    /// # Errors
    /// What keeps the registry from being reached, and [`Error::Credentials`]. A refusal is no error.
    pub fn describe(&self, reference: &Reference) -> Result<Description, Error> {
        self.wait(self.look_at(reference))
    }

    async fn look_at(&self, reference: &Reference) -> Result<Description, Error> {
        let core = self.core();
        let host = core.host(reference.host());
        let target = Target::Path("/v2/".to_owned());
        let name = reference.repository();
        let mut call = Call::new(&host, name, "the registry".to_owned(), Method::GET, target);
        let answer = core.anonymous(&call).await?;
        let status = answer.response.status().as_u16();
        let challenge = Challenge::find(answer.response.headers());
        let found = core.credential(&host).await?;
        call.scopes = vec![auth::scope(name, false)];
        let tried = match core.send(&call).await {
            Ok(answer) if answer.response.status().is_success() => Ok(()),
            Ok(answer) => Err(core.refuse(&call, answer).await),
            Err(error) => Err(error),
        };
        let refused = match tried {
            Ok(()) => None,
            Err(Error::Cancelled(cancelled)) => return Err(Error::Cancelled(cancelled)),
            Err(error) => Some(error.to_string()),
        };
        Ok(Description {
            host: host.name.clone(),
            repository: name.to_owned(),
            scheme: match host.base() {
                Some(base) if base.scheme() == "http" => "http",
                _ => "https",
            },
            credentials: found.source.clone(),
            has_credentials: found.credential.is_some(),
            status,
            challenge: challenge.map(|challenge| match challenge {
                Challenge::Basic => Challenged {
                    scheme: "Basic",
                    realm: None,
                    service: None,
                },
                Challenge::Bearer { realm, service, .. } => Challenged {
                    scheme: "Bearer",
                    realm: Some(realm),
                    service,
                },
            }),
            refused,
        })
    }
}
