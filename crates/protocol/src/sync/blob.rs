//! Content-addressed bytes: a blob is named by the digests of its chunks, so that any holder can serve any part of it.
//!
//! Owns the cutting and the naming. Knows nothing of peers or of what the bytes mean.

use crate::ids::Digest;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Usual size of a chunk: large enough that its head costs nothing, small enough that many are in flight and a lost one is
/// cheap to fetch again (24 chunks of this size in flight filled 856 Mbit/s at 40 ms).
pub const CHUNK_BYTES: u64 = 1024 * 1024;

/// Chunks of a blob; larger blobs have larger chunks, so that a manifest fits in a message.
pub const CHUNKS_MAX: u64 = 4096;

/// Largest chunk, a quarter of the largest payload: bounds a blob to 256 GiB.
pub const CHUNK_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The name and layout of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of each chunk, in order; all but the last have the same size, which follows from their number.
    pub chunks: Vec<Digest>,
}

impl Manifest {
    /// Returns the digest that names the blob.
    pub fn id(&self) -> Digest {
        Digest::of(&postcard::to_allocvec(self).expect("plain fields always serialise"))
    }

    /// Returns whether so many chunks can be cut of the length, and each fits in a message.
    pub fn is_consistent(&self) -> bool {
        let count = self.chunks.len() as u64;
        let size = self.chunk_bytes();
        let cut = if size == 0 { self.bytes == 0 } else { count == self.bytes.div_ceil(size) };
        cut && count <= CHUNKS_MAX && size <= CHUNK_BYTES_MAX
    }

    /// Returns the size of the chunks, all but the last; 0 where there are none.
    fn chunk_bytes(&self) -> u64 {
        let count = self.chunks.len() as u64;
        if count == 0 { 0 } else { self.bytes.div_ceil(count) }
    }

    /// Returns where a chunk lies.
    pub fn range(&self, chunk: u32) -> Option<core::ops::Range<usize>> {
        if chunk as usize >= self.chunks.len() {
            return None;
        }
        let size = self.chunk_bytes();
        let start = (u64::from(chunk) * size).min(self.bytes);
        Some(start as usize..(start + size).min(self.bytes) as usize)
    }
}

/// Returns into how many chunks a blob is usually cut.
fn usual(bytes: u64) -> u64 {
    bytes.div_ceil(bytes.div_ceil(CHUNKS_MAX).next_power_of_two().max(CHUNK_BYTES))
}

/// Bytes with their name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// What its manifest is named by.
    id: Digest,
    manifest: Manifest,
    bytes: Bytes,
}

impl Blob {
    /// Cuts and hashes bytes. Costs a pass over them: drivers do it where they make the bytes.
    pub fn new(bytes: Bytes) -> Self {
        let count = usual(bytes.len() as u64);
        Self::cut(bytes, count)
    }

    /// Cuts and hashes bytes, into at most so many chunks.
    pub fn cut(bytes: Bytes, count: u64) -> Self {
        let length = bytes.len() as u64;
        let size = length.div_ceil(count.max(1)).max(1);
        let chunks = bytes.chunks(size as usize).map(Digest::of).collect();
        Self::checked(Manifest { bytes: length, chunks }, bytes)
    }

    /// Puts together what was checked chunk by chunk.
    pub(crate) fn checked(manifest: Manifest, bytes: Bytes) -> Self {
        assert_eq!(manifest.bytes, bytes.len() as u64, "all chunks of the blob are there");
        Self { id: manifest.id(), manifest, bytes }
    }

    /// Returns the digest that names it.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Returns its name and layout.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns all of it.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns a chunk, without copying.
    pub fn chunk(&self, chunk: u32) -> Option<Bytes> {
        self.manifest.range(chunk).map(|range| self.bytes.slice(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_blob_is_named_by_its_content_and_cut_without_gaps() {
        let long = Blob::new(vec![7; 2 * CHUNK_BYTES as usize + 5].into());
        assert_eq!(long.manifest().chunks.len(), 3);
        assert!(long.manifest().is_consistent());
        let third = (2 * CHUNK_BYTES + 5).div_ceil(3) as usize;
        assert_eq!(long.chunk(0).map(|bytes| bytes.len()), Some(third));
        assert_eq!(long.chunk(2).map(|bytes| bytes.len()), Some(2 * CHUNK_BYTES as usize + 5 - 2 * third));
        assert_eq!(long.chunk(3), None);
        let mut other = vec![7; 2 * CHUNK_BYTES as usize + 5];
        other[9] = 8;
        assert_ne!(Blob::new(other.into()).id(), long.id());
        let empty = Blob::new(Bytes::new());
        assert!(empty.manifest().is_consistent() && empty.manifest().chunks.is_empty());
    }

    #[test]
    fn a_manifest_of_any_length_fits_in_a_message() {
        for bytes in [1, CHUNK_BYTES, CHUNK_BYTES * CHUNKS_MAX, CHUNK_BYTES * CHUNKS_MAX + 1, 1 << 38] {
            assert!(usual(bytes) <= CHUNKS_MAX, "{bytes}");
            assert!(bytes.div_ceil(usual(bytes)) <= CHUNK_BYTES_MAX, "{bytes}");
        }
        let numbers: Vec<u8> = (0..101).collect();
        for count in [0, 1, 7, 50, 51, 100, 101, 500] {
            let blob = Blob::cut(numbers.clone().into(), count);
            let manifest = blob.manifest();
            assert!(manifest.is_consistent() && manifest.chunks.len() as u64 <= count.max(1), "{count}");
            let chunks = (0..).map_while(|chunk| blob.chunk(chunk)).flatten().collect::<Vec<u8>>();
            assert_eq!(chunks, numbers, "{count}");
        }
        // Four of five bytes would be 2, 2, 1 and nothing.
        let uneven = Manifest { bytes: 5, chunks: vec![Digest([0; 32]); 4] };
        assert!(!uneven.is_consistent());
        let wrong = Manifest { bytes: 5, chunks: vec![] };
        assert!(!wrong.is_consistent());
        let absurd = Manifest { bytes: u64::MAX, chunks: vec![] };
        assert!(!absurd.is_consistent());
    }
}
