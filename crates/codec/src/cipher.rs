//! Encryption of stored units: chunks, batches, the chunk table of a blob and its header.
//!
//! Each unit is one data unit of AES-128-XTS, and every unit of a blob has the same tweak: the 16 bytes that the
//! blob table holds as IV, taken as they are. The ciphertext is as long as the plaintext (ciphertext stealing), so
//! a unit needs at least 16 bytes; a shorter one is filled up to 18 bytes:
//!
//! | Offset | Bytes |
//! |---|---|
//! | 0 | the plaintext, `len` bytes |
//! | `len` | `16 - len` bytes of the value `16 - len` |
//! | 16 | 0x78 0x90 |

use aes::Aes128;
use aes::cipher::{Array, KeyInit as _};
use xts_mode::Xts128;

/// Shortest unit that the cipher takes as it is, in bytes.
const UNIT_MIN: usize = 16;
/// What follows the fill bytes of a unit that was too short.
const FILL_END: [u8; 2] = [0x78, 0x90];
/// Length of a unit that was filled up.
const FILLED: usize = UNIT_MIN + FILL_END.len();

/// An encrypted unit that cannot be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The unit is shorter than the cipher allows.
    #[error("an encrypted unit has {0} bytes, but no less than 16 are possible")]
    Short(usize),
    /// The unit ends like a filled-up one, but its fill count is impossible.
    #[error("an encrypted unit is filled up by {0} bytes, but no more than 15 are possible")]
    Fill(u8),
}

/// AES-128-XTS with the key and tweak of one blob.
pub struct BlobCipher {
    xts: Xts128<Aes128>,
    tweak: [u8; 16],
}

impl BlobCipher {
    /// The cipher of a blob: `key` is the data key followed by the tweak key, `iv` the tweak of every unit.
    pub fn new(key: &[u8; 32], iv: &[u8; 16]) -> Self {
        let mut halves = [[0; 16]; 2];
        for (half, bytes) in halves.iter_mut().zip(key.chunks_exact(16)) {
            half.copy_from_slice(bytes);
        }
        let [data, tweak] = halves.map(|half| Aes128::new(&Array(half)));
        Self {
            xts: Xts128::new(data, tweak),
            tweak: *iv,
        }
    }

    /// A key that differs in its halves, as implementations of XTS demand: `key` itself, or with another first
    /// half where the two are equal.
    pub fn usable_key(mut key: [u8; 32]) -> [u8; 32] {
        let (first, second) = key.split_at_mut(16);
        if first == second {
            first.fill(if second.first() == Some(&0xA5) {
                0x5A
            } else {
                0xA5
            });
        }
        key
    }

    /// Encrypts the bytes of `unit` from `start` on in place; they grow to 18 bytes if there are fewer than 16.
    pub fn encrypt(&self, unit: &mut Vec<u8>, start: usize) {
        let len = unit.len().saturating_sub(start);
        self.encrypt_at(unit, start, len);
    }

    /// Encrypts `len` bytes of `bytes` from `start` on in place, as one unit, and gives its length: see
    /// [`BlobCipher::stored_size`]. `bytes` grows as needed; what it holds behind the unit is undefined.
    pub fn encrypt_at(&self, bytes: &mut Vec<u8>, start: usize, len: usize) -> usize {
        let stored = Self::stored_size(len);
        let end = start + stored;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        if let Some(unit) = bytes.get_mut(start..end) {
            if len < UNIT_MIN {
                let (fill, mark) = unit[len..].split_at_mut(UNIT_MIN - len);
                fill.fill((UNIT_MIN - len) as u8);
                mark.copy_from_slice(&FILL_END);
            }
            self.xts.encrypt_sector(unit, Array(self.tweak));
        }
        stored
    }

    /// Bytes that a unit of `len` bytes has once it is encrypted.
    pub fn stored_size(len: usize) -> usize {
        if len < UNIT_MIN { FILLED } else { len }
    }

    /// Whether a unit could be taken for one that was filled up by who does not know how long it was.
    pub fn looks_filled(unit: &[u8]) -> bool {
        unit.len() == FILLED && unit.ends_with(&FILL_END)
    }

    /// Decrypts `unit` in place and removes the filling of a short plaintext.
    ///
    /// A plaintext that really has `plain_len` = 18 bytes cannot have been filled up: pass its length if it is known,
    /// and it is kept whole whatever its last bytes are.
    ///
    /// # Errors
    /// [`CipherError`] if the unit is too short or its filling impossible. Nothing here detects changed bytes.
    pub fn decrypt(&self, unit: &mut Vec<u8>, plain_len: Option<usize>) -> Result<(), CipherError> {
        if unit.len() < UNIT_MIN {
            return Err(CipherError::Short(unit.len()));
        }
        self.xts.decrypt_sector(unit, Array(self.tweak));
        if plain_len == Some(unit.len()) {
            return Ok(());
        }
        if let [.., fill, 0x78, 0x90] = unit[..]
            && unit.len() == FILLED
        {
            let plain = UNIT_MIN
                .checked_sub(usize::from(fill))
                .filter(|&len| len != 0);
            unit.truncate(plain.ok_or(CipherError::Fill(fill))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher() -> BlobCipher {
        let key: Vec<u8> = (0..32).collect();
        let iv: Vec<u8> = (100..116).collect();
        BlobCipher::new(key[..].try_into().unwrap(), iv[..].try_into().unwrap())
    }

    #[test]
    fn ieee_1619_vector_2() {
        let mut key = [0x11; 32];
        key[16..].fill(0x22);
        let mut iv = [0; 16];
        iv[..5].fill(0x33);
        let mut unit = vec![0x44; 32];
        let cipher = BlobCipher::new(&key, &iv);
        cipher.encrypt(&mut unit, 0);
        let expected = "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0";
        assert_eq!(
            unit.iter().map(|b| format!("{b:02x}")).collect::<String>(),
            expected
        );
        cipher.decrypt(&mut unit, None).unwrap();
        assert_eq!(unit, [0x44; 32]);
    }

    #[test]
    fn every_length_survives_a_round_trip() {
        for len in 1..100 {
            let plain: Vec<u8> = (0..len as u8).map(|i| i.wrapping_mul(37)).collect();
            let mut unit = b"head".to_vec();
            unit.extend_from_slice(&plain);
            cipher().encrypt(&mut unit, 4);
            assert_eq!(&unit[..4], b"head");
            let mut stored = unit.split_off(4);
            assert_eq!(stored.len(), if len < 16 { 18 } else { len });
            cipher().decrypt(&mut stored, None).unwrap();
            assert_eq!(stored, plain, "{len} bytes");
        }
    }

    #[test]
    fn filling_is_kept_where_the_length_is_known_and_refused_where_impossible() {
        let mut unit = vec![3; 16];
        unit.extend_from_slice(&FILL_END);
        let plain = unit.clone();
        cipher().encrypt(&mut unit, 0);
        let mut filled = unit.clone();
        cipher().decrypt(&mut unit, Some(18)).unwrap();
        assert_eq!(unit, plain);
        cipher().decrypt(&mut filled, None).unwrap();
        assert_eq!(filled, [3; 13]);

        let mut unit = vec![16; 16];
        unit.extend_from_slice(&FILL_END);
        cipher().encrypt(&mut unit, 0);
        assert_eq!(
            cipher().decrypt(&mut unit, None),
            Err(CipherError::Fill(16))
        );
        assert_eq!(
            cipher().decrypt(&mut vec![0; 15], None),
            Err(CipherError::Short(15))
        );
    }

    #[test]
    fn equal_halves_are_made_to_differ() {
        assert_eq!(BlobCipher::usable_key([7; 32])[..16], [0xA5; 16]);
        assert_eq!(BlobCipher::usable_key([0xA5; 32])[..16], [0x5A; 16]);
        let mut key = [1; 32];
        key[31] = 2;
        assert_eq!(BlobCipher::usable_key(key), key);
    }
}
