//! What is in blobs: chunk tables, tables of contents, tails, chunks.

use std::io;

use rafs_format::blob_meta::{BatchContext, StoredChunk, encode_batch, encode_v1};
use rafs_format::blob_meta::{BlobMeta, Header, Placement, ZranContext, encode_v2, encode_zran};
use rafs_format::{BlobFeatures, BlobId, BlobInfo, Cipher, Compressor, Digester, toc};
use storage::BlobReader;

use testkit::layout::{Packing, pack};

use crate::{Target, sample};

/// Any chunk table under a header that agrees with the blob table: parse, read every record and context.
pub const META: Target = Target {
    name: "blob_meta",
    run: meta,
    samples: meta_samples,
    changes: 20_000,
};

/// Any bytes as the end of a blob, alone and behind a header that fits: what is found lies within the blob.
pub const TOC_TAIL: Target = Target {
    name: "toc_tail",
    run: |input| {
        toc_tail(input);
        for name in [toc::TOC, toc::BOOTSTRAP, toc::META] {
            let mut blob = input.to_vec();
            blob.extend(toc::tar_header(name, input.len() as u64));
            toc_tail(&blob);
        }
    },
    samples: || {
        let (_, blob) = sample::native_layer();
        let start = blob.len().saturating_sub(2000);
        vec![blob[start..].to_vec(), blob[..200].to_vec()]
    },
    changes: 5000,
};

/// Any bytes as a blob with a bootstrap or a chunk table in it.
pub const TAIL: Target = Target {
    name: "blob_tail",
    run: |input| {
        let blob = Bytes(input.to_vec());
        if let Ok(bootstrap) = storage::extract_bootstrap(&blob) {
            let _ = bootstrap::Parsed::parse(bootstrap).map(|parsed| parsed.check());
        }
        let _ = storage::find_chunk_table(&blob);
    },
    samples: || {
        let (_, blob) = sample::native_layer();
        vec![blob, vec![0; 4096]]
    },
    changes: 5000,
};

/// A compressor, a size and stored bytes.
pub const CHUNK: Target = Target {
    name: "chunk",
    run: |input| {
        let Some(([kind, low, high], stored)) = input.split_first_chunk() else {
            return;
        };
        let mut out = vec![0; usize::from(u16::from_le_bytes([*low, *high]))];
        if *kind == 4 {
            let _ = codec::gunzip_head(stored, &mut out);
        } else if let Some(compressor) = Compressor::from_number(u32::from(*kind)) {
            let _ = codec::decompress(compressor, stored, &mut out);
        }
    },
    samples: chunk_samples,
    changes: 5000,
};

/// A blob in memory.
pub struct Bytes(pub Vec<u8>);

impl BlobReader for Bytes {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Ten bytes say what the blob table does, the others are the chunk table.
fn meta(input: &[u8]) {
    let Some((head, table)) = input.split_first_chunk::<10>() else {
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
}

/// Tables of two plain chunks, of two in a batch, and of two in a slice with a dictionary.
fn meta_samples() -> Vec<Vec<u8>> {
    let chunk = |index: u32, placement| StoredChunk {
        index,
        uncompressed_offset: u64::from(index) * 4096,
        uncompressed_size: 100,
        compressed_offset: u64::from(index) * 50,
        compressed_size: 50,
        compressed: true,
        encrypted: false,
        crc32: None,
        placement,
    };
    let head = |features: BlobFeatures, contexts: u8| {
        let [a, b, ..] = features.bits().to_le_bytes();
        vec![a, b, 2, 0, contexts, 16, 0, 16, 0, 0]
    };
    let fits = "the sample can be encoded";
    let mut v1 = head(BlobFeatures::ALIGNED, 0);
    let mut batch = head(BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::BATCH, 1);
    let mut zran = head(
        BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::ZRAN | BlobFeatures::SEPARATE,
        1,
    );
    for index in 0..2 {
        encode_v1(&chunk(index, Placement::Plain), &mut v1).expect(fits);
        let offset = index * 100;
        let placement = Placement::Batch { index: 0, offset };
        let member = StoredChunk {
            compressed_size: 0,
            compressed_offset: 0,
            ..chunk(index, placement)
        };
        encode_v2(&member, &mut batch).expect(fits);
        let placement = Placement::Zran { index: 0, offset };
        encode_v2(&chunk(index, placement), &mut zran).expect(fits);
    }
    encode_batch(
        &BatchContext {
            compressed_size: 100,
            uncompressed_size: 200,
        },
        &mut batch,
    );
    let slice = ZranContext {
        in_offset: 10,
        out_offset: 0,
        dictionary_offset: 0,
        in_len: 100,
        out_len: 300,
        dictionary_size: 16,
        byte: 0x55,
        bits: 3,
    };
    encode_zran(&slice, &mut zran);
    zran.extend([7; 16]);
    vec![v1, batch, zran]
}

fn toc_tail(blob: &[u8]) {
    let tail = &blob[blob.len().saturating_sub(toc::TAIL_SIZE)..];
    let Ok(tail) = toc::parse_tail(tail, blob.len() as u64) else {
        return;
    };
    if let Some(bootstrap) = tail.bootstrap {
        assert!(bootstrap.offset + bootstrap.compressed_size <= blob.len() as u64);
    }
    if let Some(contents) = tail.toc {
        let mut again = Vec::new();
        for entry in &contents.entries {
            entry
                .encode(&mut again)
                .expect("what was parsed can be encoded");
        }
        assert_eq!(contents.offset + contents.size(), blob.len() as u64);
    }
}

fn chunk_samples() -> Vec<Vec<u8>> {
    let data = testkit::prose(3, 700);
    let sample = |kind: u8, stored: &[u8]| {
        let [low, high] = (data.len() as u16).to_le_bytes();
        [&[kind, low, high], stored].concat()
    };
    let mut samples = vec![sample(0, &data)];
    for compressor in [Compressor::Lz4Block, Compressor::Zstd] {
        let mut stored = Vec::new();
        let mut encoder = codec::Encoder::new(compressor, 3).expect("the compressor is there");
        encoder
            .encode(&data, &mut stored)
            .expect("memory takes all");
        samples.push(sample(compressor.number() as u8, &stored));
    }
    let member = pack(&data, Packing::Gzip);
    samples.push(sample(Compressor::Gzip.number() as u8, &member));
    samples.push(sample(4, &[&member, &b"more"[..]].concat()));
    samples
}
