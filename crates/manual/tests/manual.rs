//! What is written for readers and shells says what the programs say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::run::{output, run};

fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    manual::write(dir.path()).unwrap();
    dir
}

fn page(dir: &Path, name: &str) -> String {
    let path = dir.join("man/man1").join(format!("{name}.1"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fI", "")
        .replace("\\fR", "")
}

/// Every long option in the help is in the page, and every command has a page, and so on below it.
fn compare(dir: &Path, name: &str, mut command: clap::Command, seen: &mut usize) {
    let help = command.render_long_help().to_string();
    let page = page(dir, name);
    for option in help
        .split([' ', '\n', ',', '[', '='])
        .filter(|word| word.starts_with("--"))
    {
        assert!(
            page.contains(option),
            "{option} is not in {name}.1:\n{page}"
        );
    }
    *seen += 1;
    let Some((_, commands)) = help.split_once("\nCommands:\n") else {
        return;
    };
    let (commands, _) = commands.split_once("\n\n").unwrap();
    // What a command does may go on in further lines, which are indented deeper.
    let commands = commands
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next());
    for below in commands.filter(|word| *word != "help") {
        let command = command
            .find_subcommand(below)
            .unwrap_or_else(|| panic!("{below}: {help}"));
        compare(dir, &format!("{name}-{below}"), command.clone(), seen);
    }
}

#[test]
fn every_command_has_a_page_with_every_option_of_its_help() {
    let dir = written();
    let mut seen = 0;
    for mut program in [nydus_image::command(), nydusify::command()] {
        program.build();
        compare(dir.path(), program.get_name(), program.clone(), &mut seen);
    }
    let pages = std::fs::read_dir(dir.path().join("man/man1"))
        .unwrap()
        .count();
    assert_eq!(seen, pages, "a page nobody asked for");
    assert!(seen > 20, "{seen} pages");
}

#[test]
fn pages_say_how_programs_end_and_what_they_look_at() {
    let dir = written();
    for entry in std::fs::read_dir(dir.path().join("man/man1")).unwrap() {
        let path = entry.unwrap().path();
        let page = page(dir.path(), path.file_stem().unwrap().to_str().unwrap());
        for word in [
            ".SH NAME",
            ".SH \"EXIT STATUS\"",
            ".SH \"SEE ALSO\"",
            build_info(),
        ] {
            assert!(
                page.contains(word),
                "{word} is not in {}:\n{page}",
                path.display()
            );
        }
        // What it refers to exists.
        let (_, see_also) = page.split_once(".SH \"SEE ALSO\"\n").unwrap();
        for name in see_also
            .split([',', ' ', '\n'])
            .filter_map(|word| word.strip_suffix("(1)"))
        {
            assert!(
                dir.path().join(format!("man/man1/{name}.1")).exists(),
                "{name} in {}",
                path.display()
            );
        }
    }
    let nydusify = page(dir.path(), "nydusify");
    for word in [
        ".SH ENVIRONMENT",
        "DOCKER_CONFIG",
        ".SH FILES",
        "nydusify-convert(1)",
    ] {
        assert!(nydusify.contains(word), "{word}");
    }
    assert!(page(dir.path(), "nydusify-convert").contains("TARGET_SUFFIX"));
    assert!(!nydusify.contains("guard"), "a hidden command");
}

fn build_info() -> &'static str {
    concat!(" v", env!("CARGO_PKG_VERSION"), "\"")
}

#[test]
fn groff_finds_no_fault() {
    if testkit::oracle::program("groff").is_none() {
        return testkit::skip("groff_finds_no_fault", "no groff (apt-get install groff)");
    }
    let dir = written();
    for entry in std::fs::read_dir(dir.path().join("man/man1")).unwrap() {
        let path = entry.unwrap().path();
        let mut command = Command::new("groff");
        command
            .args(["-ww", "-Wbreak", "-man", "-Tascii", "-z"])
            .arg(&path);
        let ran = output(&mut command).ok();
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            ("", ""),
            "{}",
            path.display()
        );
    }
}

/// What bash offers for the last of `words`.
fn completions(dir: &Path, words: &[&str]) -> Vec<String> {
    let (program, current) = (words[0], words[words.len() - 1]);
    let file = dir
        .join("bash-completion/completions")
        .join(format!("{program}.bash"));
    let script = "set -eu; source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))\n\
        function=$(complete -p \"$1\"); function=${function#*-F }; function=${function%% *}\n\
        $function \"$1\" \"$COMP_CURRENT\" \"$COMP_PREVIOUS\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut command = Command::new("bash");
    command
        .args(["--norc", "-c", script, "bash"])
        .arg(file)
        .args(words);
    command
        .env("COMP_CURRENT", current)
        .env("COMP_PREVIOUS", words[words.len() - 2]);
    let ran = output(&mut command).ok();
    assert_eq!(ran.stderr, "");
    ran.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    if testkit::oracle::program("bash").is_none() {
        return testkit::skip("bash_completes_commands_options_and_values", "no bash");
    }
    let dir = written();
    let offered = |words: &[&str]| completions(dir.path(), words);
    assert_eq!(offered(&["nydusify", "conv"]), ["convert"]);
    assert_eq!(
        offered(&["nydusify", "convert", "--target-suf"]),
        ["--target-suffix"]
    );
    assert_eq!(
        offered(&["nydusify", "convert", "--compressor", "zs"]),
        ["zstd"]
    );
    assert_eq!(offered(&["nydus-image", "cr"]), ["create"]);
    assert_eq!(
        offered(&["nydus-image", "create", "--type", "targz-re"]),
        ["targz-ref"]
    );
    assert_eq!(offered(&["nydus-image", "chunkdict", "gen"]), ["generate"]);
    let all = offered(&["nydusify", ""]);
    assert!(
        !all.iter().any(|word| word == "guard"),
        "a hidden command: {all:?}"
    );
    let all = offered(&["nydus-image", "create", "--"]);
    assert!(
        !all.iter().any(|word| word == "--disable-check"),
        "a hidden option: {all:?}"
    );
}

/// Where the shell is installed, it reads the file.
#[test]
fn other_shells_read_their_completions() {
    let dir = written();
    for (shell, file) in [
        ("zsh", "zsh/site-functions/_nydusify"),
        ("zsh", "zsh/site-functions/_nydus-image"),
        ("fish", "fish/vendor_completions.d/nydusify.fish"),
        ("fish", "fish/vendor_completions.d/nydus-image.fish"),
    ] {
        let path = dir.path().join(file);
        assert!(
            std::fs::read_to_string(&path).unwrap().contains("convert") || file.contains("image")
        );
        if testkit::oracle::program(shell).is_some() {
            run(shell, ["-n".as_ref(), path.as_os_str()]).ok();
        }
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                out.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    out
}

/// Neither the width of the terminal nor the variables that options read make a difference.
#[test]
fn the_same_source_gives_the_same_bytes() {
    let program = env!("CARGO_BIN_EXE_manual");
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let new = two.path().join("deep/down");
    output(Command::new(program).arg(one.path()).env("COLUMNS", "40")).ok();
    output(
        Command::new(program)
            .arg(&new)
            .env("TARGET", "x")
            .env("HOME", "/h")
            .current_dir("/"),
    )
    .ok();
    assert!(files(one.path()) == files(&new));
    // Made anew over what is there.
    output(Command::new(program).arg(one.path())).ok();
    assert!(files(one.path()) == files(&new));
}
