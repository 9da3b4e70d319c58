//! `nydusify auth check`: which credentials there are for a registry, and what it makes of them.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use image::Location;
use registry::{Description, Reference};
use serde::Serialize;

use crate::args::{Usage, switch};
use crate::interrupt::Interrupt;
use crate::place::{Places, RegistryArgs, reference};

/// Layout of the result as JSON.
const SCHEMA: &str = "nydusify-auth-check/1";

/// Arguments of `nydusify auth`.
#[derive(Debug, clap::Args)]
pub struct AuthArgs {
    /// What to do.
    #[command(subcommand)]
    command: AuthCommand,
}

/// What there is to do about authentication.
#[derive(Debug, clap::Subcommand)]
enum AuthCommand {
    /// Say which credentials were found where, and whether the registry lets us read with them
    Check(CheckArgs),
}

/// Arguments of `nydusify auth check`.
#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Name of an image in a registry; the image need not exist
    #[arg(value_name = "IMAGE")]
    image: String,

    /// Do not check the registry's certificate
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    insecure: bool,

    #[command(flatten)]
    registry: RegistryArgs,

    /// How to write the result
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How the result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// Lines of text
    Text,
    /// One JSON document
    Json,
}

/// What was found out. Nothing secret is in it.
#[derive(Debug, Serialize)]
struct Findings {
    schema: &'static str,
    /// The registry.
    registry: String,
    /// `https` or `http`.
    scheme: &'static str,
    repository: String,
    /// Whether there are credentials.
    credentials: bool,
    /// Where they were found, or why there are none.
    credentials_source: String,
    /// Status of the answer to a request without credentials.
    anonymous_status: u16,
    /// What the registry asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    challenge: Option<Challenge>,
    /// Whether the repository may be read.
    access: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The digest of what the name leads to, if there is anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

#[derive(Debug, Serialize)]
struct Challenge {
    scheme: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    realm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

/// Looks. Success is access for reading.
pub fn run(args: &AuthArgs) -> Result<ExitCode> {
    let AuthCommand::Check(args) = &args.command;
    let Location::Registry(name) = args.image.parse()? else {
        let image = &args.image;
        return Err(Usage(format!("{image} is no name in a registry")).into());
    };
    let interrupt = Interrupt::watch()?;
    let places = Places::new(&args.registry, None, interrupt.cancel());
    let findings = look(&reference(&name)?, &places, args.insecure);
    let findings = match (findings, interrupt.exit_code()) {
        (Err(_), Some(code)) => {
            eprintln!("error: interrupted");
            return Ok(code);
        }
        (findings, _) => findings?,
    };
    show(&findings, args.output).context("cannot write the result")?;
    Ok(match findings.access {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn look(reference: &Reference, places: &Places, insecure: bool) -> Result<Findings> {
    let client = places.client(insecure)?;
    let Description {
        host,
        repository,
        scheme,
        credentials,
        has_credentials,
        status,
        challenge,
        refused,
    } = client.describe(reference)?;
    // A token may be good for the registry, but not for this repository.
    let (digest, reason) = match refused {
        Some(reason) => (None, Some(reason)),
        None => match client
            .repository(reference)
            .manifest_digest(&reference.target())
        {
            Ok(found) => (found.map(|found| found.digest.to_string()), None),
            Err(error) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
        },
    };
    Ok(Findings {
        schema: SCHEMA,
        registry: host,
        scheme,
        repository,
        credentials: has_credentials,
        credentials_source: credentials,
        anonymous_status: status,
        challenge: challenge.map(|asked| Challenge {
            scheme: asked.scheme,
            realm: asked.realm,
            service: asked.service,
        }),
        access: reason.is_none(),
        reason,
        digest,
    })
}

fn show(findings: &Findings, output: Output) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            serde_json::to_writer(&mut out, findings)?;
            writeln!(out)
        }
        Output::Text => write!(out, "{findings}"),
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            registry,
            scheme,
            repository,
            credentials_source,
            anonymous_status,
            ..
        } = self;
        writeln!(f, "registry:     {registry} ({scheme})")?;
        writeln!(f, "repository:   {repository}")?;
        writeln!(f, "credentials:  {credentials_source}")?;
        write!(f, "it asks for:  ")?;
        match &self.challenge {
            None => writeln!(f, "nothing (status {anonymous_status})")?,
            Some(asked) => {
                write!(f, "{}", asked.scheme)?;
                if let Some(realm) = &asked.realm {
                    write!(f, ", tokens from {realm}")?;
                }
                if let Some(service) = &asked.service {
                    write!(f, " for {service}")?;
                }
                writeln!(f, " (status {anonymous_status})")?;
            }
        }
        match (&self.reason, &self.digest) {
            (Some(reason), _) => writeln!(f, "access:       not granted: {reason}"),
            (None, Some(digest)) => writeln!(f, "access:       granted; the image is {digest}"),
            (None, None) => writeln!(f, "access:       granted; there is no such image"),
        }
    }
}
