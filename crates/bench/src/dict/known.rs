//! Converting an image that the dictionary has all chunks of: what is left is to inflate and to digest.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::Result;
use rafs_format::Compressor;

use crate::floor::{self, Floor, Stages};
use crate::input::Input;
use crate::measure::{Runs, usage};
use crate::scenario::{Programs, Row};
use crate::tools::{args, remove, size};

/// Converts the image once for the dictionary, then with it.
///
/// # Errors
/// If a program fails.
pub fn measure(programs: &Programs, image: &Input, work: &Path, runs: usize) -> Result<Row> {
    let layout = work.join(format!("{}.known", image.name));
    remove(&layout)?;
    let place = |tag: &str| format!("oci:{}:{tag}", layout.display());
    let (first, second) = (place("first"), place("second"));
    let dictionary = format!("bootstrap:registry:{first}");
    let source = image.reference();
    let command = |target: &str, more: &[&str]| {
        let words = [
            "convert",
            "--no-journal",
            "--profile",
            "compat",
            "--source",
            &source,
            "--target",
            target,
        ];
        let mut command = vec![programs.nydusify.as_os_str()];
        command.extend(words.iter().chain(more).map(OsStr::new));
        args(&command)
    };
    usage(&command(&first, &[]))?;
    let with = command(
        &second,
        &["--chunk-dict", &dictionary, "--dict-min-run", "1"],
    );
    let floors = image
        .image_layers()
        .iter()
        .map(|layer| Floor::prepare(layer, Compressor::Zstd))
        .collect::<Result<Vec<_>>>()?;
    let before = size(&layout)?;
    let (mut usages, mut rounds) = (Vec::new(), vec![Vec::new(); floors.len()]);
    for round in 0..=runs {
        let used = usage(&with)?;
        // The first run does not count.
        if round > 0 {
            usages.push(used);
            for (floor, rounds) in floors.iter().zip(&mut rounds) {
                // Nothing is compressed and no blob written.
                rounds.push(Stages {
                    compress: 0.0,
                    blob_digest: 0.0,
                    ..floor.round()?
                });
            }
        }
    }
    let stages: Vec<Stages> = rounds.iter().map(|rounds| Stages::median(rounds)).collect();
    let attainable = floor::attainable(&stages, floor::cores());
    let usage = Runs::of(usages);
    let ratio = attainable / usage.median.wall;
    let row = Row {
        input: image.name.clone(),
        what: "convert, all chunks in the dictionary".to_owned(),
        usage,
        bytes: size(&layout)? - before,
        attainable: Some(attainable),
        stages,
        ratio: Some((ratio, "efficiency")),
    };
    remove(&layout)?;
    Ok(row)
}
