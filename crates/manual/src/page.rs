//! One page: what clap knows of a command, then what it does not know.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::example::example;
use crate::page_name;
use crate::section::{Section, sections, see_also};

/// The page of a command of `program` in roff.
pub fn render(program: &str, command: &Command) -> anyhow::Result<Vec<u8>> {
    // The date is left out: a page belongs to a version. An empty one would be no argument at all.
    let man = Man::new(command.clone())
        .date(" ")
        .source(format!("{program} {}", build_info::VERSION))
        .manual("Nydus tools");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    // Names of commands and options stay whole.
    out.extend_from_slice(b".nh\n");
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut out)?;
    }
    if command
        .get_subcommands()
        .any(|command| !command.is_hide_set())
    {
        man.render_subcommands_section(&mut out)?;
    }
    let mut rest = Roff::new();
    for section in sections(page_name(command)) {
        add(&mut rest, section);
    }
    if let Some(lines) = example(page_name(command))? {
        rest.control("SH", ["EXAMPLES"]);
        rest.control("nf", []);
        for line in lines {
            rest.text([roman(line)]);
        }
        rest.control("fi", []);
    }
    rest.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for name in see_also(command) {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(name), roman("(1)")]);
    }
    rest.text(line);
    rest.to_writer(&mut out)?;
    Ok(out)
}

fn add(roff: &mut Roff, section: &Section) {
    roff.control("SH", [section.title]);
    for (term, text) in section.terms {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*text)]);
    }
    if !section.text.is_empty() {
        roff.control("PP", []);
        roff.text([roman(section.text)]);
    }
}
