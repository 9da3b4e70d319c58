//! How file data is stored: `--profile`, and the sizes that are told apart from it.

use convert::Profile;
use rafs_format::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Compressor, Version};

use super::ConvertArgs;
use crate::args::Usage;

/// How file data is stored if nothing else is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// Small files in batches: smaller images, for daemons since 2.2
    Dense,
    /// What the deployed tool makes: every chunk by itself
    Compat,
}

impl From<Preset> for Profile {
    fn from(preset: Preset) -> Self {
        match preset {
            Preset::Dense => Self::Dense,
            Preset::Compat => Self::Compat,
        }
    }
}

/// Refuses batches that no blob can have.
pub fn check(args: &ConvertArgs) -> Result<(), Usage> {
    let (asked, chunk) = (args.batch_size.unwrap_or_default(), args.fs_chunk_size);
    if asked != 0 && args.fs_version == "5" {
        return Err(Usage(
            "--batch-size cannot be used with --fs-version 5".to_owned(),
        ));
    }
    if asked > chunk {
        return Err(Usage(format!(
            "--batch-size {asked:#x} is larger than the chunk size of {chunk:#x}"
        )));
    }
    Ok(())
}

/// The size of batches in bytes, 0 for no batches.
pub fn batches(args: &ConvertArgs, version: Version, compressor: Compressor) -> u32 {
    let profile = match args.oci_ref {
        // Of layers that are described those are left that can't be: they are converted as ever.
        true => Profile::Compat,
        false => Profile::from(args.profile),
    };
    let of_profile = || profile.batch_size(version, compressor, args.fs_chunk_size);
    args.batch_size.unwrap_or_else(of_profile)
}

/// Reads a decimal or `0x` number.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Reads a chunk size in bytes.
pub fn chunk_size(text: &str) -> Result<u32, String> {
    number(text)
        .and_then(|size| u32::try_from(size).ok())
        .filter(|size| size.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(size))
        .ok_or_else(|| "it must be a power of two from 0x1000 to 0x1000000".to_owned())
}

/// Reads a size of batches in bytes, 0 for no batches.
pub fn batch_size(text: &str) -> Result<u32, String> {
    match number(text) {
        Some(0) => Ok(0),
        _ => chunk_size(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_powers_of_two() {
        assert_eq!(chunk_size("0x100000"), Ok(1 << 20));
        assert_eq!(chunk_size("4096"), Ok(4096));
        for bad in ["0", "0x800", "0x2000000", "5000", "1MiB", "0x1_0000"] {
            assert!(chunk_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn batch_sizes_are_chunk_sizes_or_zero() {
        for never in ["0", "0x0"] {
            assert_eq!(batch_size(never), Ok(0));
        }
        assert_eq!(batch_size("0x1000"), Ok(4096));
        assert_eq!(batch_size("65536"), Ok(65_536));
        assert!(batch_size("1").is_err());
    }
}
