//! What earlier conversions have made of layers, so that one that was interrupted goes on where it was.
//!
//! A directory with one small file per layer and options: the file is named by the SHA-256 of all that the layer's blob
//! depends on, and says which blob that is and what the bootstrap in its tail must be. No data is kept. A record is a
//! hint: it is used only if the blob is in the target and its tail is what the record says, and a damaged one counts
//! as none.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use builder::BuildOptions;
use image::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

/// Must change whenever the same layer and options give other bytes than before.
const BUILDER: &str = concat!("1 ", env!("CARGO_PKG_VERSION"));
/// Layout of the records.
const SCHEMA: &str = "nydusify-journal/1";
/// Records that are kept; beyond that the oldest half goes.
const RECORDS_MAX: usize = 20_000;
/// Largest record that is read, in bytes.
const RECORD_MAX: u64 = 4096;

/// The records of one user.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
}

/// What a layer was turned into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: String,
    /// The blob.
    pub blob: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of the bootstrap in its tail, decompressed.
    pub bootstrap: Digest,
}

impl Record {
    pub(crate) fn new(blob: Digest, size: u64, bootstrap: Digest) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            blob,
            size,
            bootstrap,
        }
    }
}

impl Journal {
    /// The journal in `dir`, which is made when the first record is.
    pub(crate) fn open(dir: &Path) -> Self {
        prune(dir, RECORDS_MAX);
        Self {
            dir: dir.to_owned(),
        }
    }

    /// What the layer was turned into with these options, if that is known.
    pub(crate) fn find(&self, key: &Key) -> Option<Record> {
        let path = self.path(key);
        let small = fs::metadata(&path).is_ok_and(|found| found.len() <= RECORD_MAX);
        parse(&fs::read(path).ok().filter(|_| small)?)
    }

    /// Keeps a record, for later runs.
    ///
    /// # Errors
    /// What the file system reports. Nothing depends on the record, so the conversion can go on.
    pub(crate) fn note(&self, key: &Key, record: &Record) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        // In place: half a record counts as none, and a file of another name would stay if this process were killed.
        fs::write(self.path(key), serde_json::to_vec(record)?)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.json", key.0.hex()))
    }
}

/// Reads a record; `None` if it is none of this layout.
pub(crate) fn parse(json: &[u8]) -> Option<Record> {
    let record: Record = serde_json::from_slice(json).ok()?;
    (record.schema == SCHEMA).then_some(record)
}

/// All that the blob of a layer depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(Digest);

impl Key {
    pub(crate) fn new(
        layer: &Descriptor,
        diff_id: Digest,
        options: &BuildOptions,
        dictionary: Option<Digest>,
    ) -> Self {
        let mut text = format!("{BUILDER}\n{}\n{diff_id}\n{options:?}\n", layer.digest);
        // Limits decide whether there is a blob, not what is in it.
        let ::layer::Options {
            max_inodes: _,
            max_content: _,
            keep_trusted,
            fraction,
            drop_estargz,
            concatenated,
        } = options.layer;
        // The words are those of earlier versions, whose blobs are found that way.
        write!(
            text,
            "Options {{ keep_trusted: {keep_trusted}, fraction: {fraction}, drop_estargz: {drop_estargz}, \
             concatenated: {concatenated}, max_inodes: 16777216 }}\n{:?}",
            options.prefetch
        )
        .expect("writing to a string cannot fail");
        if let Some(dictionary) = dictionary {
            write!(text, "\n{dictionary}").expect("writing to a string cannot fail");
        }
        Self(Digest::of(text.as_bytes()))
    }

    /// The same where the layer is referred to instead of being converted.
    pub(crate) fn of_reference(&self) -> Self {
        Self(Digest::of(format!("{}\nreference", self.0).as_bytes()))
    }

    /// What it is known by elsewhere.
    pub(crate) fn digest(&self) -> Digest {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn of(digest: Digest) -> Self {
        Self(digest)
    }
}

/// Removes the older half of the records if there are more than `most`, and what killed processes left unfinished.
/// Whatever fails is tried again by the next run.
fn prune(dir: &Path, most: usize) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut files: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    let is_record = |path: &Path| path.extension().is_some_and(|kind| kind == "json");
    let old = |time: &SystemTime| time.elapsed().is_ok_and(|age| age.as_secs() > 3600);
    for (_, path) in files
        .iter()
        .filter(|(time, path)| !is_record(path) && old(time))
    {
        let _ = fs::remove_file(path);
    }
    files.retain(|(_, path)| is_record(path));
    if files.len() > most {
        files.sort_unstable();
        for (_, path) in &files[..files.len() / 2] {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key(Digest::of(text.as_bytes()))
    }

    #[test]
    fn a_record_is_found_again_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("j"));
        assert_eq!(journal.find(&key("a")), None);
        let record = Record::new(Digest::of(b"blob"), 7, Digest::of(b"boot"));
        journal.note(&key("a"), &record).unwrap();
        assert_eq!(journal.find(&key("a")), Some(record));
        assert_eq!(journal.find(&key("b")), None);
        let good = [fs::read(journal.path(&key("a"))).unwrap()];
        for damage in ["", "{}", &"x".repeat(10_000)] {
            fs::write(journal.path(&key("a")), damage).unwrap();
            assert_eq!(journal.find(&key("a")), None);
        }
        for number in 0..500 {
            let damaged = testkit::change::change(&good, number);
            fs::write(journal.path(&key("a")), &damaged).unwrap();
            if let Some(found) = journal.find(&key("a")) {
                assert_eq!(found.schema, SCHEMA, "{number}");
            }
        }
    }

    #[test]
    fn the_oldest_records_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path());
        let record = Record::new(Digest::of(b"blob"), 7, Digest::of(b"boot"));
        for number in 0..10_u64 {
            let key = key(&number.to_string());
            journal.note(&key, &record).unwrap();
            let file = fs::File::open(journal.path(&key)).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number);
            file.set_modified(time).unwrap();
        }
        fs::write(dir.path().join(".tmpyoung"), "").unwrap();
        prune(dir.path(), 10);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 11);
        prune(dir.path(), 9);
        assert_eq!(journal.find(&key("4")), None);
        assert!((5..10).all(|number| journal.find(&key(&number.to_string())).is_some()));
        assert!(dir.path().join(".tmpyoung").exists());
    }
}
