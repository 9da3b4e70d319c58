//! Any chunk table under a header that agrees with the blob table: parse, read every record and context.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs_format::blob_meta::{BlobMeta, Header, Placement};
use rafs_format::{BlobFeatures, BlobId, BlobInfo, Cipher, Compressor, Digester};

fuzz_target!(|data: &[u8]| {
    let Some((head, table)) = data.split_first_chunk::<10>() else {
        return;
    };
    let features =
        BlobFeatures::from_bits_retain(u32::from(u16::from_le_bytes([head[0], head[1]])));
    let entries = u32::from(u16::from_le_bytes([head[2], head[3]]));
    let contexts_count = u32::from(head[4]);
    let record = if features.contains(BlobFeatures::CHUNK_INFO_V2) {
        24
    } else {
        16
    };
    let contexts_offset = u64::from(entries) * record;
    let size = table.len() as u64;
    let info = BlobInfo {
        chunk_count: entries,
        features,
        compressed_size: u64::from(u16::from_le_bytes([head[5], head[6]])) << 8,
        uncompressed_size: u64::from(u16::from_le_bytes([head[7], head[8]])) << 12,
        meta_offset: 0xff_ffff,
        meta_compressed_size: size,
        meta_uncompressed_size: size,
        cipher: if head[9] & 1 == 1 {
            Cipher::Aes128Xts
        } else {
            Cipher::None
        },
        ..BlobInfo::new(
            BlobId::placeholder(),
            0x10_0000,
            Compressor::Zstd,
            Digester::Blake3,
        )
    };
    let header = Header {
        features,
        compressor: Compressor::None,
        entries,
        offset: info.meta_offset,
        compressed_size: size,
        uncompressed_size: size,
        contexts_offset,
        contexts_size: size.saturating_sub(contexts_offset),
        contexts_count,
    };
    let Ok(meta) = BlobMeta::parse(table, &header.encode(), &info) else {
        return;
    };
    assert_eq!(meta.chunks().count() as u64, u64::from(meta.len()));
    for chunk in meta.chunks() {
        assert!(chunk.uncompressed_size > 0);
        match chunk.placement {
            Placement::Plain => {}
            Placement::Batch { index, offset } => {
                let batch = meta.batch(index).expect("parse has checked the index");
                assert!(
                    u64::from(offset) + u64::from(chunk.uncompressed_size)
                        <= u64::from(batch.uncompressed_size)
                );
            }
            Placement::Zran { index, .. } => {
                let slice = meta.zran(index).expect("parse has checked the index");
                assert!(meta.dictionary(&slice).is_some());
            }
        }
    }
});
