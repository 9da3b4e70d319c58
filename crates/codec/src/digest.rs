use rafs_format::{Digest, Digester};
use sha2::Digest as _;

/// Digest of the uncompressed bytes of a chunk.
pub fn digest(digester: Digester, data: &[u8]) -> Digest {
    match digester {
        Digester::Blake3 => blake3::hash(data).into(),
        Digester::Sha256 => sha2::Sha256::digest(data).into(),
    }
}

/// CRC-32C (Castagnoli, reflected, initial value and final xor all ones) of the uncompressed bytes of a chunk.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// The CRC-32C of bytes whose CRC is known, 0 for none, and `data` behind them.
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, data)
}
