//! Tar streams as trees that can be compared.

use std::collections::HashMap;
use std::io::{self, BufRead};

use layer::{DataSink, FileInfo};
use tree::{ChunkId, Tree};

/// Gives equal contents equal numbers.
#[derive(Default)]
pub struct Contents(HashMap<Vec<u8>, u32>);

impl DataSink for Contents {
    fn file(&mut self, _: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let mut content = Vec::new();
        data.read_to_end(&mut content)?;
        let next = self.0.len() as u32;
        Ok([ChunkId(*self.0.entry(content).or_insert(next))].into())
    }
}

/// The trees of tar streams, numbered canonically, with contents that can be compared.
pub fn trees<const N: usize>(tars: [&[u8]; N]) -> [Tree; N] {
    let mut contents = Contents::default();
    tars.map(|tar| {
        let mut tree = layer::read_tree(tar, &mut contents, &layer::Options::default()).unwrap();
        tree.compact();
        tree
    })
}
