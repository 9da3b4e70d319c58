//! The command line: global options, commands, and what both share.

pub mod unsupported;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tracing::Level;

/// Convert OCI images to lazily loadable Nydus images, prove them equal, mount them.
#[derive(Debug, Parser)]
#[command(name = "nydusify", version = VERSION.as_str(), long_version = VERSION.as_str(), arg_required_else_help = true)]
pub struct Arguments {
    /// Log at level debug
    #[arg(short = 'D', long, env = "DEBUG_LOG_LEVEL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    debug: bool,

    /// What to log: panic, fatal, error, warn, info, debug or trace
    #[arg(short, long, env = "LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = level)]
    log_level: Level,

    /// Append the log to this file instead of writing it to standard error
    #[arg(long, env = "LOG_FILE", value_name = "FILE", value_parser = any_path())]
    log_file: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Convert an OCI image to a Nydus image
    Convert(Box<crate::convert::ConvertArgs>),
    /// Check a Nydus image, and whether it equals its source
    Check(Box<crate::check::CheckArgs>),
    /// Mount a Nydus image lazily
    #[command(visible_alias = "view")]
    Mount(Box<crate::mount::MountArgs>),
    /// Copy an image as it is, from any place to any other
    Copy(Box<crate::copy::CopyArgs>),
    /// Make an index of an image that nobody converted, so that it can be mounted without reading it first
    Index(Box<crate::index::IndexArgs>),
    /// Put the files of a Nydus image that are needed first into a blob of their own
    Optimize(Box<crate::optimize::OptimizeArgs>),
    /// Say where the time of a start went, out of its trace
    Explain(crate::explain::ExplainArgs),
    /// Say what two Nydus images share: files, chunks and bytes
    Diff(Box<crate::diff::DiffArgs>),
    /// Keep and make chunk dictionaries: what images have in common is stored once
    Chunkdict(Box<crate::chunkdict::ChunkdictArgs>),
    /// Look into authentication at registries
    Auth(crate::auth::AuthArgs),
    /// Run a program of a Nydus image, which is mounted lazily for it alone
    Run(Box<crate::run::RunArgs>),
    /// Unmount an image mounted before
    Umount(crate::umount::UmountArgs),
    /// Say what a mount does: hits, requests, latencies, memory
    Stat(crate::stat::StatArgs),
    /// Look after the cache that mounts share
    Cache(crate::cache::CacheArgs),
    /// Say which kinds of mounts work on this machine, and what the others are missing
    Doctor(crate::doctor::DoctorArgs),
    /// A process that guards a mount by the kernel; started by `mount` alone
    #[command(hide = true)]
    Guard,
    /// A process that keeps a FUSE mount; started by those that serve one
    #[command(hide = true)]
    Keep,
    /// The first process of a program's namespaces; started by `run` alone
    #[command(hide = true, name = container::INSIDE)]
    Inside { socket: PathBuf },
    /// A process that maps user ids; started by `run` alone
    #[command(hide = true, name = container::MAP_IDS)]
    MapIds { process: u32 },
    /// Commands of the deployed tool that this one does not have yet
    #[command(external_subcommand)]
    Unbuilt(Vec<OsString>),
}

/// Commands of the deployed tool that are not built.
const UNBUILT: [&str; 3] = ["build", "pack", "commit"];

/// What is wrong with a command that is none of [`Command`]'s.
pub fn unbuilt(words: &[OsString]) -> Usage {
    let name = words
        .first()
        .map(|word| word.to_string_lossy())
        .unwrap_or_default();
    if UNBUILT.contains(&&*name) {
        Usage(format!("not supported yet: nydusify {name}"))
    } else {
        Usage(format!(
            "unrecognized subcommand '{name}'; try nydusify --help"
        ))
    }
}

/// What `--version` prints behind the name of the program.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    use build_info::{COMMIT, RUSTC, TIME, VERSION};
    format!(
        "\nVersion:    {VERSION}\nRevision:   {COMMIT}\nRustc:      {RUSTC}\nBuild time: {TIME}"
    )
});

impl Arguments {
    /// Reads the command line as the deployed tool does: long options have one or two dashes, the last of several
    /// wins, and an empty variable is none. Mistakes and `--help` end the process.
    pub fn read(words: impl Iterator<Item = OsString>) -> Self {
        let mut command = without_empty_variables(Self::command()).args_override_self(true);
        let matches = command
            .try_get_matches_from_mut(normalise(words))
            .unwrap_or_else(|error| error.exit());
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }

    /// The file to log to.
    pub fn log_file(&self) -> Option<&Path> {
        given(self.log_file.as_ref())
    }

    /// The level to log at.
    pub fn level(&self) -> Level {
        if self.debug {
            Level::DEBUG.max(self.log_level)
        } else {
            self.log_level
        }
    }
}

/// A mistake on the command line, or something asked for that is not supported: exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Ends with "not supported yet" if a flag without a meaning was given.
pub fn refuse(flag: Option<&str>) -> Result<(), Usage> {
    match flag {
        Some(flag) => Err(Usage(format!("not supported yet: {flag}"))),
        None => Ok(()),
    }
}

/// Reads a switch that may come from the environment: empty is off.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "" | "0" | "f" | "false" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

/// Reads a path, an empty one too.
pub fn any_path() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    use clap::builder::TypedValueParser as _;
    clap::builder::OsStringValueParser::new().map(PathBuf::from)
}

/// A path option; an empty one, as an empty variable gives, is none.
pub fn given(path: Option<&PathBuf>) -> Option<&Path> {
    path.map(PathBuf::as_path)
        .filter(|path| !path.as_os_str().is_empty())
}

/// What the options of `check` and `mount` name: an image, or bare RAFS files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// The image at a location.
    Image(&'a str),
    /// A bootstrap, or a blob that holds one.
    Bare(&'a Path),
}

impl<'a> Named<'a> {
    /// Exactly one of the two must be given.
    pub fn given(image: Option<&'a str>, bootstrap: Option<&'a Path>) -> Result<Self, Usage> {
        match (image, bootstrap) {
            (Some(_), Some(_)) => Err(Usage(
                "IMAGE and --bootstrap both name an image: give one".to_owned(),
            )),
            (Some(image), None) => Ok(Self::Image(image)),
            (None, Some(bootstrap)) => Ok(Self::Bare(bootstrap)),
            (None, None) => Err(Usage("name an image, or a --bootstrap".to_owned())),
        }
    }

    /// Exactly one of the two must be given. A target that only the variable `TARGET` names does not count beside a
    /// bootstrap: it may be set for other commands.
    pub fn new(target: Option<&'a str>, bootstrap: Option<&'a Path>) -> Result<Self, Usage> {
        let variable = std::env::var("TARGET").ok();
        match (target.filter(|name| !name.is_empty()), bootstrap) {
            (Some(target), Some(_)) if Some(target) != variable.as_deref() => Err(Usage(
                "--target and --bootstrap both name an image: give one".to_owned(),
            )),
            (_, Some(bootstrap)) => Ok(Self::Bare(bootstrap)),
            (Some(target), None) => Ok(Self::Image(target)),
            (None, None) => Err(Usage(
                "name an image with --target, or a bootstrap with --bootstrap".to_owned(),
            )),
        }
    }
}

/// A directory of blobs that is none is better known now than at the first read.
pub fn check_blob_dir(dir: Option<&Path>) -> Result<(), Usage> {
    match dir.filter(|dir| !dir.is_dir()) {
        Some(dir) => Err(Usage(format!(
            "--blob-dir {}: there is no such directory",
            dir.display()
        ))),
        None => Ok(()),
    }
}

/// The command without the variables that are set to nothing.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let empty = |arg: &clap::Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|arg| match empty(&arg) {
            true => arg.env(None::<&'static str>),
            false => arg,
        })
        .mut_subcommands(without_empty_variables)
}

fn level(text: &str) -> Result<Level, String> {
    match text.to_ascii_lowercase().as_str() {
        "panic" | "fatal" | "error" => Ok(Level::ERROR),
        "warn" | "warning" => Ok(Level::WARN),
        "info" | "" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err("the levels are panic, fatal, error, warn, info, debug and trace".to_owned()),
    }
}

/// Gives long options that begin with one dash, as the deployed tool allows, their second one. The value of an option
/// stays as it is, whatever it looks like.
pub fn normalise(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut names = Names::default();
    long_names(&Arguments::command(), &mut names);
    let (mut options, mut value_follows) = (true, false);
    arguments
        .map(|argument| {
            if std::mem::take(&mut value_follows) {
                return argument;
            }
            options &= argument != "--";
            if !options {
                return argument;
            }
            let mut argument = argument;
            if is_long_with_one_dash(&argument, &names.all) {
                let mut doubled = OsString::from("-");
                doubled.push(argument);
                argument = doubled;
            }
            let name = argument.to_str().and_then(|text| text.strip_prefix("--"));
            value_follows = name.is_some_and(|name| names.valued.iter().any(|known| known == name));
            argument
        })
        .collect()
}

/// Names of long options.
#[derive(Debug, Default)]
struct Names {
    all: Vec<String>,
    /// Those whose value is the next argument, unless it comes with `=`.
    valued: Vec<String>,
}

fn long_names(command: &clap::Command, names: &mut Names) {
    for argument in command.get_arguments() {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        let own = argument.get_long().into_iter().chain(aliases);
        let own: Vec<String> = own.map(str::to_owned).collect();
        if argument.get_action().takes_values() && !argument.is_require_equals_set() {
            names.valued.extend_from_slice(&own);
        }
        names.all.extend(own);
    }
    names.all.extend(["help".to_owned(), "version".to_owned()]);
    for subcommand in command.get_subcommands() {
        long_names(subcommand, names);
    }
}

fn is_long_with_one_dash(argument: &OsStr, names: &[String]) -> bool {
    let Some(text) = argument.to_str() else {
        return false;
    };
    let Some(name) = text.strip_prefix('-') else {
        return false;
    };
    let name = name.split('=').next().unwrap_or(name);
    name.len() > 1 && names.iter().any(|known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(arguments: &[&str]) -> Vec<String> {
        normalise(arguments.iter().map(OsString::from))
            .into_iter()
            .map(|a| a.into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn one_dash_is_enough_for_long_options() {
        assert_eq!(
            normal(&[
                "nydusify",
                "-debug",
                "convert",
                "-source",
                "a",
                "-target=b",
                "-D",
                "--check",
                "--",
                "-source"
            ]),
            [
                "nydusify",
                "--debug",
                "convert",
                "--source",
                "a",
                "--target=b",
                "-D",
                "--check",
                "--",
                "-source"
            ]
        );
    }

    #[test]
    fn the_value_of_an_option_stays_as_it_is() {
        assert_eq!(
            normal(&["nydusify", "convert", "-target-suffix", "-lazy", "-check"]),
            ["nydusify", "convert", "--target-suffix", "-lazy", "--check"]
        );
        assert_eq!(
            normal(&["nydusify", "-target-suffix=-x", "-lazy"]),
            ["nydusify", "--target-suffix=-x", "--lazy"]
        );
    }

    #[test]
    fn switches_read_what_go_reads() {
        assert_eq!(switch("True"), Ok(true));
        assert_eq!(switch("0"), Ok(false));
        assert_eq!(switch(""), Ok(false));
        assert!(switch("maybe").is_err());
    }
}
