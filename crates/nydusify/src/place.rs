//! Where images are: in local files, or in registries as options and environment say.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use image::{Descriptor, Location, Source, Target};
use progress::Cancel;
use registry::{Client, Credentials, Proxy, Reference, Retried, Settings};

use crate::args::switch;

/// Options about registries that all commands share.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RegistryArgs {
    /// Speak HTTP without TLS with registries
    #[arg(long, env = "PLAIN_HTTP", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    plain_http: bool,

    /// Trust the certificate authorities in this PEM file besides the system's; may be given several times
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append)]
    ca_file: Vec<PathBuf>,
}

/// Whose certificates count, where there are two sides.
#[derive(Debug, Clone, clap::Args)]
pub struct InsecureArgs {
    /// Do not check the certificate of the source's registry
    #[arg(long, env = "SOURCE_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    pub source_insecure: bool,

    /// Do not check the certificate of the target's registry
    #[arg(long, env = "TARGET_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    pub target_insecure: bool,
}

/// How hard to try to push.
#[derive(Debug, Clone, clap::Args)]
pub struct PushArgs {
    /// How often to try again what a registry fails to do for a while
    #[arg(long, env = "PUSH_RETRY_COUNT", value_name = "N", default_value_t = 3)]
    push_retry_count: u32,

    /// Longest pause between two tries, such as 5s or 1m30s
    #[arg(long, env = "PUSH_RETRY_DELAY", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    push_retry_delay: Duration,

    /// Size of the pieces that blobs are pushed in, such as 16MB [default: 8MB]
    #[arg(long, value_name = "SIZE", default_value = "0MB", hide_default_value = true, value_parser = chunk_size)]
    push_chunk_size: usize,
}

/// How long to wait for a registry that data is read from.
#[derive(Debug, Clone, clap::Args)]
pub struct PatienceArgs {
    /// How often to try again to read what a registry fails to give
    #[arg(long, value_name = "N", default_value_t = 3)]
    registry_retry_count: u32,

    /// How long a registry may be silent in one try, such as 30s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    registry_timeout: Duration,
}

/// Opens images for one command: all that lie in registries share connections, tokens and retry budgets.
pub struct Places {
    settings: Settings,
    strict: OnceLock<Client>,
    insecure: OnceLock<Client>,
}

impl Places {
    /// As the options say; `cancel` ends whatever goes on with a registry.
    pub fn new(registry: &RegistryArgs, push: Option<&PushArgs>, cancel: &Cancel) -> Self {
        let mut settings = Settings {
            plain_http: registry.plain_http,
            ca_files: registry.ca_file.clone(),
            credentials: Credentials::from_environment(),
            proxy: Proxy::from_environment(),
            cancel: cancel.clone(),
            ..Settings::default()
        };
        if let Some(push) = push {
            settings.retries = push.push_retry_count;
            settings.retry_delay = push.push_retry_delay;
            if push.push_chunk_size != 0 {
                settings.segment_size = push.push_chunk_size;
            }
        }
        Self {
            settings,
            strict: OnceLock::new(),
            insecure: OnceLock::new(),
        }
    }

    /// For a mount: with another idea of how long to wait, and few threads, for mounts may be many.
    #[must_use]
    pub fn with_patience(mut self, patience: &PatienceArgs) -> Self {
        let settings = &mut self.settings;
        settings.threads = 1;
        settings.retries = patience.registry_retry_count;
        settings.stall_timeout = patience.registry_timeout;
        settings.connect_timeout = settings.connect_timeout.min(patience.registry_timeout);
        self
    }

    /// Counts what is tried again.
    pub fn retried(&self) -> &Retried {
        &self.settings.retried
    }

    /// The image at `location`, for reading. `insecure`: no certificate is checked.
    pub fn source(&self, location: &Location, insecure: bool) -> Result<Source> {
        match location {
            Location::Registry(name) => {
                let reference = reference(name)?;
                let source = self.client(insecure)?.source(&reference);
                source.with_context(|| format!("cannot open {name}"))
            }
            _ => Ok(Source::open(location)?),
        }
    }

    /// The image of `root` at `location`, for reading. A registry is asked nothing yet, and its tag may be elsewhere now.
    pub fn source_of(
        &self,
        location: &Location,
        insecure: bool,
        root: Descriptor,
    ) -> Result<Source> {
        match location {
            Location::Registry(name) => {
                let client = self.client(insecure)?;
                Ok(client.source_of(&reference(name)?, root)?)
            }
            _ => self.source(location, insecure),
        }
    }

    /// The image at `location`, for writing. `insecure`: no certificate is checked.
    pub fn target(&self, location: &Location, insecure: bool) -> Result<Target> {
        match location {
            Location::Registry(name) => Ok(self.client(insecure)?.target(&reference(name)?)),
            _ => Ok(Target::open(location)?),
        }
    }

    /// How to speak to hosts, if certificates are checked.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The client for registries.
    pub fn client(&self, insecure: bool) -> Result<&Client> {
        let slot = if insecure {
            &self.insecure
        } else {
            &self.strict
        };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let settings = Settings {
            insecure,
            ..self.settings.clone()
        };
        let client = Client::new(settings)?;
        Ok(slot.get_or_init(|| client))
    }
}

/// Reads the name of an image in a registry.
pub fn reference(name: &str) -> Result<Reference> {
    name.parse()
        .with_context(|| format!("{name:?} is neither a local image nor a name in a registry"))
}

/// Reads a duration as Go writes it: numbers, each with a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 7] = [
        ("ms", 1e-3),
        ("us", 1e-6),
        ("\u{b5}s", 1e-6),
        ("ns", 1e-9),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let wrong = || "it must be a duration such as 5s, 1m30s or 500ms".to_owned();
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let (name, size) = UNITS
            .iter()
            .find(|(name, _)| unit.starts_with(name))
            .ok_or_else(wrong)?;
        seconds += number * size;
        rest = &unit[name.len()..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Reads the size of pushed pieces; nothing means the default.
fn chunk_size(text: &str) -> Result<usize, String> {
    let zero = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if zero.trim() == "0" || text.is_empty() {
        return Ok(0);
    }
    builder::parse_size(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5s", 1500),
            ("1h", 3_600_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "5 s", "1x", "1e300h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_chunk_size_is_the_default() {
        assert_eq!(chunk_size("0MB"), Ok(0));
        assert_eq!(chunk_size("0"), Ok(0));
        assert_eq!(chunk_size("16MB"), Ok(16 << 20));
        assert!(chunk_size("x").is_err());
    }
}
