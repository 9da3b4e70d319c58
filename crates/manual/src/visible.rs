//! A command line without what is hidden: completions would offer it.

use clap::Command;

/// A copy of `command` with the commands, options and names alone that `--help` shows.
pub fn visible(command: &Command) -> Command {
    let arguments = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set());
    let below = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let mut out = Command::new(forever(command.get_name()))
        .visible_aliases(command.get_visible_aliases().map(forever))
        // `build` has added them already.
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(arguments.cloned())
        .subcommands(below.map(visible));
    if let Some(about) = command.get_about() {
        out = out.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        out = out.version(forever(version));
    }
    out
}

/// Clap's names are those of a source text; ours come out of clap, once per run.
fn forever(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}
