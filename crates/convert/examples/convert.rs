//! Converts an image by the library, as `nydusify convert --check` does with local files:
//!
//! ```console
//! $ cargo run -p convert --example convert -- oci:images:app oci:images:app-nydus
//! ```

use std::error::Error;
use std::thread::available_parallelism;

use convert::{ConvertOptions, ConvertReport};
use progress::{Cancel, Silent};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, target] = arguments.as_slice() else {
        return Err("usage: convert SOURCE TARGET".into());
    };
    let report = convert(source, target)?;
    println!("{target}: {}", report.digest);
    Ok(())
}

/// Both are `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.
pub fn convert(source: &str, target: &str) -> Result<ConvertReport, Box<dyn Error>> {
    let (source, target) = (source.parse()?, target.parse()?);
    let mut options = ConvertOptions::new(available_parallelism()?);
    // The result is compared with its source before it gets its tag.
    options.check = true;
    let (progress, cancel) = (Silent, Cancel::default());
    Ok(convert::convert(
        &source, &target, &options, &progress, &cancel,
    )?)
}
