//! The directories of a user who has nothing yet, and programs that see nothing else of the environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Ran, output};

/// A user's directories, all empty. They go when it does.
#[derive(Debug)]
pub struct Home {
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Home {
    /// New directories for somebody who runs `program`.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let dir = tempfile::tempdir().expect("make a temporary directory");
        for name in ["home", "docker", "tmp", "cwd"] {
            std::fs::create_dir(dir.path().join(name)).expect("make a directory");
        }
        Self {
            dir,
            program: program.as_ref().to_owned(),
        }
    }

    /// A path in the user's place: `home`, `docker`, `tmp` and `cwd` are there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As `docker login` leaves it for the user `me` with the password `secret`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn login(&self, host: &str) {
        let config = serde_json::json!({ "auths": { host: { "auth": "bWU6c2VjcmV0" } } });
        let path = self.path("docker/config.json");
        std::fs::write(path, config.to_string()).expect("write docker's configuration");
    }

    /// The program, with an environment that says nothing but where things lie.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("TMPDIR", self.path("tmp"))
            .current_dir(self.path("cwd"));
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str], more: &[&str]) -> Ran {
        output(self.command(args).args(more))
    }
}
