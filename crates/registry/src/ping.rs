//! Whether a host is well: an address that it answers with success.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Url};
use tokio::time::timeout;

use crate::client::Core;
use crate::host::Host;
use crate::transport::{Request, Target, peer};
use crate::{Client, Subject};

impl Client {
    /// Asks an address once: why its host is not well, if it does not answer with a success `within` this time.
    pub fn ping(&self, url: &Url, within: Duration) -> Option<String> {
        let core = self.core();
        self.inner.runtime.block_on(ask(core, url, within))
    }

    /// The same in the background; `then` gets to know what came of it, and must not block.
    pub fn ping_later(
        &self,
        url: Url,
        within: Duration,
        then: impl FnOnce(Option<String>) + Send + 'static,
    ) {
        let core = Arc::clone(self.core());
        self.inner
            .runtime
            .spawn(async move { then(ask(&core, &url, within).await) });
    }
}

async fn ask(core: &Core, url: &Url, within: Duration) -> Option<String> {
    let request = Request::new(Method::GET, Target::Url(url.clone()));
    let host = Host::new(&peer(url), false, None);
    let sent = core.transport.send(&host, &request, None);
    match timeout(within, sent).await {
        Ok(Ok(answer)) if answer.response.status().is_success() => None,
        Ok(Ok(answer)) => {
            let status = answer.response.status().as_u16();
            Some(format!("{} answers with status {status}", peer(url)))
        }
        Ok(Err(fault)) => {
            let subject = Subject {
                host: peer(url),
                repository: String::new(),
                object: "its health".to_owned(),
            };
            Some(fault.into_error(&subject).to_string())
        }
        Err(_) => Some(format!(
            "{} does not answer within {} s",
            peer(url),
            within.as_secs_f32()
        )),
    }
}
