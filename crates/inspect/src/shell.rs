//! The commands of `nydus-image inspect`.

mod find;
mod show;

use std::io::Write;

use rafs_format::{Bootstrap, Inode};
use serde_json::{Value, json};
use storage::LoadedBootstrap;

use crate::Error;
use crate::report::number;

/// What a person sees before a command.
pub const PROMPT: &str = "Inspecting RAFS :> ";

const HELP: &str = "\
stats         what the superblocks say
ls            the names in the current directory
cd DIR        make DIR the current directory
stat NAME     what is known of NAME in the current directory, `.` for itself
blobs         the blob table
prefetch      files and directories to fetch first
chunk OFFSET  files with a chunk that is stored at OFFSET of its blob
icheck INODE  paths and details of an inode
help          this text
exit, q       leave
";

/// Whether to go on after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another command may follow.
    Continue,
    /// The user leaves.
    Exit,
}

/// A command line, taken apart.
enum Command<'a> {
    Stats,
    List,
    ChangeDir(&'a str),
    Stat(&'a str),
    Blobs,
    Prefetch,
    Chunk(u64),
    InodeCheck(u64),
    Help,
    Exit,
}

impl<'a> Command<'a> {
    fn parse(line: &'a str) -> Result<Self, Error> {
        let line = line.trim();
        let (word, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let invalid = || Error::InvalidArguments(line.to_owned());
        let text = || {
            if argument.is_empty() {
                Err(invalid())
            } else {
                Ok(argument)
            }
        };
        let number = || parse_number(argument).ok_or_else(invalid);
        match word {
            "stats" => Ok(Self::Stats),
            "ls" => Ok(Self::List),
            "cd" => text().map(Self::ChangeDir),
            "stat" => text().map(Self::Stat),
            "blobs" => Ok(Self::Blobs),
            "prefetch" => Ok(Self::Prefetch),
            "chunk" => number().map(Self::Chunk),
            "icheck" => number().map(Self::InodeCheck),
            "help" => Ok(Self::Help),
            "exit" | "q" => Ok(Self::Exit),
            _ => Err(Error::UnknownCommand(line.to_owned())),
        }
    }
}

/// A number, decimal or hexadecimal with `0x`.
fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A view of a bootstrap with a current directory.
pub struct Shell<'a> {
    loaded: &'a LoadedBootstrap,
    bootstrap: &'a Bootstrap<Vec<u8>>,
    /// The directories from the root to the current one, with their names.
    stack: Vec<(Vec<u8>, Inode)>,
}

impl<'a> Shell<'a> {
    /// Begins in the root directory.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is none.
    pub fn new(loaded: &'a LoadedBootstrap) -> Result<Self, Error> {
        let bootstrap = &loaded.bootstrap;
        let root = bootstrap
            .inode(bootstrap.root())
            .map_err(|source| Error::Damaged {
                path: b"/".to_vec(),
                source,
            })?;
        Ok(Self {
            loaded,
            bootstrap,
            stack: vec![(Vec::new(), root)],
        })
    }

    /// Runs a command for a person. What is wrong with the command or the image is part of the output.
    ///
    /// # Errors
    /// [`Error::Write`] alone.
    pub fn interact(&mut self, line: &str, out: &mut dyn Write) -> Result<Next, Error> {
        if line.trim().is_empty() {
            return Ok(Next::Continue);
        }
        let done = Command::parse(line).and_then(|command| match command {
            Command::Exit => Ok(Next::Exit),
            Command::Help => {
                out.write_all(HELP.as_bytes())?;
                Ok(Next::Continue)
            }
            Command::Stats => show::stats(self.loaded, out).map(|()| Next::Continue),
            Command::Blobs => show::blobs(self.loaded, out).map(|()| Next::Continue),
            Command::Prefetch => self.prefetch(out).map(|()| Next::Continue),
            other => self.text_command(&other, out).map(|()| Next::Continue),
        });
        match done {
            Err(error @ Error::Write(_)) => Err(error),
            Err(error) => {
                writeln!(out, "{}", with_causes(&error))?;
                Ok(Next::Continue)
            }
            Ok(next) => Ok(next),
        }
    }

    /// Runs a command for a program: JSON without a newline at its end, `null` where there is nothing to say.
    ///
    /// # Errors
    /// [`Error::UnknownCommand`], [`Error::InvalidArguments`], [`Error::Help`], [`Error::Damaged`] or
    /// [`Error::Write`].
    pub fn request(&mut self, line: &str, out: &mut dyn Write) -> Result<(), Error> {
        let value = match Command::parse(line)? {
            Command::Help => return Err(Error::Help),
            Command::Exit => Value::Null,
            Command::Stats => json!({ "inodes_count": show::inodes_count(self.loaded) }),
            Command::Blobs => {
                serde_json::to_writer(&mut *out, &show::blob_requests(self.loaded))
                    .map_err(std::io::Error::from)?;
                return Ok(());
            }
            Command::Prefetch => self.prefetch_json()?,
            other => {
                self.text_command(&other, out)?;
                Value::Null
            }
        };
        write!(out, "{value}")?;
        Ok(())
    }

    /// Commands that say the same to persons and programs.
    fn text_command(&mut self, command: &Command<'_>, out: &mut dyn Write) -> Result<(), Error> {
        match command {
            Command::List => self.list(out),
            Command::ChangeDir(path) => self.change_dir(path, out),
            Command::Stat(name) => self.stat(name, out),
            Command::Chunk(offset) => find::chunk(self.loaded, *offset, out),
            Command::InodeCheck(number) => find::inode(self.loaded, *number, out),
            _ => Ok(()),
        }
    }

    fn current(&self) -> &Inode {
        // The root is never popped.
        &self.stack.last().expect("the stack holds the root").1
    }

    fn damaged(&self) -> impl Fn(rafs_format::Error) -> Error + use<> {
        let path = self.path();
        move |source| Error::Damaged {
            path: path.clone(),
            source,
        }
    }

    fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.stack.iter().map(|(name, _)| name.as_slice()).collect();
        if names.len() == 1 {
            b"/".to_vec()
        } else {
            names.join(&b'/')
        }
    }

    fn list(&self, out: &mut dyn Write) -> Result<(), Error> {
        for entry in self
            .bootstrap
            .entries(self.current())
            .map_err(self.damaged())?
        {
            let entry = entry.map_err(self.damaged())?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let inode = self.bootstrap.inode(entry.nid).map_err(self.damaged())?;
            writeln!(
                out,
                "{}    {:<10} \"{}\"",
                show::letter(&inode),
                number(self.loaded, &inode),
                entry.name.escape_ascii()
            )?;
        }
        Ok(())
    }

    /// Changes the directory; a path that cannot be followed leaves it as it is.
    fn change_dir(&mut self, path: &str, out: &mut dyn Write) -> Result<(), Error> {
        let mut stack = self.stack.clone();
        if path.starts_with('/') {
            stack.truncate(1);
        }
        for name in path.split('/') {
            match name {
                "" | "." => continue,
                ".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some((_, dir)) = stack.last() else { break };
            let Some(entry) = self
                .bootstrap
                .lookup(dir, name.as_bytes())
                .map_err(self.damaged())?
            else {
                return Ok(writeln!(out, "{path} is not there")?);
            };
            let inode = self.bootstrap.inode(entry.nid).map_err(self.damaged())?;
            if !inode.is_dir() {
                return Ok(writeln!(out, "{path} is not a directory")?);
            }
            stack.push((name.as_bytes().to_vec(), inode));
        }
        self.stack = stack;
        Ok(())
    }

    fn stat(&self, name: &str, out: &mut dyn Write) -> Result<(), Error> {
        let dir = *self.current();
        let parent = self
            .stack
            .iter()
            .rev()
            .nth(1)
            .map_or(dir, |(_, parent)| *parent);
        if matches!(name, "." | "./") {
            let (own, _) = self.stack.last().expect("the stack holds the root");
            let own: &[u8] = if own.is_empty() { b"/" } else { own };
            return show::inode(self.loaded, own, &dir, number(self.loaded, &parent), out);
        }
        match self
            .bootstrap
            .lookup(&dir, name.as_bytes())
            .map_err(self.damaged())?
        {
            None => Ok(writeln!(out, "{name} is not there")?),
            Some(entry) => {
                let inode = self.bootstrap.inode(entry.nid).map_err(self.damaged())?;
                show::inode(
                    self.loaded,
                    name.as_bytes(),
                    &inode,
                    number(self.loaded, &dir),
                    out,
                )
            }
        }
    }

    fn prefetch(&self, out: &mut dyn Write) -> Result<(), Error> {
        let files = find::prefetch(self.loaded)?;
        writeln!(out, "Total Prefetching Files: {}", files.len())?;
        for (number, paths) in files {
            for path in paths {
                writeln!(out, "{number:<10} {}", path.escape_ascii())?;
            }
        }
        Ok(())
    }

    fn prefetch_json(&self) -> Result<Value, Error> {
        let files = find::prefetch(self.loaded)?;
        let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
        let value = |(number, paths): &find::Prefetched| json!({ "inode": number, "path": paths.iter().map(text).collect::<Vec<_>>() });
        Ok(files.iter().map(value).collect())
    }
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
