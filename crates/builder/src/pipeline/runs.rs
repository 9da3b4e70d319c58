//! Runs of chunks that a blob of the dictionary has in the same order: what one request brings.

use chunkdict::{ChunkKey, Dictionary};
use rafs_format::ChunkRecord;
use tree::ChunkId;

use super::Piece;
use crate::BuildOptions;

/// A chunk at its first use in the layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub id: ChunkId,
    pub key: ChunkKey,
    pub piece: Piece,
    /// Number of the job that holds its bytes, and its position among the job's chunks.
    pub job: usize,
    pub position: usize,
}

/// Chunks in order of first use that lie one behind the other in at least one blob of the dictionary.
pub(super) struct Run {
    members: Vec<Member>,
    /// Where it lies as far as it goes by now: position of the blob, row of the first chunk.
    places: Vec<(u32, u32)>,
    bytes: u64,
}

impl Run {
    /// A run that begins with a chunk, which the dictionary has at the places `found`; `None` if it lacks it.
    pub(super) fn start(found: &[ChunkRecord], member: &Member) -> Option<Self> {
        let places = found.iter().map(|record| (record.blob_index, record.index));
        (!found.is_empty()).then(|| Self {
            members: vec![*member],
            places: places.collect(),
            bytes: u64::from(member.piece.len),
        })
    }

    /// Adds a chunk, which the dictionary has at the places `found`, if it follows the others at one place at least:
    /// those where it does not are given up.
    pub(super) fn extend(&mut self, found: &[ChunkRecord], member: &Member) -> bool {
        let behind = self.members.len() as u32;
        let mut there: Vec<(u32, u32)> = found
            .iter()
            .map(|record| (record.blob_index, record.index))
            .collect();
        there.sort_unstable();
        let follows = |&(blob, first): &(u32, u32)| {
            let index = first.checked_add(behind);
            index.is_some_and(|index| there.binary_search(&(blob, index)).is_ok())
        };
        if !self.places.iter().any(follows) {
            return false;
        }
        self.places.retain(follows);
        self.members.push(*member);
        self.bytes += u64::from(member.piece.len);
        true
    }

    /// Whether the run is worth a request, however it goes on. `least`: in chunks.
    pub(super) fn is_long_enough(&self, least: u32) -> bool {
        self.members.len() >= least as usize || self.bytes >= BuildOptions::RUN_ENOUGH
    }

    /// The first job with a chunk that may still have to be stored.
    pub(super) fn first_open(&self, least: u32) -> Option<usize> {
        let first = self.members.first().map(|member| member.job);
        first.filter(|_| !self.is_long_enough(least))
    }

    /// The chunks.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The chunks, each with its record in the blob with the lowest id of those that have all of them.
    pub(super) fn places(
        &self,
        dictionary: &Dictionary,
    ) -> impl Iterator<Item = (&Member, Option<ChunkRecord>)> {
        let id = |blob| dictionary.blob(blob).map(|blob| &blob.id);
        let place = self
            .places
            .iter()
            .min_by_key(|&&(blob, first)| (id(blob), first))
            .copied();
        self.members.iter().zip(0..).map(move |(member, behind)| {
            let record =
                place.and_then(|(blob, first)| dictionary.at(&member.key, blob, first + behind));
            (member, record)
        })
    }
}
