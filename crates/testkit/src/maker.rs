//! Builds layers and, beside them, the tree they are to make.

use crate::expect::{Entry as Want, Expect};
use crate::sha256;
use crate::tar::{Entry, Tar, flag};

/// A tar under construction and the tree that it and those before it make.
#[derive(Default)]
pub(crate) struct Maker {
    pub tar: Tar,
    pub expect: Expect,
}

impl Maker {
    pub fn new() -> Self {
        Self {
            expect: Expect {
                strict: true,
                ..Expect::default()
            },
            ..Self::default()
        }
    }

    /// Ends the layer.
    pub fn next_layer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tar).finish()
    }

    /// Adds an entry that ends up in the tree just as it is.
    pub fn add(&mut self, entry: Entry) {
        self.expect.entries.insert(clean(&entry.path), want(&entry));
        self.tar.add(entry);
    }

    /// Adds an entry that ends up at another path.
    pub fn add_as(&mut self, path: &str, entry: Entry) {
        self.expect.entries.insert(path.into(), want(&entry));
        self.tar.add(entry);
    }

    /// Adds an entry that is not seen as such in the end.
    pub fn hidden(&mut self, entry: Entry) {
        self.tar.add(entry);
    }

    /// Adds a further name of `first`, which has this header's metadata from then on, and so have all its names.
    pub fn hard(&mut self, path: &str, first: &str, header: Entry) {
        let first_want = self.expect.entries[first.as_bytes()].clone();
        let group = first_want.hard.clone().unwrap_or_else(|| first.into());
        let shared = Want {
            mode: Some(header.mode),
            uid: u32::try_from(header.uid).ok(),
            gid: u32::try_from(header.gid).ok(),
            mtime: i64::try_from(header.mtime).ok(),
            hard: Some(group.clone()),
            ..first_want
        };
        for (name, want) in &mut self.expect.entries {
            if want.hard.as_ref() == Some(&group) || *name == group {
                *want = shared.clone();
            }
        }
        self.expect.entries.insert(path.into(), shared);
        self.tar.add(header);
    }

    /// Expects a directory that no entry describes.
    pub fn implied(&mut self, path: &str) {
        self.expect.entries.insert(
            path.into(),
            Want {
                kind: 'd',
                ..Want::default()
            },
        );
    }

    /// Expects a path and all below it no longer.
    pub fn gone(&mut self, path: &str) {
        let below = [path.as_bytes(), b"/"].concat();
        self.expect
            .entries
            .retain(|name, _| name != path.as_bytes() && !name.starts_with(&below));
    }
}

/// A path as the tree knows it.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

/// What an entry says about its file.
pub(crate) fn want(entry: &Entry) -> Want {
    let kind = match entry.flag {
        flag::DIRECTORY => 'd',
        flag::SYMLINK => 'l',
        flag::CHARACTER => 'c',
        flag::BLOCK => 'b',
        flag::FIFO => 'p',
        _ => 'f',
    };
    let is_file = kind == 'f';
    let attribute = |(key, value): &(Vec<u8>, Vec<u8>)| {
        key.strip_prefix(b"SCHILY.xattr.".as_slice())
            .map(|name| (name.to_vec(), value.clone()))
    };
    Want {
        kind,
        mode: Some(entry.mode),
        uid: Some(u32::try_from(entry.uid).expect("fits")),
        gid: Some(u32::try_from(entry.gid).expect("fits")),
        size: is_file.then_some(entry.data.len() as u64),
        sha256: is_file.then(|| sha256(&entry.data)),
        mtime: Some(i64::try_from(entry.mtime).expect("fits")),
        mtime_nsec: None,
        link: (kind == 'l').then(|| entry.link.clone()),
        device: entry.device,
        xattrs: entry.pax.iter().filter_map(attribute).collect(),
        hard: None,
    }
}
