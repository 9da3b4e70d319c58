//! `zig cc`, a C compiler for every target in one download.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testkit::oracle::program;

use super::{ARCHITECTURES, Architecture, write};
use crate::system;

/// The version that releases are compiled with: another one may give other bytes.
const VERSION: &str = "0.17.1";

/// Where zig is, and the programs that speak to it as to a usual C compiler.
pub struct Zig {
    program: PathBuf,
    tools: PathBuf,
}

impl Zig {
    /// Takes the zig on the path if it is of our version, else that of PyPI, which is put below the target directory.
    pub fn find(target: &Path) -> Result<Self> {
        let usual = program("zig").filter(|zig| version(zig).is_some_and(|it| it == VERSION));
        let program = match usual {
            Some(zig) => zig,
            None => from_pypi(&target.join("zig"))?,
        };
        let zig = Self {
            program,
            tools: target.join("zig/tools"),
        };
        zig.write_tools()?;
        Ok(zig)
    }

    /// Tells the crate `cc`, which build scripts compile C with, what to run.
    pub fn set(&self, cargo: &mut Command) {
        for architecture in &ARCHITECTURES {
            let target = architecture.target.replace('-', "_");
            cargo
                .env(format!("CC_{target}"), self.compiler(architecture))
                .env(format!("AR_{target}"), self.tools.join("ar"));
        }
        cargo.env("ZIG_GLOBAL_CACHE_DIR", self.tools.join("cache"));
        cargo.env("ZIG_LOCAL_CACHE_DIR", self.tools.join("cache"));
    }

    /// The licence of musl, which is in all that is linked.
    pub fn musl_licence(&self) -> Result<String> {
        let library = system::output(Command::new(&self.program).arg("env"))?;
        // Zig's own notation: `.lib_dir = "PATH",`.
        let library = library
            .lines()
            .find_map(|line| {
                line.trim()
                    .strip_prefix(".lib_dir = \"")?
                    .strip_suffix("\",")
            })
            .context("zig env names no lib_dir")?;
        let path = Path::new(library).join("libc/musl/COPYRIGHT");
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn compiler(&self, architecture: &Architecture) -> PathBuf {
        self.tools.join(format!("cc-{}", architecture.machine))
    }

    /// `cc` gives targets in Rust's spelling, which zig does not know; its own comes first.
    fn write_tools(&self) -> Result<()> {
        let zig = self.program.display();
        for architecture in &ARCHITECTURES {
            let text = format!(
                "#!/bin/sh\n\
                 for argument; do\n\
                 \tshift\n\
                 \tcase $argument in --target=*) ;; *) set -- \"$@\" \"$argument\" ;; esac\n\
                 done\n\
                 exec '{zig}' cc -target {}-linux-musl \"$@\"\n",
                architecture.machine
            );
            write_program(&self.compiler(architecture), &text)?;
        }
        let text = format!("#!/bin/sh\nexec '{zig}' ar \"$@\"\n");
        write_program(&self.tools.join("ar"), &text)
    }
}

/// Writes it only if it is another one: a compiler that changes makes cargo compile again.
fn write_program(path: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    write(path, text.as_bytes())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| path.display().to_string())
}

fn version(zig: &Path) -> Option<String> {
    let output = system::output(Command::new(zig).arg("version")).ok()?;
    Some(output.trim().to_owned())
}

/// Installs zig in a virtual environment of Python unless it is there.
fn from_pypi(directory: &Path) -> Result<PathBuf> {
    let python = directory.join("venv/bin/python");
    let find = || -> Option<PathBuf> {
        let code = "import os, ziglang; print(os.path.dirname(ziglang.__file__))";
        let output = system::output(Command::new(&python).args(["-c", code])).ok()?;
        let zig = Path::new(output.trim()).join("zig");
        version(&zig).is_some_and(|it| it == VERSION).then_some(zig)
    };
    if let Some(zig) = find() {
        return Ok(zig);
    }
    println!(
        "installing zig {VERSION} of PyPI in {}",
        directory.display()
    );
    let other = format!("or put zig {VERSION} (https://ziglang.org/download) on the PATH");
    system::require(&[("python3", "python3-venv")]).with_context(|| other.clone())?;
    system::run(
        Command::new("python3")
            .args(["-m", "venv"])
            .arg(directory.join("venv")),
    )
    .with_context(|| format!("on Debian, run: apt-get install python3-venv; {other}"))?;
    let package = format!("ziglang=={VERSION}");
    system::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", &package]))
        .with_context(|| other.clone())?;
    find().with_context(|| format!("{package} came without a zig that runs; {other}"))
}
