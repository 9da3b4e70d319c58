//! Keys of encrypted blobs.
//!
//! Every blob has a key and a tweak of its own. They are random: whatever they could be derived from - the layer, its
//! digest, the options - is known to others, and one key for two blobs shows which units the two have in common. So
//! with encryption, and with it alone, two builds of the same input differ.

use std::fmt;
use std::io;

use codec::BlobCipher;
use rafs_format::{BlobFeatures, BlobInfo, Cipher};

use crate::Error;

/// How a blob is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// With a random key for each blob.
    Random,
    /// With this key, which must be used for one blob only.
    Key(BlobKey),
}

impl Encryption {
    /// The key for the next blob.
    pub(crate) fn key(&self) -> Result<BlobKey, Error> {
        match self {
            Self::Random => BlobKey::random(),
            Self::Key(key) => Ok(key.clone()),
        }
    }
}

/// Key and tweak of one blob, for AES-128-XTS.
#[derive(Clone, PartialEq, Eq)]
pub struct BlobKey {
    key: [u8; 32],
    iv: [u8; 16],
}

impl BlobKey {
    /// `key` is the data key followed by the tweak key, `iv` the tweak of every unit. The halves of the key must
    /// differ: if they don't, another first half is taken.
    pub fn new(key: [u8; 32], iv: [u8; 16]) -> Self {
        let key = BlobCipher::usable_key(key);
        Self { key, iv }
    }

    fn random() -> Result<Self, Error> {
        let (mut key, mut iv) = ([0; 32], [0; 16]);
        let failed = |error: getrandom::Error| Error::Random(io::Error::other(error.to_string()));
        getrandom::fill(&mut key).map_err(failed)?;
        getrandom::fill(&mut iv).map_err(failed)?;
        Ok(Self::new(key, iv))
    }

    pub(crate) fn cipher(&self) -> BlobCipher {
        BlobCipher::new(&self.key, &self.iv)
    }

    /// Notes in the blob's entry how it is encrypted; what is for another blob's digest and size holds the key and the
    /// first half of the tweak then.
    pub(crate) fn record(&self, info: &mut BlobInfo) {
        let (head, tail) = self.iv.split_at(8);
        let mut first = [0; 8];
        first.copy_from_slice(head);
        info.features |= BlobFeatures::ENCRYPTED;
        info.cipher = Cipher::Aes128Xts;
        info.meta_digest = self.key;
        info.meta_size = u64::from_le_bytes(first);
        info.cipher_iv.copy_from_slice(tail);
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobKey(..)")
    }
}
