//! Makes eStargz layers: each file, and each chunk of a large one, begins a gzip member; a table of contents follows.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};

use crate::sha256;
use crate::tar::{BLOCK, Entry, Tar, flag};

/// An eStargz layer.
#[derive(Debug, Clone)]
pub struct Estargz {
    /// The whole layer.
    pub blob: Vec<u8>,
    /// The JSON of its table of contents.
    pub toc: Vec<u8>,
    /// Where the gzip member with the table begins in the blob: the layer's data ends there.
    pub toc_offset: u64,
}

/// Makes the layer of `entries`, without sparse files, with chunks of `chunk_size` bytes.
pub fn estargz(entries: &[Entry], chunk_size: usize) -> Estargz {
    let mut writer = Writer::default();
    for entry in entries {
        writer.add(entry, chunk_size);
    }
    writer.end_member();
    let toc = serde_json::to_vec_pretty(&json!({"version": 1, "entries": writer.toc}))
        .expect("values can be written");
    let toc_offset = writer.blob.len() as u64;
    let mut blob = writer.blob;
    blob.extend(toc_member(&toc));
    blob.extend(footer(toc_offset));
    Estargz {
        blob,
        toc,
        toc_offset,
    }
}

/// The gzip member with a table of contents.
pub fn toc_member(toc: &[u8]) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file("stargz.index.json", toc));
    gzip(&tar.finish())
}

/// The footer of 51 bytes.
pub fn footer(toc_offset: u64) -> Vec<u8> {
    let field = format!("{toc_offset:016x}STARGZ");
    empty_member([b"SG\x16\x00", field.as_bytes()].concat())
}

/// The footer of 47 bytes that old stargz layers have.
pub fn footer_legacy(toc_offset: u64) -> Vec<u8> {
    empty_member(format!("{toc_offset:016x}STARGZ").into_bytes())
}

/// A gzip member without data, its extra field apart, of one empty stored block.
fn empty_member(extra: Vec<u8>) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    member.extend((extra.len() as u16).to_le_bytes());
    member.extend(extra);
    member.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    member
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder: GzEncoder<Vec<u8>> =
        GzBuilder::new().write(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

#[derive(Default)]
struct Writer {
    blob: Vec<u8>,
    toc: Vec<Value>,
    /// What the member that is being written will hold.
    member: Vec<u8>,
}

impl Writer {
    fn end_member(&mut self) {
        if !self.member.is_empty() {
            self.blob.extend(gzip(&self.member));
            self.member.clear();
        }
    }

    fn add(&mut self, entry: &Entry, chunk_size: usize) {
        let tar = Tar::new().add(entry.clone()).unfinished();
        let padded = entry.data.len().next_multiple_of(BLOCK);
        let (headers, data) = tar.split_at(tar.len() - padded);
        self.member.extend(headers);
        let mut item = describe(entry);
        if entry.data.is_empty() {
            self.toc.push(item.into());
            return;
        }
        let mut offset = 0;
        for chunk in entry.data.chunks(chunk_size) {
            self.end_member();
            let last = offset + chunk.len() == entry.data.len();
            item.insert("offset".to_owned(), self.blob.len().into());
            item.insert(
                "chunkDigest".to_owned(),
                format!("sha256:{}", sha256(chunk)).into(),
            );
            if offset > 0 {
                item.insert("chunkOffset".to_owned(), offset.into());
            }
            if !last {
                item.insert("chunkSize".to_owned(), chunk.len().into());
            }
            self.toc.push(item.into());
            self.member.extend(chunk);
            offset += chunk.len();
            item = Map::new();
            item.insert("name".to_owned(), text(&entry.path).into());
            item.insert("type".to_owned(), "chunk".into());
        }
        self.member.extend(&data[entry.data.len()..]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The entry's item without what is about its data. As in the original, numbers that are 0 are left out.
fn describe(entry: &Entry) -> Map<String, Value> {
    let kind = match entry.flag {
        flag::DIRECTORY => "dir",
        flag::SYMLINK => "symlink",
        flag::HARD => "hardlink",
        flag::CHARACTER => "char",
        flag::BLOCK => "block",
        flag::FIFO => "fifo",
        _ => "reg",
    };
    let mut item = Map::new();
    let mut set = |key: &str, value: Value| {
        if value != json!(0) && value != json!("") {
            item.insert(key.to_owned(), value);
        }
    };
    set("name", text(&entry.path).into());
    set("type", kind.into());
    set("size", entry.data.len().into());
    set("modtime", rfc3339(entry.mtime).into());
    set("linkName", text(&entry.link).into());
    set("mode", entry.mode.into());
    set("uid", entry.uid.into());
    set("gid", entry.gid.into());
    let (major, minor) = entry.device.unwrap_or_default();
    set("devMajor", major.into());
    set("devMinor", minor.into());
    if kind == "reg" {
        set("digest", format!("sha256:{}", sha256(&entry.data)).into());
    }
    let xattrs: Map<String, Value> = entry
        .pax
        .iter()
        .filter_map(|(key, value)| {
            let name = text(key.strip_prefix(b"SCHILY.xattr.")?);
            Some((name, STANDARD.encode(value).into()))
        })
        .collect();
    if !xattrs.is_empty() {
        item.insert("xattrs".to_owned(), xattrs.into());
    }
    item
}

/// A time since 1970 as JSON has it.
fn rfc3339(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::output;
    use std::process::Command;

    /// A gzipped tar it must be to everybody else.
    #[test]
    fn gnu_tar_reads_the_layer() {
        let data = crate::prose(1, 5000);
        let made = estargz(
            &[Entry::directory("dir/"), Entry::file("dir/file", &data)],
            1024,
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t.tar.gz"), &made.blob).unwrap();
        let mut command = Command::new("tar");
        output(command.args(["xzf", "t.tar.gz"]).current_dir(&dir)).ok();
        assert_eq!(std::fs::read(dir.path().join("dir/file")).unwrap(), data);
        assert_eq!(
            std::fs::read(dir.path().join("stargz.index.json")).unwrap(),
            made.toc
        );
        assert_eq!((footer(7).len(), footer_legacy(7).len()), (51, 47));
        assert_eq!(rfc3339(1_709_209_815), "2024-02-29T12:30:15Z");
    }
}
