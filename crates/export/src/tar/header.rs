//! One member of a PAX archive without its data: a ustar header, and before it, if need be, a member with the records of
//! what ustar cannot say.
//!
//! A ustar header has 100 bytes for the path and for a link's target, eight octal digits less the terminator for owner
//! and mode, twelve for size and time. Records are `LENGTH KEY=VALUE\n` with the length of the whole record in decimal.

use std::io::Write as _;

use tar::{EntryType, Header};
use tree::Inode;

/// Unit of a tar stream, in bytes.
pub(super) const BLOCK: usize = 512;
/// Bytes of a path or link target that fit into a header.
const NAME_MAX: usize = 100;
/// Largest number of seven octal digits.
const OCTAL_7: u32 = 0o7_777_777;
/// Largest number of eleven octal digits.
const OCTAL_11: u64 = 0o77_777_777_777;

/// Type of a member.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    Directory,
    /// With its size.
    Regular(u64),
    /// With the path of the earlier member.
    HardLink(&'a [u8]),
    /// With its target.
    Symlink(&'a [u8]),
    Character,
    Block,
    Fifo,
}

/// A member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    /// Without a leading slash; the root's is empty.
    pub(super) path: &'a [u8],
    pub(super) kind: Kind<'a>,
    pub(super) inode: &'a Inode,
}

impl Member<'_> {
    /// All blocks that come before the member's data.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut records = Records::default();
        let mut header = Header::new_ustar();
        let path = match (self.path, self.kind) {
            (b"", _) => b"./".to_vec(),
            (path, Kind::Directory) => [path, b"/"].concat(),
            (path, _) => path.to_vec(),
        };
        let ustar = header.as_ustar_mut().expect("it was made as ustar");
        records.text(b"path", &path, &mut ustar.name);
        let target = match self.kind {
            Kind::HardLink(target) | Kind::Symlink(target) => target,
            _ => b"",
        };
        records.text(b"linkpath", target, &mut ustar.linkname);
        self.metadata(&mut header, &mut records);
        let size = match self.kind {
            Kind::Regular(size) => size,
            _ => 0,
        };
        if size > OCTAL_11 {
            records.number(b"size", size);
        }
        header.set_size(size.min(OCTAL_11));
        header.set_entry_type(match self.kind {
            Kind::Directory => EntryType::Directory,
            Kind::Regular(_) => EntryType::Regular,
            Kind::HardLink(_) => EntryType::Link,
            Kind::Symlink(_) => EntryType::Symlink,
            Kind::Character => EntryType::Char,
            Kind::Block => EntryType::Block,
            Kind::Fifo => EntryType::Fifo,
        });
        header.set_cksum();
        let mut out = records.encode(&path);
        out.extend_from_slice(header.as_bytes());
        out
    }

    /// Owner, mode, time, device number and attributes.
    fn metadata(&self, header: &mut Header, records: &mut Records) {
        let inode = self.inode;
        for (key, id) in [(&b"uid"[..], inode.uid), (b"gid", inode.gid)] {
            if id > OCTAL_7 {
                records.number(key, id.into());
            }
        }
        header.set_uid(inode.uid.min(OCTAL_7).into());
        header.set_gid(inode.gid.min(OCTAL_7).into());
        header.set_mode(inode.mode & 0o7777);
        let seconds = u64::try_from(inode.mtime).ok();
        let seconds = seconds.filter(|&seconds| seconds <= OCTAL_11);
        if seconds.is_none() || inode.mtime_nsec != 0 {
            records.add(b"mtime", time(inode.mtime, inode.mtime_nsec).as_bytes());
        }
        header.set_mtime(seconds.unwrap_or(0));
        if let Kind::Character | Kind::Block = self.kind {
            let (major, minor) = device(inode.rdev);
            // Both fit: they have 12 and 20 bits.
            let set = header
                .set_device_major(major)
                .and_then(|()| header.set_device_minor(minor));
            set.expect("a ustar header has device numbers");
        }
        // A hard link has its inode's attributes already.
        if !matches!(self.kind, Kind::HardLink(_)) {
            for (name, value) in inode.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
                records.add(&[&b"SCHILY.xattr."[..], &escape(name)].concat(), value);
            }
        }
    }
}

/// Major and minor number of a device number in Linux's 32-bit encoding.
fn device(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

/// A time as a decimal number with at most nine decimals.
fn time(seconds: i64, nanos: u32) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (whole, part) = (
        all.unsigned_abs() / 1_000_000_000,
        all.unsigned_abs() % 1_000_000_000,
    );
    let sign = if all < 0 { "-" } else { "" };
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A name that may be part of a key: GNU tar writes the character that ends a key so.
fn escape(name: &[u8]) -> Vec<u8> {
    if !name.contains(&b'=') {
        return name.to_vec();
    }
    let escaped = name.iter().flat_map(|&byte| match byte {
        b'=' => b"%3D".to_vec(),
        b'%' => b"%25".to_vec(),
        _ => vec![byte],
    });
    escaped.collect()
}

/// PAX records, in the order in which they were added.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// Puts a text into a field of the header, or what fits of it, and then the whole into a record.
    fn text(&mut self, key: &[u8], text: &[u8], field: &mut [u8; NAME_MAX]) {
        let fits = text.len().min(NAME_MAX);
        field[..fits].copy_from_slice(&text[..fits]);
        if fits < text.len() {
            self.add(key, text);
        }
    }

    fn number(&mut self, key: &[u8], number: u64) {
        self.add(key, number.to_string().as_bytes());
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        // Space, equals sign and newline.
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        write!(self.0, "{len} ").expect("a vector takes everything");
        for part in [key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// The member with the records; nothing if there are none.
    fn encode(self, path: &[u8]) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut header = Header::new_ustar();
        let name = [b"PaxHeaders.0/", path].concat();
        let fits = name.len().min(NAME_MAX);
        let ustar = header.as_ustar_mut().expect("it was made as ustar");
        ustar.name[..fits].copy_from_slice(&name[..fits]);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(self.0.len() as u64);
        header.set_entry_type(EntryType::XHeader);
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(&self.0);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        let mut records = Records::default();
        records.add(b"path", b"x");
        assert_eq!(records.0, b"9 path=x\n");
        for size in 0..2000 {
            let mut records = Records::default();
            records.add(b"k", &vec![b'v'; size]);
            let text = String::from_utf8(records.0).unwrap();
            let (len, _) = text.split_once(' ').unwrap();
            assert_eq!(len.parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn times_have_the_decimals_that_they_need() {
        assert_eq!(time(5, 0), "5");
        assert_eq!(time(0, 1), "0.000000001");
        assert_eq!(time(1_600_000_000, 500_000_000), "1600000000.5");
        assert_eq!(time(-2, 500_000_000), "-1.5");
        assert_eq!(time(-1, 0), "-1");
        assert_eq!(time(100, 0), "100");
    }

    #[test]
    fn devices_are_taken_apart() {
        assert_eq!(device(0x0103), (1, 3));
        assert_eq!(device(0xfff | 0xfff << 20), (15, 0xff | 0xf_ff00));
        assert_eq!(device(u32::MAX), (0xfff, 0xf_ffff));
    }

    #[test]
    fn a_key_ends_at_its_first_equals_sign() {
        assert_eq!(escape(b"user.a%b"), b"user.a%b");
        assert_eq!(escape(b"user.a=b%"), b"user.a%3Db%25");
    }
}
