//! What a check found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Differences that are shown in full; the rest is counted.
pub const SHOWN_MAX: usize = 20;

/// The rules, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Manifest and config are those of a Nydus (or OCI) image, and the configs of both sides agree.
    Manifest,
    /// The bootstrap is valid and agrees with the manifest and with the chunk tables of its blobs.
    Bootstrap,
    /// Both sides hold the same files.
    Filesystem,
    /// Every chunk in the target's blobs has the digest that the bootstrap records.
    Data,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Bootstrap => "bootstrap",
            Self::Filesystem => "file system",
            Self::Data => "data",
        })
    }
}

/// How a rule ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// It does not apply, or what it needs is not there.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// One rule's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// The rule.
    pub rule: Rule,
    /// How it ended.
    pub outcome: Outcome,
    /// What was looked at, or why it was skipped.
    pub note: String,
    /// What is wrong, at most [`SHOWN_MAX`] of it; differences between the trees are in [`Report::differences`].
    pub problems: Vec<String>,
    /// How much is wrong, whether shown or not.
    pub problem_count: u64,
}

impl RuleReport {
    /// A rule about which nothing is known yet.
    pub(crate) fn new(rule: Rule) -> Self {
        Self {
            rule,
            outcome: Outcome::Passed,
            note: String::new(),
            problems: Vec::new(),
            problem_count: 0,
        }
    }

    /// A rule that was not applied.
    pub(crate) fn skipped(rule: Rule, why: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Skipped,
            note: why.into(),
            ..Self::new(rule)
        }
    }

    /// Records what is wrong.
    pub(crate) fn problem(&mut self, problem: impl Into<String>) {
        self.outcome = Outcome::Failed;
        self.problem_count += 1;
        if self.problems.len() < SHOWN_MAX {
            self.problems.push(problem.into());
        }
    }

    /// Takes over what another part of the check found wrong.
    pub(crate) fn absorb(&mut self, other: Self) {
        let hidden = other.problem_count - other.problems.len() as u64;
        other
            .problems
            .into_iter()
            .for_each(|problem| self.problem(problem));
        self.problem_count += hidden;
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A fact about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// The source has the name, the target has not.
    Missing,
    /// The target has the name, the source has not.
    Extra,
    /// File type.
    Type,
    /// Permission bits (not those of symbolic links, which have no meaning).
    Mode,
    /// Owner.
    Uid,
    /// Group.
    Gid,
    /// Device number.
    Device,
    /// Target of a symbolic link.
    LinkTarget,
    /// Which names are one file.
    HardLink,
    /// Extended attributes.
    Xattr,
    /// Modification time.
    Mtime,
    /// Length of a regular file.
    Size,
    /// Bytes of a regular file.
    Content,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Type => "type",
            Self::Mode => "mode",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Device => "device",
            Self::LinkTarget => "link target",
            Self::HardLink => "hard link",
            Self::Xattr => "xattr",
            Self::Mtime => "mtime",
            Self::Size => "size",
            Self::Content => "content",
        })
    }
}

/// One difference between source and target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Absolute path; bytes that are not printable ASCII as `\xNN`, a backslash as `\\`.
    pub path: String,
    /// What differs.
    pub fact: Fact,
    /// The source's value.
    pub source: String,
    /// The target's value.
    pub target: String,
}

/// All differences between the two trees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// How many there are.
    pub total: u64,
    /// How many of each kind there are.
    pub by_fact: BTreeMap<Fact, u64>,
    /// The first [`SHOWN_MAX`] in full.
    pub first: Vec<Difference>,
}

impl Differences {
    /// Counts a difference, and keeps it in full while there are few; `describe` is only called in that case.
    pub(crate) fn add(&mut self, fact: Fact, describe: impl FnOnce() -> (String, String, String)) {
        self.total += 1;
        *self.by_fact.entry(fact).or_default() += 1;
        if self.first.len() < SHOWN_MAX {
            let (path, source, target) = describe();
            self.first.push(Difference {
                path,
                fact,
                source,
                target,
            });
        }
    }
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Names in the target, the root included.
    pub names: u64,
    /// Inodes in the target.
    pub inodes: u64,
    /// Different chunks that the target's files consist of.
    pub chunks: u64,
    /// Chunks that were decoded and compared with their digest.
    pub chunks_read: u64,
    /// Uncompressed bytes of these.
    pub bytes_read: u64,
    /// Layers of the source that were replayed.
    pub layers: u64,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name and version of this document's layout.
    pub schema: &'static str,
    /// What the target was compared with, if anything.
    pub source: Option<String>,
    /// What was checked.
    pub target: String,
    /// Whether no rule failed.
    pub verified: bool,
    /// Each rule's result.
    pub rules: Vec<RuleReport>,
    /// Where the trees differ.
    pub differences: Differences,
    /// How much was looked at.
    pub counts: Counts,
}

/// Layout of [`Report`] as JSON.
pub const SCHEMA: &str = "nydusify-check/1";

impl Report {
    pub(crate) fn new(
        source: Option<String>,
        target: String,
        rules: Vec<RuleReport>,
        differences: Differences,
        counts: Counts,
    ) -> Self {
        let verified = rules.iter().all(|rule| rule.outcome != Outcome::Failed);
        Self {
            schema: SCHEMA,
            source,
            target,
            verified,
            rules,
            differences,
            counts,
        }
    }

    /// The result of one rule.
    pub fn rule(&self, rule: Rule) -> Option<&RuleReport> {
        self.rules.iter().find(|report| report.rule == rule)
    }
}

impl fmt::Display for Report {
    /// A table for people: rules, then what is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(
                f,
                "{:<12} {:<8} {}",
                rule.rule.to_string(),
                rule.outcome,
                rule.note
            )?;
            for problem in &rule.problems {
                writeln!(f, "    {problem}")?;
            }
            let hidden = rule.problem_count - rule.problems.len() as u64;
            if hidden > 0 {
                writeln!(f, "    and {hidden} more")?;
            }
        }
        if self.differences.total == 0 {
            return Ok(());
        }
        writeln!(f, "{} differences:", self.differences.total)?;
        for (fact, count) in &self.differences.by_fact {
            writeln!(f, "    {fact:<12} {count}")?;
        }
        for Difference {
            path,
            fact,
            source,
            target,
        } in &self.differences.first
        {
            writeln!(f, "{path}: {fact}: source {source}, target {target}")?;
        }
        let hidden = self.differences.total - self.differences.first.len() as u64;
        if hidden > 0 {
            writeln!(f, "and {hidden} more")?;
        }
        Ok(())
    }
}
