//! `nydusify run`: a program of an image that is mounted for it alone.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use container::{Program, Space};
use serde_json::Value;

use crate::args::{Named, check_blob_dir};
use crate::mount::{self, ForRun, LazyArgs, image};

/// Exit code where it is not the program that failed.
const FAILED: u8 = 125;

/// Arguments of `nydusify run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Image: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]. Of an image that nobody converted the layers are
    /// read once, see `nydusify index`
    #[arg(value_name = "IMAGE", required_unless_present = "bootstrap")]
    image: Option<String>,

    /// Program and arguments, in place of the image's entrypoint and command
    #[arg(value_name = "CMD", last = true)]
    command: Vec<OsString>,

    /// Set a variable of the program, or take it over as it is here; may be given more than once
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Working directory of the program [default: the image's, or /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,

    /// Whom the program runs as: USER[:GROUP], names or numbers [default: the image's, or root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// Name of the machine that the program sees
    #[arg(long, value_name = "NAME", default_value = "nydusify")]
    hostname: String,

    #[command(flatten)]
    lazy: LazyArgs,

    /// This process takes the place of one that died
    #[arg(long, hide = true)]
    resume: bool,
}

/// Runs the program to its end; its exit code.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let named = Named::given(args.image.as_deref(), args.lazy.bootstrap())?;
    check_blob_dir(args.lazy.blob_dir())?;
    let done = match args.resume {
        true => return mount::resume_for_run(named, &args.lazy, &place()?),
        false => run_image(args, named),
    };
    let code = done.unwrap_or_else(|error| {
        crate::report(&error);
        let known = error.downcast_ref::<container::Error>();
        known.map_or(FAILED, container::Error::code)
    });
    Ok(ExitCode::from(code))
}

fn run_image(args: &RunArgs, named: Named<'_>) -> Result<u8> {
    let over = place()?;
    std::fs::create_dir_all(&over).with_context(|| over.display().to_string())?;
    let space = Space::enter(&over)?;
    let image = image::open_to_run(named, &args.lazy)?;
    let program = args.program(image.config.as_ref())?;
    let mut options = args.lazy.options(named, &image);
    let upper = || space.directory().join("changes");
    options.upper.get_or_insert_with(upper);
    let root = space.directory().join("root");
    let Some(mounted) = ForRun::mount(image, &args.lazy, &options, &root)? else {
        return Ok(FAILED);
    };
    let code = space.run(&root, &program);
    mounted.close()?;
    Ok(code?)
}

/// Where each runner mounts, unseen by all others.
fn place() -> Result<PathBuf> {
    let runtime = ::mount::runtime_dir().context("a directory to mount on")?;
    Ok(runtime.join("run"))
}

/// The first process of the program's namespaces.
pub fn inside(socket: &Path) -> ExitCode {
    ExitCode::from(container::inside(socket).unwrap_or_else(|error| {
        let code = error.code();
        crate::report(&error.into());
        code
    }))
}

/// The process that maps the ids of another.
pub fn map_ids(target: u32) -> ExitCode {
    ExitCode::from(u8::from(container::map_ids(target).is_err()))
}

impl RunArgs {
    /// What to run, by the image's configuration and the options.
    fn program(&self, config: Option<&Value>) -> Result<Program> {
        let config = config.and_then(|config| config.get("config"));
        let list = |name| strings(config.and_then(|config| config.get(name)));
        let text = |name| {
            let text = config.and_then(|config| config.get(name)?.as_str());
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let mut arguments = self.command.clone();
        if arguments.is_empty() {
            let own = list("Entrypoint").into_iter().chain(list("Cmd"));
            arguments = own.map(OsString::from).collect();
        }
        if arguments.is_empty() {
            return Err(container::Error::NoCommand.into());
        }
        let mut environment = Vec::new();
        if std::io::stdin().is_terminal() {
            environment.extend(from_here("TERM"));
        }
        environment.extend(list("Env"));
        let given = self.env.iter().map(|text| match text.contains('=') {
            true => Some(text.clone()),
            false => from_here(text),
        });
        environment.extend(given.flatten());
        Ok(Program {
            arguments,
            environment,
            directory: self
                .workdir
                .clone()
                .or(text("WorkingDir").map(PathBuf::from)),
            user: self.user.clone().or(text("User")),
            hostname: self.hostname.clone(),
        })
    }
}

/// A variable of this process.
fn from_here(name: &str) -> Option<String> {
    Some(format!("{name}={}", std::env::var(name).ok()?))
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    items
        .filter_map(|item| Some(item.as_str()?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn program(words: &[&str], config: &Value) -> Program {
        let line = Line::try_parse_from([&["run"], words].concat()).unwrap();
        line.run.program(Some(config)).unwrap()
    }

    #[test]
    fn options_come_before_what_the_image_says() {
        let config = json!({"config": {"Entrypoint": ["/entry", "a"], "Cmd": ["b"], "Env": ["A=1", "B=2"],
            "WorkingDir": "/srv", "User": "web"}});
        let own = program(&["image"], &config);
        assert_eq!(own.arguments, ["/entry", "a", "b"]);
        assert_eq!(own.directory.as_deref(), Some(Path::new("/srv")));
        assert_eq!(own.user.as_deref(), Some("web"));
        let words = [
            "image", "-e", "B=3", "--env", "C=4", "-u", "1", "-w", "/tmp", "--", "cmd", "-e", "x",
        ];
        let other = program(&words, &config);
        assert_eq!(other.arguments, ["cmd", "-e", "x"]);
        assert_eq!(other.directory.as_deref(), Some(Path::new("/tmp")));
        assert_eq!(other.user.as_deref(), Some("1"));
        let variables = other
            .environment
            .iter()
            .filter(|text| !text.starts_with("TERM="));
        assert!(variables.eq(["A=1", "B=2", "B=3", "C=4"].iter()));
    }

    #[test]
    fn an_image_may_say_nothing() {
        let words = ["image", "--", "cmd"];
        for config in [
            json!({}),
            json!({"config": null}),
            json!({"config": {"Env": null, "User": ""}}),
        ] {
            let program = program(&words, &config);
            assert_eq!((program.user, program.directory), (None, None));
        }
        let line = Line::try_parse_from(["run", "image"]).unwrap();
        assert!(
            line.run
                .program(Some(&json!({"config": {"Cmd": []}})))
                .is_err()
        );
        assert!(Line::try_parse_from(["run", "--", "cmd"]).is_err());
    }
}
