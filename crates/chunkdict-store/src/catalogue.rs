//! Which images a dictionary is of, and which snapshot holds what they have: a small file that is replaced as a whole.
//!
//! Its first line is `nydusify-chunkdict/1` and the BLAKE3 of the rest, which is JSON. The one before it is kept as
//! `catalogue.before`, for a rebuild.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use rafs_format::Digest;
use serde::{Deserialize, Serialize};

use crate::coding::hex;
use crate::store::sync_dir;
use crate::{Error, ImageId};

pub(crate) const FILE: &str = "catalogue";
pub(crate) const BEFORE: &str = "catalogue.before";
const LAYOUT: &str = "nydusify-chunkdict/1";
/// Largest catalogue that is read, in bytes: about a million images.
const SIZE_MAX: u64 = 256 << 20;

/// Which images a dictionary is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// The snapshot of all `images`; `None` without any.
    #[serde(with = "optional")]
    pub snapshot: Option<Digest>,
    /// Images in the order of their names.
    pub images: Vec<Entry>,
    /// Images that were taken out, until `gc` forgets them.
    pub removed: Vec<Removed>,
}

/// An image of a dictionary.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// Where it lies.
    pub name: String,
    /// Its platform, if it was one of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What it is known by.
    #[serde(with = "hex::serde")]
    pub id: ImageId,
    /// When it was added, in seconds since 1970.
    pub added: u64,
    /// Since when it is known to be gone from where it lay, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<u64>,
}

/// An image that was taken out of a dictionary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// What it was.
    #[serde(flatten)]
    pub entry: Entry,
    /// When, in seconds since 1970.
    pub removed: u64,
}

impl Entry {
    /// The name with the platform, as messages have it.
    pub fn title(&self) -> String {
        match &self.platform {
            Some(platform) => format!("{} ({platform})", self.name),
            None => self.name.clone(),
        }
    }

    pub(crate) fn is_place_of(&self, other: &Self) -> bool {
        (&self.name, &self.platform) == (&other.name, &other.platform)
    }
}

mod optional {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub fn serialize<S: Serializer>(id: &Option<[u8; 32]>, to: S) -> Result<S::Ok, S::Error> {
        id.map(hex::encode).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[u8; 32]>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let Some(text) = text else { return Ok(None) };
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).map_err(serde::de::Error::custom)?;
        Ok(Some(id))
    }
}

impl Catalogue {
    /// Reads the catalogue at `path`; `None` if there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        let failed = || Error::io("read", path);
        let size = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(failed())?.len(),
        };
        if size > SIZE_MAX {
            return Err(Error::damaged(path, "it is too large"));
        }
        let bytes = fs::read(path).map_err(failed())?;
        Self::parse(path, &bytes).map(Some)
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |reason| Error::damaged(path, reason);
        let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let rest = lines.next().ok_or_else(|| damaged("it is cut off"))?;
        let first = std::str::from_utf8(first).unwrap_or_default();
        let (layout, sum) = first.split_once(' ').unwrap_or_default();
        if layout != LAYOUT {
            return Err(match layout.starts_with("nydusify-chunkdict/") {
                true => Error::Layout {
                    path: path.to_owned(),
                    layout: layout.to_owned(),
                },
                false => damaged("it does not begin as a catalogue does"),
            });
        }
        if blake3::hash(rest).to_hex().as_str() != sum {
            return Err(damaged("its hash is wrong"));
        }
        serde_json::from_slice(rest).map_err(|_| damaged("it is malformed"))
    }

    /// A catalogue's file: its first line, and the rest.
    pub(crate) fn with_hash(json: &[u8]) -> Vec<u8> {
        let sum = blake3::hash(json).to_hex();
        [format!("{LAYOUT} {sum}\n").as_bytes(), json].concat()
    }

    /// Puts it into the place of the one in `dir`, which is kept beside it: as a whole, or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE);
        let failed = || Error::io("write", &path);
        let mut json = serde_json::to_vec_pretty(self).expect("a catalogue always serialises");
        json.push(b'\n');
        let mut file = crate::store::unfinished(dir).map_err(failed())?;
        file.write_all(&Self::with_hash(&json)).map_err(failed())?;
        file.as_file().sync_all().map_err(failed())?;
        match fs::read(&path) {
            Ok(before) if Self::parse(&path, &before).is_ok() => {
                let copy = crate::store::unfinished(dir).map_err(failed())?;
                fs::write(copy.path(), before).map_err(failed())?;
                copy.as_file().sync_all().map_err(failed())?;
                let kept = copy.persist(dir.join(BEFORE));
                kept.map_err(|error| failed()(error.error))?;
            }
            _ => {}
        }
        file.persist(&path).map_err(|error| failed()(error.error))?;
        sync_dir(dir)
    }

    /// The image of that name and, if several platforms have it, those of all.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.images.iter().filter(move |entry| entry.name == name)
    }

    /// The names of an image, the one that was sorted first at the head.
    pub fn names<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a Entry> {
        self.images.iter().filter(move |entry| entry.id == *id)
    }

    /// What to call an image in messages.
    pub fn title(&self, id: &ImageId) -> String {
        self.names(id).next().map_or_else(|| hex(id), Entry::title)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_comes_back_and_a_damaged_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(Catalogue::load(&path).unwrap().is_none());
        let entry = Entry {
            name: "host/app:1".to_owned(),
            platform: Some("linux/arm64".to_owned()),
            id: [7; 32],
            added: 5,
            absent: None,
        };
        let catalogue = Catalogue {
            snapshot: Some([9; 32]),
            removed: vec![Removed {
                entry: entry.clone(),
                removed: 6,
            }],
            images: vec![entry],
        };
        Catalogue::default().save(dir.path()).unwrap();
        catalogue.save(dir.path()).unwrap();
        assert_eq!(Catalogue::load(&path).unwrap().as_ref(), Some(&catalogue));
        let before = Catalogue::load(&dir.path().join(BEFORE)).unwrap();
        assert_eq!(before, Some(Catalogue::default()));
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            Catalogue::load(&path).unwrap_err();
            fs::write(&path, &good[..at]).unwrap();
            Catalogue::load(&path).unwrap_err();
        }
        let newer = String::from_utf8(good).unwrap().replace("dict/1", "dict/2");
        fs::write(&path, newer).unwrap();
        let error = Catalogue::load(&path).unwrap_err();
        assert!(matches!(error, Error::Layout { .. }), "{error}");
    }
}
