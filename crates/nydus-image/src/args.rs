//! The command line, with the names, defaults and conflicts of the deployed tool.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// What `--version` prints behind the name of the program: consumers look for `Version:` followed by a tag with `v`.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    use build_info::{COMMIT, PROFILE, RUSTC, TIME, VERSION};
    format!(
        "\rVersion: \t{VERSION}\nGit Commit: \t{COMMIT}\nBuild Time: \t{TIME}\nProfile: \t{PROFILE}\nRustc: \t\t{RUSTC}\n"
    )
});

/// Build, merge, check and inspect RAFS images.
#[derive(Debug, Parser)]
#[command(name = "nydus-image", version = VERSION.as_str(), disable_help_subcommand = true)]
pub struct Cli {
    /// Append the log to FILE (`.log` is added to a name without extension) instead of writing it to stderr
    #[arg(short = 'L', long, value_name = "FILE", global = true)]
    pub log_file: Option<PathBuf>,
    /// Least important messages to log
    #[arg(short = 'l', long, value_enum, default_value = "info", global = true)]
    pub log_level: LogLevel,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a RAFS layer from a directory or a tar stream
    Create(Box<Create>),
    /// Merge the bootstraps of layers into that of an image, the lowest layer first
    Merge(Box<Merge>),
    /// Walk everything in a bootstrap that a kernel or daemon relies on, and say what is wrong
    Check(crate::check::Check),
    /// Look around in a bootstrap
    Inspect(crate::inspect::Inspect),
    /// Count files and chunks of images, and the chunks that they share
    Stat(crate::stat::Stat),
    /// Write the bootstrap of an image in the other RAFS version
    Transcode(crate::transcode::Transcode),
    /// Write an image as one disk that the kernel mounts
    Export(crate::export::Export),
    /// Write the files of an image as a tar stream
    Unpack(crate::unpack::Unpack),
    /// Put small blobs of an image together, and leave out what it does not use of others
    Compact(crate::compact::Compact),
    /// Put the files of an image that are needed first into a blob of their own
    Optimize(crate::optimize::Optimize),
    /// Make chunk dictionaries
    Chunkdict(crate::chunkdict::Chunkdict),
    /// Words that are no command
    #[command(external_subcommand)]
    Other(Vec<String>),
}

impl Command {
    /// The paths at which a consumer may wait for the other end of a FIFO to be opened.
    pub fn fifos(&self) -> Vec<&Path> {
        let paths = match self {
            Self::Create(args) => vec![
                Some(&args.source),
                args.blob.as_ref(),
                args.bootstrap.as_ref(),
                args.external_blob.as_ref(),
            ],
            Self::Unpack(args) => vec![Some(&args.output)],
            _ => Vec::new(),
        };
        paths.into_iter().flatten().map(PathBuf::as_path).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceType {
    Directory,
    DirRafs,
    EstargzRafs,
    EstargzRef,
    EstargztocRef,
    TarRafs,
    TarTarfs,
    TargzRafs,
    TargzRef,
    #[value(name = "stargz_index")]
    StargzIndex,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhiteoutSpec {
    Oci,
    Overlayfs,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrefetchPolicy {
    Fs,
    Blob,
    None,
}

#[derive(Debug, Args)]
pub struct Create {
    /// Directory (dir-rafs), or tar file, FIFO or character device (all tar types); the table of contents or the whole layer (estargztoc-ref)
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// What SOURCE is and what is made of it
    #[arg(
        short = 't',
        long = "type",
        alias = "source-type",
        value_enum,
        default_value = "dir-rafs"
    )]
    pub source_type: SourceType,
    /// Write the bootstrap to FILE
    #[arg(
        short = 'B',
        long,
        value_name = "FILE",
        conflicts_with = "blob_inline_meta",
        required_unless_present_any = ["blob_dir", "blob_inline_meta"]
    )]
    pub bootstrap: Option<PathBuf>,
    /// Write blobs and bootstrap into DIR, named by their digests
    #[arg(short = 'D', long, value_name = "DIR")]
    pub blob_dir: Option<PathBuf>,
    /// Write the blob to FILE, which may be a FIFO
    #[arg(short = 'b', long, value_name = "FILE")]
    pub blob: Option<PathBuf>,
    /// Write the blob of external files to FILE (with --attributes)
    #[arg(long, value_name = "FILE")]
    pub external_blob: Option<PathBuf>,
    /// Append the bootstrap to the blob
    #[arg(long, alias = "inline-bootstrap", conflicts_with = "blob_id")]
    pub blob_inline_meta: bool,
    /// Name the blob ID instead of its digest
    #[arg(long, value_name = "ID")]
    pub blob_id: Option<String>,
    /// Size of the data in the eStargz layer, in hexadecimal (estargztoc-ref)
    #[arg(long, value_name = "HEX")]
    pub blob_data_size: Option<String>,
    /// Where the chunks begin in the blob
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub blob_offset: u64,
    /// Chunk size in bytes, a power of two from 0x1000 to 0x1000000 [default: 0x100000]
    #[arg(long, value_name = "N", value_parser = chunk_size)]
    pub chunk_size: Option<u32>,
    /// Compress chunks below half of N bytes together, 0 for never
    #[arg(long, value_name = "N", default_value = "0", value_parser = batch_size)]
    pub batch_size: u32,
    /// Compressor of the chunks [default: zstd; gzip for *-ref, none for tar-tarfs]
    #[arg(long, value_parser = PossibleValuesParser::new(["none", "lz4_block", "zstd"]))]
    pub compressor: Option<String>,
    /// Digester of the chunks [default: blake3; sha256 for *-ref and tar-tarfs]
    #[arg(long, value_parser = PossibleValuesParser::new(["blake3", "sha256"]))]
    pub digester: Option<String>,
    /// Configuration of a storage backend
    #[arg(short = 'C', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Version of the RAFS layout
    #[arg(short = 'v', long, default_value = "6", value_parser = PossibleValuesParser::new(["5", "6"]))]
    pub fs_version: String,
    /// Additional features
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = PossibleValuesParser::new(["blob-toc"]))]
    pub features: Vec<String>,
    /// Bootstrap whose chunks need not be stored again: PATH or bootstrap=PATH
    #[arg(long, value_name = "ARG")]
    pub chunk_dict: Option<String>,
    /// Bootstrap of the image below
    #[arg(long, value_name = "FILE")]
    pub parent_bootstrap: Option<String>,
    /// Align chunks to 4096 bytes (always so in v6)
    #[arg(long)]
    pub aligned_chunk: bool,
    /// Leave the owners of files out
    #[arg(long)]
    pub repeatable: bool,
    #[arg(long, hide = true)]
    pub disable_check: bool,
    #[arg(long, hide = true, value_name = "PATH")]
    pub blob_meta: Option<PathBuf>,
    /// How whiteouts are written in a directory
    #[arg(long, value_enum, default_value = "oci")]
    pub whiteout_spec: WhiteoutSpec,
    /// Read absolute paths to fetch first from stdin, and what to do with them
    #[arg(long, value_enum, default_value = "none")]
    pub prefetch_policy: PrefetchPolicy,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// Encrypt the chunks
    #[arg(short = 'E', long)]
    pub encrypt: bool,
    /// Write cache files of the daemon into DIR
    #[arg(long, value_name = "DIR", conflicts_with_all = ["blob_inline_meta", "blob", "blob_dir", "compressor"])]
    pub blob_cache_dir: Option<PathBuf>,
    /// Attributes of external files
    #[arg(long, value_name = "FILE")]
    pub attributes: Option<PathBuf>,
    /// Level of zstd
    #[arg(long, value_name = "N", default_value_t = codec::Encoder::ZSTD_LEVEL_DEFAULT, allow_negative_numbers = true)]
    pub compression_level: i32,
    /// Threads that digest and compress [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory for file data, such as 256MiB [default: 32 MiB per thread, at least 64 MiB]
    #[arg(long, value_name = "SIZE", value_parser = builder::parse_size)]
    pub memory: Option<usize>,
}

#[derive(Debug, Args)]
pub struct Merge {
    /// Bootstraps of the layers, the lowest first
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<PathBuf>,
    /// Bootstrap of the image below all layers
    #[arg(long, value_name = "FILE")]
    pub parent_bootstrap: Option<String>,
    /// Write the bootstrap to FILE
    #[arg(
        short = 'B',
        long,
        value_name = "FILE",
        required_unless_present = "blob_dir"
    )]
    pub bootstrap: Option<PathBuf>,
    /// Write the bootstrap into DIR, named by its digest
    #[arg(short = 'D', long, value_name = "DIR")]
    pub blob_dir: Option<PathBuf>,
    /// Bootstrap of the chunk dictionary: PATH or bootstrap=PATH
    #[arg(long, value_name = "ARG")]
    pub chunk_dict: Option<String>,
    /// Read absolute paths to fetch first from stdin, and what to do with them
    #[arg(long, value_enum, default_value = "none")]
    pub prefetch_policy: PrefetchPolicy,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// SHA-256 of each layer's RAFS blob
    #[arg(long, value_name = "LIST", value_delimiter = ',', action = ArgAction::Append)]
    pub blob_digests: Option<Vec<String>>,
    /// Blob id to record for each layer
    #[arg(long, value_name = "LIST", value_delimiter = ',', action = ArgAction::Append)]
    pub original_blob_ids: Option<Vec<String>>,
    /// Size of each layer's RAFS blob
    #[arg(long, value_name = "LIST", value_delimiter = ',', action = ArgAction::Append)]
    pub blob_sizes: Option<Vec<u64>>,
    /// SHA-256 of each blob's table of contents
    #[arg(long, value_name = "LIST", value_delimiter = ',', action = ArgAction::Append)]
    pub blob_toc_digests: Option<Vec<String>>,
    /// Size of each blob's table of contents
    #[arg(long, value_name = "LIST", value_delimiter = ',', action = ArgAction::Append)]
    pub blob_toc_sizes: Option<Vec<u32>>,
    /// Configuration of a daemon, which can read the blobs: they are called what the bootstraps call them
    #[arg(short = 'C', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A number, decimal or hexadecimal with `0x`.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "expected a number, decimal or hexadecimal with 0x".to_owned())
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let size = number(text)?;
    let fits = size.is_power_of_two() && (0x1000..=0x100_0000).contains(&size);
    if fits {
        Ok(size)
    } else {
        Err("expected a power of two from 0x1000 to 0x1000000".to_owned())
    }
}

fn batch_size(text: &str) -> Result<u32, String> {
    if number(text)? == 0 {
        Ok(0)
    } else {
        chunk_size(text)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_decimal_or_hexadecimal_powers_of_two() {
        assert_eq!(chunk_size("0x10000"), Ok(65_536));
        assert_eq!(chunk_size("4096"), Ok(4096));
        for wrong in ["0", "0x800", "4097", "0x2000000", "", "1MiB", "-1"] {
            assert!(chunk_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(batch_size("0"), Ok(0));
        assert_eq!(batch_size("0x1000"), Ok(4096));
    }

    #[test]
    fn command_lines_of_consumers_are_understood() {
        for line in [
            "nydus-image create --log-level warn --prefetch-policy fs --blob /t/blob.rafs --whiteout-spec none \
             --fs-version 6 --type tar-rafs --blob-inline-meta --features blob-toc --compressor zstd --chunk-size \
             0x100000 --batch-size 0 /t/blob.targz",
            "nydus-image create --log-level warn --prefetch-policy fs --blob b --source-type directory \
             --inline-bootstrap --whiteout-spec none --fs-version 6 dir",
            "nydus-image merge --log-level warn --prefetch-policy fs --output-json j --bootstrap b l1 l2 \
             --blob-digests a,b --blob-toc-digests a,b --blob-sizes 1,2",
            "nydus-image create --source-type stargz_index --bootstrap b --blob-id x --repeatable --disable-check \
             --fs-version 6 --chunk-size 0x400000 --blob-meta p stargz.index.json",
            "nydus-image compact --bootstrap b --blob-dir d --min-used-ratio 5 --compact-blob-size 10485760 \
             --max-compact-size 104857600 --layers-to-compact 32 --backend-type oss --backend-config-file f \
             --log-level info --output-json j --output-bootstrap b.compact --chunk-dict d",
            "nydus-image optimize --log-level warn --prefetch-files p --bootstrap b --output-blob-dir d \
             --output-bootstrap n --output-json j --backend-type registry --backend-config {}",
            "nydus-image optimize --log-level warn --prefetch-files p --bootstrap b --output-blob-dir d \
             --output-bootstrap n --output-json j --blob-dir d",
        ] {
            Cli::try_parse_from(line.split_whitespace()).unwrap();
        }
    }
}
