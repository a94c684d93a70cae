//! The script: a whole scenario file, parsed.
//!
//! Owns the order of a file: settings, what is done to the swarm, when it runs, and after `----` what is expected. Knows
//! nothing of how a swarm is run.

use crate::fault::Faults;
use crate::scenario::expectation::{Expectation, Reference, Wanted};
use crate::scenario::faults;
use crate::scenario::settings::{Kind, Settings, Taken};
use crate::scenario::words::{Line, ParseError};
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
    optimizer, retain, evaluate, checkpoint, data, sync, compute, link, slow, drain, crash, kill, flap, freeze, cut, isolate, \
    clock, disk_full, leave, join, spares, churn, noise, hostile, transport, train, resume";

/// What each verb takes, for the hint about an unknown word.
const TAKES: [(&str, &str); 27] = [
    ("stages", "a number and layers="),
    ("schedule", "flush, or async and staleness="),
    ("model", "vocabulary=, width=, heads=, kv_heads=, ffn_width=, sequence_len="),
    ("boundary", "none, resbm or fused, and width=, encoder_width=, wire="),
    ("optimizer", "adamw or muon, and rate="),
    ("evaluate", "every=, microbatches="),
    ("checkpoint", "every="),
    ("data", "tokens="),
    ("compute", "cost or real, and forward=, backward=, step=, save=, load=, flops=, jitter="),
    (
        "sync",
        "every=, delay=, rule=, rate=, momentum=, ramp=, codec=, decay=, contribution=, state=, copy=, beside=",
    ),
    ("link", "stage=, latency=, bandwidth=, uplink=, downlink=, jitter="),
    ("slow", "stage=, factor=; or with at= also replica=, for="),
    ("drain", "at="),
    ("crash", "at="),
    ("kill", "stage=, replica= or a name, restart=, disk=, at="),
    ("flap", "stage=, replica= or a name, away=, back=, times=, at="),
    ("freeze", "stage=, replica= or a name, for=, at="),
    ("cut", "two groups of names, for=, at="),
    ("isolate", "stage=, replica= or a name, for=, at="),
    ("clock", "stage=, replica= or a name, ppm=, ahead=, at="),
    ("disk_full", "stage=, replica= or a name, for=, at="),
    ("leave", "stage=, replica= or a name, notice=, at="),
    ("join", "stage=, count=, at="),
    ("churn", "hourly=, replaced_after=, deaths="),
    ("noise", "duplicate=, late=, by="),
    ("transport", "lost_after=, silence=, happenings="),
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
            "train" if begun => {
                return Err(line.error("train", "comes a second time", "go on with `resume`"));
            }
            "resume" if !begun => {
                return Err(line.error("resume", "has nothing to go on from", "begin with `train`"));
            }
            "train" | "resume" => self.runnings.push(Running { faults: std::mem::take(faults) }),
            verb => self.other(verb, &mut line, faults)?,
        }
        line.end(known)
    }

    /// Carries out a verb that does something to the swarm or sets something.
    fn other(&mut self, verb: &str, line: &mut Line<'_>, faults: &mut Faults) -> Result<(), ParseError> {
        if faults::take(line, &self.settings, faults)? == Taken::Set {
            return Ok(());
        }
        if !self.runnings.is_empty() {
            let problem = "comes after `train`, when the run is settled";
            return Err(line.error(verb, problem, "settings come before the first `train`"));
        }
        match self.settings.take(line)? {
            Taken::Set => Ok(()),
            Taken::NotMine => Err(line.error(verb, "is no verb", format!("the verbs are {VERBS}"))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Restart, When, Whom};
    use trestle_protocol::ids::{ReplicaId, StageId};
    use trestle_protocol::plan::Place;
    use trestle_protocol::time::Span;

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
    fn faults_name_whom_they_strike_and_when() {
        let text = "
            replicas 2
            kill stage=1 replica=all at=step:3 restart=2s
            kill coordinator at=1s
            cut 0.1,2 coordinator,peer:9 at=2s for=4s
            slow 3.0 factor=4 for=9s at=5s
            spares 2
            train
            ----
            outcome=done";
        let script = Script::read(text, None).expect("reads");
        let faults = &script.runnings[0].faults;
        let holder =
            |stage, replica| Whom::Holder(Place { stage: StageId(stage), replica: ReplicaId(replica) });
        let cut = |from, to| (When::After(Span::seconds(2)), Fault::Cut { from, to, span: Span::seconds(4) });
        let restart = Some(Restart { after: Span::seconds(2), disk: crate::fault::DiskFate::Kept });
        let slow = Fault::Slow { whom: holder(3, 0), factor: 4, span: Span::seconds(9) };
        let want = [
            (When::Steps(3), Fault::Kill { whom: Whom::Stage(StageId(1)), restart }),
            (When::After(Span::seconds(1)), Fault::Kill { whom: Whom::Coordinator, restart: None }),
            cut(holder(0, 1), Whom::Coordinator),
            cut(holder(0, 1), Whom::Peer(9)),
            cut(Whom::Stage(StageId(2)), Whom::Coordinator),
            cut(Whom::Stage(StageId(2)), Whom::Peer(9)),
            (When::After(Span::seconds(5)), slow),
        ];
        assert_eq!(faults.planned, want);
        assert_eq!(faults.spares, 2);
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
            ("kill at=1s", "line 1: `stage` is missing", "stage=1 replica=2"),
            ("kill 9.0 at=1s", "line 1: `9.0` does not exist, the run has 4 stages of 1", "peer:5"),
            ("kill somebody at=1s", "line 1: `somebody` names nobody", "coordinator"),
            ("kill 1 at=1s disk=lost", "line 1: `disk` is of no use", "restart=5s"),
            ("kill 1 at=1s restart=1s disk=new", "line 1: `disk=new` cannot be read", "disk=lost"),
            ("freeze 1 at=1s", "line 1: `for` is missing", "for=10s"),
            ("cut 1 at=1s for=1s", "line 1: `cut` lacks a word", "two groups"),
            ("cut 1 2.x at=1s for=1s", "line 1: `2.x` names nobody", "1.2"),
            ("clock 1 ppm=fast at=1s", "line 1: `ppm=fast` cannot be read", "ppm=-200"),
            ("leave 1 at=1s", "line 1: `notice` is missing", "notice=30s"),
            ("join stage=7 at=1s", "line 1: `stage=7` does not exist", "`stages N`"),
            ("flap 1 away=1s back=1s times=0 at=1s", "line 1: `times=0` cannot be read", "times=5"),
            ("churn hourly=5% deaths=2", "line 1: `replaced_after` is missing", "replaced_after=30s"),
            ("noise duplicates=5%", "line 1: `duplicates` is nothing that `noise` knows", "duplicate="),
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
