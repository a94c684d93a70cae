//! Receipts: work is credited by the peer that received it, under its signature, never by the one that did it.
//!
//! Owns the signed statement and its check. Knows nothing of the ledger that adds receipts up.

use crate::ids::{Digest, PeerId, SeatId, StageId};
use crate::work::Trained;
use alloc::vec::Vec;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Training microbatches in one receipt; an inner step that is larger sends several.
pub const RECEIPT_MICROBATCHES_MAX: usize = 4096;

/// Separates these signatures from any other use of the key.
const CONTEXT: &[u8] = b"trestle receipt 2";

/// What a receipt is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seals {
    /// Its signer's Ed25519 signature.
    #[default]
    Signed,
    /// A digest that anyone can make: for simulations in which all are honest, where signatures would take half of the time.
    Hashed,
}

/// What a receipt says: `by` received the finished work of `worker` on these microbatches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The run, so that a receipt is worth nothing in another.
    pub run: Digest,
    /// The stage whose forward and backward were done.
    pub stage: StageId,
    /// Who did it.
    pub worker: PeerId,
    /// As which taking of its place.
    pub seat: SeatId,
    /// Who received it and signs.
    pub by: PeerId,
    /// The training microbatches, each with the worker's optimizer step that has its gradient. Where the receiver is the next
    /// stage it cannot know the step, and names 0.
    pub microbatches: Vec<Trained>,
}

/// A statement with the receiver's Ed25519 signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// What is said.
    pub statement: Statement,
    /// 64 bytes, or the 32 of a digest; another length is refused.
    signature: Vec<u8>,
}

/// Why a receipt is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReceiptError {
    /// The signature is not by the peer named in the statement.
    #[error("receipt is not signed by the peer it names")]
    Signature,
    /// The statement is about another run.
    #[error("receipt is of another run")]
    Run,
    /// A peer signs for its own work.
    #[error("receipt is signed by the peer that did the work")]
    OwnWork,
    /// The signer does not receive from that stage under the plan.
    #[error("receipt is signed by a peer that does not receive from the stage")]
    NotReceiver,
    /// The worker does not hold that stage under the plan.
    #[error("receipt credits a peer that does not hold the stage")]
    NotHolder,
    /// The worker has lost the place in which it did the work, and the work with it.
    #[error("receipt is for a seat that its holder has lost")]
    OldSeat,
    /// A microbatch is beyond what has been leased.
    #[error("receipt names a microbatch that was never leased")]
    NeverLeased,
    /// More microbatches than a receipt may hold.
    #[error("receipt holds too many microbatches")]
    TooMany,
}

impl Receipt {
    /// Signs a statement with the key of `statement.by`.
    pub fn sign(statement: Statement, key: &SigningKey) -> Self {
        assert_eq!(
            statement.by.0,
            key.verifying_key().to_bytes(),
            "a receipt is signed with its signer's key"
        );
        let signature = key.sign(&signed_bytes(&statement)).to_bytes().to_vec();
        Self { statement, signature }
    }

    /// Seals a statement with a digest.
    pub fn hash(statement: Statement) -> Self {
        let signature = Digest::of(&signed_bytes(&statement)).0.to_vec();
        Self { statement, signature }
    }

    /// Checks run, size and seal; the plan's part is the ledger's.
    pub fn verify(&self, run: Digest, seals: Seals) -> Result<(), ReceiptError> {
        if self.statement.run != run {
            return Err(ReceiptError::Run);
        }
        if self.statement.by == self.statement.worker {
            return Err(ReceiptError::OwnWork);
        }
        if self.statement.microbatches.len() > RECEIPT_MICROBATCHES_MAX {
            return Err(ReceiptError::TooMany);
        }
        if seals == Seals::Hashed {
            let found = Digest::of(&signed_bytes(&self.statement));
            return if self.signature == found.0 { Ok(()) } else { Err(ReceiptError::Signature) };
        }
        let key = VerifyingKey::from_bytes(&self.statement.by.0).map_err(|_| ReceiptError::Signature)?;
        let signature = Signature::from_slice(&self.signature).map_err(|_| ReceiptError::Signature)?;
        key.verify_strict(&signed_bytes(&self.statement), &signature).map_err(|_| ReceiptError::Signature)
    }
}

fn signed_bytes(statement: &Statement) -> Vec<u8> {
    let mut bytes = CONTEXT.to_vec();
    bytes.extend(postcard::to_allocvec(statement).expect("plain fields always serialise"));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InnerStep;

    fn key(seed: u8) -> (SigningKey, PeerId) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let id = PeerId(key.verifying_key().to_bytes());
        (key, id)
    }

    fn receipt() -> Receipt {
        let (signer, by) = key(1);
        let (_, worker) = key(2);
        let statement = Statement {
            run: Digest([7; 32]),
            stage: StageId(1),
            worker,
            seat: SeatId(3),
            by,
            microbatches: [4, 5].map(|index| Trained { index, step: InnerStep(1) }).to_vec(),
        };
        Receipt::sign(statement, &signer)
    }

    #[test]
    fn a_true_receipt_verifies() {
        assert_eq!(receipt().verify(Digest([7; 32]), Seals::Signed), Ok(()));
    }

    #[test]
    fn every_field_is_under_the_signature() {
        let run = Digest([7; 32]);
        let (_, other) = key(3);
        let changes: [fn(&mut Statement, PeerId); 6] = [
            |s, _| s.stage = StageId(2),
            |s, other| s.worker = other,
            |s, other| s.by = other,
            |s, _| s.seat = SeatId(4),
            |s, _| s.microbatches[0].step = InnerStep(2),
            |s, _| s.microbatches.push(Trained { index: 6, step: InnerStep(1) }),
        ];
        for change in changes {
            let mut forged = receipt();
            change(&mut forged.statement, other);
            assert_eq!(forged.verify(run, Seals::Signed), Err(ReceiptError::Signature));
        }
        assert_eq!(receipt().verify(Digest([8; 32]), Seals::Signed), Err(ReceiptError::Run));
    }

    #[test]
    fn a_digest_is_worth_nothing_where_signatures_are_asked_for() {
        let run = Digest([7; 32]);
        let hashed = Receipt::hash(receipt().statement);
        assert_eq!(hashed.verify(run, Seals::Hashed), Ok(()));
        assert_eq!(hashed.verify(run, Seals::Signed), Err(ReceiptError::Signature));
        assert_eq!(receipt().verify(run, Seals::Hashed), Err(ReceiptError::Signature));
        let mut forged = hashed;
        forged.statement.seat = SeatId(4);
        assert_eq!(forged.verify(run, Seals::Hashed), Err(ReceiptError::Signature));
    }

    #[test]
    fn nobody_signs_for_himself() {
        let (signer, by) = key(1);
        let statement = Statement {
            run: Digest([7; 32]),
            stage: StageId(1),
            worker: by,
            seat: SeatId(1),
            by,
            microbatches: Vec::new(),
        };
        assert_eq!(
            Receipt::sign(statement, &signer).verify(Digest([7; 32]), Seals::Signed),
            Err(ReceiptError::OwnWork)
        );
    }
}
