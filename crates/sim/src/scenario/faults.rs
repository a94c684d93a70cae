//! Faults: the verbs that do something to the swarm, and how those are named to whom it is done.
//!
//! Owns their form. Knows nothing of how a fault is carried out.

use crate::fault::{Churn, DiskFate, Fault, Faults, Restart, Whom};
use crate::scenario::settings::{Settings, Taken};
use crate::scenario::words::{self, Line, ParseError};
use trestle_protocol::ids::{ReplicaId, StageId};
use trestle_protocol::plan::Place;
use trestle_protocol::time::Span;

/// Newcomers of one `join`, deaths of one `churn`, and rounds of one `flap`: more than any swarm here has peers.
const MANY: u32 = 1_000;

const WHOM: &str = "stage=1 replica=2, stage=1 replica=all, or one of coordinator, peer:5, 1.2, all";

/// Carries out a verb, if it does something to the swarm.
///
/// # Errors
/// Names the word that cannot be read.
pub fn take(line: &mut Line<'_>, settings: &Settings, faults: &mut Faults) -> Result<Taken, ParseError> {
    match line.verb {
        "drain" => plan(line, faults, [Fault::Drain])?,
        "crash" => plan(line, faults, [Fault::Crash])?,
        "kill" => {
            let (whom, restart) = (whom(line, settings)?, restart(line)?);
            plan(line, faults, [Fault::Kill { whom, restart }])?;
        }
        "flap" => {
            let whom = whom(line, settings)?;
            let (away, back) = (span(line, "away", "2s")?, span(line, "back", "20s")?);
            let times = required(line, "times", count, "5")?;
            plan(line, faults, [Fault::Flap { whom, away, back, times }])?;
        }
        "freeze" => {
            let (whom, span) = (whom(line, settings)?, span(line, "for", "10s")?);
            plan(line, faults, [Fault::Freeze { whom, span }])?;
        }
        "slow" if line.has("at") => {
            let (whom, span) = (whom(line, settings)?, span(line, "for", "10s")?);
            let factor = required(line, "factor", words::positive, "4")?;
            plan(line, faults, [Fault::Slow { whom, factor, span }])?;
        }
        "cut" => {
            let (ones, others) = (group(line, settings)?, group(line, settings)?);
            let span = span(line, "for", "10s")?;
            let pairs = ones.iter().flat_map(|from| others.iter().map(move |to| (*from, *to)));
            plan(line, faults, pairs.map(|(from, to)| Fault::Cut { from, to, span }))?;
        }
        "isolate" => {
            let (from, span) = (whom(line, settings)?, span(line, "for", "10s")?);
            plan(line, faults, [Fault::Cut { from, to: Whom::All, span }])?;
        }
        "clock" => {
            let whom = whom(line, settings)?;
            let ppm = line.value("ppm", words::ppm, "-200")?.unwrap_or(0);
            let ahead = line.value("ahead", words::span, "3s")?.unwrap_or(Span(0));
            plan(line, faults, [Fault::Clock { whom, ppm, ahead }])?;
        }
        "disk_full" => {
            let (whom, span) = (whom(line, settings)?, span(line, "for", "10s")?);
            plan(line, faults, [Fault::DiskFull { whom, span }])?;
        }
        "leave" => {
            let (whom, notice) = (whom(line, settings)?, span(line, "notice", "30s")?);
            plan(line, faults, [Fault::Leave { whom, notice }])?;
        }
        "join" => {
            let stage = settings.stage(line)?;
            let count = line.value("count", count, "2")?.unwrap_or(1);
            plan(line, faults, [Fault::Join { count, stage }])?;
        }
        _ => return standing(line, faults),
    }
    Ok(Taken::Set)
}

/// Carries out a verb that holds for a whole running.
fn standing(line: &mut Line<'_>, faults: &mut Faults) -> Result<Taken, ParseError> {
    match line.verb {
        "hostile" => {
            let positive = |word: &str| words::span(word).filter(|span| span.0 > 0);
            faults.stranger_every = Some(required(line, "every", positive, "20ms")?);
        }
        "spares" => faults.spares = line.number(1, "for example `spares 2`")?,
        "churn" => {
            let hourly = required(line, "hourly", words::permille, "25%")?;
            let replaced_after = span(line, "replaced_after", "30s")?;
            let deaths_max = required(line, "deaths", count, "10")?;
            faults.churn = Some(Churn { hourly, replaced_after, deaths_max });
        }
        "noise" => {
            line.set("duplicate", &mut faults.noise.duplicate, words::permille, "5%")?;
            line.set("late", &mut faults.noise.late, words::permille, "10%")?;
            line.set("by", &mut faults.noise.by, words::span, "500ms")?;
        }
        "transport" => {
            let positive = |word: &str| words::span(word).filter(|span| span.0 > 0);
            line.set("lost_after", &mut faults.transport.lost_after, positive, "3s")?;
            line.set("silence", &mut faults.transport.silence_max, positive, "2h")?;
            line.set("happenings", &mut faults.transport.happenings_max, words::positive, "1_000_000")?;
        }
        _ => return Ok(Taken::NotMine),
    }
    Ok(Taken::Set)
}

fn plan(
    line: &mut Line<'_>,
    faults: &mut Faults,
    planned: impl IntoIterator<Item = Fault>,
) -> Result<(), ParseError> {
    let missing = line.error("at", "is missing", "for example `at=step:20` or `at=1.5s`");
    let when = line.value("at", words::when, "step:20")?.ok_or(missing)?;
    faults.planned.extend(planned.into_iter().map(|fault| (when, fault)));
    Ok(())
}

fn restart(line: &mut Line<'_>) -> Result<Option<Restart>, ParseError> {
    let disk = |word: &str| match word {
        "kept" => Some(DiskFate::Kept),
        "lost" => Some(DiskFate::Lost),
        _ => None,
    };
    let after = line.value("restart", words::span, "5s")?;
    let fate = line.value("disk", disk, "lost")?;
    match (after, fate) {
        (Some(after), fate) => Ok(Some(Restart { after, disk: fate.unwrap_or(DiskFate::Kept) })),
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(line.error("disk", "is of no use to who does not come back", "say `restart=5s` too"))
        }
    }
}

/// Reads to whom something is done: a plain word, or `stage=` and `replica=`.
fn whom(line: &mut Line<'_>, settings: &Settings) -> Result<Whom, ParseError> {
    if let Some(word) = line.plain() {
        return named(line, settings, word);
    }
    let missing = line.error("stage", "is missing", format!("for example {WHOM}"));
    let stage = settings.stage(line)?.ok_or(missing)?;
    if line.pair("replica") == Some("all") {
        line.value("replica", |_| Some(()), "all")?;
        return Ok(Whom::Stage(stage));
    }
    let replica = settings.replica(line)?;
    Ok(Whom::Holder(Place { stage, replica }))
}

/// Reads a plain word of names with commas between them.
fn group(line: &mut Line<'_>, settings: &Settings) -> Result<Vec<Whom>, ParseError> {
    let words = line.required("two groups, for example `cut 0.1,1.1 0.0,1.0,coordinator at=5s for=10s`")?;
    words.split(',').map(|word| named(line, settings, word)).collect()
}

/// Reads a name: `coordinator`, `all`, `peer:5`, a stage `1`, or a place `1.2`.
fn named(line: &Line<'_>, settings: &Settings, word: &str) -> Result<Whom, ParseError> {
    let unknown = |problem: String| line.error(word, problem, format!("for example {WHOM}"));
    let nobody = || unknown("names nobody".into());
    match word {
        "coordinator" => return Ok(Whom::Coordinator),
        "all" => return Ok(Whom::All),
        _ => {}
    }
    if let Some(number) = word.strip_prefix("peer:") {
        return words::positive(number).map(Whom::Peer).ok_or_else(nobody);
    }
    let (stage, replica) = match word.split_once('.') {
        Some((stage, replica)) => (stage, Some(words::whole(replica).ok_or_else(nobody)?)),
        None => (word, None),
    };
    let stage: u16 = words::whole(stage).ok_or_else(nobody)?;
    let (stages, replicas) = (settings.stages, settings.spec.pipeline.replicas);
    if stage >= stages || replica.is_some_and(|replica: u16| replica >= replicas) {
        return Err(unknown(format!("does not exist, the run has {stages} stages of {replicas} replicas")));
    }
    let stage = StageId(stage);
    Ok(match replica {
        Some(replica) => Whom::Holder(Place { stage, replica: ReplicaId(replica) }),
        None => Whom::Stage(stage),
    })
}

fn count(word: &str) -> Option<u32> {
    words::positive(word).filter(|count| *count <= MANY)
}

fn span(line: &mut Line<'_>, key: &str, hint: &str) -> Result<Span, ParseError> {
    required(line, key, words::span, hint)
}

fn required<T>(
    line: &mut Line<'_>,
    key: &str,
    read: impl Fn(&str) -> Option<T>,
    hint: &str,
) -> Result<T, ParseError> {
    let missing = line.error(key, "is missing", format!("for example `{key}={hint}`"));
    line.value(key, read, hint)?.ok_or(missing)
}
