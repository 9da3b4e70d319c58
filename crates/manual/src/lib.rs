//! Manual pages and shell completions, made of the command lines of both programs. The same source gives the same bytes,
//! whatever the environment says.
#![forbid(unsafe_code)]

mod example;
mod page;
mod section;
mod visible;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use clap_complete::{Generator as _, Shell};

use crate::visible::visible;

/// Where each shell looks for completions, below a directory such as `/usr/share`.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

/// The command lines of both programs, complete: options that count everywhere are everywhere, and every command knows
/// its full name.
pub fn programs() -> [Command; 2] {
    [nydus_image::command(), nydusify::command()].map(|command| {
        let mut command = command.disable_help_subcommand(true);
        command.build();
        command
    })
}

/// A command and all those below it that are not hidden, each with its program.
pub fn commands(program: &Command) -> Vec<&Command> {
    let below = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    std::iter::once(program)
        .chain(below.flat_map(commands))
        .collect()
}

/// Name of the page of a command: its words, joined.
pub fn page_name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

/// Writes `man/man1/*.1` and, where each shell looks for them, the completions into `dir`, which is made if absent.
pub fn write(dir: &Path) -> anyhow::Result<()> {
    let pages = make_dir(dir, "man/man1")?;
    for program in programs() {
        for command in commands(&program) {
            let path = pages.join(format!("{}.1", page_name(command)));
            let page = page::render(program.get_name(), command)?;
            write_file(&path, &page)?;
        }
        for (shell, below) in SHELLS {
            let name = program.get_name();
            let out = make_dir(dir, below)?.join(shell.file_name(name));
            write_file(&out, &completions(shell, &program))?;
        }
    }
    Ok(())
}

/// The completions of a program for a shell.
fn completions(shell: Shell, program: &Command) -> Vec<u8> {
    let name = program.get_name();
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut visible(program), name, &mut out);
    if shell == Shell::Bash {
        // clap_complete 4.6 spells a program's name with a hyphen in two ways, and finds no commands below it.
        let text = String::from_utf8_lossy(&out);
        out = text
            .replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
            .into_bytes();
    }
    out
}

fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn make_dir(dir: &Path, below: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(below);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
