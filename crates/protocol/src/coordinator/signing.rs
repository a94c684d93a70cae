//! What a lost member had received and not signed for: nobody is credited for it, and it has to be done again.
//!
//! Owns how that is found out soon: all others sign for what they have received, and what came back before they were asked and is
//! still not credited was received by the lost one. Knows nothing of how work is done again.

use crate::agenda::Exchanges;
use crate::coordinator::Coordinator;
use crate::ids::{PeerId, PlanNumber};
use crate::message::{Message, Refusal};
use crate::port::Outbox;
use crate::roster;
use crate::running::{Running, Unsigned};
use crate::time::{Span, Time};
use alloc::collections::BTreeSet;

/// How long what is to be done again waits at most for all to have signed: it takes a message there and back.
const SIGN_WAIT: Span = Span::seconds(2);

impl Coordinator {
    /// Hears that a member has signed for all that it had received.
    pub(super) fn signed(&mut self, from: PeerId, plan: PlanNumber) -> Result<(), Refusal> {
        let (running, _) = self.running_for(from, None)?;
        let Some(unsigned) = running.unsigned.as_mut().filter(|unsigned| unsigned.plan == plan) else {
            return Ok(());
        };
        unsigned.asked.remove(&from);
        if unsigned.asked.is_empty()
            && let Some(Unsigned { settled, .. }) = running.unsigned.take()
        {
            let (leases, below) = (&running.leases, running.leases.leased_below());
            running.ledger.find_missing(below, &settled, |index| leases.is_out(index));
        }
        Ok(())
    }
}

impl Running {
    /// Asks all members to sign for what they have received; what they were asked before is part of that.
    pub(crate) fn ask_to_sign(&mut self, now: Time, out: &mut Outbox) {
        // Where nothing is committed later, credit is final when it comes, and the end looks for what is missing.
        if self.agenda.exchanges() != Exchanges::PseudoGradients {
            return;
        }
        let members = self.plan.members.iter().filter(|member| roster::has_entered(member));
        let asked = members.map(|member| member.peer).collect::<BTreeSet<PeerId>>();
        let (plan, settled) = (self.plan.number, self.leases.settled().clone());
        self.say_to_all(&Message::Sign { plan }, out);
        self.unsigned = Some(Unsigned { plan, settled, asked, until: now + SIGN_WAIT });
    }

    /// Returns until when it is waited for what members sign for before anything is done again: no longer than one of them is there
    /// that has not answered.
    pub(crate) fn signs_until(&self) -> Option<Time> {
        let unsigned = self.unsigned.as_ref()?;
        let awaited = unsigned.asked.iter().any(|peer| !self.roster.is_suspect(*peer));
        awaited.then_some(unsigned.until)
    }
}
