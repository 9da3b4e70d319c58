//! An index of a gzip stream: from each of its places the rest of the stream can be inflated.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::{Read as _, Write as _};

use codec::{SliceDecoder, SliceStart};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use layer::piece::{Pipe, pipe, pump};
use layer::{GzipIndex, IndexingReader};
use progress::Cancel;
use proptest::prelude::*;

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::new(level));
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// Bytes that compress about as files do: words of a small vocabulary, with runs of noise.
fn content(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pick = seed >> 33;
        match pick % 5 {
            0 => out.extend_from_slice(&pick.to_le_bytes()),
            1 => out.extend(std::iter::repeat_n(pick as u8, (pick % 700) as usize)),
            word => out.extend(format!("{}-{}", word, pick % 97).bytes()),
        }
    }
    out.truncate(len);
    out
}

fn index(stream: &[u8]) -> std::io::Result<(Vec<u8>, GzipIndex)> {
    in_pieces(stream, 256 << 10)
}

/// The index of a stream that comes in pieces of that size.
fn in_pieces(
    stream: impl std::io::Read + Send,
    size: usize,
) -> std::io::Result<(Vec<u8>, GzipIndex)> {
    let (sender, pieces) = pipe();
    std::thread::scope(|scope| {
        scope.spawn(move || pump(stream, size, &[sender], &Cancel::default()));
        let mut reader = IndexingReader::new(Pipe::new(pieces));
        let mut out = Vec::new();
        reader.read_to_end(&mut out)?;
        Ok((out, reader.into_index()))
    })
}

/// Inflates from each place as far as the one after the next.
fn check(stream: &[u8], data: &[u8]) -> GzipIndex {
    let (out, index) = index(stream).unwrap();
    assert!(out == data);
    let mut near = 0;
    for (at, place) in index.places.iter().enumerate() {
        let end = index.places.get(at + 2);
        let end = end.map_or(data.len() as u64, |place| place.out_offset);
        let (from, to) = (place.in_offset as usize, index.input_end(end) as usize);
        let start = SliceStart {
            byte: place.byte,
            bits: place.bits,
            window: &index.windows[place.window.clone()],
        };
        if place.bits != 0 {
            assert_eq!(place.byte, stream[from - 1]);
        }
        let mut decoder = SliceDecoder::new(start, &stream[from..to]).unwrap();
        let expected = &data[place.out_offset as usize..end as usize];
        let mut got = vec![0; expected.len()];
        decoder.read_exact(&mut got).unwrap();
        assert!(got == expected, "from place {at}");
        assert_eq!(index.place_before(place.out_offset), Some(at));
        let here = index.input_near(place.out_offset);
        assert!(here >= near && here <= stream.len() as u64);
        near = here;
    }
    if !data.is_empty() {
        assert_eq!(index.places[0].out_offset, 0);
    }
    index
}

#[test]
fn every_level_has_places_about_every_two_megabytes() {
    let data = content(9 << 20, 1);
    // At level 1 the encoder may make one block of all.
    check(&gzip(&data, 1), &data);
    for level in [0, 3, 6, 9] {
        let index = check(&gzip(&data, level), &data);
        let places = index.places.len();
        assert!((4..=5).contains(&places), "level {level}: {places} places");
        assert!(
            index.places[1..]
                .iter()
                .all(|place| place.window.len() == 32 << 10)
        );
        // All bits occur where blocks are compressed; else it is the first.
        let aligned = index.places.iter().all(|place| place.bits == 0);
        assert_eq!(aligned, level == 0);
    }
}

#[test]
fn members_begin_places_without_windows() {
    let data = content(3 << 20, 2);
    let mut stream = Vec::new();
    for part in data.chunks(100_000) {
        let mut member = GzBuilder::new()
            .filename("name")
            .comment("comment")
            .extra(vec![7; 300])
            .write(Vec::new(), Compression::new(6));
        member.write_all(part).unwrap();
        stream.extend(member.finish().unwrap());
        stream.extend(gzip(b"", 6));
    }
    stream.extend([0; 1000]);
    let index = check(&stream, &data);
    assert_eq!(index.places.len(), data.len().div_ceil(100_000));
    assert!(index.places.iter().all(|place| place.window.is_empty()));
    // Tiny ones do not each get a place.
    let tiny: Vec<u8> = data[..300_000]
        .chunks(100)
        .flat_map(|part| gzip(part, 6))
        .collect();
    let index = check(&tiny, &data[..300_000]);
    assert!((4..=5).contains(&index.places.len()));
}

#[test]
fn what_is_not_gzip_to_its_end_is_an_error() {
    let stream = gzip(&content(3 << 20, 3), 6);
    for len in [0, 1, 9, 10, 11, 1000, stream.len() - 9, stream.len() - 1] {
        let text = index(&stream[..len]).unwrap_err().to_string();
        assert!(text.contains("truncated"), "{len}: {text}");
    }
    for at in [2, 5000, stream.len() - 5] {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        let text = index(&damaged).unwrap_err().to_string();
        assert!(text.contains("corrupt"), "{at}: {text}");
    }
    let text = index(&[&stream[..], b"x"].concat())
        .unwrap_err()
        .to_string();
    assert!(text.contains("neither gzip nor zero padding"), "{text}");
}

/// Gives few bytes at a time, as a pipe may.
struct Trickle<'a>(&'a [u8]);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(1 + self.0.len() % 9973);
        self.0.read(&mut buf[..len])
    }
}

#[test]
fn the_index_does_not_depend_on_how_bytes_arrive() {
    let stream = gzip(&content(6 << 20, 4), 6);
    let (_, trickled) = in_pieces(Trickle(&stream), 256 << 10).unwrap();
    assert!(trickled == index(&stream).unwrap().1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_stream_can_be_inflated_from_its_places(
        parts in prop::collection::vec((0_u32..10, 0_usize..3_000_000, any::<u64>(), any::<bool>()), 1..4),
    ) {
        let (mut stream, mut data) = (Vec::new(), Vec::new());
        let blocks = parts.iter().all(|(level, ..)| *level != 1);
        for (level, len, seed, flushed) in parts {
            let part = content(len, seed);
            let mut member = GzEncoder::new(Vec::new(), Compression::new(level));
            // Flushing makes empty blocks, and ends blocks early.
            let step = if flushed { 1 + (seed % 90_000) as usize } else { usize::MAX };
            for piece in part.chunks(step.max(1000)) {
                member.write_all(piece).unwrap();
                if flushed {
                    member.flush().unwrap();
                }
            }
            stream.extend(member.finish().unwrap());
            data.extend(part);
        }
        let index = check(&stream, &data);
        let longest = index.places.windows(2).map(|two| two[1].out_offset - two[0].out_offset).max();
        prop_assert!(!blocks || longest.unwrap_or_default() < 4 << 20, "a gap of {longest:?}");
    }
}
