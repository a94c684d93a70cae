//! The corpus as token ids, in as few bytes as the vocabulary allows.
//!
//! Owns the storage and its digest. May not know text, samples or splits.

/// Holds token ids in memory: 1 byte each for a vocabulary up to 256, 2 up to 65,536, 4 above.
///
/// While it is being filled, growing may hold up to three times as much for a moment.
#[derive(Debug, Clone)]
pub(crate) enum Tokens {
    Narrow(Vec<u8>),
    Short(Vec<u16>),
    Wide(Vec<u32>),
}

impl Tokens {
    /// Makes an empty store for ids below `vocabulary`.
    pub(crate) fn new(vocabulary: u32) -> Tokens {
        match vocabulary {
            0..=0x100 => Tokens::Narrow(Vec::new()),
            0x101..=0x1_0000 => Tokens::Short(Vec::new()),
            0x1_0001.. => Tokens::Wide(Vec::new()),
        }
    }

    /// Appends ids; stops at the first that the store's width cannot hold, and gives it back.
    pub(crate) fn extend(&mut self, ids: &[u32]) -> Result<(), u32> {
        for &id in ids {
            match self {
                Tokens::Narrow(tokens) => tokens.push(u8::try_from(id).map_err(|_| id)?),
                Tokens::Short(tokens) => tokens.push(u16::try_from(id).map_err(|_| id)?),
                Tokens::Wide(tokens) => tokens.push(id),
            }
        }
        Ok(())
    }

    /// Appends bytes as the ids of the byte vocabulary.
    pub(crate) fn extend_bytes(&mut self, bytes: &[u8]) {
        match self {
            Tokens::Narrow(tokens) => tokens.extend_from_slice(bytes),
            Tokens::Short(tokens) => tokens.extend(bytes.iter().map(|&byte| u16::from(byte))),
            Tokens::Wide(tokens) => tokens.extend(bytes.iter().map(|&byte| u32::from(byte))),
        }
    }

    /// Counts the tokens.
    pub(crate) fn len(&self) -> usize {
        match self {
            Tokens::Narrow(tokens) => tokens.len(),
            Tokens::Short(tokens) => tokens.len(),
            Tokens::Wide(tokens) => tokens.len(),
        }
    }

    /// Copies a range of ids, which must lie inside.
    pub(crate) fn range(&self, range: core::ops::Range<usize>) -> Vec<u32> {
        match self {
            Tokens::Narrow(tokens) => tokens[range].iter().map(|&id| u32::from(id)).collect(),
            Tokens::Short(tokens) => tokens[range].iter().map(|&id| u32::from(id)).collect(),
            Tokens::Wide(tokens) => tokens[range].to_vec(),
        }
    }

    /// Gives back memory that growing left over.
    pub(crate) fn shrink(&mut self) {
        match self {
            Tokens::Narrow(tokens) => tokens.shrink_to_fit(),
            Tokens::Short(tokens) => tokens.shrink_to_fit(),
            Tokens::Wide(tokens) => tokens.shrink_to_fit(),
        }
    }

    /// Gives the BLAKE3 digest of the ids as little-endian 32-bit numbers, whatever their width in memory.
    pub(crate) fn digest(&self) -> [u8; 32] {
        /// Enough for the hash to run at full speed.
        const CHUNK_TOKENS: usize = 1 << 14;
        let mut hasher = blake3::Hasher::new();
        let mut bytes = Vec::with_capacity(CHUNK_TOKENS * 4);
        let mut start = 0;
        while start < self.len() {
            let end = self.len().min(start + CHUNK_TOKENS);
            bytes.clear();
            bytes.extend(self.range(start..end).iter().flat_map(|id| id.to_le_bytes()));
            hasher.update(&bytes);
            start = end;
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_follows_the_vocabulary_and_the_digest_does_not() {
        let ids = [0, 7, 255];
        let mut digests = Vec::new();
        for vocabulary in [256, 257, 65_536, 65_537] {
            let mut tokens = Tokens::new(vocabulary);
            tokens.extend(&ids).expect("every width holds a byte");
            assert_eq!(tokens.range(0..3), ids);
            digests.push(tokens.digest());
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        assert!(matches!(Tokens::new(256), Tokens::Narrow(_)));
        assert!(matches!(Tokens::new(65_536), Tokens::Short(_)));
        assert!(matches!(Tokens::new(65_537), Tokens::Wide(_)));
    }

    #[test]
    fn an_id_that_does_not_fit_is_given_back() {
        assert_eq!(Tokens::new(256).extend(&[1, 256]), Err(256));
        assert_eq!(Tokens::new(65_536).extend(&[65_536]), Err(65_536));
    }

    #[test]
    fn the_digest_covers_every_chunk() {
        let mut one = Tokens::new(256);
        one.extend_bytes(&vec![1; 40_000]);
        let mut other = Tokens::new(256);
        other.extend_bytes(&vec![1; 39_999]);
        other.extend_bytes(&[2]);
        assert_ne!(one.digest(), other.digest());
    }
}
