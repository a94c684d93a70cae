//! The coordinator's way to the disk: what is stored, and what waits for it.
//!
//! Owns the order of stores. Knows nothing of who joins or leaves.

use crate::coordinator::{Coordinator, Phase};
use crate::durable::{Checkpoint, Durable};
use crate::event::Event;
use crate::ids::{Digest, InnerStep, PeerId, StageId};
use crate::message::Refusal;
use crate::port::{Action, Outbox, StoreItem};
use crate::running::{RESERVED_STEPS, Storing};
use crate::time::{Span, Time};

impl Coordinator {
    pub(super) fn checkpointed(
        &mut self,
        from: PeerId,
        step: InnerStep,
        saved: (Digest, Span),
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let agenda = self.agenda;
        let durable = self.durable.step();
        let (running, place) = self.running_for(from, None)?;
        if step == durable && step > InnerStep(0) {
            // Said again on a connection made anew.
            return Ok(());
        }
        let expected = agenda.saves_at(step) || running.drain == Some(step);
        // A fast replica may be there before all work of the step before it is handed out to the others. Further on nobody is, and
        // the checkpoints in between would wait for that one.
        let reached = step.0 <= running.leases.highest_step().0.saturating_add(1);
        if !expected || !reached || (step < durable) {
            return Err(Refusal::NotYours { peer: from });
        }
        running.saves.entry(step).or_default().insert(place, saved);
        self.complete_saves(out);
        Ok(())
    }

    /// Makes a border durable when every replica that stands behind it has saved.
    pub(super) fn complete_saves(&mut self, out: &mut Outbox) {
        let agenda = self.agenda;
        let Phase::Running(running) = &mut self.phase else { return };
        let Some((&step, saves)) = running.saves.last_key_value() else { return };
        // Who enters at a border comes behind it, but at the end, where all write what they end with.
        let first = InnerStep(step.0 + u64::from(step == agenda.steps()));
        let due = running.plan.members.iter().filter(|member| member.enters < first);
        let stages = (0..self.spec.stages()).map(StageId);
        let whole = due.map(|member| member.place).all(|place| saves.contains_key(&place))
            && stages.into_iter().all(|stage| saves.keys().any(|place| place.stage == stage));
        if !whole {
            return;
        }
        let saves = running.saves.remove(&step).unwrap_or_default();
        // An earlier border that lacks something is behind this one.
        running.saves.clear();
        let took = saves.values().map(|(_, took)| *took).max().unwrap_or_default();
        if agenda.evaluation_at(step).is_empty() {
            running.book.add_outside(took);
        }
        running.find_missing(agenda.training_of(step).start);
        let checkpoint = Checkpoint {
            step,
            digests: saves.iter().map(|(place, (digest, _))| (*place, *digest)).collect(),
        };
        running.ledger.durable(step, agenda.agreed_below(step), |place| saves.contains_key(&place));
        running.keep_ledger();
        running.storing.push_back(Storing::Checkpoint(checkpoint, took));
        self.store(out);
    }

    /// Asks for the state to be made durable as it will be when all that was asked for before is.
    pub(super) fn store(&mut self, out: &mut Outbox) {
        let Phase::Running(running) = &self.phase else { return };
        let coming = running.storing.iter().rev().find_map(Storing::checkpoint);
        let checkpoint = coming.or(self.durable.checkpoint.as_ref()).cloned();
        let state = Durable { checkpoint, session: Some(running.session()), ..self.durable.clone() };
        let accounts = running.ledger.accounts().list();
        out.push(Action::Store(StoreItem::Coordinator { state: state.bytes(), accounts }));
    }

    /// Makes durable how far work may be handed out.
    pub(super) fn reserve(&mut self, out: &mut Outbox) {
        let steps = self.agenda.steps();
        let Phase::Running(running) = &mut self.phase else { return };
        let ahead = running.leases.highest_step().0 + 1 + RESERVED_STEPS / 2;
        if running.reserved.1.0 >= ahead || running.reserved.1 > steps {
            return;
        }
        // The evaluation at the end belongs to the border behind the last step.
        let reserved = InnerStep((ahead + RESERVED_STEPS).min(steps.0 + 1));
        running.reserved.1 = reserved;
        running.storing.push_back(Storing::Reserved(reserved));
        self.store(out);
    }

    pub(super) fn stored(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        match running.storing.pop_front() {
            Some(Storing::Checkpoint(checkpoint, took)) => {
                out.record(Event::Durable { step: checkpoint.step, took });
                self.durable.checkpoint = Some(checkpoint);
                self.let_savers_go(now, out);
            }
            Some(Storing::Outer(commit)) => self.committed(now, &commit, out),
            Some(Storing::Session(messages)) => {
                messages.into_iter().for_each(|(to, message)| out.send(to, message));
            }
            Some(Storing::Reserved(reserved)) => running.reserved.0 = reserved,
            None => {}
        }
    }
}
