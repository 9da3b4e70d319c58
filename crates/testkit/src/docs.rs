//! Documentation whose examples are tests.
//!
//! The commands of every `console` block of a page are run by a shell, one after the other in a directory of the
//! page's own, and what they print is compared with what the page says, as trycmd does it: `[..]` stands for anything
//! in a line, `...` for any lines, `? 1` behind a command for its exit code. A block that begins with a comment says
//! where it is not run:
//!
//! * `# needs WHAT`: where [`NEEDS`] has it and the test says that it is there, which the privileged ones do;
//! * `# not run: WHY`: nowhere.

use std::path::{Path, PathBuf};

/// What a block may need.
pub const NEEDS: [&str; 3] = ["root", "FUSE", "Linux 6.15"];

/// A page made ready for trycmd.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The page with nothing but blocks to be run.
    pub text: String,
    /// Commands in blocks without a mark.
    pub open: usize,
    /// Commands in blocks that need privileges.
    pub privileged: usize,
}

/// Writes each of the `pages` that has something to run with what is `there` of [`NEEDS`] (and without, if nothing is) into `out` as `NAME.md`, and beside it a directory `NAME.in` in which it
/// is to run. `fixture` fills that directory and says which words of the page stand for others, such as the name of a
/// registry for its address.
///
/// # Panics
/// When a page has no example at all, or a file cannot be read or written.
pub fn prepare(
    pages: &[PathBuf],
    out: &Path,
    there: &[&str],
    mut fixture: impl FnMut(&str, &Path) -> Vec<(&'static str, String)>,
) {
    assert!(!pages.is_empty(), "no pages");
    for path in pages {
        let text = std::fs::read_to_string(path).expect("read a page");
        let page = parse(&text, there);
        assert!(
            page.open + page.privileged > 0,
            "{}: no example of this page is run; it needs a `console` block whose files the fixture of this test makes",
            path.display()
        );
        let here = if there.is_empty() {
            page.open
        } else {
            page.privileged
        };
        if here == 0 {
            continue;
        }
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .expect("a name in ASCII");
        let place = out.join(format!("{name}.in"));
        std::fs::create_dir(&place).expect("make a directory");
        let text = fixture(name, &place)
            .iter()
            .fold(page.text, |text, (from, to)| text.replace(from, to));
        std::fs::write(out.join(format!("{name}.md")), text).expect("write a page");
    }
}

/// All pages in a directory, in order.
///
/// # Panics
/// When it cannot be listed.
pub fn pages(docs: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(docs).unwrap_or_else(|error| panic!("{}: {error}", docs.display()));
    let mut pages: Vec<PathBuf> = entries
        .map(|entry| entry.expect("list the pages").path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    pages.sort();
    pages
}

/// Reads a page: every command to be run becomes one of the shell's.
pub fn parse(text: &str, there: &[&str]) -> Page {
    let mut page = Page::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("```console") {
            continue;
        }
        let block: Vec<&str> = lines
            .by_ref()
            .take_while(|line| !line.starts_with("```"))
            .collect();
        let (mark, block) = match block.split_first() {
            Some((first, rest)) if first.starts_with('#') => (*first, rest),
            _ => ("", &block[..]),
        };
        let commands = block.iter().filter(|line| line.starts_with("$ ")).count();
        let runs = match mark {
            "" => {
                page.open += commands;
                true
            }
            _ => match mark.strip_prefix("# needs ") {
                Some(need) => {
                    assert!(NEEDS.contains(&need), "what is meant by {mark:?}?");
                    page.privileged += commands;
                    there.contains(&need)
                }
                None => {
                    assert!(
                        mark.starts_with("# not run: "),
                        "what is meant by {mark:?}?"
                    );
                    false
                }
            },
        };
        if runs {
            add(&mut page.text, block);
        }
    }
    page
}

fn add(out: &mut String, block: &[&str]) {
    out.push_str("```console\n");
    let mut lines = block.iter();
    // What is expected ends with an empty line, as trycmd wants it.
    let mut printed = false;
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("$ ") else {
            printed |= !line.starts_with("? ");
            out.push_str(&without_time(line));
            out.push('\n');
            continue;
        };
        if std::mem::take(&mut printed) {
            out.push('\n');
        }
        let mut command = command.to_owned();
        while let Some(rest) = command.strip_suffix('\\') {
            let next = lines.next().expect("a line that is continued");
            command = format!("{rest}{}", next.trim_start());
        }
        // The last line is one, whether the program ends it or not.
        let script = format!(
            "out=$({command} 2>&1); code=$?; [ -z \"$out\" ] || printf \"%s\\n\" \"$out\"; exit $code"
        );
        out.push_str(&format!("$ sh -c '{}'\n", script.replace('\'', r"'\''")));
    }
    if printed {
        out.push('\n');
    }
    out.push_str("```\n\n");
}

/// A line of a log whatever its time is: `[2026-11-26 16:02:50.085080 +00:00] INFO ...`, or `2026-11-26T16:02:50.085080Z  INFO ...`.
fn without_time(line: &str) -> String {
    for (begin, end) in [("[20", "] "), ("20", "Z  ")] {
        let rest = line
            .starts_with(begin)
            .then(|| line.split_once(end))
            .flatten();
        if let Some((_, rest)) = rest.filter(|(time, _)| time.len() > 20) {
            return format!("[..]{end}{rest}");
        }
    }
    line.to_owned()
}

/// Takes away what is still mounted below a directory when this value goes.
#[derive(Debug)]
pub struct Unmount(pub PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| Path::new(at).starts_with(&self.0));
        for at in below {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# x\n\n```console\n$ a 'b c' \\\n    --d\n[2026-11-26 16:02:50.1 +00:00] INFO done\n\
        2026-11-26T16:15:50.220547Z  INFO more\n```\n\n\
        ```console\n# needs root\n$ mount it\n```\n\n```text\n$ nothing\n```\n\n\
        ```console\n# not run: it takes a day\n$ wait\n```\n";

    #[test]
    fn commands_are_the_shells() {
        let page = parse(PAGE, &[]);
        assert!(
            page.text
                .starts_with("```console\n$ sh -c 'out=$(a '\\''b c'\\'' --d 2>&1);"),
            "{}",
            page.text
        );
        assert!(
            page.text
                .ends_with("[..]] INFO done\n[..]Z  INFO more\n\n```\n\n"),
            "{}",
            page.text
        );
        assert_eq!((page.open, page.privileged), (1, 1));
        let page = parse(PAGE, &["root"]);
        assert!(
            page.text.contains("mount it") && !page.text.contains("wait"),
            "{page:?}"
        );
    }

    #[test]
    #[should_panic(expected = "no example of this page is run")]
    fn a_page_without_an_example_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let text = "```console\n# not run: why\n$ x\n```\n";
        std::fs::write(dir.path().join("page.md"), text).unwrap();
        prepare(&pages(dir.path()), dir.path(), &[], |_, _| Vec::new());
    }

    #[test]
    #[should_panic(expected = "what is meant by")]
    fn an_unknown_mark_is_told() {
        parse("```console\n# later\n$ x\n```\n", &[]);
    }
}
