//! Expected trees: what a mounted image has to show, and the comparison with what it does show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::scan::{Found, scan};

/// What one path has to be; a field that is `None` is not compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// `f`, `d`, `l`, `c`, `b` or `p`.
    pub kind: char,
    /// Permission bits; not compared for symbolic links.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a regular file.
    pub size: Option<u64>,
    /// Digest of a regular file's content, in hex.
    pub sha256: Option<String>,
    /// Seconds of the modification time.
    pub mtime: Option<i64>,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: Option<u32>,
    /// Target of a symbolic link.
    pub link: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Extended attributes that must be there.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Name of the group of hard links it belongs to; its own path when `None`.
    pub hard: Option<Vec<u8>>,
}

/// An expected tree, by path relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expect {
    /// The entries.
    pub entries: BTreeMap<Vec<u8>, Entry>,
    /// Whether nothing may be there beyond what is said: no other attributes, no shared inodes between groups of
    /// hard links, and link counts as the groups say. Expectations read from JSON are not strict.
    pub strict: bool,
}

/// Compares the tree at `root` with the JSON file `expect`; one line per difference, none if they agree.
///
/// # Panics
/// When either cannot be read: a test has nothing to go on then.
pub fn compare(root: &Path, expect: &Path) -> Vec<String> {
    let expect = Expect::load(expect).unwrap_or_else(|error| panic!("{error:#}"));
    expect.compare(root)
}

/// Compares two trees on disk in every fact but inode and device numbers; hard links must pair up.
///
/// # Panics
/// When either cannot be read.
pub fn compare_trees(left: &Path, right: &Path) -> Vec<String> {
    compare_trees_but(left, right, |_| {})
}

/// Like [`compare_trees`], with `forget` applied to every file first: it resets the facts that may differ.
///
/// # Panics
/// When either cannot be read.
pub fn compare_trees_but(left: &Path, right: &Path, forget: impl Fn(&mut Found)) -> Vec<String> {
    let read =
        |root: &Path| scan(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let (mut left, mut right) = (read(left), read(right));
    let mut out = Vec::new();
    for tree in [&mut left, &mut right] {
        name_inodes(tree);
        tree.values_mut().for_each(&forget);
    }
    for path in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
        match (left.get(path), right.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => out.push(format!(
                "{}: {a:?} on the left, {b:?} on the right",
                show(path)
            )),
        }
    }
    out
}

/// Compares a mounted image with its unpacked layers, stacked. These keep names below that upper layers hide, and the
/// root is the scratch directory's.
///
/// # Panics
/// When either cannot be read.
pub fn compare_with_stack(stack: &Path, mounted: &Path) -> Vec<String> {
    let mut differences = compare_trees_but(stack, mounted, |file| file.nlink = 0);
    differences.retain(|line| !line.starts_with(':'));
    differences
}

/// Replaces inode numbers by the rank of the first name in path order, which two equal trees share.
fn name_inodes(tree: &mut BTreeMap<Vec<u8>, Found>) {
    let mut ranks = BTreeMap::new();
    for file in tree.values_mut() {
        let rank = ranks.len() as u64;
        file.inode = (0, *ranks.entry(file.inode).or_insert(rank));
    }
}

impl Expect {
    /// Reads a JSON object of path -> facts.
    ///
    /// # Errors
    /// An unreadable file or facts of another shape.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        let value: Value =
            serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let Value::Object(map) = value else {
            bail!("{}: not a JSON object", path.display())
        };
        let entries = map
            .iter()
            .map(|(name, facts)| {
                Ok((
                    name.clone().into_bytes(),
                    entry(facts).with_context(|| name.clone())?,
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            entries,
            strict: false,
        })
    }

    /// Compares the tree at `root` with this; one line per difference, none if they agree.
    ///
    /// # Panics
    /// When the tree cannot be listed.
    pub fn compare(&self, root: &Path) -> Vec<String> {
        self.compare_found(scan(root).unwrap_or_else(|error| panic!("{}: {error}", root.display())))
    }

    /// Compares a tree that was read by other means than [`scan`] with this; one line per difference.
    pub fn compare_found(&self, mut have: BTreeMap<Vec<u8>, Found>) -> Vec<String> {
        if !self.entries.contains_key(b"".as_slice()) {
            have.remove(b"".as_slice());
        }
        let mut out = Vec::new();
        for (path, want) in &self.entries {
            match have.get(path) {
                None => out.push(format!("missing {}", show(path))),
                Some(found) => compare_entry(path, want, found, self.strict, &mut out),
            }
        }
        out.extend(
            have.keys()
                .filter(|path| !self.entries.contains_key(*path))
                .map(|p| format!("extra {}", show(p))),
        );
        self.compare_groups(&have, &mut out);
        out
    }

    fn compare_groups(&self, have: &BTreeMap<Vec<u8>, Found>, out: &mut Vec<String>) {
        let mut groups: BTreeMap<_, Vec<&[u8]>> = BTreeMap::new();
        for (path, want) in self.entries.iter().filter(|(_, want)| want.kind != 'd') {
            // A name that was once linked to another keeps that one's path as its group's name even when an upper
            // layer has replaced the other, so the content takes part in the key.
            let key = (want.hard.as_ref().unwrap_or(path), &want.sha256, &want.link);
            groups.entry(key).or_default().push(path);
        }
        let mut owners: BTreeMap<(u64, u64), &[u8]> = BTreeMap::new();
        for names in groups.values() {
            let found: Vec<_> = names.iter().filter_map(|name| have.get(*name)).collect();
            let inodes: BTreeSet<_> = found.iter().map(|file| file.inode).collect();
            let first = show(names[0]);
            if inodes.len() > 1 {
                out.push(format!(
                    "{first}: names of one hard link have {} inode numbers",
                    inodes.len()
                ));
            }
            if !self.strict {
                continue;
            }
            for inode in inodes {
                if let Some(other) = owners.insert(inode, names[0]) {
                    out.push(format!("{first}: shares an inode with {}", show(other)));
                }
            }
            for file in found.iter().filter(|file| file.nlink != names.len() as u64) {
                out.push(format!(
                    "{first}: {} links, want {}",
                    file.nlink,
                    names.len()
                ));
            }
        }
    }
}

fn compare_entry(path: &[u8], want: &Entry, found: &Found, strict: bool, out: &mut Vec<String>) {
    let mut differ = |what: &str, have: &dyn std::fmt::Debug, want: &dyn std::fmt::Debug| {
        out.push(format!("{}: {what} {have:?}, want {want:?}", show(path)));
    };
    let kind = kind(found.mode);
    if kind != want.kind {
        return differ("type", &kind, &want.kind);
    }
    let permissions = found.mode & 0o7777;
    if let Some(mode) = want.mode.filter(|mode| *mode != permissions && kind != 'l') {
        differ("mode", &format!("{permissions:o}"), &format!("{mode:o}"));
    }
    if let Some(uid) = want.uid.filter(|uid| *uid != found.uid) {
        differ("uid", &found.uid, &uid);
    }
    if let Some(gid) = want.gid.filter(|gid| *gid != found.gid) {
        differ("gid", &found.gid, &gid);
    }
    if let Some(size) = want.size.filter(|size| *size != found.size) {
        differ("size", &found.size, &size);
    }
    if let Some(sha256) = &want.sha256
        && found.sha256.as_ref() != Some(&Ok(sha256.clone()))
    {
        differ("content", &found.sha256, sha256);
    }
    if let Some(mtime) = want.mtime.filter(|mtime| *mtime != found.mtime) {
        differ("mtime", &found.mtime, &mtime);
    }
    if let Some(nsec) = want.mtime_nsec.filter(|nsec| *nsec != found.mtime_nsec) {
        differ("mtime nanoseconds", &found.mtime_nsec, &nsec);
    }
    if want.link.is_some() && want.link != found.link {
        differ(
            "link",
            &found.link.as_deref().map(show),
            &want.link.as_deref().map(show),
        );
    }
    if let Some(device) = want.device.filter(|device| *device != found.device) {
        differ("device", &found.device, &device);
    }
    for (name, value) in &want.xattrs {
        if found.xattrs.get(name) != Some(value) {
            differ(
                &format!("xattr {}", show(name)),
                &found.xattrs.get(name).map(hex::encode),
                &hex::encode(value),
            );
        }
    }
    for name in found
        .xattrs
        .keys()
        .filter(|name| strict && !want.xattrs.contains_key(*name))
    {
        differ("xattr", &show(name), &"no such attribute");
    }
}

fn kind(mode: u32) -> char {
    match mode & 0o170_000 {
        0o100_000 => 'f',
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        _ => '?',
    }
}

/// A path for people, shortened.
fn show(path: &[u8]) -> String {
    let text = path.escape_ascii().to_string();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}...({} bytes)", &text[..end], path.len()),
        None => text,
    }
}

fn entry(facts: &Value) -> Result<Entry> {
    let number = |key: &str| -> Result<Option<u64>> {
        facts
            .get(key)
            .map(|value| {
                value
                    .as_u64()
                    .with_context(|| format!("{key}: not a number"))
            })
            .transpose()
    };
    let small =
        |key: &str| -> Result<Option<u32>> { Ok(number(key)?.map(u32::try_from).transpose()?) };
    let text = |key: &str| facts.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut xattrs = BTreeMap::new();
    if let Some(Value::Object(map)) = facts.get("xattr") {
        for (name, value) in map {
            let value = value
                .as_str()
                .with_context(|| format!("xattr {name}: not a string"))?;
            xattrs.insert(name.clone().into_bytes(), hex::decode(value)?);
        }
    }
    let device = match facts
        .get("dev")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        None => None,
        Some([major, minor]) => {
            let part = |value: &Value| -> Result<u32> {
                Ok(value.as_u64().context("dev: not a number")?.try_into()?)
            };
            Some((part(major)?, part(minor)?))
        }
        Some(_) => bail!("dev: not a pair"),
    };
    Ok(Entry {
        kind: text("type")
            .and_then(|kind| kind.chars().next())
            .context("no type")?,
        mode: small("mode")?,
        uid: small("uid")?,
        gid: small("gid")?,
        size: number("size")?,
        sha256: text("sha256"),
        mtime: facts
            .get("mtime")
            .map(|value| value.as_i64().context("mtime: not a number"))
            .transpose()?,
        mtime_nsec: small("mtime_nsec")?,
        link: text("link").map(String::into_bytes),
        device,
        xattrs,
        hard: text("hard").map(String::into_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"one").unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("l")).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        dir
    }

    fn expectation() -> Expect {
        let file = Entry {
            kind: 'f',
            size: Some(3),
            sha256: Some(crate::sha256(b"one")),
            hard: Some(b"a".to_vec()),
            ..Entry::default()
        };
        let entries = [
            (b"a".to_vec(), file.clone()),
            (b"b".to_vec(), file),
            (
                b"d".to_vec(),
                Entry {
                    kind: 'd',
                    ..Entry::default()
                },
            ),
            (
                b"l".to_vec(),
                Entry {
                    kind: 'l',
                    link: Some(b"a".to_vec()),
                    ..Entry::default()
                },
            ),
        ];
        Expect {
            entries: entries.into(),
            strict: true,
        }
    }

    #[test]
    fn equal_trees_have_no_differences() {
        let dir = tree();
        assert_eq!(expectation().compare(dir.path()), Vec::<String>::new());
        assert_eq!(compare_trees(dir.path(), dir.path()), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        type Change = fn(&mut Expect);
        let changes: [(&str, Change); 8] = [
            ("missing", |e| {
                drop(e.entries.insert(
                    b"x".to_vec(),
                    Entry {
                        kind: 'f',
                        ..Entry::default()
                    },
                ))
            }),
            ("extra", |e| drop(e.entries.remove(b"l".as_slice()))),
            ("type", |e| {
                e.entries.get_mut(b"l".as_slice()).unwrap().kind = 'f'
            }),
            ("mode", |e| {
                e.entries.get_mut(b"d".as_slice()).unwrap().mode = Some(0)
            }),
            ("content", |e| {
                e.entries.get_mut(b"a".as_slice()).unwrap().sha256 = Some("00".into())
            }),
            ("link", |e| {
                e.entries.get_mut(b"l".as_slice()).unwrap().link = Some(b"b".to_vec())
            }),
            ("shares", |e| {
                e.entries.get_mut(b"b".as_slice()).unwrap().hard = None
            }),
            ("xattr", |e| {
                drop(
                    e.entries
                        .get_mut(b"d".as_slice())
                        .unwrap()
                        .xattrs
                        .insert(b"user.x".into(), vec![1]),
                )
            }),
        ];
        let dir = tree();
        for (word, change) in changes {
            let mut expect = expectation();
            change(&mut expect);
            let differences = expect.compare(dir.path());
            assert!(
                differences.iter().any(|line| line.contains(word)),
                "{word}: {differences:?}"
            );
        }
    }

    #[test]
    fn a_broken_hard_link_is_found() {
        let dir = tree();
        std::fs::remove_file(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b"), b"one").unwrap();
        let differences = expectation().compare(dir.path());
        assert!(
            differences
                .iter()
                .any(|line| line.contains("2 inode numbers")),
            "{differences:?}"
        );
    }
}
