//! Layers: tars, how they are compressed, eStargz.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::num::NonZeroUsize;
use std::sync::Arc;

use builder::Dedup;
use codec::{SliceDecoder, SliceStart};
use layer::estargz::{Footer, read_toc, read_toc_member};
use layer::{Compression, DataSink, FileInfo, FramingReader, IndexingReader, Options};
use progress::{Cancel, Silent};
use rafs_format::{BlobId, Bootstrap};
use storage::NamedSource;
use testkit::estargz::{estargz, footer_legacy};
use testkit::tar::{BLOCK, Entry, Tar, set_checksum};
use tree::{ChunkId, Image, Tree};
use verify::{Files, LayerFile, Report, Side};

use testkit::layout::{Packing, pack};

use crate::{Target, sample};

/// Bytes that are read of a stream: holes and compression can make much of little.
const READ_MAX: u64 = 1 << 20;
/// Bytes of a stream that is indexed: more than lie between two places.
const INDEXED_MAX: u64 = 8 << 20;
/// Bytes that a frame may decode to.
const FRAME_MAX: u64 = 64 << 10;
/// Bytes of it that come at a time.
const PIECE: usize = 256 << 10;

/// Any tar becomes a tree, and a tarfs image, which passes the check. Checksums are set right first: to guess them is
/// no use. The lowest bits of the first byte are options.
pub const TAR: Target = Target {
    name: "tar",
    run: |input| {
        let Some((flags, tar)) = input.split_first() else {
            return;
        };
        let tar = with_checksums(tar);
        let options = Options {
            concatenated: flags & 1 != 0,
            drop_estargz: flags & 2 != 0,
            keep_trusted: flags & 4 == 0,
            fraction: flags & 8 == 0,
            max_inodes: 10_000,
            max_content: 1 << 40,
        };
        if let Ok(tree) = layer::read_tree(&tar[..], &mut Parts, &options) {
            walk(&tree);
        }
        let options = builder::BuildOptions {
            layer: options,
            ..sample::options()
        };
        if let Ok(layer) = builder::build_tarfs(&tar[..], &options) {
            check(&layer.image);
        }
    },
    samples: || {
        let with = |tar: Vec<u8>| [&[0], &tar[..]].concat();
        sample::tars().into_iter().map(with).collect()
    },
    changes: 10_000,
};

/// One layer over another; where the lower ends is said by the first byte.
pub const OVERLAY: Target = Target {
    name: "overlay",
    run: |input| {
        let Some((split, tars)) = input.split_first() else {
            return;
        };
        let split = (usize::from(*split) * BLOCK).min(tars.len());
        let (lower, upper) = tars.split_at(split);
        let tree = |tar: &[u8]| {
            let options = sample::options().layer;
            layer::read_tree(&with_checksums(tar)[..], &mut Parts, &options).ok()
        };
        if let (Some(mut lower), Some(upper)) = (tree(lower), tree(upper))
            && lower.overlay(upper).is_ok()
        {
            walk(&lower);
        }
    },
    samples: || {
        let mut upper = Tar::new();
        upper
            .add(Entry::file("usr/.wh.small", ""))
            .add(Entry::file("null", "is a file now"))
            .add(Entry::directory("lib"))
            .add(Entry::file("lib/.wh..wh..opq", ""))
            .add(Entry::file("usr/file/below", "a file"));
        let mut lower = Tar::new();
        for entry in sample::entries() {
            lower.add(entry);
        }
        let lower = lower.finish();
        let split = (lower.len() / BLOCK) as u8;
        vec![[&[split], &lower[..], &upper.finish()[..]].concat()]
    },
    changes: 10_000,
};

/// The layers of [`OVERLAY`], converted, are what the checker finds in them: it reads tars by code of its own.
pub const REPLAY: Target = Target {
    name: "replay",
    run: |input| {
        let Some((split, tars)) = input.split_first() else {
            return;
        };
        let split = (usize::from(*split) * BLOCK).min(tars.len());
        let (lower, upper) = tars.split_at(split);
        let tars = [lower, upper].map(with_checksums);
        let images = tars
            .iter()
            .map(|tar| convert(tar))
            .collect::<Option<Vec<_>>>();
        let source = layers(&tars);
        let Some((images, blobs)) = images.map(|built| built.into_iter().unzip()) else {
            replay(None, &source);
            return;
        };
        let Ok(image) = builder::merge(images) else {
            return;
        };
        let Some(target) = converted(&image, blobs) else {
            return;
        };
        let report = replay(Some(&source), &target);
        assert!(report.verified, "{report}");
    },
    samples: || (OVERLAY.samples)(),
    changes: 1000,
};

/// A tar whose chunks stay where they are, in a gzip member or in zstd frames, is read from there. The first byte says how it is
/// compressed, two more where frames end.
pub const REFERENCE: Target = Target {
    name: "reference",
    run: |input| {
        let Some(([kind, ends @ ..], tar)) = input.split_first_chunk::<3>() else {
            return;
        };
        let tar = with_checksums(tar);
        let (compression, layer) = match kind % 3 {
            0 => (Compression::None, tar),
            1 => (Compression::Gzip, pack(&tar, Packing::Gzip)),
            _ => (Compression::Zstd, frames(&tar, *ends)),
        };
        let mut table = Vec::new();
        let options = sample::options();
        let built =
            builder::build_targz_with(&layer[..], compression, &mut table, &options, &mut ());
        let Ok(mut built) = built else { return };
        if let Some(own) = built.own_blob {
            built.image.blobs[own].meta_digest = built.blob_digest;
        }
        check(&built.image);
        let mut source = NamedSource::new(None);
        for info in &built.image.blobs {
            source.insert(info.id.as_str(), Arc::new(layer.clone()));
        }
        source.insert(testkit::sha256(&table), Arc::new(table));
        let Ok(bootstrap) = builder::encode(&built.image) else {
            return;
        };
        let bootstrap = Bootstrap::parse(bootstrap).expect("it passed the check");
        let store = sample::store(&bootstrap, Arc::new(source));
        for chunk in sample::pointers(&bootstrap) {
            store
                .chunk(chunk)
                .expect("the chunk is where the table says");
        }
    },
    samples: || {
        let mut tar = Tar::new();
        for entry in sample::entries() {
            tar.add(entry);
        }
        let tar = tar.finish();
        let with = |kind: u8| [&[kind, 3, 9], &tar[..]].concat();
        (0..3).map(with).collect()
    },
    changes: 2000,
};

/// Any bytes as a compressed stream.
pub const DECOMPRESS: Target = Target {
    name: "decompress",
    run: |input| {
        let (kind, stream) =
            layer::detecting(Cursor::new(input.to_vec())).expect("memory can be read");
        if let Ok(stream) = layer::decompress(stream, kind) {
            let _ = io::copy(&mut stream.take(READ_MAX), &mut io::sink());
        }
    },
    samples: || {
        let data = testkit::prose(4, 900);
        let gzip = pack(&data, Packing::Gzip);
        vec![
            [&gzip[..], &gzip, &[0; 20]].concat(),
            pack(&data, Packing::Zstd),
            data,
        ]
    },
    changes: 10_000,
};

/// Any bytes as a zstd stream: each of its frames decodes by itself to what it is part of the whole.
pub const ZSTD_FRAMES: Target = Target {
    name: "zstd_frames",
    run: |input| {
        let reader = FramingReader::new(input, FRAME_MAX);
        let mut reader = reader.expect("a decoder can be had").take(READ_MAX);
        let mut data = Vec::new();
        let whole = reader.read_to_end(&mut data).is_ok() && reader.limit() != 0;
        let (mut stored, mut decoded) = (0, 0);
        for end in reader.into_inner().into_ends() {
            let (next, next_decoded) = (end.in_offset as usize, end.out_offset as usize);
            let Some(part) = data.get(decoded..next_decoded) else {
                // It was not all read.
                return;
            };
            assert!(part.len() as u64 <= FRAME_MAX);
            let frame = &input[stored..next];
            // The library overlooks a wrong size in a frame's header or not, as the pieces fall.
            let stated = zstd::zstd_safe::get_frame_content_size(frame)
                .ok()
                .flatten();
            match zstd::decode_all(frame) {
                Ok(alone) => assert!(alone == part, "other bytes from a frame"),
                Err(error) => assert!(
                    stated.is_some_and(|size| size != part.len() as u64),
                    "{error}"
                ),
            }
            (stored, decoded) = (next, next_decoded);
        }
        assert!(!whole || (stored, decoded) == (input.len(), data.len()));
    },
    samples: || {
        let frame = |seed, len| pack(&testkit::prose(seed, len), Packing::Zstd);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let three = [frame(6, 300), skippable, frame(7, 0), frame(8, 900)].concat();
        vec![three, pack(&[0; 70_000], Packing::Zstd)]
    },
    changes: 10_000,
};

/// Any bytes as a gzip stream, from every place of whose index the same is inflated as from its beginning; or, if the first
/// byte is not 0, as what lies behind a place, with that byte before it.
pub const GZIP_INDEX: Target = Target {
    name: "gzip_index",
    run: |input| match input.split_first() {
        Some((0, stream)) => index(stream),
        Some((byte, [bits, input @ ..])) => slice(*byte, *bits, input),
        _ => {}
    },
    samples: || {
        let data = testkit::prose(5, 300).repeat(8000);
        let gzip = pack(&data, Packing::Gzip);
        let slice = [&[0xff, 3], &gzip[10..]].concat();
        vec![[&[0], &gzip[..]].concat(), slice]
    },
    changes: 300,
};

fn index(stream: &[u8]) {
    let mut reader = IndexingReader::new(BufReader::with_capacity(PIECE, stream));
    let mut data = Vec::new();
    let _ = (&mut reader).take(INDEXED_MAX).read_to_end(&mut data);
    let index = reader.into_index();
    for place in index.places {
        let start = SliceStart {
            byte: place.byte,
            bits: place.bits,
            window: &index.windows[place.window],
        };
        let input = &stream[place.in_offset as usize..];
        let mut decoder = SliceDecoder::new(start, input).expect("a place makes sense");
        let expected = &data[place.out_offset as usize..];
        let mut again = vec![0; expected.len()];
        decoder.read_exact(&mut again).expect("a place is right");
        assert!(again == expected, "other bytes from a place");
    }
}

fn slice(byte: u8, bits: u8, input: &[u8]) {
    let (window, input) = input.split_at(input.len() / 4);
    let start = SliceStart { byte, bits, window };
    if let Ok(mut decoder) = SliceDecoder::new(start, input) {
        let _ = decoder
            .skip(READ_MAX)
            .and_then(|()| decoder.read_exact(&mut [0; 100]));
    }
}

/// Any bytes as the table of contents of an eStargz layer; the bootstrap that is made of it passes the check.
pub const ESTARGZ_TOC: Target = Target {
    name: "estargz_toc",
    run: |input| {
        let _ = read_toc(input, |_, _| Ok(()));
        let options = sample::options();
        for end in [None, Some(100_000)] {
            let id = BlobId::placeholder();
            if let Ok(layer) = builder::build_estargz(input, id, end, &options) {
                check(&layer.image);
            }
        }
    },
    samples: || {
        let small = [Entry::file("f", "x"), Entry::hard("h", "f")];
        vec![
            estargz(&sample::entries(), 0x1000).toc,
            estargz(&small, 0x1000).toc,
        ]
    },
    changes: 5000,
};

/// Any bytes as an eStargz layer.
pub const ESTARGZ_FOOTER: Target = Target {
    name: "estargz_footer",
    run: |input| {
        let tail = &input[input.len().saturating_sub(layer::estargz::FOOTER_SIZE)..];
        let size = input.len() as u64;
        let Ok(footer) = Footer::parse(tail, size) else {
            return;
        };
        assert!(footer.toc_offset + (footer.size as u64) < size);
        let member = &input[footer.toc_offset as usize..input.len() - footer.size];
        let _ = read_toc_member(Cursor::new(member.to_vec()), |json| {
            read_toc(json, |_, _| Ok(()))
        });
    },
    samples: || {
        let made = estargz(&[Entry::file("f", "x")], 0x1000);
        let mut old = made.blob[..made.blob.len() - 51].to_vec();
        old.extend(footer_legacy(made.toc_offset));
        vec![made.blob, old]
    },
    changes: 10_000,
};

/// The tar in three frames, each of which ends behind so many blocks more, the last at the end.
fn frames(tar: &[u8], ends: [u8; 2]) -> Vec<u8> {
    let mut rest = tar;
    let mut stream = Vec::new();
    for blocks in ends {
        let (frame, behind) = rest.split_at((usize::from(blocks) * BLOCK).min(rest.len()));
        stream.extend(pack(frame, Packing::Zstd));
        rest = behind;
    }
    stream.extend(pack(rest, Packing::Zstd));
    stream
}

/// The image of a tar with files of some bytes, and its blob.
fn convert(tar: &[u8]) -> Option<(Image, Vec<u8>)> {
    let options = sample::options();
    let mut sizes = Sizes(0);
    layer::read_tree(tar, &mut sizes, &options.layer).ok()?;
    if sizes.0 > READ_MAX {
        return None;
    }
    let mut blob = Vec::new();
    let layer = builder::build_tar(tar, &mut blob, &options, Dedup::Layer).ok()?;
    Some((layer.image, blob))
}

fn layers(tars: &[Vec<u8>]) -> Side {
    let layer = |tar: &Vec<u8>| {
        let tar = tar.clone();
        LayerFile::new("layer", tar.len() as u64, move || {
            Ok(Box::new(Cursor::new(tar.clone())))
        })
    };
    Side {
        name: "layers".to_owned(),
        document: None,
        files: Files::Layers(tars.iter().map(layer).collect()),
    }
}

/// `None` if it cannot be encoded, such as an image without files.
fn converted(image: &Image, blobs: Vec<Vec<u8>>) -> Option<Side> {
    let bootstrap = Bootstrap::parse(builder::encode(image).ok()?);
    let bootstrap = bootstrap.expect("what was written can be read");
    let mut source = NamedSource::new(None);
    for blob in blobs {
        source.insert(testkit::sha256(&blob), Arc::new(blob));
    }
    Some(Side {
        name: "converted".to_owned(),
        document: None,
        files: Files::Rafs {
            bootstrap: Arc::new(bootstrap.into()),
            blobs: Some(Arc::new(source)),
        },
    })
}

fn replay(source: Option<&Side>, target: &Side) -> Report {
    let options = verify::Options {
        threads: NonZeroUsize::MIN,
        layers: sample::options().layer,
        cancel: &Cancel::default(),
        progress: &Silent,
    };
    verify::check(source, target, &options).expect("threads can be started")
}

/// Adds sizes of files up, and stops above what is read of one.
struct Sizes(u64);

impl DataSink for Sizes {
    fn file(&mut self, _: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        self.0 += io::copy(&mut data.take(READ_MAX + 1), &mut io::sink())?;
        match self.0 > READ_MAX {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(Box::default()),
        }
    }
}

/// Reads a little of each file.
struct Parts;

impl DataSink for Parts {
    fn file(&mut self, _: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        io::copy(&mut data.take(READ_MAX), &mut io::sink())?;
        Ok(Box::default())
    }
}

/// The input with right checksums in all that looks like a header.
fn with_checksums(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    for block in tar.as_chunks_mut::<BLOCK>().0 {
        if block[257..262] == *b"ustar" {
            set_checksum(block);
        }
    }
    tar
}

/// Names are names, and the walk ends.
fn walk(tree: &Tree) {
    let mut names = 0;
    for visit in tree.walk() {
        names += 1;
        let name = visit.name;
        assert!(!matches!(name, b"." | b"..") && name.len() <= 255 && !name.contains(&b'/'));
    }
    assert!(names <= tree.name_count());
}

/// What can be encoded can be read, and passes the check.
fn check(image: &Image) {
    if let Ok(bytes) = bootstrap::encode(image) {
        let bootstrap = Bootstrap::parse(bytes).expect("what was written can be read");
        let checked = bootstrap.check();
        if let Err(error) = checked {
            panic!("what was written is unsound: {error}: {:?}", error.source);
        }
    }
}
