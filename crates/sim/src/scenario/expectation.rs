//! Expectations: what a scenario says must have come of it.
//!
//! Owns the measures, how they are written, and the comparison. Knows nothing of how a swarm is run.

use crate::laws;
use crate::scenario::words::{self, ParseError};
use crate::swarm::{Ending, SimOutcome};
use std::fmt;
use trestle_protocol::message::Outcome;

/// How a measure is compared with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Equal.
    Is,
    /// Below.
    Below,
    /// At most.
    AtMost,
    /// Above.
    Above,
    /// At least.
    AtLeast,
}

/// What is measured as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Inner steps complete at the end.
    Steps,
    /// Lines of the event log.
    Events,
    /// (Microbatch, stage) pairs that were planned and not credited.
    Lost,
    /// (Microbatch, stage) pairs credited.
    Credited,
    /// Things that arrived twice.
    Duplicates,
    /// (Microbatch, stage) pairs that the ledger counts as duplicates: done, and credited to another.
    Twice,
    /// Messages refused.
    Refused,
    /// Bytes that were no message.
    Rejected,
    /// Leases that ran out.
    Expired,
    /// Losses of peers, counted at each peer that noticed.
    LostPeers,
    /// Nodes that ended otherwise than well.
    Failed,
    /// The last border at which the run was durable; 0 when it never was.
    Durable,
    /// Largest distance of versions between a forward and its backward.
    Staleness,
    /// The most bytes of boundary inputs that one worker kept.
    KeptBytes,
    /// Training loss of the last step, nats per token.
    Loss,
    /// The last held-out loss, nats per token.
    Evaluation,
    /// Virtual seconds.
    Time,
    /// Share of the training time for which the busiest worker computed.
    Busy,
    /// Outer steps that all replicas of all stages committed.
    Committed,
    /// Outer steps that were called off.
    Restored,
    /// Commits that replicas took over, summed over replicas.
    Agreed,
    /// Those of them after which a replica's weights were not those of its stage.
    Apart,
    /// Contributions and results found flawed.
    Flawed,
    /// Shards, or votes, on which replicas differed.
    Disagreed,
    /// Replicas that the others went on without.
    Excluded,
    /// Share of the time for which computing did not stand still for an outer step, at the worker where that is least.
    Utilisation,
    /// (Microbatch, stage) pairs that are in no weights at the end, whatever the ledger says.
    Missing,
    /// Copies of (microbatch, stage) pairs in the weights at the end, beyond the first.
    Extra,
    /// Peers that took a place under way.
    Seated,
    /// Members that may have been gone.
    Suspected,
    /// Members that lost their place.
    Removed,
    /// Members that asked to leave.
    Leaving,
    /// How often a stage had no replica left.
    Stalled,
    /// How often one had a replica again.
    Resumed,
    /// Microbatches that went to another replica than before.
    Rerouted,
    /// Microbatches that were leased again because work at some stage was lost.
    Redone,
}

/// Another way to train, whose losses must be the same, to the bit where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The same settings, with nothing done to the swarm.
    Uninterrupted,
    /// The same, on links and devices without jitter.
    Unjittered,
    /// One process that holds the whole model.
    OneProcess,
    /// The same, to a millionth: replicas add gradients in another order than one process.
    NearlyOneProcess,
}

/// What is expected.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// A number.
    Number(Measure, Relation, f64),
    /// The words for how the runnings ended: of the last one, or of all of them.
    Outcome(Vec<String>),
    /// A second run with the same seed gives the same log.
    SameTwice,
    /// Every loss equals that of another way to train.
    Losses(Reference),
    /// Every law holds.
    Laws,
}

/// One expectation, as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// As the scenario has it.
    pub text: String,
    /// What it means.
    pub wanted: Wanted,
}

/// What came of an expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// As the scenario has it.
    pub expected: String,
    /// What was found.
    pub got: String,
    /// Whether it is as expected.
    pub verdict: Verdict,
}

/// Whether something is as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Met,
    /// It is not.
    Missed,
}

const MEASURES: [(&str, Measure); 36] = [
    ("steps", Measure::Steps),
    ("events", Measure::Events),
    ("lost", Measure::Lost),
    ("credited", Measure::Credited),
    ("duplicates", Measure::Duplicates),
    ("twice", Measure::Twice),
    ("refused", Measure::Refused),
    ("rejected", Measure::Rejected),
    ("expired", Measure::Expired),
    ("lost_peers", Measure::LostPeers),
    ("failed", Measure::Failed),
    ("durable", Measure::Durable),
    ("staleness", Measure::Staleness),
    ("kept_bytes", Measure::KeptBytes),
    ("loss", Measure::Loss),
    ("evaluation", Measure::Evaluation),
    ("time", Measure::Time),
    ("busy", Measure::Busy),
    ("committed", Measure::Committed),
    ("restored", Measure::Restored),
    ("agreed", Measure::Agreed),
    ("apart", Measure::Apart),
    ("flawed", Measure::Flawed),
    ("disagreed", Measure::Disagreed),
    ("excluded", Measure::Excluded),
    ("utilisation", Measure::Utilisation),
    ("missing", Measure::Missing),
    ("extra", Measure::Extra),
    ("seated", Measure::Seated),
    ("suspected", Measure::Suspected),
    ("removed", Measure::Removed),
    ("leaving", Measure::Leaving),
    ("stalled", Measure::Stalled),
    ("resumed", Measure::Resumed),
    ("rerouted", Measure::Rerouted),
    ("redone", Measure::Redone),
];

const OUTCOMES: [&str; 7] = ["done", "stopped", "left", "failed", "crashed", "stuck", "headless"];

/// Longer relations first, so that `<=` is not read as `<`.
const RELATIONS: [(&str, Relation); 5] = [
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("<", Relation::Below),
    (">", Relation::Above),
    ("=", Relation::Is),
];

impl Expectation {
    /// Reads one expectation, such as `lost=0` or `loss<2.5`.
    ///
    /// # Errors
    /// Names the word that cannot be read.
    pub fn read(line: usize, text: &str) -> Result<Self, ParseError> {
        let error = |problem: &str, hint: String| ParseError {
            line,
            word: text.into(),
            problem: problem.into(),
            hint,
        };
        let found = RELATIONS.iter().find_map(|(sign, relation)| {
            text.split_once(sign).map(|(measure, value)| (measure, *relation, value))
        });
        let Some((measure, relation, value)) = found else {
            return Err(error(
                "is no expectation",
                "write a measure, a relation and a value: `lost=0`".into(),
            ));
        };
        let equal = |wanted: Option<Wanted>, hint: &str| match (wanted, relation) {
            (Some(wanted), Relation::Is) => Ok(wanted),
            (Some(_), Relation::Below | Relation::AtMost | Relation::Above | Relation::AtLeast)
            | (None, _) => Err(error("cannot be read", hint.into())),
        };
        let wanted = match measure {
            "outcome" => {
                let words: Vec<String> = value.split(',').map(String::from).collect();
                let known = words.iter().all(|word| OUTCOMES.contains(&word.as_str()));
                let hint = format!("`outcome=` one of {}, or one for each running", OUTCOMES.join(", "));
                equal(known.then_some(Wanted::Outcome(words)), &hint)?
            }
            "digest" => equal((value == "same-twice").then_some(Wanted::SameTwice), "`digest=same-twice`")?,
            "laws" => equal((value == "kept").then_some(Wanted::Laws), "`laws=kept`")?,
            "losses" => {
                let hint = "`losses=` uninterrupted, unjittered, one-process or nearly-one-process";
                equal(reference(value).map(Wanted::Losses), hint)?
            }
            _ => {
                let known = MEASURES.iter().find(|(name, _)| *name == measure).map(|(_, measure)| *measure);
                let names: Vec<&str> = MEASURES.iter().map(|(name, _)| *name).collect();
                let unknown =
                    || error("is no measure", format!("outcome, digest, losses, laws, {}", names.join(", ")));
                let measure = known.ok_or_else(unknown)?;
                let number =
                    amount(measure, value).ok_or_else(|| error("has no number", hint_of(measure)))?;
                Wanted::Number(measure, relation, number)
            }
        };
        Ok(Self { text: text.into(), wanted })
    }

    /// Judges a number or an outcome; the other kinds need further runs.
    pub fn check(&self, outcome: &SimOutcome) -> Option<Check> {
        let (got, met) = match &self.wanted {
            Wanted::Number(measure, relation, want) => {
                let got = measure.of(outcome);
                (format!("{}={got}", name(*measure)), relation.holds(got, *want))
            }
            Wanted::Outcome(want) => {
                let skipped = if want.len() == 1 { outcome.endings.len().saturating_sub(1) } else { 0 };
                let (words, said): (Vec<_>, Vec<_>) =
                    outcome.endings.iter().skip(skipped).map(ending).unzip();
                (format!("outcome={}", said.join(", then ")), words == *want)
            }
            Wanted::Laws => {
                let broken = laws::broken(outcome);
                (if broken.is_empty() { "all".into() } else { broken.join("; ") }, broken.is_empty())
            }
            Wanted::SameTwice | Wanted::Losses(_) => return None,
        };
        let verdict = if met { Verdict::Met } else { Verdict::Missed };
        Some(Check { expected: self.text.clone(), got, verdict })
    }
}

impl Measure {
    /// Takes the measure of an outcome; a loss that was never taken is not a number, and so never as expected.
    fn of(self, outcome: &SimOutcome) -> f64 {
        let tally = &outcome.tally;
        let whole = |number: u64| number as f64;
        match self {
            Measure::Steps => whole(tally.steps),
            Measure::Events => whole(tally.events),
            Measure::Lost => whole(tally.planned) - whole(tally.credited),
            Measure::Credited => whole(tally.credited),
            Measure::Duplicates => whole(tally.duplicates + tally.duplicate_receipts),
            Measure::Twice => whole(tally.duplicate_receipts),
            Measure::Refused => whole(tally.refused),
            Measure::Rejected => whole(tally.rejected),
            Measure::Expired => whole(tally.expired),
            Measure::LostPeers => whole(tally.lost_peers),
            Measure::Failed => whole(tally.failed),
            Measure::Durable => whole(tally.durable.last().copied().unwrap_or(0)),
            Measure::Staleness => whole(tally.staleness),
            Measure::KeptBytes => outcome.kept_bytes_max as f64,
            Measure::Loss => tally.losses.last().map_or(f64::NAN, |(_, loss)| *loss),
            Measure::Evaluation => tally.evaluations.last().map_or(f64::NAN, |(_, loss)| *loss),
            Measure::Time => outcome.time.0 as f64 / 1e6,
            Measure::Busy => tally.busy(),
            Measure::Committed => whole(tally.outer.committed),
            Measure::Restored => whole(tally.outer.restored),
            Measure::Agreed => whole(tally.outer.agreed),
            Measure::Apart => whole(tally.outer.apart),
            Measure::Flawed => whole(tally.outer.flawed),
            Measure::Disagreed => whole(tally.outer.disagreed),
            Measure::Excluded => whole(tally.outer.excluded),
            Measure::Utilisation => tally.outer.utilisation(),
            Measure::Missing => whole(laws::missing(outcome)),
            Measure::Extra => whole(laws::extra(outcome)),
            Measure::Seated => whole(tally.members.seated),
            Measure::Suspected => whole(tally.members.suspected),
            Measure::Removed => whole(tally.members.removed),
            Measure::Leaving => whole(tally.members.leaving),
            Measure::Stalled => whole(tally.members.stalled),
            Measure::Resumed => whole(tally.members.resumed),
            Measure::Rerouted => whole(tally.members.rerouted),
            Measure::Redone => whole(tally.members.redone),
        }
    }
}

impl Relation {
    fn holds(self, got: f64, want: f64) -> bool {
        match self {
            Relation::Is => got == want,
            Relation::Below => got < want,
            Relation::AtMost => got <= want,
            Relation::Above => got > want,
            Relation::AtLeast => got >= want,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Met => write!(f, "met: {} (got {})", self.expected, self.got),
            Verdict::Missed => write!(f, "missed: expected {}, got {}", self.expected, self.got),
        }
    }
}

/// Returns the word for an ending, and the word with what else is known.
fn ending(ending: &Ending) -> (&'static str, String) {
    match ending {
        Ending::Left(Outcome::Done) => ("done", "done".into()),
        Ending::Left(Outcome::Stopped { step }) => ("stopped", format!("stopped at step {step}")),
        Ending::Left(Outcome::Left) => ("left", "left".into()),
        Ending::Left(Outcome::Failed { reason }) => ("failed", format!("failed ({reason})")),
        Ending::Crashed => ("crashed", "crashed".into()),
        Ending::Headless => ("headless", "headless".into()),
        Ending::Stuck => ("stuck", "stuck".into()),
    }
}

fn name(measure: Measure) -> &'static str {
    MEASURES.iter().find(|(_, known)| *known == measure).map_or("", |(name, _)| *name)
}

fn reference(word: &str) -> Option<Reference> {
    match word {
        "uninterrupted" => Some(Reference::Uninterrupted),
        "unjittered" => Some(Reference::Unjittered),
        "one-process" => Some(Reference::OneProcess),
        "nearly-one-process" => Some(Reference::NearlyOneProcess),
        _ => None,
    }
}

/// What a measure is counted in.
enum Unit {
    Number,
    Nats,
    Seconds,
    Share,
}

fn unit(measure: Measure) -> Unit {
    match measure {
        Measure::Loss | Measure::Evaluation => Unit::Nats,
        Measure::Time => Unit::Seconds,
        Measure::Busy | Measure::Utilisation => Unit::Share,
        Measure::Steps
        | Measure::Events
        | Measure::Lost
        | Measure::Credited
        | Measure::Duplicates
        | Measure::Twice
        | Measure::Refused
        | Measure::Rejected
        | Measure::Expired
        | Measure::LostPeers
        | Measure::Failed
        | Measure::Durable
        | Measure::Staleness
        | Measure::KeptBytes
        | Measure::Committed
        | Measure::Restored
        | Measure::Agreed
        | Measure::Apart
        | Measure::Flawed
        | Measure::Disagreed
        | Measure::Excluded
        | Measure::Missing
        | Measure::Extra
        | Measure::Seated
        | Measure::Suspected
        | Measure::Removed
        | Measure::Leaving
        | Measure::Stalled
        | Measure::Resumed
        | Measure::Rerouted
        | Measure::Redone => Unit::Number,
    }
}

fn amount(measure: Measure, value: &str) -> Option<f64> {
    match unit(measure) {
        Unit::Nats => words::real(value),
        Unit::Seconds => words::span(value).map(|span| span.as_secs_f64()),
        Unit::Share => words::permille(value).map(|share| f64::from(share.0) / 1000.0),
        Unit::Number => words::number(value).map(|number| number as f64),
    }
}

fn hint_of(measure: Measure) -> String {
    let example = match unit(measure) {
        Unit::Nats => "<2.5",
        Unit::Seconds => "<60s",
        Unit::Share => ">90%",
        Unit::Number => "=0",
    };
    format!("for example `{}{example}`", name(measure))
}
