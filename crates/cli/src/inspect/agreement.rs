//! What the replicas of a run say they agreed on, each in its own log, held against one another.
//!
//! Owns the comparison. May not know what an outer step is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use trestle_protocol::event::Event;
use trestle_protocol::plan::Place;

use crate::failure::Failure;
use crate::inspect::log_report::{COORDINATOR_LOG, files};

/// The log of a node, in its folder.
const LOG: &str = "events.jsonl";

/// Differences that are shown; there should be none.
const SHOWN_MAX: usize = 5;

/// What the logs of all nodes in a run's folder say of its outer steps.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct AgreementReport {
    /// Outer steps of which a replica reported a digest.
    outer_steps: usize,
    /// Stages that reported one.
    stages: usize,
    /// Digests that were reported, one for each replica and outer step.
    reports: usize,
    /// Stages and outer steps at which two replicas reported different weights.
    apart: Vec<String>,
    /// Stages and outer steps that fewer replicas reported than the plan has, because they were lost or the logs are
    /// elsewhere.
    incomplete: usize,
}

/// A line of a log, as far as it matters here.
#[derive(Deserialize)]
struct Line {
    peer: String,
    event: Event,
}

impl AgreementReport {
    /// Reads the logs of the nodes in a run's folder; `None` where none speaks of an outer step.
    ///
    /// # Errors
    /// A log cannot be read.
    pub(crate) fn of(folder: &Path) -> Result<Option<Self>, Failure> {
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        read(&folder.join(COORDINATOR_LOG), |line| {
            if let Event::Planned { members, .. } = line.event {
                places.extend(members.into_iter().map(|(peer, place)| (peer.to_hex(), place)));
            }
        })?;
        let mut digests: BTreeMap<(u64, u16), BTreeMap<Place, String>> = BTreeMap::new();
        let fail =
            |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", folder.display()));
        for node in std::fs::read_dir(folder).map_err(fail)? {
            read(&node.map_err(fail)?.path().join(LOG), |line| {
                if let (Event::Agreed { outer, digest }, Some(place)) = (line.event, places.get(&line.peer)) {
                    digests.entry((outer.0, place.stage.0)).or_default().insert(*place, digest.to_hex());
                }
            })?;
        }
        let replicas = places.values().map(|place| place.replica).collect::<BTreeSet<_>>().len();
        Ok((!digests.is_empty()).then(|| compare(&digests, replicas)))
    }
}

fn compare(digests: &BTreeMap<(u64, u16), BTreeMap<Place, String>>, replicas: usize) -> AgreementReport {
    let apart = digests.iter().filter_map(|((outer, stage), said)| {
        let different: BTreeSet<&str> = said.values().map(|digest| &digest[..16]).collect();
        let all = different.iter().copied().collect::<Vec<_>>().join(", ");
        (different.len() > 1).then(|| format!("outer step {outer}, stage {stage}: {all}"))
    });
    AgreementReport {
        outer_steps: digests.keys().map(|(outer, _)| outer).collect::<BTreeSet<_>>().len(),
        stages: digests.keys().map(|(_, stage)| stage).collect::<BTreeSet<_>>().len(),
        reports: digests.values().map(BTreeMap::len).sum(),
        apart: apart.collect(),
        incomplete: digests.values().filter(|said| said.len() < replicas).count(),
    }
}

/// Hands over the events of a log and of the older files beside it. A log that is not there has none.
fn read(log: &Path, mut take: impl FnMut(Line)) -> Result<(), Failure> {
    for file in files(log).into_iter().filter(|file| file.is_file()) {
        let fail =
            |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", file.display()));
        for line in BufReader::new(File::open(&file).map_err(fail)?).split(b'\n') {
            // The last line of a process that was killed may be cut short.
            if let Ok(line) = serde_json::from_slice(&line.map_err(fail)?) {
                take(line);
            }
        }
    }
    Ok(())
}

impl fmt::Display for AgreementReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outer_steps, stages, reports, apart, incomplete } = self;
        write!(
            f,
            "agreed       {outer_steps} outer steps of {stages} stages, {reports} reports of replicas: "
        )?;
        if apart.is_empty() {
            writeln!(f, "one digest for each stage and outer step")?;
        } else {
            writeln!(f, "{} times apart", apart.len())?;
        }
        apart.iter().take(SHOWN_MAX).try_for_each(|words| writeln!(f, "apart        {words}"))?;
        if *incomplete > 0 {
            writeln!(f, "incomplete   {incomplete} times not all replicas of a stage reported")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_node::event_log::line;
    use trestle_protocol::ids::{Digest, OuterStep, PeerId, PlanNumber, ReplicaId, StageId};
    use trestle_protocol::time::Time;

    fn write(folder: &Path, node: &str, peer: u8, events: &[Event]) {
        let id = PeerId([peer; 32]).to_hex();
        let lines: Vec<String> = events.iter().map(|event| line(Time(0), &id, event)).collect();
        std::fs::create_dir_all(folder.join(node)).unwrap();
        std::fs::write(folder.join(node).join(LOG), lines.join("\n") + "\n{\"at\":1").unwrap();
    }

    /// Writes the logs of one stage's two replicas, which report these digests.
    fn logs(second: &[u8]) -> Option<AgreementReport> {
        let folder = tempfile::tempdir().unwrap();
        let place = |replica| Place { stage: StageId(0), replica: ReplicaId(replica) };
        let members = vec![(PeerId([1; 32]), place(0)), (PeerId([2; 32]), place(1))];
        write(folder.path(), "coordinator", 9, &[Event::Planned { plan: PlanNumber(1), members }]);
        let agreed = |(outer, digest): (usize, &u8)| Event::Agreed {
            outer: OuterStep(outer as u64),
            digest: Digest([*digest; 32]),
        };
        let events = |digests: &[u8]| digests.iter().enumerate().map(agreed).collect::<Vec<_>>();
        write(folder.path(), "worker-0", 1, &events(&[7, 8][..second.len()]));
        write(folder.path(), "worker-0-replica-1", 2, &events(second));
        AgreementReport::of(folder.path()).unwrap()
    }

    #[test]
    fn replicas_that_report_one_digest_agree() {
        let report = logs(&[7, 8]).unwrap();
        assert_eq!((report.outer_steps, report.stages, report.reports), (2, 1, 4));
        assert_eq!((report.apart.len(), report.incomplete), (0, 0));
        assert_eq!(logs(&[]), None);
    }

    #[test]
    fn weights_that_differ_are_shown() {
        let words = logs(&[7, 9]).unwrap().to_string();
        assert!(words.contains("1 times apart\napart        outer step 1, stage 0: 0808"), "{words}");
    }
}
