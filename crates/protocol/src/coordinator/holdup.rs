//! Members that hold an outer step up: the others go on without them when waiting costs more.
//!
//! Owns when that is. Knows nothing of how an outer step is agreed on.

use crate::agenda::Exchanges;
use crate::coordinator::{Coordinator, Phase};
use crate::ids::{PeerId, StageId};
use crate::message::{Message, Removal};
use crate::plan::Member;
use crate::port::Outbox;
use crate::roster;
use crate::running::Running;
use crate::time::{Span, Time};
use alloc::vec::Vec;

/// How long two replicas that cannot reach each other may hold an exchange up: their connection may come back, or others may
/// serve them what they need.
const APART_WAIT: Span = Span::seconds(10);

/// How long a suspect may at least hold the others up, beyond the silence that made it one.
const HOLD_UP_MIN: Span = Span::millis(500);

impl Coordinator {
    /// Removes suspects without whom nothing goes on any more, once that has taken as long as doing their work again will: to wait
    /// on costs more than they can bring. Else they are removed when their silence says that they are lost.
    pub(super) fn give_up(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let suspects = running.dispensable();
        if suspects.is_empty() {
            running.held_up_since = None;
            return;
        }
        let since = *running.held_up_since.get_or_insert(now);
        let stood = now.since(since.max(running.worked_at));
        let over =
            suspects.iter().filter(|suspect| running.worth(suspect).is_some_and(|worth| worth <= stood));
        let over: Vec<PeerId> = over.map(|suspect| suspect.peer).collect();
        for peer in over {
            self.remove(now, peer, Removal::Silent, out);
        }
    }

    /// Removes a replica that cannot reach another of its stage, where that holds an exchange up: of the two the later one, so
    /// that all decide alike.
    pub(super) fn part(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(arbiter) = &running.arbiter else { return };
        let due = running.apart.iter().filter(|(stage, apart)| {
            let both = [apart.earlier, apart.later].iter().all(|peer| !running.roster.is_suspect(*peer));
            both && now.since(apart.since) >= APART_WAIT && arbiter.round(**stage).is_some()
        });
        let due: Vec<(StageId, PeerId)> = due.map(|(stage, apart)| (*stage, apart.later)).collect();
        for (stage, _) in &due {
            running.apart.remove(stage);
        }
        for (_, later) in due {
            self.remove(now, later, Removal::Disconnected, out);
        }
    }
}

impl Running {
    /// Hears a message, which may be one of work.
    pub(crate) fn hears(&mut self, now: Time, from: PeerId, message: &Message) {
        self.roster.heard(now, from);
        if is_of_work(message) && self.plan.place_of(from).is_some() {
            self.worked_at = now;
        }
    }

    /// Lists the suspects, if they are few, and the others of their stages can do without them.
    fn dispensable(&self) -> Vec<Member> {
        if self.agenda.exchanges() != Exchanges::PseudoGradients || !self.roster.has_suspects() {
            return Vec::new();
        }
        let entered = self.plan.members.iter().filter(|member| roster::has_entered(member));
        let (suspects, others): (Vec<&Member>, Vec<&Member>) =
            entered.partition(|member| self.roster.is_suspect(member.peer));
        let few = 2 * suspects.len() < others.len();
        let replaced = |of: &&Member| others.iter().any(|other| other.place.stage == of.place.stage);
        let dispensable = few && suspects.iter().all(replaced);
        suspects.into_iter().filter(|_| dispensable).cloned().collect()
    }

    /// Returns how long the others may stand still for a suspect: as long as it takes them to do again what no commit holds of it.
    /// `None` before it is known how long steps take.
    fn worth(&self, suspect: &Member) -> Option<Span> {
        let (_, interval) = self.committed_at.filter(|(_, interval)| *interval > Span(0))?;
        let step = interval.0 / self.agenda.inner_steps().max(1);
        let open = self.ledger.open_of(suspect.seat);
        let redo = step.saturating_mul(open) / self.agenda.microbatches_of_all().max(1);
        Some(Span(redo).max(HOLD_UP_MIN))
    }
}

/// Returns whether a message says that its sender has come on with work, and not only that it is there. What it says of an exchange
/// it repeats while it waits: that counts where it is news.
fn is_of_work(message: &Message) -> bool {
    matches!(
        message,
        Message::Loss { .. }
            | Message::Settled { .. }
            | Message::Receipts(_)
            | Message::Stepped(_)
            | Message::Checkpointed { .. }
    )
}
