//! Every dialect of tar, and broken archives.

use std::io::{BufRead, Read};

use layer::Error;
use layer::tar::{Entry, EntryKind, Reader};
use testkit::change::change;
use testkit::tar::{self as make, BLOCK, Sparse, Tar, flag};

type Entries = Vec<(Entry, Vec<u8>)>;

fn read(bytes: &[u8]) -> Result<Entries, Error> {
    read_all(bytes, false)
}

fn read_all(bytes: &[u8], concatenated: bool) -> Result<Entries, Error> {
    let mut reader = Reader::new(bytes).concatenated(concatenated);
    let mut out = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        let result = reader.data().read_to_end(&mut data);
        if let Err(source) = result {
            return Err(Error::Data {
                path: String::new(),
                source,
            });
        }
        assert_eq!(data.len() as u64, entry.size);
        out.push((entry, data));
    }
    assert_eq!(reader.finish()?, bytes.len() as u64);
    Ok(out)
}

fn one(tar: &Tar) -> (Entry, Vec<u8>) {
    let mut entries = read(&tar.finish()).expect("a valid archive");
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn refused(tar: &Tar, words: &str) {
    let error = read(&tar.finish()).expect_err(words);
    assert!(error.to_string().contains(words), "{error}");
}

fn file(path: &str) -> make::Entry {
    make::Entry::file(path, b"data")
}

#[test]
fn plain_entries_of_every_type() {
    let mut tar = Tar::new();
    tar.add(make::Entry::directory("d/").mode(0o2750).owner(3, 4))
        .add(file("d/f").mtime(77))
        .add(make::Entry::hard("d/h", "d/f"))
        .add(make::Entry::symlink("d/s", "../x"))
        .add(make::Entry::device("c", flag::CHARACTER, 259, 70_000))
        .add(make::Entry::device("b", flag::BLOCK, 8, 1))
        .add(make::Entry::fifo("p"));
    let entries = read(&tar.finish()).expect("valid");
    let kinds = entries
        .iter()
        .map(|(e, _)| e.kind.clone())
        .collect::<Vec<_>>();
    assert_eq!(
        kinds,
        [
            EntryKind::Directory,
            EntryKind::Regular,
            EntryKind::HardLink(b"d/f".to_vec()),
            EntryKind::Symlink(b"../x".to_vec()),
            EntryKind::Character,
            EntryKind::Block,
            EntryKind::Fifo,
        ]
    );
    let (directory, f) = (&entries[0].0, &entries[1]);
    assert_eq!(
        (directory.mode, directory.uid, directory.gid),
        (0o2750, 3, 4)
    );
    assert_eq!(
        (&f.0.path[..], f.0.size, f.0.mtime, f.0.offset),
        (&b"d/f"[..], 4, 77, 1024)
    );
    assert_eq!(f.1, b"data");
    assert_eq!(entries[5].0.rdev, 0x801);
}

#[test]
fn device_numbers_use_linuxs_encoding() {
    let mut tar = Tar::new();
    tar.add(make::Entry::device("c", flag::CHARACTER, 259, 70_000));
    assert_eq!(
        one(&tar).0.rdev,
        (70_000 & 0xff) | (259 << 8) | ((70_000 & !0xff) << 12)
    );
    let mut tar = Tar::new();
    tar.add(make::Entry::device("c", flag::CHARACTER, 4096, 0));
    refused(&tar, "device number");
}

#[test]
fn a_fifo_or_device_with_blank_numbers_is_read() {
    let mut tar = Tar::new();
    let mut header = make::header(&make::Entry::fifo("p"), 0);
    header[329..345].fill(b' ');
    tar.raw_header(header);
    assert_eq!(one(&tar).0.rdev, 0);
    let mut tar = Tar::new();
    let mut header = make::header(&make::Entry::device("c", flag::CHARACTER, 1, 1), 0);
    header[329..345].fill(0);
    tar.raw_header(header);
    assert_eq!(one(&tar).0.rdev, 0);
}

#[test]
fn a_ustar_prefix_precedes_the_name() {
    let mut header = make::header(&file("name"), 0);
    header[345..351].copy_from_slice(b"pre/fi");
    assert_eq!(one(Tar::new().raw_header(header)).0.path, b"pre/fi/name");
}

#[test]
fn a_star_prefix_is_shorter() {
    let mut header = make::header(&file("name"), 0);
    header[345..476].fill(b'p');
    header[476..488].copy_from_slice(b"00000000001 ");
    header[508..512].copy_from_slice(b"tar\0");
    let path = one(Tar::new().raw_header(header)).0.path;
    assert_eq!(path, [&[b'p'; 131][..], b"/name"].concat());
}

#[test]
fn gnu_headers_have_times_where_others_have_a_prefix() {
    let mut header = make::header(&file("name"), 0);
    header[257..265].copy_from_slice(b"ustar  \0");
    header[345..357].copy_from_slice(b"14000000000\0");
    assert_eq!(one(Tar::new().raw_header(header)).0.path, b"name");
    // What old Go programs wrote: a prefix all the same.
    header[345..500].fill(0);
    header[345..365].copy_from_slice(b"usr/share/doc/go/src");
    assert_eq!(
        one(Tar::new().raw_header(header)).0.path,
        b"usr/share/doc/go/src/name"
    );
}

#[test]
fn v7_headers_mark_directories_by_a_slash() {
    let mut header = make::header(&file("old/"), 0);
    header[156] = 0;
    header[257..].fill(0);
    assert_eq!(
        one(Tar::new().raw_header(header)).0.kind,
        EntryKind::Directory
    );
    let mut header = make::header(&file("old"), 0);
    header[156] = 0;
    header[257..].fill(0);
    assert_eq!(
        one(Tar::new().raw_header(header)).0.kind,
        EntryKind::Regular
    );
}

#[test]
fn contiguous_files_are_regular() {
    let mut header = make::header(&file("c"), 4);
    header[156] = b'7';
    let mut tar = Tar::new();
    tar.raw_header(header).data(b"cont");
    let (entry, data) = one(&tar);
    assert_eq!((entry.kind, &data[..]), (EntryKind::Regular, &b"cont"[..]));
}

#[test]
fn unknown_types_are_refused_by_name() {
    for kind in [b'V', b'M', b'D', b'N', b'Z', 0xff] {
        let mut header = make::header(&file("odd-one"), 0);
        header[156] = kind;
        refused(Tar::new().raw_header(header), "odd-one");
    }
}

#[test]
fn link_entries_have_no_data_whatever_their_size_says() {
    for kind in [
        flag::HARD,
        flag::SYMLINK,
        flag::DIRECTORY,
        flag::FIFO,
        flag::CHARACTER,
    ] {
        let mut header = make::header(&make::Entry::hard("l", "target"), 4096);
        header[156] = kind;
        let mut tar = Tar::new();
        tar.raw_header(header).add(file("next"));
        let entries = read(&tar.finish()).expect("valid");
        assert_eq!(entries.len(), 2, "type {kind}");
        assert_eq!(
            (entries[0].0.size, &entries[1].0.path[..]),
            (0, &b"next"[..])
        );
    }
}

#[test]
fn long_names_in_both_dialects() {
    let (long, target) = ("n/".repeat(3000), "t/".repeat(2000));
    for gnu in [false, true] {
        let mut entry = make::Entry::symlink(&long, &target);
        entry.gnu = gnu;
        let (entry, _) = one(Tar::new().add(entry));
        assert_eq!(entry.path, long.as_bytes());
        assert_eq!(entry.kind, EntryKind::Symlink(target.clone().into_bytes()));
    }
}

#[test]
fn names_above_64_kib_are_refused() {
    let long = "n".repeat((64 << 10) + 1);
    refused(Tar::new().add(file(&long)), "65536");
    refused(
        Tar::new().add(file(&format!("{long}nn")).in_gnu_format()),
        "limit",
    );
    one(Tar::new().add(file(&"n".repeat(64 << 10))));
}

#[test]
fn a_gnu_long_name_wins_over_a_pax_path() {
    let mut tar = Tar::new();
    tar.pax(b'x', &[(b"path".to_vec(), b"pax".to_vec())]);
    let mut entry = file(&"g".repeat(150));
    entry.gnu = true;
    assert_eq!(one(tar.add(entry)).0.path, "g".repeat(150).into_bytes());
}

#[test]
fn pax_records_override_the_header() {
    let entry = file("short")
        .pax("path", b"long \xff name")
        .pax("uid", "3000000000")
        .pax("gid", "4294967294")
        .pax("mtime", "1500000000.98765432199")
        .pax("comment", "nothing")
        .xattr("user.bin", b"\0=\n\xff");
    let (entry, data) = one(Tar::new().add(entry));
    assert_eq!(entry.path, b"long \xff name");
    assert_eq!((entry.uid, entry.gid), (3_000_000_000, 4_294_967_294));
    assert_eq!(
        (entry.mtime, entry.mtime_nsec),
        (1_500_000_000, 987_654_321)
    );
    assert_eq!(entry.xattrs[&b"user.bin"[..]], b"\0=\n\xff"[..].into());
    assert_eq!(data, b"data");
}

#[test]
fn of_repeated_pax_records_the_last_counts_and_empty_ones_leave_the_header() {
    let (entry, _) = one(Tar::new().add(file("h").pax("path", "a").pax("path", "b")));
    assert_eq!(entry.path, b"b");
    let (entry, _) =
        one(Tar::new().add(file("h").pax("path", "a").pax("path", "").pax("size", "")));
    assert_eq!((&entry.path[..], entry.size), (&b"h"[..], 4));
    let (entry, _) = one(Tar::new().add(file("h").xattr("user.e", b"")));
    assert_eq!(entry.xattrs[&b"user.e"[..]], b""[..].into());
}

#[test]
fn negative_and_fractional_times_round_down() {
    for (text, want) in [
        ("-1000", (-1000, 0)),
        ("-0.5", (-1, 500_000_000)),
        ("-12.25", (-13, 750_000_000)),
        ("0.000000001", (0, 1)),
        ("7.", (7, 0)),
        ("9223372036854775807", (i64::MAX, 0)),
    ] {
        let (entry, _) = one(Tar::new().add(file("t").pax("mtime", text)));
        assert_eq!((entry.mtime, entry.mtime_nsec), want, "{text}");
    }
    for text in ["x", "1.x", "--1", "1e3", "99999999999999999999"] {
        refused(Tar::new().add(file("t").pax("mtime", text)), "mtime");
    }
}

#[test]
fn numbers_in_base_256() {
    let mut header = make::header(&file("n"), 0);
    header[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xb2, 0xd0, 0x5e, 0]);
    header[116..124].fill(0xff);
    header[123] = 0xfe;
    header[136..148].fill(0xff);
    header[147] = 0x18;
    let (entry, _) = one(Tar::new().raw_header(header));
    assert_eq!(
        (entry.uid, entry.gid, entry.mtime),
        (3_000_000_000, u32::MAX - 1, -232)
    );
}

#[test]
fn sizes_in_base_256_and_negative_ones() {
    let mut header = make::header(&file("n"), 0);
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    let mut tar = Tar::new();
    tar.raw_header(header).data(b"abc");
    assert_eq!(one(&tar).1, b"abc");
    header[124..136].fill(0xff);
    refused(Tar::new().raw_header(header), "negative");
    header[124] = 0xbf;
    refused(Tar::new().raw_header(header), "size");
}

#[test]
fn malformed_numbers_are_refused_by_name() {
    for (range, name) in [
        (100..108, "mode"),
        (108..116, "uid"),
        (124..136, "size"),
        (136..148, "mtime"),
    ] {
        let mut header = make::header(&file("odd-one"), 0);
        header[range].fill(b'9');
        let error = read(&Tar::new().raw_header(header).finish())
            .expect_err(name)
            .to_string();
        assert!(error.contains(name) && error.contains("odd-one"), "{error}");
    }
}

#[test]
fn a_pax_size_rules_over_the_headers_for_the_data_and_the_next_header() {
    // The header says 0 (as writers do for what does not fit): data that looks like a header must not become one.
    let inner = make::header(&file("smuggled"), 0);
    let mut tar = Tar::new();
    tar.pax(b'x', &[(b"size".to_vec(), b"512".to_vec())]);
    tar.raw_header(make::header(&file("outer"), 0)).data(&{
        let mut block = inner;
        make::set_checksum(&mut block);
        block
    });
    let entries = read(&tar.finish()).expect("valid");
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (&entries[0].0.path[..], entries[0].1.len()),
        (&b"outer"[..], 512)
    );
}

#[test]
fn a_pax_size_does_not_reach_the_extended_headers_in_between() {
    let mut tar = Tar::new();
    tar.pax(b'x', &[(b"size".to_vec(), b"4".to_vec())]);
    let mut entry = file(&"g".repeat(600));
    entry.gnu = true;
    let (entry, data) = one(tar.add(entry));
    assert_eq!((entry.path.len(), &data[..]), (600, &b"data"[..]));
}

#[test]
fn malformed_pax_records_are_refused() {
    for body in [
        &b"8 path=a\n"[..],
        b"11 path=a\n",
        b"path=a\n",
        b"6 =ab\n",
        b"7 path\n",
        b"99999999999999999999 a=b\n",
        b"0 a=b\n",
        b"3 a",
        b"-5 a=b\n",
    ] {
        let mut tar = Tar::new();
        tar.raw_header(make::header(
            &make::Entry {
                flag: b'x',
                ..file("x")
            },
            body.len() as u64,
        ))
        .data(body);
        let error = read(&tar.add(file("f")).finish()).expect_err("malformed");
        assert!(error.to_string().contains("PAX record"), "{error}");
    }
}

#[test]
fn names_with_nul_are_refused_in_pax_records() {
    refused(Tar::new().add(file("f").pax("path", b"a\0b")), "NUL");
    refused(Tar::new().add(file("f").pax("linkpath", b"a\0b")), "NUL");
    refused(
        Tar::new().add(file("f").pax("GNU.sparse.name", b"a\0b")),
        "NUL",
    );
    refused(Tar::new().add(file("f").pax(b"a\0b", "x")), "PAX record");
}

#[test]
fn extended_headers_are_limited() {
    refused(
        Tar::new().add(file("f").pax("comment", vec![b'x'; 1 << 20])),
        "limit",
    );
    one(Tar::new().add(file("f").pax("comment", vec![b'x'; (1 << 20) - 100])));
    let mut header = make::header(
        &make::Entry {
            flag: b'x',
            ..file("x")
        },
        0,
    );
    header[124..136].copy_from_slice(b"77777777777\0");
    refused(Tar::new().raw_header(header), "limit");
}

#[test]
fn global_headers_are_passed_over() {
    let mut tar = Tar::new();
    tar.pax(
        b'g',
        &[
            (b"comment".to_vec(), b"x".to_vec()),
            (b"path".to_vec(), b"everywhere".to_vec()),
        ],
    );
    assert_eq!(one(tar.add(file("f"))).0.path, b"f");
}

#[test]
fn attributes_in_libarchives_encoding() {
    let entry = file("f")
        .pax("LIBARCHIVE.xattr.user.a%25b%3d", "AAEC/w")
        .pax("LIBARCHIVE.xattr.user.both", "AAEC")
        .pax("SCHILY.xattr.user.both", "schily");
    let (entry, _) = one(Tar::new().add(entry));
    assert_eq!(entry.xattrs[&b"user.a%b="[..]], [0, 1, 2, 0xff][..].into());
    assert_eq!(entry.xattrs[&b"user.both"[..]], b"schily"[..].into());
    refused(
        Tar::new().add(file("f").pax("LIBARCHIVE.xattr.user.a", "!")),
        "base64",
    );
}

fn segments() -> Vec<(u64, Vec<u8>)> {
    vec![
        (512, vec![1; 1024]),
        (10_240, vec![2; 512]),
        (20_480, vec![3; 700]),
    ]
}

fn expanded(size: usize, segments: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut data = vec![0; size];
    for (offset, bytes) in segments {
        data[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    data
}

#[test]
fn sparse_files_of_all_dialects() {
    let many = (0..60u64)
        .map(|i| (i * 4096, vec![i as u8 + 1; 512]))
        .collect::<Vec<_>>();
    for dialect in [Sparse::Gnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        for (size, segments) in [
            (30_000, segments()),
            (21_180, segments()),
            (60 * 4096, many.clone()),
            (5000, vec![]),
        ] {
            let mut tar = Tar::new();
            tar.sparse(make::Entry::file("sparse", b""), dialect, size, &segments)
                .add(file("next"));
            let entries =
                read(&tar.finish()).unwrap_or_else(|error| panic!("{dialect:?} {size}: {error}"));
            assert_eq!(entries[0].0.path, b"sparse", "{dialect:?}");
            assert!(
                entries[0].1 == expanded(size as usize, &segments),
                "{dialect:?} {size}"
            );
            assert_eq!(entries[1].1, b"data");
        }
    }
}

#[test]
fn data_is_lent_as_it_is_read() {
    let mut tar = Tar::new();
    tar.sparse(
        make::Entry::file("sparse", b""),
        Sparse::Pax10,
        30_000,
        &segments(),
    )
    .add(file("next"));
    let bytes = tar.finish();
    let lend = |reader: &mut Reader<&[u8]>, step: usize| {
        let mut out = Vec::new();
        loop {
            let mut data = reader.data();
            let lent = data.fill_buf()?;
            let taken = lent.len().min(step);
            if taken == 0 {
                return Ok::<_, std::io::Error>(out);
            }
            out.extend_from_slice(&lent[..taken]);
            data.consume(taken);
        }
    };
    for step in [1, 500, 100_000] {
        let mut reader = Reader::buffered(&bytes[..]);
        reader.next().expect("valid").expect("sparse");
        let got = lend(&mut reader, step).expect("whole");
        assert!(got == expanded(30_000, &segments()), "{step}");
        assert_eq!(reader.next().expect("valid").expect("next").path, b"next");
        assert_eq!(lend(&mut reader, step).expect("whole"), b"data");
        assert!(reader.next().expect("valid").is_none());
    }
    let mut reader = Reader::buffered(&bytes[..4000]);
    reader.next().expect("valid").expect("sparse");
    let error = lend(&mut reader, 500).expect_err("truncated").to_string();
    assert!(error.contains("the data of \"sparse\""), "{error}");
}

#[test]
fn unread_sparse_data_is_skipped() {
    for dialect in [Sparse::Gnu, Sparse::Pax00, Sparse::Pax01, Sparse::Pax10] {
        let mut tar = Tar::new();
        tar.sparse(
            make::Entry::file("sparse", b""),
            dialect,
            30_000,
            &segments(),
        )
        .add(file("next"));
        let bytes = tar.finish();
        let mut reader = Reader::new(&bytes[..]);
        reader.next().expect("valid").expect("sparse");
        reader
            .data()
            .read_exact(&mut [0; 600])
            .expect("there is more");
        assert_eq!(reader.next().expect("valid").expect("next").path, b"next");
    }
}

#[test]
fn hostile_sparse_maps_are_refused() {
    for (map, size, words) in [
        ("0,4,2,2", "100", "overlaps"),
        ("8,2,0,2", "100", "overlaps"),
        ("0,4", "3", "leaves"),
        ("9223372036854775807,4", "100", "leaves"),
        ("0,3", "100", "describes 3"),
        ("0,5", "100", "describes 5"),
        ("0,4,1", "100", "number of segments"),
        ("0,x", "100", "list of numbers"),
        ("0,4", "9223372036854775807", "limit"),
        ("0,4", "-1", "number"),
    ] {
        let entry = file("sparse")
            .pax("GNU.sparse.map", map)
            .pax("GNU.sparse.size", size);
        let error = read(&Tar::new().add(entry).finish())
            .expect_err(map)
            .to_string();
        assert!(error.contains(words), "{map}: {error}");
    }
    refused(
        Tar::new().add(file("f").pax("GNU.sparse.map", "0,4")),
        "length is missing",
    );
    refused(
        Tar::new().add(
            file("f")
                .pax("GNU.sparse.numbytes", "4")
                .pax("GNU.sparse.size", "4"),
        ),
        "turns",
    );
    refused(
        Tar::new().add(
            file("f")
                .pax("GNU.sparse.major", "2")
                .pax("GNU.sparse.minor", "0"),
        ),
        "2.0",
    );
}

#[test]
fn hostile_sparse_maps_in_data_are_refused() {
    for (text, words) in [
        ("", "incomplete"),
        ("99999999999\n", "too long"),
        ("2\n0\n4\n", "incomplete"),
        ("x\n", "not a number"),
        ("1\n-1\n4\n", "not a number"),
    ] {
        let mut data = text.as_bytes().to_vec();
        data.resize(512, 0);
        if text.is_empty() {
            data = vec![b'1'; 2048];
        }
        let entry = make::Entry::file("sparse", &data)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.realsize", "100");
        let error = read(&Tar::new().add(entry).finish())
            .expect_err(text)
            .to_string();
        assert!(error.contains(words), "{text:?}: {error}");
    }
}

#[test]
fn checksums_are_verified_and_signed_ones_accepted() {
    let mut bytes = Tar::new().add(file("f")).finish();
    bytes[1] ^= 1;
    let error = read(&bytes).expect_err("a flipped bit");
    assert!(error.to_string().contains("checksum"), "{error}");
    let mut header = make::header(&file("f"), 0);
    header[..3].copy_from_slice(b"\xff\xfe\xfd");
    let sum: i64 = header
        .iter()
        .enumerate()
        .map(|(i, &b)| {
            if (148..156).contains(&i) {
                32
            } else {
                i64::from(b as i8)
            }
        })
        .sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = Tar::new();
    tar.raw(&header);
    assert_eq!(one(&tar).0.path, b"\xff\xfe\xfd");
}

#[test]
fn what_is_not_a_tar_is_refused() {
    for bytes in [&[b'x'; 1024][..], &[0xff; 512], b"short"] {
        read(bytes).expect_err("not a tar");
    }
    assert!(read(b"").expect("an empty stream").is_empty());
}

#[test]
fn a_missing_end_mark_is_tolerated() {
    let mut tar = Tar::new();
    tar.add(file("a"));
    assert_eq!(read(&tar.unfinished()).expect("no mark").len(), 1);
    let mut bytes = tar.unfinished();
    bytes.resize(bytes.len() + 512, 0);
    assert_eq!(read(&bytes).expect("half a mark").len(), 1);
    // The padding of the last file may be missing too.
    assert_eq!(
        read(&tar.unfinished()[..BLOCK + 4])
            .expect("no padding")
            .len(),
        1
    );
}

#[test]
fn truncation_is_an_error_everywhere_else() {
    let mut tar = Tar::new();
    tar.add(file(&"l".repeat(200))).sparse(
        make::Entry::file("s", b""),
        Sparse::Pax10,
        30_000,
        &segments(),
    );
    let bytes = tar.unfinished();
    for length in 1..bytes.len() {
        let boundary = length == 4 * BLOCK || (3 * BLOCK + 4..4 * BLOCK).contains(&length);
        let last = length >= bytes.len() - (BLOCK - 700 % BLOCK);
        if boundary || last {
            continue;
        }
        read(&bytes[..length]).expect_err("truncated");
    }
}

#[test]
fn what_follows_the_end_mark_is_read_but_ignored() {
    let another = Tar::new().add(file("b")).finish();
    for rest in [&b"garbage"[..], &[b'x'; 3000], &[0; 9000], &another] {
        let mut bytes = Tar::new().add(file("a")).finish();
        bytes.extend(rest);
        assert_eq!(read(&bytes).expect("ignored").len(), 1);
    }
}

#[test]
fn a_header_behind_a_single_zero_block_is_refused() {
    let mut tar = Tar::new();
    tar.add(file("a")).raw(&[0; BLOCK]).add(file("b"));
    refused(&tar, "single zero block");
    let mut tar = Tar::new();
    tar.add(file("a")).raw(&[0; BLOCK]).raw(&[b'x'; BLOCK]);
    refused(&tar, "single zero block");
}

#[test]
fn concatenated_archives_are_read_on_demand() {
    for blocks in [1, 2, 3, 20] {
        let mut tar = Tar::new();
        tar.add(file("a"))
            .raw(&vec![0; blocks * BLOCK])
            .add(file("b"));
        let entries = read_all(&tar.finish(), true).expect("valid");
        assert_eq!(entries.len(), 2, "{blocks}");
    }
    for garbage in [&b"garbage"[..], &[b'x'; 3000]] {
        let mut bytes = Tar::new().add(file("a")).finish();
        bytes.extend(garbage);
        assert_eq!(read_all(&bytes, true).expect("ignored").len(), 1);
    }
    // One zero block is no end mark.
    let mut tar = Tar::new();
    tar.add(file("a")).raw(&[0; BLOCK]).raw(&[b'x'; BLOCK]);
    let error = read_all(&tar.finish(), true).expect_err("no header");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn an_extended_header_without_an_entry_is_refused() {
    let mut tar = Tar::new();
    tar.pax(b'x', &[(b"path".to_vec(), b"lost".to_vec())]);
    refused(&tar, "extended header");
}

#[test]
fn after_the_end_there_is_nothing() {
    let bytes = Tar::new().add(file("a")).finish();
    let mut reader = Reader::new(&bytes[..]);
    assert!(reader.next().expect("valid").is_some());
    for _ in 0..3 {
        assert!(reader.next().expect("valid").is_none());
        assert_eq!(reader.data().read(&mut [0; 8]).expect("nothing"), 0);
    }
}

#[test]
fn data_is_empty_before_the_first_entry_and_for_links() {
    let mut tar = Tar::new();
    tar.add(make::Entry::symlink("s", "x")).add(file("f"));
    let bytes = tar.finish();
    let mut reader = Reader::new(&bytes[..]);
    assert_eq!(reader.data().read(&mut [0; 8]).expect("nothing"), 0);
    reader.next().expect("valid");
    assert_eq!(reader.data().read(&mut [0; 8]).expect("nothing"), 0);
}

#[test]
fn damaged_archives_never_panic() {
    let mut tar = Tar::new();
    tar.add(file("a").xattr("user.x", b"y").pax("mtime", "1.5"))
        .sparse(
            make::Entry::file("s", b""),
            Sparse::Gnu,
            30_000,
            &segments(),
        )
        .sparse(
            make::Entry::file("t", b""),
            Sparse::Pax10,
            30_000,
            &segments(),
        )
        .add(make::Entry::hard("h", "a").in_gnu_format());
    let tar = [tar.finish()];
    for number in 0..400 {
        let mut bytes = change(&tar, number);
        if number % 2 == 0 {
            for block in bytes.as_chunks_mut::<BLOCK>().0 {
                if block[257..262] == *b"ustar" {
                    make::set_checksum(block);
                }
            }
        }
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next() {
            // Holes can be endless.
            let _ = std::io::copy(&mut reader.data().take(1 << 20), &mut std::io::sink());
        }
    }
}
