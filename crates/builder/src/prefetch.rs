//! Prefetch patterns: which inodes they name.

use std::collections::HashSet;

use tree::{InodeId, Tree};

/// The inodes that `patterns` (absolute paths) name exactly, in pattern order, each once. Links are not followed, and
/// patterns that match nothing count for nothing.
pub fn resolve_prefetch(tree: &Tree, patterns: &[Vec<u8>]) -> Vec<InodeId> {
    let mut seen = HashSet::new();
    patterns
        .iter()
        .filter_map(|pattern| tree.lookup(pattern))
        .filter(|id| seen.insert(*id))
        .collect()
}
