//! The ledger: each (microbatch, stage) is credited exactly once, on a receipt that its receiver signed, and stays credited
//! only if a commit holds it.
//!
//! Owns the sums, the checks of receipts against the plan, and what has to be done again because it was lost with a peer.
//! Knows nothing of storage, leases or messages.

use crate::accounts::Accounts;
use crate::ids::{Digest, InnerStep, PeerId, ReplicaId, SeatId, StageId};
use crate::index_set::IndexSet;
use crate::ledger::first::First;
use crate::ledger::page::{Open, Page};
use crate::ledger::saved::Saved;
use crate::ledger::twice::Twice;
use crate::plan::{Member, Place, Plan};
use crate::receipt::{Receipt, ReceiptError, Seals};
use crate::work::{Needs, Trained};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

mod first;
mod late;
mod own;
mod page;
mod saved;
mod twice;

/// When credit cannot be lost with a peer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finality {
    /// When a commit holds the worker's contribution.
    Commits,
    /// At once: what a stage's only replica has, the stage has.
    AtOnce,
}

/// A seat as far as credit is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seat {
    peer: PeerId,
    stage: StageId,
    replica: ReplicaId,
    /// What it trained in steps below this one is committed.
    committed_below: InnerStep,
}

/// The commit of an outer step, as far as credit is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Steps taken at its border.
    pub border: InnerStep,
    /// The seats whose contributions it holds, each of weights that had seen so many steps.
    pub contributions: Vec<(SeatId, InnerStep)>,
    /// The seats that it left out.
    pub left_out: Vec<SeatId>,
}

/// The credits of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    run: Digest,
    /// What receipts are worth here; a ledger that is read asks for signatures until it is told otherwise.
    #[serde(skip)]
    seals: Seals,
    finality: Finality,
    pages: Vec<Page>,
    seats: BTreeMap<SeatId, Seat>,
    /// What is to be done again, and at which stages; leased from here.
    redo: BTreeMap<u64, BTreeSet<StageId>>,
    /// What is durable.
    saved: Saved,
    /// What was lost once, so that its later credit counts as redone.
    lost: BTreeSet<(StageId, u64)>,
    accounts: Accounts,
    twice: Twice,
    #[serde(skip)]
    first: First,
}

impl Ledger {
    /// Opens the ledger: `first` is the lowest training index of the run's part; `end` is where it starts, below which all
    /// is credited but for `holes`, given by stage.
    pub fn new(
        run: Digest,
        finality: Finality,
        stages: u16,
        (first, end): (u64, u64),
        holes: &[(StageId, u64)],
    ) -> Self {
        let page = |stage: u16| {
            let lacks = |index: &u64| holes.contains(&(StageId(stage), *index));
            let mut held = IndexSet::starting_at(first);
            (first..end).filter(|index| !lacks(index)).for_each(|index| {
                held.insert(index);
            });
            Page::new(held)
        };
        let mut redo: BTreeMap<u64, BTreeSet<StageId>> = BTreeMap::new();
        for (stage, index) in holes {
            redo.entry(*index).or_default().insert(*stage);
        }
        Self {
            run,
            seals: Seals::default(),
            finality,
            pages: (0..stages).map(page).collect(),
            seats: BTreeMap::new(),
            redo,
            saved: Saved::default(),
            lost: holes.iter().copied().collect(),
            accounts: Accounts::default(),
            twice: Twice::default(),
            first: First::default(),
        }
    }

    /// Says what receipts are worth.
    pub fn takes(&mut self, seals: Seals) {
        self.seals = seals;
    }

    /// Returns how many stages it is of.
    pub fn stages(&self) -> u16 {
        self.pages.len() as u16
    }

    /// Returns whether it can be one of a run of so many microbatches, as a ledger that was read from a disk may not be.
    pub fn is_sound(&self, total: u64) -> bool {
        let within = |set: &IndexSet| set.is_sound() && set.watermark() <= total;
        self.pages.iter().all(|page| within(&page.held) && within(&page.durable))
    }

    /// Goes back to the durable checkpoints of all stages, whose work starts at `end`: nobody has anything else any more.
    pub fn go_back(&mut self, end: u64) {
        for seat in self.seats.keys().copied().collect::<Vec<_>>() {
            self.lose(seat);
        }
        for stage in (0..self.stages()).map(StageId) {
            self.lose_stage(stage);
        }
        self.seats.clear();
        self.pages.iter_mut().for_each(|page| page.before.clear());
        self.saved.forget_commits();
        self.first = First::default();
        self.twice.clear();
        // What lies behind the checkpoint is handed out anew in any case.
        self.redo.clear();
        for (stage, index) in self.durable_holes(end) {
            self.redo.entry(index).or_default().insert(stage);
        }
    }

    /// Returns the ledger as it is stored: open credit is not, since members say it again, so no account counts it either.
    pub fn stored(&self) -> Self {
        let mut stored = self.clone();
        for (stage, page) in (0..).map(StageId).zip(&mut stored.pages) {
            for open in core::mem::take(&mut page.open).into_values() {
                if let Some(seat) = stored.seats.get(&open.seat) {
                    let sums = stored.accounts.of(stage, seat.peer);
                    sums.trained = sums.trained.saturating_sub(1);
                }
            }
        }
        stored
    }

    /// Notes that a peer takes a seat.
    pub fn seat(&mut self, member: &Member) {
        let seat = Seat {
            peer: member.peer,
            stage: member.place.stage,
            replica: member.place.replica,
            committed_below: InnerStep(0),
        };
        self.seats.entry(member.seat).or_insert(seat);
        if let Some(page) = self.pages.get_mut(usize::from(member.place.stage.0)) {
            page.own.taken(member.place.replica);
        }
    }

    /// Returns whether a seat is of a stage.
    pub fn is_of_stage(&self, seat: SeatId, stage: StageId) -> bool {
        self.seats.get(&seat).is_some_and(|seat| seat.stage == stage)
    }

    /// Checks a receipt and credits what is new in it; returns that, but for what a commit holds of a seat that is lost.
    ///
    /// The receiver of stage 0's work is stage 1, which takes its activations; of every other stage, the stage before,
    /// which takes its gradients. `leased_below` bounds the indices that can have been worked on.
    ///
    /// # Errors
    /// The receipt is not one that this signer can give, or the worker has lost the seat in which it did the work.
    pub fn credit(
        &mut self,
        receipt: &Receipt,
        plan: &Plan,
        leased_below: u64,
    ) -> Result<Vec<Trained>, ReceiptError> {
        receipt.verify(self.run, self.seals)?;
        let statement = &receipt.statement;
        let stage = statement.stage;
        let receiver = StageId(if stage.0 == 0 { 1 } else { stage.0 - 1 });
        if plan.place_of(statement.by).is_none_or(|place| place.stage != receiver) {
            return Err(ReceiptError::NotReceiver);
        }
        if statement.microbatches.iter().any(|trained| trained.index >= leased_below) {
            return Err(ReceiptError::NeverLeased);
        }
        let holds = |member: &Member| member.seat == statement.seat && member.place.stage == stage;
        if !plan.member(statement.worker).is_some_and(holds) {
            return self.credit_late(statement).map(|()| Vec::new());
        }
        let seat = statement.seat;
        if stage == StageId(0) {
            let attested = statement.microbatches.iter().map(|trained| trained.index);
            return Ok(attested.filter_map(|index| self.attest(index, seat)).collect());
        }
        let trained = statement.microbatches.iter().copied();
        Ok(trained.filter(|trained| self.add(stage, seat, *trained)).collect())
    }

    fn attest(&mut self, index: u64, seat: SeatId) -> Option<Trained> {
        if let Some(trained) = self.first.take_returned(index, seat) {
            return self.add(StageId(0), seat, trained).then_some(trained);
        }
        if !self.is_credited(StageId(0), index) {
            self.first.attested(index, seat);
        }
        None
    }

    /// Notes that a backward came back to the first stage, whose part is credited by it where the stage after has attested
    /// it, or where there is none; returns what is new.
    pub fn returned(&mut self, seat: SeatId, trained: Trained) -> Option<Trained> {
        let index = trained.index;
        if self.pages.len() == 1 || self.first.take_attested(index, seat) {
            return self.add(StageId(0), seat, trained).then_some(trained);
        }
        if self.is_credited(StageId(0), index) {
            self.done_twice(StageId(0), seat, index);
        } else {
            self.first.returned(seat, trained);
        }
        None
    }

    /// Returns whether a microbatch is credited at a stage and no commit holds it.
    pub fn is_open(&self, stage: StageId, index: u64) -> bool {
        self.pages.get(usize::from(stage.0)).is_some_and(|page| page.open.contains_key(&index))
    }

    /// Returns who said that a microbatch came back to it, at the first stage, and waits for that to be attested.
    pub fn returned_to(&self, index: u64) -> Option<(PeerId, SeatId)> {
        let seat = self.first.returned_to(index)?;
        self.seats.get(&seat).map(|Seat { peer, .. }| (*peer, seat))
    }

    /// Counts, once, what a seat did although another is credited with it, or will be.
    fn done_twice(&mut self, stage: StageId, seat: SeatId, index: u64) {
        let Some(page) = self.pages.get(usize::from(stage.0)) else { return };
        let peer = self.seats.get(&seat).map(|seat| seat.peer);
        if let Some(peer) = peer.filter(|_| page.whose(index) != Some(seat))
            && self.twice.count(seat, index)
        {
            self.accounts.of(stage, peer).duplicate += 1;
        }
    }

    /// Credits a microbatch to a seat; returns whether that is new.
    fn add(&mut self, stage: StageId, seat: SeatId, trained: Trained) -> bool {
        let Trained { index, step } = trained;
        let Some(at) = self.seats.get(&seat).copied() else { return false };
        let Some(page) = self.pages.get_mut(usize::from(stage.0)) else { return false };
        if page.has(index) {
            self.done_twice(stage, seat, index);
            return false;
        }
        let committed = step < at.committed_below || self.finality == Finality::AtOnce;
        // A receipt may be later than the checkpoint that has the work.
        let in_all = committed && self.saved.is_in_all(seat, step);
        match (committed, in_all) {
            (true, true) => {
                page.held.insert(index);
                page.durable.insert(index);
                page.before.insert(index, seat);
            }
            (true, false) => {
                page.held.insert(index);
                page.since.insert(index, (seat, step));
            }
            (false, _) => _ = page.open.insert(index, Open { seat, step }),
        }
        if !in_all && self.saved.is_in_own(seat, step) {
            page.own.add(at.replica, trained);
        }
        let sums = self.accounts.of(stage, at.peer);
        sums.trained += 1;
        sums.redone += u64::from(self.lost.remove(&(stage, index)));
        self.forget_redo(stage, index);
        if stage == StageId(0) {
            for other in self.first.credited(index) {
                self.done_twice(StageId(0), other, index);
            }
        }
        true
    }

    fn forget_redo(&mut self, stage: StageId, index: u64) {
        if let Some(stages) = self.redo.get_mut(&index) {
            stages.remove(&stage);
            if stages.is_empty() {
                self.redo.remove(&index);
            }
        }
    }

    /// Hears of a commit.
    pub fn committed(&mut self, commit: &Commit) {
        for (seat, seen) in &commit.contributions {
            self.saved.took_part(commit.border, *seat);
            if let Some(seat) = self.seats.get_mut(seat) {
                seat.committed_below = seat.committed_below.max(*seen);
            }
        }
        for id in &commit.left_out {
            if let Some(seat) = self.seats.get(id) {
                self.saved.left_out(commit.border, *id, seat.committed_below);
            }
        }
        let seats = &self.seats;
        for page in &mut self.pages {
            let in_it =
                |open: &Open| seats.get(&open.seat).is_some_and(|seat| open.step < seat.committed_below);
            page.reopened.retain(|_, open| !in_it(open));
            for (index, open) in page.open.extract_if(.., |_, open| in_it(open)) {
                page.held.insert(index);
                page.since.insert(index, (open.seat, open.step));
            }
        }
    }

    /// Takes back what a lost seat was credited with and no commit holds; it is to be done again. Returns how many.
    pub fn lose(&mut self, seat: SeatId) -> u64 {
        let Some(Seat { peer, stage, replica, committed_below }) = self.seats.get(&seat).copied() else {
            return 0;
        };
        self.first.lost(seat, committed_below);
        let Some(page) = self.pages.get_mut(usize::from(stage.0)) else { return 0 };
        page.reopened.retain(|_, open| open.seat != seat);
        let lost = page.open.extract_if(.., |_, open| open.seat == seat);
        let lost: Vec<Trained> = lost.map(|(index, open)| Trained { index, step: open.step }).collect();
        page.own.lost(replica, &lost);
        let lost: Vec<u64> = lost.iter().map(|trained| trained.index).collect();
        lost.iter().for_each(|index| _ = self.twice.count(seat, *index));
        self.take_back(stage, peer, &lost);
        lost.len() as u64
    }

    /// Returns whether a seat has credit that no commit holds.
    pub fn has_open(&self, seat: SeatId) -> bool {
        self.open_of(seat) > 0
    }

    /// Returns how many microbatches a seat is credited with that no commit holds.
    pub fn open_of(&self, seat: SeatId) -> u64 {
        let open = self.pages.iter().flat_map(|page| page.open.values());
        open.filter(|open| open.seat == seat).count() as u64
    }

    /// Takes back what a seat was credited with in steps that its contribution to a commit of all has not seen: it is not there,
    /// whatever was said.
    pub fn lose_from(&mut self, seat: SeatId, seen: InnerStep) {
        let Some(Seat { peer, stage, .. }) = self.seats.get(&seat).copied() else { return };
        let Some(page) = self.pages.get_mut(usize::from(stage.0)) else { return };
        let beyond = |open: &Open| open.seat == seat && open.step >= seen;
        let lost: Vec<u64> = page.open.extract_if(.., |_, open| beyond(open)).map(|(at, _)| at).collect();
        self.take_back(stage, peer, &lost);
    }

    /// Goes back to a stage's durable checkpoint, because nobody has its weights any more. Returns how many microbatches
    /// are to be done again.
    pub fn lose_stage(&mut self, stage: StageId) -> u64 {
        let Some(page) = self.pages.get_mut(usize::from(stage.0)) else { return 0 };
        page.held = page.durable.clone();
        page.own.forget_lost();
        let of_stage = self.seats.values_mut().filter(|seat| seat.stage == stage);
        of_stage.for_each(|seat| seat.committed_below = InnerStep(0));
        if stage == StageId(0) {
            self.first = First::default();
        }
        let since = core::mem::take(&mut page.since);
        let mut by_peer: BTreeMap<PeerId, Vec<u64>> = BTreeMap::new();
        for (index, (seat, _)) in since {
            self.twice.count(seat, index);
            if let Some(seat) = self.seats.get(&seat) {
                by_peer.entry(seat.peer).or_default().push(index);
            }
        }
        let count = by_peer.values().map(|lost| lost.len() as u64).sum();
        for (peer, lost) in by_peer {
            self.take_back(stage, peer, &lost);
        }
        count
    }

    fn take_back(&mut self, stage: StageId, peer: PeerId, lost: &[u64]) {
        for index in lost {
            self.redo.entry(*index).or_default().insert(stage);
            self.lost.insert((stage, *index));
        }
        let sums = self.accounts.of(stage, peer);
        sums.trained = sums.trained.saturating_sub(lost.len() as u64);
        sums.lost += lost.len() as u64;
    }

    /// Hears that the checkpoints of these places at a step are durable. What was committed at the border `agreed` or before is in
    /// each of them; the rest is in its own replica's alone, also where a later commit holds it that came before this word.
    pub fn durable(&mut self, step: InnerStep, agreed: InnerStep, saved: impl Fn(Place) -> bool) {
        let seats = &self.seats;
        let of = |seat: &Seat| Place { stage: seat.stage, replica: seat.replica };
        let whose = seats.iter().filter(|(_, seat)| saved(of(seat))).map(|(id, _)| *id);
        self.saved.go_on(step, agreed, whose.collect());
        for (stage, page) in (0..).map(StageId).zip(&mut self.pages) {
            page.become_durable(|seat, step| self.saved.is_in_all(seat, step));
            let open = page.open.iter().map(|(index, open)| (*index, open.seat, open.step));
            let since = page.since.iter().map(|(index, (seat, step))| (*index, *seat, *step));
            let own = open.chain(since).filter_map(|(index, seat, step)| {
                let Seat { replica, .. } = *seats.get(&seat)?;
                Some((replica, Trained { index, step }))
            });
            let of_page = |replica| saved(Place { stage, replica });
            page.own.durable(step, own, of_page);
        }
    }

    /// Hears that a seat is taken from its place's own durable checkpoint, with what that replica had not handed in then.
    /// Returns what is credited to it by that.
    pub fn reopen(&mut self, seat: SeatId) -> Vec<Trained> {
        let Some(Seat { peer, stage, replica, .. }) = self.seats.get(&seat).copied() else {
            return Vec::new();
        };
        let Some(page) = self.pages.get_mut(usize::from(stage.0)) else { return Vec::new() };
        let lacks = |index: u64| !page.has(index);
        let own = page.own.of(replica);
        let (own, again): (Vec<Trained>, Vec<Trained>) = own.partition(|trained| lacks(trained.index));
        // Others have done it again meanwhile, and it is there twice.
        self.accounts.of(stage, peer).duplicate += again.len() as u64;
        for Trained { index, step } in own.iter().copied() {
            let open = Open { seat, step };
            page.reopened.insert(index, open);
            page.open.insert(index, open);
            self.lost.remove(&(stage, index));
            self.accounts.of(stage, peer).trained += 1;
        }
        own.iter().for_each(|trained| self.forget_redo(stage, trained.index));
        own
    }

    /// Remembers, in a ledger that was read from a disk, the credit that seats have from their checkpoints: nobody has a
    /// receipt of it. Returns it, each with its seat's place. Who is no member any longer has lost it.
    pub fn recall(&mut self, plan: &Plan) -> Vec<(Place, Trained)> {
        let (mut recalled, mut gone) = (Vec::new(), BTreeSet::new());
        for page in &mut self.pages {
            for (index, open) in page.reopened.clone() {
                let Some(Seat { peer, stage, replica, .. }) = self.seats.get(&open.seat).copied() else {
                    continue;
                };
                page.open.insert(index, open);
                self.accounts.of(stage, peer).trained += 1;
                if plan.members.iter().any(|member| member.seat == open.seat) {
                    recalled.push((Place { stage, replica }, Trained { index, step: open.step }));
                } else {
                    gone.insert(open.seat);
                }
            }
        }
        for seat in gone {
            self.lose(seat);
        }
        recalled
    }

    /// Looks for what went all the way through the pipeline without being credited at every stage, because who had to
    /// receipt it was lost first; it is to be done again. Returns how many microbatches.
    pub fn find_missing(&mut self, below: u64, settled: &IndexSet, is_out: impl Fn(u64) -> bool) -> u64 {
        let mut found = BTreeSet::new();
        for (stage, page) in (0..).map(StageId).zip(&self.pages) {
            let missing = page.held.missing_below(below).filter(|index| {
                settled.contains(*index) && !page.open.contains_key(index) && !is_out(*index)
            });
            for index in missing {
                if self.redo.entry(index).or_default().insert(stage) {
                    found.insert(index);
                }
            }
        }
        found.len() as u64
    }

    /// Returns the lowest microbatch that is to be done again and is not under way, at stages that do not stand still.
    pub fn redo_from_free(
        &self,
        is_out: impl Fn(u64) -> bool,
        stands: impl Fn(StageId) -> bool,
    ) -> Option<u64> {
        let free = |(index, stages): &(&u64, &BTreeSet<StageId>)| {
            !is_out(**index) && !stages.iter().any(|stage| stands(*stage))
        };
        self.redo.iter().find(free).map(|(index, _)| *index)
    }

    /// Returns the stages for which a microbatch is to be done again.
    pub fn redo(&self, index: u64) -> Option<Needs> {
        self.redo.get(&index).map(|stages| Needs::Only(stages.iter().copied().collect()))
    }

    /// Takes a microbatch that is to be done again, for the stages that lack it.
    pub fn take_redo(&mut self, index: u64) -> Option<Needs> {
        self.redo.remove(&index).map(|stages| Needs::Only(stages.into_iter().collect()))
    }

    /// Returns the lowest index that is to be done again.
    pub fn redo_from(&self) -> Option<u64> {
        self.redo.keys().next().copied()
    }

    /// Returns the stages at which a microbatch is not credited.
    pub fn lacking(&self, index: u64) -> Vec<StageId> {
        let stages = (0..self.pages.len() as u16).map(StageId);
        stages.filter(|stage| !self.is_credited(*stage, index)).collect()
    }

    /// Returns whether a microbatch is credited at a stage, by a commit or on the way to one.
    pub fn is_credited(&self, stage: StageId, index: u64) -> bool {
        self.pages.get(usize::from(stage.0)).is_some_and(|page| page.has(index))
    }

    /// Returns whether credit may still be on its way for a stage's work below an index: `comes` says what is on its first way
    /// through the pipeline, or has come back; what is to be done again is not waited for.
    pub fn awaits_credit(&self, stage: StageId, below: u64, comes: impl Fn(u64) -> bool) -> bool {
        let Some(page) = self.pages.get(usize::from(stage.0)) else { return false };
        page.held.missing_below(below).any(|index| {
            let redone = self.redo.get(&index).is_some_and(|stages| stages.contains(&stage));
            !page.open.contains_key(&index) && !redone && comes(index)
        })
    }

    /// Returns whether every stage is credited for all below an index.
    pub fn all_credited(&self, below: u64) -> bool {
        let open = |page: &Page| page.held.missing_below(below).all(|index| page.open.contains_key(&index));
        self.pages.iter().all(open)
    }

    /// Returns whether commits hold all below an index at every stage.
    pub fn all_held(&self, below: u64) -> bool {
        self.pages.iter().all(|page| page.held.watermark() >= below)
    }

    /// Returns whether a commit of these contributions would hold all below an index at every stage.
    pub fn all_held_with(&self, below: u64, contributions: &[(SeatId, InnerStep)]) -> bool {
        let held =
            |open: &Open| contributions.iter().any(|(seat, seen)| *seat == open.seat && open.step < *seen);
        let whole =
            |page: &Page| page.held.missing_below(below).all(|index| page.open.get(&index).is_some_and(held));
        self.pages.iter().all(whole)
    }

    /// Lists what the durable checkpoint lacks below an index, by stage.
    pub fn durable_holes(&self, below: u64) -> Vec<(StageId, u64)> {
        let pages = (0..).map(StageId).zip(&self.pages);
        let holes = pages.map(|(stage, page)| page.durable.missing_below(below).map(move |at| (stage, at)));
        holes.flatten().collect()
    }

    /// Returns the microbatches credited for each stage.
    pub fn credited(&self) -> Vec<u64> {
        self.pages.iter().map(|page| page.held.len() + page.open.len() as u64).collect()
    }

    /// Returns how often work was receipted that was credited to another.
    pub fn duplicates(&self) -> u64 {
        self.accounts.by_stage(self.pages.len() as u16, |sums| sums.duplicate).iter().sum()
    }

    /// Returns, for each stage, the microbatches that were done again because they were lost with a peer.
    pub fn redone(&self) -> Vec<u64> {
        self.accounts.by_stage(self.pages.len() as u16, |sums| sums.redone)
    }

    /// Returns who has trained what.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }
}

#[cfg(test)]
mod tests;
