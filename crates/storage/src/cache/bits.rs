use std::sync::atomic::{AtomicU64, Ordering};

/// A set of small numbers that threads share without a lock.
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    pub fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub fn get(&self, at: usize) -> bool {
        self.0
            .get(at / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (at % 64) & 1 == 1)
    }

    /// Whether it was not set before.
    pub fn set(&self, at: usize) -> bool {
        let mask = 1 << (at % 64);
        self.0
            .get(at / 64)
            .is_some_and(|word| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
    }

    /// Whether it was set before.
    pub fn clear(&self, at: usize) -> bool {
        let mask = 1 << (at % 64);
        self.0
            .get(at / 64)
            .is_some_and(|word| word.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
    }

    /// Moves all members to `other`; says how many there were.
    pub fn move_to(&self, other: &Self) -> usize {
        let words = self.0.iter().zip(&other.0);
        let moved = words.map(|(from, to)| {
            let bits = from.swap(0, Ordering::AcqRel);
            to.fetch_or(bits, Ordering::AcqRel);
            bits.count_ones() as usize
        });
        moved.sum()
    }
}
