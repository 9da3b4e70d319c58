//! Gzip and zstd streams as layers have them, and broken ones.

use std::io::{self, Cursor, Read, Write};

use flate2::write::GzEncoder;
use layer::{Compression, decompress, decompress_apart, detect, detecting};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("into memory");
    encoder.finish().expect("into memory")
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).expect("into memory")
}

/// Inflates with reads of varying lengths.
fn inflate(bytes: Vec<u8>, what: Compression) -> io::Result<Vec<u8>> {
    let mut reader = decompress(Cursor::new(bytes), what)?;
    let mut out = Vec::new();
    let mut buffer = vec![0; 70_000];
    for length in [1, 7, 512, 70_000].into_iter().cycle() {
        let n = reader.read(&mut buffer[..length])?;
        if n == 0 {
            break;
        }
        out.extend_from_slice(&buffer[..n]);
    }
    Ok(out)
}

fn sample() -> Vec<u8> {
    let mut data = testkit::prose(3, 400_000);
    data.extend(testkit::noise(4, 100_000));
    data
}

#[test]
fn kinds_are_told_by_magic() {
    assert_eq!(detect(&gzip(b"x")), Compression::Gzip);
    assert_eq!(detect(&zstd(b"x")), Compression::Zstd);
    assert_eq!(detect(&[0x53, 0x2a, 0x4d, 0x18]), Compression::Zstd);
    assert_eq!(detect(b"etc/passwd\0"), Compression::None);
    assert_eq!(detect(b""), Compression::None);
    assert_eq!(detect(&[0x1f]), Compression::None);
}

#[test]
fn detecting_takes_nothing_away() {
    for (data, want) in [
        (gzip(b"x"), Compression::Gzip),
        (zstd(b"x"), Compression::Zstd),
        (b"ab".to_vec(), Compression::None),
        (Vec::new(), Compression::None),
    ] {
        let (what, mut reader) = detecting(Cursor::new(data.clone())).expect("in memory");
        let mut whole = Vec::new();
        reader.read_to_end(&mut whole).expect("in memory");
        assert_eq!((what, whole), (want, data));
    }
}

#[test]
fn one_member_or_frame() {
    let data = sample();
    assert_eq!(
        inflate(gzip(&data), Compression::Gzip).expect("valid"),
        data
    );
    assert_eq!(
        inflate(zstd(&data), Compression::Zstd).expect("valid"),
        data
    );
    assert_eq!(
        inflate(data.clone(), Compression::None).expect("valid"),
        data
    );
}

#[test]
fn many_members_and_frames() {
    let data = sample();
    for pack in [gzip, zstd] {
        let mut packed = Vec::new();
        for part in data.chunks(30_001) {
            packed.extend(pack(part));
            packed.extend(pack(b""));
        }
        let what = detect(&packed);
        assert_eq!(inflate(packed, what).expect("valid"), data, "{what}");
    }
}

#[test]
fn gzip_header_fields_are_skipped() {
    let mut encoder = flate2::GzBuilder::new()
        .filename("name")
        .comment("comment")
        .extra(vec![1, 2, 3])
        .write(Vec::new(), flate2::Compression::default());
    encoder.write_all(b"data").expect("into memory");
    let packed = encoder.finish().expect("into memory");
    assert_eq!(inflate(packed, Compression::Gzip).expect("valid"), b"data");
}

#[test]
fn a_member_has_to_have_the_checksums_and_the_length_that_it_states() {
    let plain = gzip(b"some text");
    // The fixed part with the flag for a CRC of the header, and that.
    let mut checked = plain[..10].to_vec();
    checked[3] = 2;
    let checksum = zlib_rs::crc32::crc32(0, &checked);
    checked.extend(&checksum.to_le_bytes()[..2]);
    checked.extend(&plain[10..]);
    let text = |bytes: Vec<u8>| inflate(bytes, Compression::Gzip);
    assert_eq!(text(checked.clone()).expect("a good header"), b"some text");
    let end = checked.len();
    for (at, what) in [
        (1, "no gzip header"),
        (2, "not deflate"),
        (3, "unknown flags"),
        (10, "CRC that it states"),
        (11, "CRC that it states"),
        (end - 8, "CRC-32 that follows"),
        (end - 5, "CRC-32 that follows"),
        (end - 4, "length that follows"),
        (end - 1, "length that follows"),
    ] {
        let mut bad = checked.clone();
        bad[at] ^= 0x80;
        let error = text(bad).expect_err("damaged").to_string();
        assert!(error.contains(what), "{at}: {error}");
    }
}

/// Inflates gzip in portions, with the checksums looked at apart.
fn inflate_apart(bytes: &[u8], portion: usize) -> io::Result<Vec<u8>> {
    let stored = Cursor::new(bytes.to_vec());
    let (mut reader, mut checksums) = decompress_apart(stored, Compression::Gzip)?;
    let (mut out, mut buffer) = (Vec::new(), vec![0; portion]);
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            checksums.finish()?;
            return Ok(out);
        }
        checksums.update(&buffer[..n]);
        out.extend_from_slice(&buffer[..n]);
    }
}

#[test]
fn checksums_apart_are_those_of_each_member() {
    let data = sample();
    let members = [&data[..1], &[], &data[1..3000], &data[3000..], &[], &[]].map(gzip);
    let ends = members.iter().scan(0, |end, member| {
        *end += member.len();
        Some(*end)
    });
    let stream = members.concat();
    for portion in [1000, 2999, 70_000, 1 << 20] {
        assert!(inflate_apart(&stream, portion).expect("valid") == data);
        for (member, end) in (1..).zip(ends.clone()) {
            let mut damaged = stream.clone();
            damaged[end - 8] ^= 1;
            let error = inflate_apart(&damaged, portion).expect_err("damaged");
            let error = error.to_string();
            assert!(error.contains(&format!("in member {member} ")), "{error}");
            assert!(error.contains("CRC-32 that follows"), "{error}");
        }
    }
}

#[test]
fn zero_padding_after_gzip_is_tolerated() {
    let mut packed = gzip(b"data");
    packed.resize(packed.len() + 600_000, 0);
    assert_eq!(inflate(packed, Compression::Gzip).expect("padded"), b"data");
}

#[test]
fn trailing_garbage_is_refused() {
    for pack in [gzip, zstd] {
        let mut packed = pack(b"data");
        let what = detect(&packed);
        packed.extend(b"garbage");
        inflate(packed, what).expect_err("garbage");
    }
    let mut packed = gzip(b"data");
    packed.extend([0; 1000]);
    packed.push(1);
    let error = inflate(packed, Compression::Gzip).expect_err("garbage behind the padding");
    assert!(error.to_string().contains("zero padding"), "{error}");
}

#[test]
fn truncation_is_named_wherever_it_happens() {
    let data = testkit::prose(5, 20_000);
    for pack in [gzip, zstd] {
        let packed = pack(&data);
        let what = detect(&packed);
        for length in (8..packed.len()).step_by(61).chain([packed.len() - 1]) {
            let error = inflate(packed[..length].to_vec(), what).expect_err("truncated");
            assert_eq!(
                error.kind(),
                io::ErrorKind::UnexpectedEof,
                "{what} {length}: {error}"
            );
            assert!(error.to_string().contains("truncated"), "{error}");
        }
    }
    let error = inflate(Vec::new(), Compression::Gzip).expect_err("empty");
    assert!(error.to_string().contains("truncated"), "{error}");
}

#[test]
fn truncation_in_a_later_member_names_it() {
    let mut packed = gzip(b"first");
    packed.extend(gzip(b"second"));
    packed.truncate(packed.len() - 3);
    let error = inflate(packed, Compression::Gzip).expect_err("truncated");
    assert!(error.to_string().contains("member 2 after 11"), "{error}");
}

#[test]
fn flipped_bytes_never_pass_as_the_same_data() {
    let data = testkit::prose(6, 5000);
    for pack in [gzip, zstd] {
        let packed = pack(&data);
        let what = detect(&packed);
        for position in (0..packed.len()).step_by(13) {
            let mut broken = packed.clone();
            broken[position] ^= 0x41;
            // Times and names in a gzip header may change; and zstd's one-shot frames here carry no checksum.
            if let Ok(out) = inflate(broken, what) {
                assert!(what == Compression::Zstd || out == data, "byte {position}");
            }
        }
    }
}

#[test]
fn a_zstd_window_of_128_mib_is_accepted_and_a_larger_one_refused() {
    for (log, fits) in [(27, true), (28, false)] {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("a level");
        encoder.window_log(log).expect("a window");
        encoder.write_all(b"data").expect("into memory");
        let packed = encoder.finish().expect("into memory");
        assert_eq!(inflate(packed, Compression::Zstd).is_ok(), fits, "{log}");
    }
}

#[test]
fn errors_of_the_source_come_through() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "no"))
        }
    }
    for what in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let source = Cursor::new(gzip(b"data")[..12].to_vec());
        let source = if what == Compression::Zstd {
            Cursor::new(zstd(b"data")[..6].to_vec())
        } else {
            source
        };
        let mut reader = decompress(source.chain(Failing), what).expect("set up");
        let error = io::copy(&mut reader, &mut io::sink()).expect_err("the source fails");
        assert_eq!(
            error.kind(),
            io::ErrorKind::PermissionDenied,
            "{what}: {error}"
        );
    }
}
