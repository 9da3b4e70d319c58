//! Changes inputs as a fuzzer does, but always the same way.

use fastrand::Rng;

/// Longest result in bytes.
const MAX: usize = 64 << 10;

/// One of `seeds`, changed in a few places; the same for the same `number`.
///
/// # Panics
/// If there is no seed.
pub fn change(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(number);
    let mut bytes = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(1..6) {
        change_once(&mut bytes, seeds, &mut rng);
    }
    bytes.truncate(MAX);
    bytes
}

fn change_once(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let len = bytes.len();
    let at = rng.usize(..=len);
    let end = (at + 1 + rng.usize(..64)).min(len);
    match rng.u8(..9) {
        0 if at < len => bytes[at] ^= 1 << rng.u8(..8),
        1 if at < len => bytes[at] = rng.u8(..),
        // Numbers at the edges of their types.
        2 => {
            let edge = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, i64::MAX as u64, u64::MAX];
            let value = edge[rng.usize(..edge.len())].to_le_bytes();
            for (to, from) in bytes.iter_mut().skip(at).zip(&value[..1 << rng.u8(..4)]) {
                *to = *from;
            }
        }
        // Digits, for numbers in text.
        3 => {
            for byte in bytes.iter_mut().skip(at).take(rng.usize(1..20)) {
                if byte.is_ascii_digit() {
                    *byte = b'0' + rng.u8(..10);
                }
            }
        }
        4 => {
            let piece = bytes[at..end].to_vec();
            let to = rng.usize(..=len);
            bytes.splice(to..to, piece);
        }
        5 => drop(bytes.drain(at..end)),
        6 => bytes.truncate(at),
        7 => {
            let other = &seeds[rng.usize(..seeds.len())];
            let from = rng.usize(..=other.len());
            let piece = &other[from..(from + rng.usize(..600)).min(other.len())];
            bytes.splice(at..end, piece.iter().copied());
        }
        _ => {
            let piece: Vec<u8> = (0..rng.usize(1..8)).map(|_| rng.u8(..)).collect();
            bytes.splice(at..at, piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_differ_and_are_the_same_each_time() {
        let seeds = [vec![1, 2, 3], b"12345".to_vec(), Vec::new()];
        let all: Vec<_> = (0..1000).map(|number| change(&seeds, number)).collect();
        assert!(
            all == (0..1000)
                .map(|number| change(&seeds, number))
                .collect::<Vec<_>>()
        );
        let mut different = all;
        different.sort();
        different.dedup();
        assert!(different.len() > 500, "{}", different.len());
    }
}
