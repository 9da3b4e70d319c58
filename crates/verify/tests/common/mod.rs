//! What the integration tests share.
#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use progress::{Cancel, Silent};
use verify::{Files, LayerFile, Options, Outcome, Report, Side};

/// A side of layers in memory, lowest first.
pub fn layers(tars: &[Vec<u8>]) -> Side {
    let layer = |tar: &Vec<u8>| {
        let tar = Arc::new(tar.clone());
        LayerFile::new("layer", tar.len() as u64, move || Ok(Box::new(Cursor::new(Vec::clone(&tar)))))
    };
    Side { name: "layers".to_owned(), document: None, files: Files::Layers(tars.iter().map(layer).collect()) }
}

pub fn file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn check(source: Option<&Side>, target: &Side) -> Report {
    let cancel = Cancel::default();
    let options = Options {
        threads: NonZeroUsize::new(2).unwrap(),
        layers: layer::Options::default(),
        cancel: &cancel,
        progress: &Silent,
    };
    verify::check(source, target, &options).unwrap()
}

pub fn assert_verified(report: &Report) {
    assert!(report.verified, "{report}");
    assert_eq!(report.differences.total, 0, "{report}");
    assert!(report.rules.iter().all(|rule| rule.outcome != Outcome::Failed));
}
