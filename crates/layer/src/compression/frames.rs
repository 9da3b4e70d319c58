//! Where the frames of a zstd stream begin: each can be decoded by itself.

use std::io::{self, BufRead, BufReader, Read};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::{INPUT, WINDOW_LOG_MAX};

/// Most frames whose ends are noted: 64 MiB of notes. The smallest frames take no more bytes than a note of them.
const FRAMES_MAX: usize = 1 << 22;

/// The end of a frame, and so where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// In the stream, in bytes.
    pub in_offset: u64,
    /// In what it decodes to, in bytes.
    pub out_offset: u64,
}

/// The decoded bytes of a zstd stream, and where its frames end.
///
/// Reads fail as those of [`decompress`](super::decompress), and with kind `Unsupported` as soon as a frame decodes to more
/// than a limit, or there are too many frames.
pub struct FramingReader<R> {
    input: BufReader<R>,
    decoder: Decoder<'static>,
    at: Boundary,
    ends: Vec<Boundary>,
    limit: u64,
    most: usize,
    in_frame: bool,
}

impl<R: Read> FramingReader<R> {
    /// Will decode `input`, whose frames must not decode to more than `limit` bytes.
    ///
    /// # Errors
    /// When the decoder cannot be set up.
    pub fn new(input: R, limit: u64) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self {
            input: BufReader::with_capacity(INPUT, input),
            decoder,
            at: Boundary {
                in_offset: 0,
                out_offset: 0,
            },
            ends: Vec::new(),
            limit,
            most: FRAMES_MAX,
            in_frame: false,
        })
    }

    /// The ends of the frames of what was read, which should be all.
    pub fn into_ends(self) -> Vec<Boundary> {
        self.ends
    }

    fn error(&self, kind: io::ErrorKind, what: &str) -> io::Error {
        let done = self.at.out_offset;
        let text = format!("the zstd data {what} after {done} inflated bytes");
        io::Error::new(kind, text)
    }
}

impl<R: Read> Read for FramingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !buf.is_empty() {
            let bytes = self.input.fill_buf()?;
            let ended = bytes.is_empty();
            if ended && !self.in_frame {
                return Ok(0);
            }
            let mut input = InBuffer::around(bytes);
            let mut output = OutBuffer::around(&mut *buf);
            let more = self.decoder.run(&mut input, &mut output);
            let (consumed, produced) = (input.pos(), output.pos());
            self.input.consume(consumed);
            self.at.in_offset += consumed as u64;
            self.at.out_offset += produced as u64;
            let more = more.map_err(|error| {
                self.error(io::ErrorKind::InvalidData, &format!("is corrupt ({error})"))
            })?;
            self.in_frame = more != 0;
            let begin = self.ends.last().map_or(0, |end| end.out_offset);
            if self.at.out_offset - begin > self.limit {
                let limit = self.limit;
                let text = format!("has a frame of more than {limit} bytes");
                return Err(self.error(io::ErrorKind::Unsupported, &text));
            } else if !self.in_frame && self.ends.len() >= self.most {
                let text = format!("has more than {} frames", self.most);
                return Err(self.error(io::ErrorKind::Unsupported, &text));
            } else if !self.in_frame {
                self.ends.push(self.at);
            } else if ended && produced == 0 {
                return Err(self.error(io::ErrorKind::UnexpectedEof, "is truncated: it ends"));
            }
            if produced != 0 {
                return Ok(produced);
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn read(stream: &[u8], limit: u64, piece: usize) -> io::Result<(Vec<u8>, Vec<Boundary>)> {
        let mut reader = FramingReader::new(stream, limit)?;
        let mut out = Vec::new();
        let mut buf = vec![0; piece];
        loop {
            match reader.read(&mut buf)? {
                0 => return Ok((out, reader.into_ends())),
                n => out.extend_from_slice(&buf[..n]),
            }
        }
    }

    #[test]
    fn every_frame_decodes_by_itself() {
        let parts = [
            testkit::prose(1, 300_000),
            Vec::new(),
            testkit::noise(2, 5000),
        ];
        let frames: Vec<Vec<u8>> = parts.iter().map(|part| frame(part)).collect();
        // A skippable frame of three bytes yields nothing.
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let stream = [&frames[0], &skippable, &frames[1], &frames[2]]
            .map(|f| &f[..])
            .concat();
        for piece in [1000, 1 << 20] {
            let (out, ends) = read(&stream, 300_000, piece).unwrap();
            assert_eq!(out, parts.concat());
            assert_eq!(ends.len(), 4);
            let mut begin = Boundary {
                in_offset: 0,
                out_offset: 0,
            };
            for end in ends {
                let part = &stream[begin.in_offset as usize..end.in_offset as usize];
                let part = zstd::decode_all(part).unwrap();
                assert_eq!(
                    part,
                    out[begin.out_offset as usize..end.out_offset as usize]
                );
                begin = end;
            }
            assert_eq!(begin.in_offset, stream.len() as u64);
        }
    }

    #[test]
    fn a_long_frame_is_given_up_before_its_end() {
        let stream = frame(&testkit::noise(3, 3 << 20));
        let mut rest = &stream[..];
        let mut reader = FramingReader::new(&mut rest, 1 << 20).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(rest.len() > 1 << 20);
    }

    #[test]
    fn a_frame_beyond_the_limit_is_given_up_even_if_it_ends_in_one_piece() {
        let stream = frame(&[0; 1001]);
        for piece in [10, 1 << 20] {
            assert_eq!(read(&stream, 1001, piece).unwrap().1.len(), 1);
            let error = read(&stream, 1000, piece).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
    }

    #[test]
    fn too_many_frames_are_given_up() {
        let stream = frame(b"x").repeat(5);
        for (most, whole) in [(5, true), (4, false)] {
            let mut reader = FramingReader::new(&stream[..], 1 << 20).unwrap();
            reader.most = most;
            let read = io::copy(&mut reader, &mut io::sink());
            assert_eq!(read.as_ref().ok(), whole.then_some(&5), "{most}");
            assert!(whole || read.unwrap_err().kind() == io::ErrorKind::Unsupported);
        }
    }

    #[test]
    fn damage_is_named() {
        let stream = frame(&testkit::prose(4, 100_000));
        let error = read(&stream[..stream.len() - 9], 1 << 20, 4096).unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
        let error = read(
            &[&stream[..], b"neither frame nor padding"].concat(),
            1 << 20,
            4096,
        )
        .unwrap_err();
        assert!(error.to_string().contains("corrupt"), "{error}");
    }
}
