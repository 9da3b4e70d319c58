//! Where inflating a gzip file may begin, noted while it is inflated once.
//!
//! Inflating can begin where a deflate block begins, if one knows the bit and the 32 KiB of output before. The decoder
//! stops at the end of each block but says only how many bytes it took, not how many bits of the last one it left. So
//! each of the eight possibilities is tried: the wrong ones soon fail or yield other bytes than the decoder did. The
//! right one never does, hence a single survivor is it. A place at which more survive is not used, unless all of them
//! begin with a stored block: its data begins at a whole byte, and from there on they are one.

use std::ops::Range;

use codec::{DEFLATE_WINDOW, SliceDecoder, SliceStart};

use super::gzip::Watch;

/// Output between two places, in bytes.
const SPACING: u64 = 2 << 20;
/// Output between two places at which members begin: those need no window.
const MEMBER_SPACING: u64 = 64 << 10;
/// Places with a window: 24 MiB of windows. Of more, every second one is dropped, and the spacing is doubled.
const WINDOWS_MAX: usize = 768;
/// Output between two positions that are noted.
const POSITIONS: u64 = 32 << 10;
/// Positions, and places without a window, that are kept: of more, too, every second one is dropped, and the spacing doubled.
/// That much has gzip data of more than 32 GiB alone.
const KEPT_MAX: usize = 1 << 20;
/// Output after which a place is looked at before its block has ended.
const EARLY: usize = 4 << 10;
/// Bytes that a place may take to be settled.
const PROBE_MAX: usize = 256 << 10;
/// Bytes compared at a time.
const PIECE: usize = 1 << 10;

/// A place at which inflating may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where the first whole byte of input lies in the gzip file.
    pub in_offset: u64,
    /// Where the output begins in the inflated stream.
    pub out_offset: u64,
    /// The byte before the input, if `bits` is not 0, else 0.
    pub byte: u8,
    /// High-order bits of `byte` that belong to the input.
    pub bits: u8,
    /// Where in [`GzipIndex::windows`] lies the output of the same gzip member before the place, at most 32 KiB.
    pub window: Range<usize>,
}

/// Where inflating a gzip file may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GzipIndex {
    /// Places in order. The first one yields the first byte.
    pub places: Vec<Place>,
    /// The windows of all places, one behind the other: in one piece of memory, so that it is given back as one.
    pub windows: Vec<u8>,
    /// Pairs of positions, in output and input: all output before the first is in the input before the second.
    positions: Vec<(u64, u64)>,
}

/// Moves bytes to a place that is not behind them; where they lie then.
fn move_to(bytes: &mut [u8], range: &Range<usize>, start: usize) -> Range<usize> {
    bytes.copy_within(range.clone(), start);
    start..start + range.len()
}

impl GzipIndex {
    /// Keeps only the windows of some places, given in their order.
    pub fn keep_windows(&mut self, places: impl IntoIterator<Item = usize>) {
        let mut end = 0;
        for at in places {
            let window = &mut self.places[at].window;
            *window = move_to(&mut self.windows, window, end);
            end = window.end;
        }
        self.windows.truncate(end);
    }

    /// The last place from which the output at `out` can be had.
    pub fn place_before(&self, out: u64) -> Option<usize> {
        self.places
            .partition_point(|place| place.out_offset <= out)
            .checked_sub(1)
    }

    /// How much of the input yields all output before `out`.
    pub fn input_end(&self, out: u64) -> u64 {
        let at = self.positions.partition_point(|&(end, _)| end < out);
        let last = self.positions.last();
        self.positions
            .get(at)
            .or(last)
            .map_or(0, |&(_, input)| input)
    }

    /// About where in the input the output at `out` comes from. Grows with `out`.
    pub fn input_near(&self, out: u64) -> u64 {
        let at = self.positions.partition_point(|&(end, _)| end <= out);
        let before = at.checked_sub(1).and_then(|at| self.positions.get(at));
        let &(from, low) = before.unwrap_or(&(0, 0));
        let Some(&(to, high)) = self.positions.get(at) else {
            return low;
        };
        let part = u128::from(high - low) * u128::from(out - from) / u128::from(to - from);
        low + part as u64
    }
}

/// Notes the places while a [`super::gzip::Reader`] inflates.
pub(super) struct Indexer {
    places: Vec<Place>,
    positions: Vec<(u64, u64)>,
    windows: Vec<u8>,
    /// Places with a window.
    windowed: usize,
    spacing: u64,
    /// The same of places without a window, and of positions.
    member_spacing: u64,
    position_spacing: u64,
    kept_max: usize,
    in_position: u64,
    out_position: u64,
    last_byte: u8,
    /// Output of this member that may be needed for a window: the end of what there was.
    history: Vec<u8>,
    /// Output after which the next place is wanted.
    due: u64,
    probe: Option<Probe>,
}

/// A place of which the bit is not known yet, and what followed.
struct Probe {
    place: Place,
    window: Box<[u8]>,
    byte: u8,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Whether a whole block with output follows, and then more output, which tells that the block was not the last.
    block: bool,
    beyond: bool,
    /// Whether it was looked at before that.
    looked: bool,
}

impl Default for Indexer {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            positions: Vec::new(),
            windows: Vec::new(),
            windowed: 0,
            spacing: SPACING,
            member_spacing: MEMBER_SPACING,
            position_spacing: POSITIONS,
            kept_max: KEPT_MAX,
            in_position: 0,
            out_position: 0,
            last_byte: 0,
            history: Vec::new(),
            due: 0,
            probe: None,
        }
    }
}

impl Indexer {
    pub(super) fn finish(mut self) -> GzipIndex {
        self.positions.push((self.out_position, self.in_position));
        GzipIndex {
            places: self.places,
            windows: self.windows,
            positions: self.positions,
        }
    }

    fn add(&mut self, mut place: Place, window: &[u8]) {
        let start = self.windows.len();
        self.windows.extend_from_slice(window);
        place.window = start..self.windows.len();
        self.due = place.out_offset + self.spacing;
        self.windowed += usize::from(!window.is_empty());
        self.places.push(place);
        if self.windowed <= WINDOWS_MAX {
            return;
        }
        let (mut keep, mut end) = (false, 0);
        self.places.retain_mut(|place| {
            if place.window.is_empty() {
                return true;
            }
            keep = !keep;
            if keep {
                place.window = move_to(&mut self.windows, &place.window, end);
                end = place.window.end;
            }
            keep
        });
        self.windows.truncate(end);
        self.windowed = self.windowed.div_ceil(2);
        self.spacing *= 2;
    }

    /// Drops every second place without a window if there are too many.
    fn thin_members(&mut self) {
        if self.places.len() - self.windowed <= self.kept_max {
            return;
        }
        // The first place of all is one of those that are kept: it yields the first byte.
        let mut keep = false;
        self.places.retain(|place| {
            let member = place.window.is_empty();
            keep ^= member;
            !member || keep
        });
        self.member_spacing *= 2;
    }

    /// A place that begins with the next byte.
    fn here(&self) -> Place {
        Place {
            in_offset: self.in_position,
            out_offset: self.out_position,
            byte: 0,
            bits: 0,
            window: 0..0,
        }
    }

    /// Keeps the output from which windows are taken, once one may be.
    fn remember(&mut self, output: &[u8]) {
        const WINDOW: usize = DEFLATE_WINDOW;
        if self.out_position + (WINDOW as u64) < self.due {
            return;
        }
        let tail = &output[output.len().saturating_sub(WINDOW)..];
        if self.history.len() + tail.len() > 4 * WINDOW {
            let old = self.history.len().saturating_sub(WINDOW);
            self.history.drain(..old);
        }
        self.history.extend_from_slice(tail);
    }

    /// Finds out the bit of the open place, if enough is known.
    fn settle(&mut self, mut probe: Probe) {
        let late = probe.beyond;
        if late || (!probe.looked && probe.output.len() >= EARLY) {
            probe.looked = true;
            let len = if late { probe.output.len() } else { EARLY };
            let bits: Vec<u8> = (0..8).filter(|&bits| probe.survives(bits, len)).collect();
            let found = match bits[..] {
                [only] => Some(only),
                [first, ..] if late && bits.iter().all(|&bits| probe.is_stored(bits)) => {
                    Some(first)
                }
                _ => None,
            };
            if let Some(bits) = found {
                let byte = if bits == 0 { 0 } else { probe.byte };
                let place = Place {
                    byte,
                    bits,
                    ..probe.place
                };
                return self.add(place, &probe.window);
            }
            if late || bits.is_empty() {
                return;
            }
        }
        if probe.output.len().max(probe.input.len()) <= PROBE_MAX {
            self.probe = Some(probe);
        }
    }
}

impl Watch for Indexer {
    fn blocks_from(&self) -> u64 {
        match self.probe {
            Some(_) => 0,
            // One byte earlier, so that the end of a block that ends there is seen, however the input comes in pieces.
            None => self.due.saturating_sub(1),
        }
    }

    fn skipped(&mut self, len: usize) {
        self.in_position += len as u64;
    }

    fn member(&mut self) {
        self.probe = None;
        self.history.clear();
        let last = self.places.last();
        if last.is_none_or(|last| self.out_position - last.out_offset >= self.member_spacing) {
            let place = self.here();
            self.add(place, &[]);
            self.thin_members();
        }
    }

    fn inflated(&mut self, input: &[u8], output: &[u8], block_end: bool) {
        self.in_position += input.len() as u64;
        self.out_position += output.len() as u64;
        self.last_byte = input.last().copied().unwrap_or(self.last_byte);
        self.remember(output);
        let noted = self.positions.last().map_or(0, |&(out, _)| out);
        if self.out_position - noted >= self.position_spacing {
            self.positions.push((self.out_position, self.in_position));
            if self.positions.len() > self.kept_max {
                // Those that are kept are about ends: the last one is among them.
                let mut keep = self.positions.len().is_multiple_of(2);
                self.positions.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.position_spacing *= 2;
            }
        }
        if let Some(mut probe) = self.probe.take() {
            probe.beyond |= probe.block && !output.is_empty();
            probe.input.extend_from_slice(input);
            probe.output.extend_from_slice(output);
            probe.block |= block_end && !probe.output.is_empty();
            self.settle(probe);
        }
        if block_end && self.probe.is_none() && self.out_position >= self.due {
            let window = self.history.len().saturating_sub(DEFLATE_WINDOW);
            self.probe = Some(Probe {
                place: self.here(),
                window: self.history[window..].into(),
                byte: self.last_byte,
                input: Vec::new(),
                output: Vec::new(),
                block: false,
                beyond: false,
                looked: false,
            });
        }
    }
}

impl Probe {
    /// Whether inflating from that bit yields the first `len` bytes of what followed.
    fn survives(&self, bits: u8, len: usize) -> bool {
        let start = SliceStart {
            byte: self.byte,
            bits,
            window: &self.window,
        };
        let Ok(mut decoder) = SliceDecoder::new(start, &self.input) else {
            return false;
        };
        let mut piece = [0; PIECE];
        self.output[..len].chunks(PIECE).all(|expected| {
            let piece = &mut piece[..expected.len()];
            decoder.read_exact(piece).is_ok() && piece == expected
        })
    }

    /// Whether the block is a stored one if it begins at that bit.
    fn is_stored(&self, bits: u8) -> bool {
        let next = self.input.first().copied().unwrap_or_default();
        let from_bit = (u32::from(next) << 8 | u32::from(self.byte)) >> (8 - bits);
        from_bit >> 1 & 0b11 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_members_and_positions_every_second_is_dropped() {
        let mut indexer = Indexer {
            kept_max: 4,
            ..Indexer::default()
        };
        // Members of as many bytes as lie between two places, stored in 100 each.
        let output = vec![0; MEMBER_SPACING as usize];
        for _ in 0..64 {
            indexer.member();
            indexer.inflated(&[0; 100], &output, false);
        }
        let index = indexer.finish();
        assert!(index.places.len() <= 6, "{}", index.places.len());
        assert!(index.positions.len() <= 6, "{}", index.positions.len());
        for number in 0..64 {
            let (start, end) = (number * MEMBER_SPACING, (number + 1) * MEMBER_SPACING);
            let place = &index.places[index.place_before(start).unwrap()];
            assert!(place.out_offset <= start);
            assert_eq!(place.in_offset, place.out_offset / MEMBER_SPACING * 100);
            assert!(index.input_end(end) >= (number + 1) * 100);
            assert!(index.input_end(end) <= 6400);
        }
        assert_eq!(index.places[0].out_offset, 0);
    }

    #[test]
    fn of_too_many_windows_every_second_is_dropped() {
        let mut indexer = Indexer::default();
        for number in 0..=WINDOWS_MAX as u64 {
            let place = Place {
                out_offset: number,
                ..indexer.here()
            };
            indexer.add(place, &[number as u8; 5]);
        }
        assert_eq!(indexer.spacing, 2 * SPACING);
        let mut index = indexer.finish();
        let right = |index: &GzipIndex, at: usize| {
            let place = &index.places[at];
            let window = &index.windows[place.window.clone()];
            place.out_offset == 2 * at as u64 && window == [place.out_offset as u8; 5]
        };
        assert_eq!(index.places.len(), WINDOWS_MAX / 2 + 1);
        assert_eq!(index.windows.len(), 5 * index.places.len());
        assert!((0..index.places.len()).all(|at| right(&index, at)));
        index.keep_windows([1, 7]);
        assert_eq!(index.windows.len(), 10);
        assert!(right(&index, 1) && right(&index, 7));
    }
}
