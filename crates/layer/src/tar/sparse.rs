//! Files with holes.

/// Most segments a map may have.
pub(super) const SEGMENTS_MAX: usize = 1 << 20;
/// Longest sparse file, in bytes: holes cost nothing to write down, but all have to be read.
const SIZE_MAX: u64 = 1 << 40;

/// A run of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where it belongs in the file.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// Where a PAX sparse map is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MapVersion {
    /// In the extended header.
    Given(Vec<Segment>),
    /// As text before the data.
    InData,
}

/// The checked layout of a sparse file.
#[derive(Debug)]
pub(super) struct Map {
    segments: Vec<Segment>,
    size: u64,
    /// Position in the file.
    position: u64,
    /// First segment that does not lie wholly before the position.
    next: usize,
}

/// What comes next in a sparse file; never of length 0.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Zeros.
    Hole(u64),
    /// Bytes of the archive.
    Data(u64),
    /// Nothing.
    End,
}

impl Map {
    /// Checks that segments are in order, apart, within the file, and as long as the stored data.
    pub(super) fn new(segments: Vec<Segment>, size: u64, stored: u64) -> Result<Self, String> {
        if size > SIZE_MAX {
            return Err(format!(
                "a sparse file of {size} bytes is above the limit of {SIZE_MAX}"
            ));
        }
        let (mut end, mut total) = (0u64, 0u64);
        for segment in &segments {
            let stop = segment
                .offset
                .checked_add(segment.length)
                .filter(|&stop| stop <= size);
            let Some(stop) = stop.filter(|_| segment.offset >= end) else {
                return Err(format!(
                    "sparse segment {}+{} overlaps another or leaves the file of {size} bytes",
                    segment.offset, segment.length
                ));
            };
            end = stop;
            total += segment.length;
        }
        if total != stored {
            return Err(format!(
                "the sparse map describes {total} bytes of data, the archive has {stored}"
            ));
        }
        Ok(Self {
            segments,
            size,
            position: 0,
            next: 0,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn run(&mut self) -> Run {
        while let Some(segment) = self.segments.get(self.next) {
            // Both sums were checked.
            let end = segment.offset + segment.length;
            if self.position < segment.offset {
                return Run::Hole(segment.offset - self.position);
            }
            if self.position < end {
                return Run::Data(end - self.position);
            }
            self.next += 1;
        }
        match self.size - self.position {
            0 => Run::End,
            rest => Run::Hole(rest),
        }
    }

    /// `n` bytes of the current run were read.
    pub(super) fn advance(&mut self, n: usize) {
        self.position += n as u64;
    }
}
