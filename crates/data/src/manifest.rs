//! The name of a data set: what two peers must agree on before they train together.
//!
//! Owns the manifest, its canonical form and its digest. May not know files or how samples are cut.

use serde::{Deserialize, Serialize};

/// The version of the manifest, of the cutting into samples and of the order of training. Any change that
/// gives a sample id other tokens, or an epoch another order, raises it.
pub const MANIFEST_FORMAT: u32 = 1;

/// Says where the text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// The built-in corpus.
    Generated,
    /// Text files.
    Text,
    /// JSON lines.
    JsonLines,
}

/// Names a data set: equal digests mean equal tokens in equal order.
///
/// Digests are BLAKE3; in JSON they are 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`] of the writer.
    pub format: u32,
    /// Where the text came from.
    pub source: SourceKind,
    /// Digest of the tokenizer.
    #[serde(with = "hexadecimal")]
    pub tokenizer_digest: [u8; 32],
    /// Number of token ids.
    pub vocabulary: u32,
    /// Tokens in the corpus, the joints between documents and the rest after the last sample included.
    pub tokens: u64,
    /// Digest of the corpus as little-endian 32-bit token ids.
    #[serde(with = "hexadecimal")]
    pub tokens_digest: [u8; 32],
    /// Inputs of a sample; it holds one token more.
    pub sequence_len: u32,
    /// Samples to learn from.
    pub train_samples: u64,
    /// Samples to measure on.
    pub held_out_samples: u64,
    /// Seed of the order of training.
    pub seed: u64,
    /// Digest of all of the above.
    #[serde(with = "hexadecimal")]
    pub digest: [u8; 32],
}

impl Manifest {
    /// Works out the digest of the fields above it. The canonical form is the fields in their order, whole
    /// numbers little-endian, the source as one byte.
    pub fn fields_digest(&self) -> [u8; 32] {
        let source: u8 = match self.source {
            SourceKind::Generated => 0,
            SourceKind::Text => 1,
            SourceKind::JsonLines => 2,
        };
        let mut hasher = blake3::Hasher::new_derive_key("trestle-data 1 manifest");
        hasher.update(&self.format.to_le_bytes());
        hasher.update(&[source]);
        hasher.update(&self.tokenizer_digest);
        hasher.update(&self.vocabulary.to_le_bytes());
        hasher.update(&self.tokens.to_le_bytes());
        hasher.update(&self.tokens_digest);
        hasher.update(&self.sequence_len.to_le_bytes());
        hasher.update(&self.train_samples.to_le_bytes());
        hasher.update(&self.held_out_samples.to_le_bytes());
        hasher.update(&self.seed.to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Sets the digest from the other fields.
    pub(crate) fn sealed(mut self) -> Manifest {
        self.digest = self.fields_digest();
        self
    }

    /// Names the first field in which another manifest differs, with both values, or `None` where they agree.
    pub fn difference(&self, other: &Manifest) -> Option<String> {
        fn differs(name: &str, ours: &impl ToString, theirs: &impl ToString) -> Option<String> {
            let (ours, theirs) = (ours.to_string(), theirs.to_string());
            (ours != theirs).then(|| format!("{name}: {ours} here, {theirs} there"))
        }
        let digest = |bytes: &[u8; 32]| blake3::Hash::from_bytes(*bytes).to_hex();
        let source = |manifest: &Manifest| match manifest.source {
            SourceKind::Generated => "generated",
            SourceKind::Text => "text",
            SourceKind::JsonLines => "json-lines",
        };
        differs("format", &self.format, &other.format)
            .or_else(|| differs("source", &source(self), &source(other)))
            .or_else(|| {
                differs("tokenizer_digest", &digest(&self.tokenizer_digest), &digest(&other.tokenizer_digest))
            })
            .or_else(|| differs("vocabulary", &self.vocabulary, &other.vocabulary))
            .or_else(|| differs("tokens", &self.tokens, &other.tokens))
            .or_else(|| differs("tokens_digest", &digest(&self.tokens_digest), &digest(&other.tokens_digest)))
            .or_else(|| differs("sequence_len", &self.sequence_len, &other.sequence_len))
            .or_else(|| differs("train_samples", &self.train_samples, &other.train_samples))
            .or_else(|| differs("held_out_samples", &self.held_out_samples, &other.held_out_samples))
            .or_else(|| differs("seed", &self.seed, &other.seed))
            .or_else(|| differs("digest", &digest(&self.digest), &digest(&other.digest)))
    }
}

mod hexadecimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&blake3::Hash::from_bytes(*bytes).to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(&text);
        Ok(*hash.map_err(|_| D::Error::custom("a digest is 64 hexadecimal digits"))?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: MANIFEST_FORMAT,
            source: SourceKind::Text,
            tokenizer_digest: [1; 32],
            vocabulary: 256,
            tokens: 1000,
            tokens_digest: [2; 32],
            sequence_len: 64,
            train_samples: 14,
            held_out_samples: 1,
            seed: 9,
            digest: [0; 32],
        }
        .sealed()
    }

    #[test]
    fn every_field_changes_the_digest_and_is_named_as_the_difference() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 10] = [
            ("format", |m| m.format = 2),
            ("source", |m| m.source = SourceKind::JsonLines),
            ("tokenizer_digest", |m| m.tokenizer_digest[31] = 0),
            ("vocabulary", |m| m.vocabulary = 257),
            ("tokens", |m| m.tokens = 1001),
            ("tokens_digest", |m| m.tokens_digest[0] = 0),
            ("sequence_len", |m| m.sequence_len = 65),
            ("train_samples", |m| m.train_samples = 15),
            ("held_out_samples", |m| m.held_out_samples = 0),
            ("seed", |m| m.seed = 8),
        ];
        let one = manifest();
        assert_eq!(one.difference(&one), None);
        for (name, change) in changes {
            let mut other = one.clone();
            change(&mut other);
            let other = other.sealed();
            assert_ne!(one.digest, other.digest, "{name}");
            let difference = one.difference(&other).expect("a field differs");
            assert!(difference.starts_with(&format!("{name}: ")), "{name}: {difference}");
        }
        let mut forged = one.clone();
        forged.digest = [7; 32];
        assert_ne!(forged.fields_digest(), forged.digest);
        assert!(one.difference(&forged).expect("the digest differs").starts_with("digest: "));
    }

    #[test]
    fn json_gives_the_manifest_back_with_readable_digests() {
        let text = serde_json::to_string(&manifest()).expect("plain fields");
        assert!(text.contains(&"01".repeat(32)), "{text}");
        assert!(text.contains("\"source\":\"text\""), "{text}");
        assert_eq!(serde_json::from_str::<Manifest>(&text).expect("our own text"), manifest());
        assert!(serde_json::from_str::<Manifest>(&text.replace(&"01".repeat(32), "01")).is_err());
    }
}
