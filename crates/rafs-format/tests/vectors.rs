//! Records with real bytes, decoded and encoded again.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use rafs_format::blob_meta::{
    self, BatchContext, BlobMeta, HEADER_SIZE, Header, Placement, StoredChunk, ZranContext,
};
use rafs_format::encode;
use rafs_format::toc::{self, TocEntry};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, ChunkPointer, Compressor, Digester, DirEntry, Error, FileType,
    Layout, Nid,
};

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex.replace([' ', '|'], "")).unwrap()
}

fn info(features: BlobFeatures, chunk_count: u32, table: u64) -> BlobInfo {
    BlobInfo {
        chunk_count,
        features: features | BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
        compressed_size: 1 << 24,
        uncompressed_size: 1 << 24,
        meta_offset: 1 << 23,
        meta_compressed_size: table,
        meta_uncompressed_size: table,
        ..BlobInfo::new(
            BlobId::placeholder(),
            0x100_0000,
            Compressor::Zstd,
            Digester::Blake3,
        )
    }
}

fn header(info: &BlobInfo, contexts_count: u32) -> Header {
    let v2 = info.features.contains(BlobFeatures::CHUNK_INFO_V2);
    let records = u64::from(info.chunk_count) * if v2 { 24 } else { 16 };
    let contexts = contexts_count != 0;
    Header {
        features: info.features,
        compressor: info.meta_compressor,
        entries: info.chunk_count,
        offset: info.meta_offset,
        compressed_size: info.meta_compressed_size,
        uncompressed_size: info.meta_uncompressed_size,
        contexts_offset: if contexts { records } else { 0 },
        contexts_size: if contexts {
            info.meta_uncompressed_size - records
        } else {
            0
        },
        contexts_count,
    }
}

fn parse(
    table: &[u8],
    features: BlobFeatures,
    chunks: u32,
    contexts: u32,
) -> Result<BlobMeta, Error> {
    let info = info(features, chunks, table.len() as u64);
    BlobMeta::parse(table, &header(&info, contexts).encode(), &info)
}

fn plain(index: u32, uncompressed: (u64, u32), compressed: (u64, u32)) -> StoredChunk {
    StoredChunk {
        index,
        uncompressed_offset: uncompressed.0,
        uncompressed_size: uncompressed.1,
        compressed_offset: compressed.0,
        compressed_size: compressed.1,
        compressed: uncompressed.1 != compressed.1,
        encrypted: false,
        crc32: None,
        placement: Placement::Plain,
    }
}

#[test]
fn chunk_records_v1() {
    let table = bytes(
        "00 60 4e 00 00 70 00 00 | 6b 7a 0a 00 00 70 00 00
         00 10 00 00 00 30 06 00 | 04 00 00 00 00 00 01 00
         00 33 00 00 00 80 30 00 | 21 00 00 00 00 83 30 00
         00 42 50 00 00 f0 ff 57 | 2a 03 50 00 00 b0 67 00"
            .replace('\n', "")
            .as_str(),
    );
    let meta = parse(&table, BlobFeatures::empty(), 4, 0).unwrap();
    let expected = [
        plain(0, (5_136_384, 8), (686_699, 8)),
        plain(1, (4096, 100), (4, 17)),
        plain(2, (12288, 3_146_505), (33, 3_146_505)),
        plain(3, (5_259_264, 2_457_600), (5_243_690, 1660)),
    ];
    assert_eq!(meta.chunks().collect::<Vec<_>>(), expected);
    let mut encoded = Vec::new();
    for chunk in &expected {
        blob_meta::encode_v1(chunk, &mut encoded).unwrap();
    }
    assert_eq!(encoded, table);
}

#[test]
fn chunk_records_v2() {
    let mut table = bytes(
        "01 00 00 00 63 00 00 05 | 00 00 00 00 00 00 00 00 | 04 00 00 00 00 00 00 00
         03 00 00 00 ff ff 0f 10 | 16 00 00 00 00 00 00 10 | 18 62 5b d6 00 00 00 00"
            .replace('\n', "")
            .as_str(),
    );
    blob_meta::encode_batch(
        &BatchContext {
            compressed_size: 80,
            uncompressed_size: 104,
        },
        &mut table,
    );
    let features = BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::BATCH;
    let meta = parse(&table, features, 2, 1).unwrap();
    let expected = [
        StoredChunk {
            compressed: true,
            placement: Placement::Batch {
                index: 0,
                offset: 4,
            },
            ..plain(0, (4096, 100), (0, 0))
        },
        StoredChunk {
            crc32: Some(0xd65b_6218),
            ..plain(1, (12288, 1_048_576), (22, 1_048_576))
        },
    ];
    assert!(meta.chunks().eq(expected));
    assert_eq!(
        meta.batch(0),
        Some(BatchContext {
            compressed_size: 80,
            uncompressed_size: 104
        })
    );
    assert_eq!((meta.batch(1), meta.chunk(2)), (None, None));
    let mut encoded = Vec::new();
    for chunk in &expected {
        blob_meta::encode_v2(chunk, &mut encoded).unwrap();
    }
    assert_eq!(encoded, table[..48]);
    // The member would end beyond its batch; there is no such batch; the blob has no batches.
    let damaged = |at: usize, byte: u8| {
        let mut table = table.clone();
        table[at] = byte;
        parse(&table, features, 2, 1)
    };
    assert!(damaged(16, 5).is_err());
    assert!(damaged(20, 1).is_err());
    assert!(parse(&table[..48], BlobFeatures::CHUNK_INFO_V2, 2, 0).is_err());
    // A CRC of 0, raw bytes of another length, bytes beyond the data.
    let mut no_crc = table.clone();
    no_crc[40..44].fill(0);
    assert!(parse(&no_crc, features, 2, 1).is_err());
    assert!(damaged(38, 1).is_err());
    assert!(damaged(36, 1).is_err());
}

#[test]
fn slice_contexts() {
    let record =
        bytes("01 00 00 00 87 13 00 03 | 9c 03 00 00 00 e6 14 00 | 00 38 00 00 00 00 00 00");
    let context = bytes(
        "4b 75 60 00 00 00 00 00  1f 49 6d 00 00 00 00 00  00 00 03 00 00 00 00 00  28 15 10 00  e1 e6 32 00  00 80 00 00  c4 04 00 00",
    );
    let table = [record.as_slice(), &context, &[7; 0x3_8000]].concat();
    let features = BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::ZRAN | BlobFeatures::SEPARATE;
    let meta = parse(&table, features, 1, 1).unwrap();
    let expected = StoredChunk {
        placement: Placement::Zran {
            index: 0,
            offset: 14336,
        },
        ..plain(0, (4096, 5000), (924, 5350))
    };
    assert_eq!(meta.chunk(0), Some(expected));
    let slice = ZranContext {
        in_offset: 6_321_483,
        out_offset: 7_162_143,
        dictionary_offset: 196_608,
        in_len: 1_053_992,
        out_len: 3_335_905,
        dictionary_size: 32768,
        byte: 0xc4,
        bits: 4,
    };
    assert_eq!(meta.zran(0), Some(slice));
    assert_eq!(meta.dictionary(&slice).map(<[u8]>::len), Some(32768));
    let mut encoded = Vec::new();
    blob_meta::encode_zran(&slice, &mut encoded);
    assert_eq!(encoded, context);
    assert!(parse(&table[..table.len() - 1], features, 1, 1).is_err());
}

#[test]
fn chunk_table_header_must_agree_with_the_blob_table() {
    let table = bytes("00 00 00 00 00 30 00 00 | 00 00 00 00 00 30 00 00");
    let info = info(BlobFeatures::empty(), 1, 16);
    let good = header(&info, 0);
    assert_eq!(Header::parse(&good.encode()), Ok(good));
    assert!(BlobMeta::parse(&table, &good.encode(), &info).is_ok());
    assert!(BlobMeta::parse(&table[..15], &good.encode(), &info).is_err());
    // Magic numbers, compressor, entries, offset and both sizes are compared; features are not.
    for at in [0, 8, 12, 16, 24, 32, HEADER_SIZE - 1] {
        let mut header = good.encode();
        header[at] ^= 1;
        assert!(
            BlobMeta::parse(&table, &header, &info).is_err(),
            "byte {at}"
        );
    }
    let mut header = good.encode();
    header[4] ^= 2;
    assert!(BlobMeta::parse(&table, &header, &info).is_ok());
}

#[test]
fn records_that_v1_cannot_hold_are_refused() {
    let mut out = Vec::new();
    let good = plain(0, (0, 4), (0, 4));
    for bad in [
        StoredChunk {
            compressed: true,
            ..good
        },
        StoredChunk {
            encrypted: true,
            ..good
        },
        StoredChunk {
            uncompressed_size: 0,
            ..good
        },
        StoredChunk {
            uncompressed_offset: 1,
            ..good
        },
        StoredChunk {
            uncompressed_size: (1 << 24) + 1,
            ..good
        },
        StoredChunk {
            compressed_offset: 1 << 40,
            ..good
        },
    ] {
        assert!(blob_meta::encode_v1(&bad, &mut out).is_err());
    }
    assert!(out.is_empty());
}

#[test]
fn chunk_index() {
    let mut out = Vec::new();
    let pointer = ChunkPointer {
        blob_index: 0,
        index: 3,
        uncompressed_offset: 3 * 4096,
    };
    encode::chunk_index(&pointer, 12, &mut out).unwrap();
    assert_eq!(out, bytes("03 00 01 00 03 00 00 00"));
    out.clear();
    let pointer = ChunkPointer {
        blob_index: 254,
        index: 0xab_cdef,
        uncompressed_offset: 0,
    };
    encode::chunk_index(&pointer, 12, &mut out).unwrap();
    assert_eq!(out, bytes("ef cd ff ab 00 00 00 00"));
    let too_many = ChunkPointer {
        blob_index: 255,
        ..pointer
    };
    assert!(encode::chunk_index(&too_many, 12, &mut out).is_err());
}

#[test]
fn xattr_area() {
    let xattrs: [(&[u8], &[u8]); 2] = [
        (b"user.foo", b"bar"),
        (b"user.longer_attr_name", b"some value"),
    ];
    let mut expected = vec![0; 12];
    expected.extend(b"\x03\x01\x03\x00foobar\0\0");
    expected.extend(b"\x10\x01\x0a\x00longer_attr_namesome value\0\0");
    let mut out = Vec::new();
    encode::xattrs(xattrs, &mut out).unwrap();
    assert_eq!(out, expected);
    assert_eq!(encode::xattr_size(xattrs), Ok(56));
    // 56 bytes are a count of (56 - 12) / 4 + 1.
    assert_eq!(encode::xattr_size([]), Ok(0));
    for name in [
        &b"user."[..],
        b"system.other",
        b"system.posix_acl_accessx",
        b"overlay.a",
        b"user.a\0b",
    ] {
        assert!(encode::xattr_size([(name, &b""[..])]).is_err(), "{name:?}");
    }
}

#[test]
fn extended_inode() {
    let expected = bytes(
        "09 00 00 00 a4 81 00 00  09 03 30 00 00 00 00 00  2a 00 00 00 12 00 00 00  0000000000000000
         31 8e 02 6b 00 00 00 00  25 84 67 30 01 00 00 00  00000000000000000000000000000000"
            .replace('\n', "")
            .as_str(),
    );
    let fields = encode::InodeFields {
        mode: 0o100_644,
        nlink: 1,
        size: 3_146_505,
        uid: 0,
        gid: 0,
        mtime: 0x6b02_8e31,
        mtime_nsec: 0x3067_8425,
        ino: 18,
        implied: false,
        layout: Layout::ChunkBased,
        u: 0x2a,
        xattr_size: 0,
    };
    let mut out = Vec::new();
    encode::inode(&fields, &mut out).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn directory_blocks_are_closed_when_full() {
    // 4 entries of 12 + 1000 bytes would fill 4048 bytes, so the fifth begins a new block.
    let names: Vec<Vec<u8>> = (0..5).map(|i| vec![b'a' + i; 200]).collect();
    let entries: Vec<_> = names
        .iter()
        .map(|name| DirEntry {
            name,
            nid: Nid(7),
            file_type: FileType::Regular,
        })
        .collect();
    let mut out = Vec::new();
    encode::directory(&entries, 1000, &mut out).unwrap();
    assert_eq!(out.len(), 1000 + 212);
    assert_eq!(
        encode::directory_size(names.iter().map(Vec::len), 1000),
        1212
    );
    assert_eq!(out[8], 48);
    assert_eq!(out[48..50], *b"aa");
    assert_eq!(out[1000 + 8], 12);
    assert_eq!(out[1012], b'e');
}

#[test]
fn tar_headers() {
    let header = toc::tar_header(toc::BOOTSTRAP, 81920);
    assert_eq!(header[..11], *b"image.boot\0");
    assert!(header[100..124].iter().all(|&b| b == 0));
    assert_eq!(header[124..136], *b"00000240000\0");
    assert_eq!(header[136..148], *b"00000000000\0");
    assert_eq!(header[156], b'0');
    assert_eq!(header[257..265], *b"ustar  \0");
    assert_eq!(toc::parse_tar_header(&header), Ok((toc::BOOTSTRAP, 81920)));
    for size in [0, 1, (1 << 33) - 1, 1 << 33, u64::MAX] {
        assert_eq!(
            toc::parse_tar_header(&toc::tar_header("x", size)),
            Ok(("x", size))
        );
    }
    for at in [0, 124, 148, 156, 257, 511] {
        let mut damaged = header;
        damaged[at] ^= 1;
        assert!(toc::parse_tar_header(&damaged).is_err(), "byte {at}");
    }
}

fn entry(name: &str, offset: u64, size: u64) -> TocEntry {
    TocEntry {
        compressor: Compressor::Zstd,
        name: name.to_owned(),
        digest: [9; 32],
        compressed_offset: offset,
        compressed_size: size,
        uncompressed_size: 4096,
    }
}

#[test]
fn tail_with_table_of_contents() {
    let mut blob = vec![1; 5000];
    let entries = [
        entry(toc::META_HEADER, 100, 200),
        entry(toc::BOOTSTRAP, 4000, 488),
    ];
    for entry in &entries {
        entry.encode(&mut blob).unwrap();
    }
    blob.extend(toc::tar_header(toc::TOC, 256));
    let last =
        |blob: &[u8]| toc::parse_tail(&blob[blob.len() - toc::TAIL_SIZE..], blob.len() as u64);
    let tail = last(&blob).unwrap();
    let found = tail.toc.unwrap();
    assert_eq!(
        (found.offset, found.size(), found.entries.as_slice()),
        (5000, 768, &entries[..])
    );
    let boot = tail.bootstrap.unwrap();
    assert_eq!(
        (boot.offset, boot.compressed_size, boot.digest),
        (4000, 488, Some([9; 32]))
    );
    blob[5128 + 56..5128 + 64].copy_from_slice(&4513u64.to_le_bytes());
    assert!(last(&blob).is_err());
    blob[5000] = 3;
    assert!(last(&blob).is_err());
}

#[test]
fn tail_without_table_of_contents() {
    let mut blob = vec![1; 700];
    blob.extend(toc::tar_header(toc::BOOTSTRAP, 600));
    let tail = toc::parse_tail(&blob, blob.len() as u64).unwrap();
    assert_eq!(tail.toc, None);
    let boot = tail.bootstrap.unwrap();
    assert_eq!(
        (boot.offset, boot.uncompressed_size, boot.compressor),
        (100, 600, Compressor::None)
    );
    assert_eq!(toc::parse_tail(&[1; 600], 600), Ok(toc::Tail::default()));
    assert_eq!(toc::parse_tail(b"short", 5), Ok(toc::Tail::default()));
    let mut too_long = vec![1; 100];
    too_long.extend(toc::tar_header(toc::BOOTSTRAP, 101));
    assert!(toc::parse_tail(&too_long, 612).is_err());
    let mut odd = vec![1; 300];
    odd.extend(toc::tar_header(toc::TOC, 127));
    assert!(toc::parse_tail(&odd, 812).is_err());
}
