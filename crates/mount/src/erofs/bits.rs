//! Which parts of a cache file are good, as far as a guardian knows.

use std::ops::Range;

/// Most words of one blob's bits, so that no image decides how much memory a guardian takes.
const WORDS_MAX: u64 = 1 << 14;
const BLOCK: u64 = 4096;

/// One bit for each piece of a file.
#[derive(Debug, Default)]
pub(super) struct Bits {
    size: u64,
    /// Bytes for which a bit stands, a power of two.
    piece: u64,
    words: Vec<u64>,
}

impl Bits {
    /// Nothing of a file of `size` bytes is good.
    pub(super) fn new(size: u64) -> Self {
        let mut piece = BLOCK;
        while size.div_ceil(piece).div_ceil(64) > WORDS_MAX {
            piece *= 2;
        }
        let words = size.div_ceil(piece).div_ceil(64);
        Self {
            size,
            piece,
            words: vec![0; words as usize],
        }
    }

    /// Whether all of `range` that lies in the file is good.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        let end = range.end.min(self.size);
        if range.start >= end {
            return true;
        }
        (range.start / self.piece..end.div_ceil(self.piece)).all(|at| {
            let word = self.words.get((at / 64) as usize);
            word.is_some_and(|word| word >> (at % 64) & 1 == 1)
        })
    }

    /// Notes that `range` is good. A piece of which only a part is stays as it was.
    pub(super) fn add(&mut self, range: &Range<u64>) {
        // Up to the end of the file is to the end of the last piece.
        let end = if range.end >= self.size {
            self.size.div_ceil(self.piece)
        } else {
            range.end / self.piece
        };
        for at in range.start.div_ceil(self.piece)..end {
            if let Some(word) = self.words.get_mut((at / 64) as usize) {
                *word |= 1 << (at % 64);
            }
        }
    }

    /// Nothing is good any more.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pieces_count() {
        let mut bits = Bits::new(10 * BLOCK + 100);
        assert!(!bits.contains(&(0..1)));
        bits.add(&(100..3 * BLOCK + 5));
        assert!(!bits.contains(&(0..BLOCK)));
        assert!(bits.contains(&(BLOCK..3 * BLOCK)));
        assert!(!bits.contains(&(BLOCK..3 * BLOCK + 1)));
        bits.add(&(9 * BLOCK..u64::MAX));
        assert!(bits.contains(&(9 * BLOCK..u64::MAX)));
        assert!(!bits.contains(&(8 * BLOCK..10 * BLOCK)));
        assert!(
            bits.contains(&(11 * BLOCK..12 * BLOCK)),
            "beyond the file nothing is read"
        );
        bits.clear();
        assert!(!bits.contains(&(BLOCK..BLOCK + 1)));
    }

    #[test]
    fn a_huge_file_takes_little() {
        let mut bits = Bits::new(u64::MAX / 2);
        assert!(bits.words.len() as u64 <= WORDS_MAX);
        bits.add(&(0..u64::MAX / 2));
        assert!(bits.contains(&(5..u64::MAX / 2)));
        let mut none = Bits::new(0);
        none.add(&(0..10));
        assert!(none.contains(&(0..10)));
    }
}
