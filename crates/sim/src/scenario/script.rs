//! The script: a whole scenario file, parsed.
//!
//! Owns the order of a file: settings, what is done to the swarm, when it runs, and after `----` what is expected. Knows
//! nothing of how a swarm is run.

use crate::fault::{Fault, Faults};
use crate::scenario::expectation::{Expectation, Reference, Wanted};
use crate::scenario::settings::{Kind, Settings, Taken};
use crate::scenario::words::{self, Line, ParseError};
use trestle_protocol::plan::Place;
use trestle_protocol::spec::Schedule;

/// One running of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What is done to it.
    pub faults: Faults,
}

/// A scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// The run and the world.
    pub settings: Settings,
    /// The runnings, in order: the first from the seed, each later one from what the one before left durable.
    pub runnings: Vec<Running>,
    /// What must have come of it at the end.
    pub expectations: Vec<Expectation>,
}

/// The line between what is done and what is expected.
const SEPARATOR: &str = "----";

/// Microbatches in a run: what can be simulated in a month, and no sum overflows.
const MICROBATCHES_MAX: u128 = 10_000_000_000;

/// All verbs, for the hint about an unknown one.
const VERBS: &str = "seed, stages, replicas, schedule, steps, microbatches, microbatch_size, in_flight, model, boundary, \
    optimizer, retain, evaluate, checkpoint, data, sync, compute, link, slow, drain, crash, kill, hostile, train, resume";

/// What each verb takes, for the hint about an unknown word.
const TAKES: [(&str, &str); 15] = [
    ("stages", "a number and layers="),
    ("schedule", "flush, or async and staleness="),
    ("model", "vocabulary=, width=, heads=, kv_heads=, ffn_width=, sequence_len="),
    ("boundary", "none, resbm or fused, and width=, encoder_width=, wire="),
    ("optimizer", "adamw or muon, and rate="),
    ("evaluate", "every=, microbatches="),
    ("checkpoint", "every="),
    ("data", "tokens="),
    ("compute", "cost or real, and forward=, backward=, step=, save=, load=, flops=, jitter="),
    ("sync", "every=, delay=, rule=, rate=, momentum=, ramp=, codec=, decay=, contribution=, copy=, beside="),
    ("link", "stage=, latency=, bandwidth=, uplink=, downlink=, jitter="),
    ("slow", "stage=, factor="),
    ("drain", "at="),
    ("kill", "stage=, replica=, at="),
    ("hostile", "every="),
];

impl Script {
    /// Reads a scenario; `seed` replaces the one in the file.
    ///
    /// # Errors
    /// Names line, word and remedy.
    pub fn read(text: &str, seed: Option<u64>) -> Result<Self, ParseError> {
        let mut script =
            Self { settings: Settings::default(), runnings: Vec::new(), expectations: Vec::new() };
        let mut faults = Faults::default();
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let mut last = 0;
        for (number, line) in lines.by_ref() {
            last = number;
            if line.trim() == SEPARATOR {
                break;
            }
            if let Some(line) = Line::read(number, line)? {
                script.verb(line, &mut faults)?;
            }
        }
        for (number, line) in lines {
            last = number;
            let line = line.split('#').next().unwrap_or_default();
            for word in line.split_whitespace() {
                script.expectations.push(Expectation::read(number, word)?);
            }
        }
        if let Some(seed) = seed {
            script.settings.spec.seed = seed;
        }
        script.check_whole(last, &faults)?;
        Ok(script)
    }

    fn verb(&mut self, mut line: Line<'_>, faults: &mut Faults) -> Result<(), ParseError> {
        let known = TAKES.iter().find(|(verb, _)| *verb == line.verb).map_or("", |(_, takes)| *takes);
        let begun = !self.runnings.is_empty();
        match line.verb {
            "drain" => plan(&mut line, faults, Fault::Drain)?,
            "crash" => plan(&mut line, faults, Fault::Crash)?,
            "kill" => {
                let missing = line.error("stage", "is missing", "for example `kill stage=1 at=step:5`");
                let stage = self.settings.stage(&mut line)?.ok_or(missing)?;
                let replica = self.settings.replica(&mut line)?;
                plan(&mut line, faults, Fault::Kill { place: Place { stage, replica } })?;
            }
            "hostile" => {
                let missing = line.error("every", "is missing", "for example `hostile every=20ms`");
                let positive = |word: &str| words::span(word).filter(|span| span.0 > 0);
                faults.stranger_every = Some(line.value("every", positive, "20ms")?.ok_or(missing)?);
            }
            "train" if begun => {
                return Err(line.error("train", "comes a second time", "go on with `resume`"));
            }
            "resume" if !begun => {
                return Err(line.error("resume", "has nothing to go on from", "begin with `train`"));
            }
            "train" | "resume" => self.runnings.push(Running { faults: std::mem::take(faults) }),
            verb if begun => {
                let problem = "comes after `train`, when the run is settled";
                return Err(line.error(verb, problem, "settings come before the first `train`"));
            }
            verb => match self.settings.take(&mut line)? {
                Taken::Set => {}
                Taken::NotMine => {
                    return Err(line.error(verb, "is no verb", format!("the verbs are {VERBS}")));
                }
            },
        }
        line.end(known)
    }

    fn check_whole(&self, line: usize, faults: &Faults) -> Result<(), ParseError> {
        let error = |word: &str, problem: &str, hint: &str| ParseError {
            line,
            word: word.into(),
            problem: problem.into(),
            hint: hint.into(),
        };
        if self.runnings.is_empty() {
            return Err(error("train", "is missing", "a scenario runs with `train`"));
        }
        if *faults != Faults::default() {
            return Err(error(
                "train",
                "does not follow the last fault",
                "faults come before the `train` they disturb",
            ));
        }
        if self.expectations.is_empty() {
            return Err(error(
                SEPARATOR,
                "is not followed by an expectation",
                "for example `outcome=done lost=0`",
            ));
        }
        let (spec, kind) = (&self.settings.spec, self.settings.kind);
        let plain = kind == Kind::Real && spec.pipeline.schedule == Schedule::Flush;
        let one_process = |wanted: &Wanted| {
            let references = [Reference::OneProcess, Reference::NearlyOneProcess];
            references.iter().any(|reference| *wanted == Wanted::Losses(*reference))
        };
        if !plain && self.expectations.iter().any(|expectation| one_process(&expectation.wanted)) {
            let hint = "say `compute real` and `schedule flush`";
            return Err(error("losses=one-process", "compares real models under flush only", hint));
        }
        let work = u128::from(spec.training.steps) * u128::from(spec.pipeline.microbatches_per_step);
        if work > MICROBATCHES_MAX {
            let problem = format!("times microbatches is {work}, at most {MICROBATCHES_MAX} are counted");
            return Err(error("steps", &problem, "a shorter run shows the same"));
        }
        if spec.sync.delay >= spec.sync.inner_steps {
            return Err(error(
                "sync",
                "goes over to what was agreed after the next outer step has begun",
                "a `delay=` below `every=`",
            ));
        }
        Ok(())
    }
}

fn plan(line: &mut Line<'_>, faults: &mut Faults, fault: Fault) -> Result<(), ParseError> {
    let missing = line.error("at", "is missing", "for example `at=step:20` or `at=1.5s`");
    let when = line.value("at", words::when, "step:20")?.ok_or(missing)?;
    faults.planned.push((when, fault));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::When;

    const SCENARIO: &str = "
        stages 2 layers=2          # two peers
        schedule async staleness=1
        seed 3
        drain at=step:2
        train
        crash at=5s
        resume
        ----
        outcome=crashed lost=0
        loss<2.5
    ";

    #[test]
    fn a_file_is_settings_then_runnings_then_expectations() {
        let script = Script::read(SCENARIO, None).expect("reads");
        assert_eq!(script.settings.run_spec().pipeline.stage_layers, [2, 2]);
        assert_eq!(script.settings.spec.pipeline.schedule, Schedule::Async { staleness_max: 1 });
        assert_eq!(script.runnings[0].faults.planned, [(When::Steps(2), Fault::Drain)]);
        assert_eq!((script.runnings.len(), script.expectations.len()), (2, 3));
        let other = Script::read(SCENARIO, Some(9)).expect("reads");
        assert_eq!((script.settings.spec.seed, other.settings.spec.seed), (3, 9));
    }

    #[test]
    fn each_mistake_names_line_word_and_remedy() {
        let cases = [
            ("steps ten", "line 1: `ten` is no whole number from 1 on", "for example `steps 100`"),
            ("sleep 5", "line 1: `sleep` is no verb", "the verbs are seed"),
            ("schedule now", "line 1: `now` is no schedule", "`schedule flush`"),
            ("link latency=4", "line 1: `latency=4` cannot be read", "for example latency=40ms"),
            ("steps 5 6", "line 1: `6` is nothing that `steps` knows", "`steps` takes nothing more"),
            ("compute cost speed=3", "line 1: `speed` is nothing that `compute` knows", "forward="),
            ("slow stage=9 factor=2", "line 1: `stage=9` does not exist, the run has 4 stages", "`stages N`"),
            ("resume", "line 1: `resume` has nothing to go on from", "`train`"),
            ("train\ntrain", "line 2: `train` comes a second time", "`resume`"),
            ("train\nsteps 5", "line 2: `steps` comes after `train`", "before the first `train`"),
            ("drain\ntrain", "line 1: `at` is missing", "at=step:20"),
            ("steps 5\n----\nlost=0", "line 3: `train` is missing", "`train`"),
            ("train\ndrain at=1s\n----\nlost=0", "line 4: `train` does not follow", "before"),
            ("train", "line 1: `----` is not followed", "lost=0"),
            ("train\n----\nlost", "line 3: `lost` is no expectation", "`lost=0`"),
            ("train\n----\nlots=0", "line 3: `lots=0` is no measure", "lost"),
            ("train\n----\nlost=none", "line 3: `lost=none` has no number", "`lost=0`"),
            ("train\n----\noutcome=good", "line 3: `outcome=good` cannot be read", "done"),
            ("train\n----\ndigest<same-twice", "line 3: `digest<same-twice` cannot be read", "same-twice"),
            (
                "train\n----\nlosses=one-process",
                "line 3: `losses=one-process` compares real",
                "`compute real`",
            ),
            ("steps 9_999_999_999\ntrain\n----\nlost=0", "line 4: `steps` times microbatches is", "shorter"),
            ("kill stage=1 replica=1 at=1s", "line 1: `replica=1` does not exist", "`replicas N`"),
            ("sync every=2 delay=2\ntrain\n----\nlost=0", "line 4: `sync` goes over", "below `every=`"),
        ];
        for (text, message, hint) in cases {
            let error = Script::read(text, None).expect_err(text);
            assert!(error.to_string().starts_with(message), "{text:?}: {error}");
            assert!(error.hint.contains(hint), "{text:?}: {}", error.hint);
        }
    }
}
