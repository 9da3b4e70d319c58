//! The small closed enumerations of the format: version, compressor, digester, cipher.

use std::fmt;
use std::str::FromStr;

/// Version of the bootstrap layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// RAFS-private layout, chunk records inline after each inode.
    V5,
    /// EROFS layout with RAFS extensions.
    V6,
}

impl Version {
    /// The digit that flags, annotations and JSON documents use.
    pub const fn digit(self) -> &'static str {
        match self {
            Self::V5 => "5",
            Self::V6 => "6",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.digit())
    }
}

impl FromStr for Version {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        match text {
            "5" => Ok(Self::V5),
            "6" => Ok(Self::V6),
            _ => Err(UnknownKind {
                kind: "version",
                text: text.to_owned(),
            }),
        }
    }
}

macro_rules! kind {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }

        impl $name {
            /// The number that stands for it in blob tables and blob meta headers.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The value behind an on-disk number; `None` for a number the format does not define.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The name that flags and JSON documents use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownKind;
            fn from_str(text: &str) -> Result<Self, UnknownKind> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownKind { kind: stringify!($name), text: text.to_owned() }),
                }
            }
        }
    };
}

/// A name that stands for no known value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind}: {text:?}")]
pub struct UnknownKind {
    kind: &'static str,
    text: String,
}

kind! {
    /// How chunks (or a blob's chunk table) are compressed.
    Compressor {
        /// Stored as they are.
        None = 0, "none";
        /// One raw LZ4 block, no frame, no size prefix.
        Lz4Block = 1, "lz4_block";
        /// One gzip member; only in images that refer to gzip layers.
        Gzip = 2, "gzip";
        /// One zstd frame with its content size.
        Zstd = 3, "zstd";
    }
}

kind! {
    /// How the bytes of a chunk are digested.
    Digester {
        /// BLAKE3, 256 bits.
        Blake3 = 0, "blake3";
        /// SHA-256.
        Sha256 = 1, "sha256";
    }
}

kind! {
    /// How chunks are encrypted. Only the kinds that readers can use are named.
    Cipher {
        /// Not encrypted.
        None = 0, "none";
        /// AES-128-XTS with one key and one tweak for the whole blob.
        Aes128Xts = 1, "aes128xts";
    }
}
