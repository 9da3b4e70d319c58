//! Builds tar streams byte by byte, odd ones included: every dialect that layers come in, and broken ones.

/// Size of a header, and the unit that data is padded to.
pub const BLOCK: usize = 512;

/// Type flags of the header byte 156.
pub mod flag {
    /// Regular file.
    pub const FILE: u8 = b'0';
    /// Hard link.
    pub const HARD: u8 = b'1';
    /// Symbolic link.
    pub const SYMLINK: u8 = b'2';
    /// Character device.
    pub const CHARACTER: u8 = b'3';
    /// Block device.
    pub const BLOCK: u8 = b'4';
    /// Directory.
    pub const DIRECTORY: u8 = b'5';
    /// FIFO.
    pub const FIFO: u8 = b'6';
    /// Old GNU sparse file.
    pub const GNU_SPARSE: u8 = b'S';
}

/// How holes of a sparse file are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    /// Old GNU: the map is in the header and its extensions.
    Gnu,
    /// PAX 0.0: repeated offset and numbytes records.
    Pax00,
    /// PAX 0.1: one record with the whole map.
    Pax01,
    /// PAX 1.0: the map precedes the data.
    Pax10,
}

/// One entry to write.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Path as it stands in the archive.
    pub path: Vec<u8>,
    /// One of [`flag`].
    pub flag: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds of the modification time.
    pub mtime: u64,
    /// Device number, `None` for blank fields (NUL bytes).
    pub device: Option<(u32, u32)>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Content.
    pub data: Vec<u8>,
    /// PAX records in front of it, beyond those that long names and big numbers need.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// Long names as GNU `L`/`K` entries, big numbers in base 256, instead of PAX records.
    pub gnu: bool,
}

impl Entry {
    fn new(path: impl AsRef<[u8]>, flag: u8, mode: u32) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            flag,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            device: None,
            link: Vec::new(),
            data: Vec::new(),
            pax: Vec::new(),
            gnu: false,
        }
    }

    /// A regular file, mode 0644.
    pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self {
            data: data.as_ref().to_vec(),
            ..Self::new(path, flag::FILE, 0o644)
        }
    }

    /// A directory, mode 0755.
    pub fn directory(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, flag::DIRECTORY, 0o755)
    }

    /// A symbolic link.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(path, flag::SYMLINK, 0o777)
        }
    }

    /// A hard link.
    pub fn hard(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(path, flag::HARD, 0o644)
        }
    }

    /// A character (`flag::CHARACTER`) or block (`flag::BLOCK`) device.
    pub fn device(path: impl AsRef<[u8]>, flag: u8, major: u32, minor: u32) -> Self {
        Self {
            device: Some((major, minor)),
            ..Self::new(path, flag, 0o600)
        }
    }

    /// A FIFO; its device fields stay blank.
    pub fn fifo(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, flag::FIFO, 0o600)
    }

    /// With these permission bits.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Owned by these.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Modified then.
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// With one more PAX record.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// With an extended attribute.
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    /// In GNU's way, see [`Entry::gnu`].
    pub fn in_gnu_format(mut self) -> Self {
        self.gnu = true;
        self
    }
}

/// A tar stream under construction.
#[derive(Debug, Clone, Default)]
pub struct Tar {
    out: Vec<u8>,
}

impl Tar {
    /// An empty stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: Entry) -> &mut Self {
        let mut pax = entry.pax.clone();
        let mut header = header(&entry, entry.data.len() as u64);
        for (kind, key, name, limit) in [
            (b'L', "path", &entry.path, 100),
            (b'K', "linkpath", &entry.link, 100),
        ] {
            if name.len() <= limit && (entry.gnu || name.is_ascii()) {
                continue;
            }
            if entry.gnu {
                self.gnu_name(kind, name);
            } else {
                pax.push((key.into(), name.clone()));
            }
        }
        for (range, key, value) in [(108..116, "uid", entry.uid), (116..124, "gid", entry.gid)] {
            if value < 1 << 21 {
                continue;
            }
            if entry.gnu {
                header[range.start] = 0x80;
                header[range.start + 1..range.end].copy_from_slice(&value.to_be_bytes()[1..]);
            } else {
                pax.push((key.into(), value.to_string().into_bytes()));
            }
        }
        if !pax.is_empty() {
            self.pax(b'x', &pax);
        }
        self.raw_header(header);
        self.data(&entry.data)
    }

    /// Adds a sparse file of `size` bytes that holds `segments` (offset, bytes) and is zero elsewhere.
    /// All segments but the last are whole blocks: readers disagree about padding between them.
    pub fn sparse(
        &mut self,
        entry: Entry,
        dialect: Sparse,
        size: u64,
        segments: &[(u64, Vec<u8>)],
    ) -> &mut Self {
        let data: Vec<u8> = segments
            .iter()
            .flat_map(|(_, bytes)| bytes.iter().copied())
            .collect();
        let mut map: Vec<(u64, u64)> = segments
            .iter()
            .map(|(offset, bytes)| (*offset, bytes.len() as u64))
            .collect();
        if map
            .last()
            .is_none_or(|(offset, length)| offset + length < size)
        {
            // A hole at the end is told by an empty segment behind it.
            map.push((size, 0));
        }
        match dialect {
            Sparse::Gnu => self.old_gnu_sparse(&entry, size, &map, &data),
            Sparse::Pax00 => {
                let mut records = entry
                    .pax("GNU.sparse.size", size.to_string())
                    .pax("GNU.sparse.numblocks", map.len().to_string());
                for (offset, length) in &map {
                    records = records
                        .pax("GNU.sparse.offset", offset.to_string())
                        .pax("GNU.sparse.numbytes", length.to_string());
                }
                self.add(Entry { data, ..records })
            }
            Sparse::Pax01 => {
                let text: Vec<String> = map
                    .iter()
                    .map(|(offset, length)| format!("{offset},{length}"))
                    .collect();
                let name = entry.path.clone();
                let records = entry
                    .pax("GNU.sparse.size", size.to_string())
                    .pax("GNU.sparse.numblocks", map.len().to_string())
                    .pax("GNU.sparse.map", text.join(","))
                    .pax("GNU.sparse.name", name);
                self.add(Entry {
                    data,
                    path: b"GNUSparseFile.0/hidden".to_vec(),
                    ..records
                })
            }
            Sparse::Pax10 => {
                let mut text = format!("{}\n", map.len());
                for (offset, length) in &map {
                    text.push_str(&format!("{offset}\n{length}\n"));
                }
                let mut stored = text.into_bytes();
                stored.resize(stored.len().next_multiple_of(BLOCK), 0);
                stored.extend_from_slice(&data);
                let name = entry.path.clone();
                let records = entry
                    .pax("GNU.sparse.major", "1")
                    .pax("GNU.sparse.minor", "0")
                    .pax("GNU.sparse.name", name)
                    .pax("GNU.sparse.realsize", size.to_string());
                self.add(Entry {
                    data: stored,
                    path: b"GNUSparseFile.0/hidden".to_vec(),
                    ..records
                })
            }
        }
    }

    fn old_gnu_sparse(
        &mut self,
        entry: &Entry,
        size: u64,
        map: &[(u64, u64)],
        data: &[u8],
    ) -> &mut Self {
        let mut header = header(entry, data.len() as u64);
        header[156] = flag::GNU_SPARSE;
        header[257..265].copy_from_slice(b"ustar  \0");
        let (first, rest) = map.split_at(map.len().min(4));
        sparse_map(&mut header[386..482], first);
        header[482] = u8::from(!rest.is_empty());
        octal(&mut header[483..495], size);
        self.raw_header(header);
        let mut extensions = rest.chunks(21).peekable();
        while let Some(part) = extensions.next() {
            let mut block = [0; BLOCK];
            sparse_map(&mut block[..504], part);
            block[504] = u8::from(extensions.peek().is_some());
            self.out.extend_from_slice(&block);
        }
        self.data(data)
    }

    /// Adds a header as it is but for the checksum, which is set.
    pub fn raw_header(&mut self, mut header: [u8; BLOCK]) -> &mut Self {
        set_checksum(&mut header);
        self.out.extend_from_slice(&header);
        self
    }

    /// Adds bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Adds bytes, padded to full blocks.
    pub fn data(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self.out.resize(self.out.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Adds an extended header, `x` for the next entry or `g` for all that follow.
    pub fn pax(&mut self, flag: u8, records: &[(Vec<u8>, Vec<u8>)]) -> &mut Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key, value))
            .collect();
        let entry = Entry::new("PaxHeaders.0/entry", flag, 0o644);
        self.raw_header(header(&entry, body.len() as u64));
        self.data(&body)
    }

    fn gnu_name(&mut self, kind: u8, name: &[u8]) {
        let mut body = name.to_vec();
        body.push(0);
        self.raw_header(header(
            &Entry::new("././@LongLink", kind, 0),
            body.len() as u64,
        ));
        self.data(&body);
    }

    /// The stream with the two zero blocks that end it.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = self.out.clone();
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    /// The stream as it is, without an end mark.
    pub fn unfinished(&self) -> Vec<u8> {
        self.out.clone()
    }
}

/// The ustar header of an entry with `size` bytes of data, names cut to what fits; the checksum is valid.
pub fn header(entry: &Entry, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let cut = |name: &[u8]| name.len().min(100);
    header[..cut(&entry.path)].copy_from_slice(&entry.path[..cut(&entry.path)]);
    octal(&mut header[100..108], u64::from(entry.mode));
    octal(&mut header[108..116], entry.uid & 0o7_777_777);
    octal(&mut header[116..124], entry.gid & 0o7_777_777);
    octal(&mut header[124..136], size);
    octal(&mut header[136..148], entry.mtime);
    header[156] = entry.flag;
    header[157..157 + cut(&entry.link)].copy_from_slice(&entry.link[..cut(&entry.link)]);
    header[257..265].copy_from_slice(if entry.gnu {
        b"ustar  \0"
    } else {
        b"ustar\x0000"
    });
    if let Some((major, minor)) = entry.device {
        octal(&mut header[329..337], u64::from(major));
        octal(&mut header[337..345], u64::from(minor));
    }
    set_checksum(&mut header);
    header
}

/// Sets the checksum of a header.
pub fn set_checksum(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field.copy_from_slice(format!("{value:0digits$o}\0").as_bytes());
}

fn sparse_map(field: &mut [u8], map: &[(u64, u64)]) {
    for (slot, (offset, length)) in field.chunks_exact_mut(24).zip(map) {
        octal(&mut slot[..12], *offset);
        octal(&mut slot[12..], *length);
    }
}

/// One record: its own length in decimal, a blank, `key=value`, a newline.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// GNU tar is the judge of what is written here.
    #[test]
    fn gnu_tar_reads_what_is_written() {
        let long = "d/".repeat(80) + "file";
        let segments = vec![(4096, vec![1; 512]), (100_352, vec![7; 600])];
        let mut tar = Tar::new();
        tar.add(Entry::directory("dir/"))
            .add(Entry::file(&long, b"pax"))
            .add(Entry::file(format!("g{long}"), b"gnu").in_gnu_format())
            .add(Entry::symlink("link", &long))
            .add(Entry::hard("hard", "link"));
        for (name, dialect) in [
            ("s0", Sparse::Gnu),
            ("s1", Sparse::Pax00),
            ("s2", Sparse::Pax01),
            ("s3", Sparse::Pax10),
        ] {
            tar.sparse(Entry::file(name, b""), dialect, 200_000, &segments);
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t.tar"), tar.finish()).unwrap();
        let mut command = Command::new("tar");
        crate::run::output(command.args(["xf", "t.tar"]).current_dir(&dir)).ok();
        assert_eq!(std::fs::read(dir.path().join(&long)).unwrap(), b"pax");
        assert_eq!(
            std::fs::read(dir.path().join(format!("g{long}"))).unwrap(),
            b"gnu"
        );
        let mut want = vec![0; 200_000];
        want[4096..4608].fill(1);
        want[100_352..100_952].fill(7);
        for name in ["s0", "s1", "s2", "s3"] {
            assert!(
                std::fs::read(dir.path().join(name)).unwrap() == want,
                "{name}"
            );
        }
    }
}
