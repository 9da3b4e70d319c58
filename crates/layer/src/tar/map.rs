//! Reading the maps of sparse files, wherever a dialect keeps them.

use std::io::BufRead;

use super::header::{self, BLOCK, Block, field};
use super::pax;
use super::reader::Reader;
use super::sparse::{Map, MapVersion, SEGMENTS_MAX, Segment};
use crate::error::{Error, show};

/// Why an entry's sparse map was not accepted.
pub(super) enum Refused {
    Reason(String),
    Stream(Error),
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Stream(error)
    }
}

impl<R: BufRead> Reader<R> {
    /// The map of a sparse file, wherever its dialect keeps it.
    pub(super) fn sparse_map(
        &mut self,
        block: &Block,
        records: &pax::Sparse,
        stored: u64,
    ) -> Result<Option<Map>, Refused> {
        let version = records.version()?;
        if block[156] == b'S' {
            if version.is_some() {
                return Err(Refused::Reason(
                    "two sparse maps, an old GNU and a PAX one".to_owned(),
                ));
            }
            let (segments, size) = self.old_gnu_map(block)?;
            return Ok(Some(Map::new(segments, size, stored)?));
        }
        let Some(version) = version else {
            return Ok(None);
        };
        let size = records
            .logical_size()
            .ok_or_else(|| "the sparse file's length is missing".to_owned())?;
        let segments = match version {
            MapVersion::Given(segments) => segments,
            MapVersion::InData => self.map_in_data()?,
        };
        Ok(Some(Map::new(segments, size, self.remaining)?))
    }

    /// The map in a header of type `S` and the blocks that follow it.
    fn old_gnu_map(&mut self, block: &Block) -> Result<(Vec<Segment>, u64), Refused> {
        if header::dialect(block) != header::Dialect::Gnu {
            return Err(Refused::Reason(
                "an old GNU sparse file in a header that is not GNU's".to_owned(),
            ));
        }
        let size = field(block, "realsize", 483..495)?;
        let size = u64::try_from(size).map_err(|_| "the length is negative".to_owned())?;
        let mut segments = Vec::new();
        segments_of(&block[386..482], &mut segments)?;
        let mut extended = block[482] != 0;
        while extended {
            let mut block = [0; BLOCK];
            if self.read_full(&mut block)? < BLOCK {
                return Err(Refused::Stream(self.truncated("a sparse map")));
            }
            segments_of(&block[..504], &mut segments)?;
            extended = block[504] != 0;
        }
        Ok((segments, size))
    }

    /// The map that PAX sparse format 1.0 keeps before the data: decimal numbers, one a line, padded to a block.
    fn map_in_data(&mut self) -> Result<Vec<Segment>, Refused> {
        let mut text = Vec::new();
        let (mut want, mut numbers) = (1, Vec::new());
        let mut used = 0;
        while numbers.len() < want {
            let line = text[used..].iter().position(|&b| b == b'\n');
            let Some(length) = line else {
                if self.remaining < BLOCK as u64 || text.len() - used >= BLOCK {
                    return Err(Refused::Reason(
                        "the sparse map before the data is incomplete".to_owned(),
                    ));
                }
                let mut block = [0; BLOCK];
                if self.read_full(&mut block)? < BLOCK {
                    return Err(Refused::Stream(self.truncated("a sparse map")));
                }
                self.remaining -= BLOCK as u64;
                text.drain(..used);
                used = 0;
                text.extend_from_slice(&block);
                continue;
            };
            let number = pax::decimal(&text[used..used + length]).ok_or_else(|| {
                format!(
                    "the sparse map holds {}, not a number",
                    show(&text[used..used + length])
                )
            })?;
            used += length + 1;
            if numbers.is_empty() {
                let count = usize::try_from(number).ok().filter(|&n| n <= SEGMENTS_MAX);
                let count = count
                    .ok_or_else(|| format!("a sparse map of {number} segments is too long"))?;
                want = 1 + 2 * count;
            }
            numbers.push(number);
        }
        Ok(numbers[1..]
            .chunks_exact(2)
            .map(|pair| Segment {
                offset: pair[0],
                length: pair[1],
            })
            .collect())
    }
}

/// Appends the segments of an old GNU map; an empty slot ends it.
fn segments_of(slots: &[u8], segments: &mut Vec<Segment>) -> Result<(), String> {
    for slot in slots.chunks_exact(24) {
        if slot[0] == 0 {
            return Ok(());
        }
        let number = |field: &[u8]| {
            header::number(field)
                .ok()
                .and_then(|v| u64::try_from(v).ok())
        };
        let (Some(offset), Some(length)) = (number(&slot[..12]), number(&slot[12..])) else {
            return Err(format!(
                "the sparse map holds {}, not a segment",
                show(slot)
            ));
        };
        if segments.len() == SEGMENTS_MAX {
            return Err("the sparse map is too long".to_owned());
        }
        segments.push(Segment { offset, length });
    }
    Ok(())
}
