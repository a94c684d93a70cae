//! The ledger of a run in words: who has trained what, and whether that is what was planned.
//!
//! Owns the sums and their wording. May not know how credit is earned; it reads what the coordinator has stored, while it runs
//! too.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use trestle_node::directory::state_path;
use trestle_node::state::{State, StateFileError};
use trestle_protocol::accounts::{Account, Sums};
use trestle_protocol::agenda::Agenda;
use trestle_protocol::spec::RunSpec;

use crate::failure::Failure;
use crate::run;
use crate::units::{count, percent};

/// The ledger of a run, in tokens.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct LedgerReport {
    run: String,
    /// Tokens that each stage is to train.
    planned: u64,
    /// Whether every stage has trained what was planned, no more and no less.
    exact: bool,
    stages: Vec<StageTokens>,
    peers: Vec<PeerTokens>,
}

/// Tokens of a stage.
#[derive(Debug, PartialEq, Serialize)]
struct StageTokens {
    stage: u16,
    #[serde(flatten)]
    tokens: Tokens,
}

/// Tokens of a peer, over all stages that it held.
#[derive(Debug, PartialEq, Serialize)]
struct PeerTokens {
    peer: String,
    stages: Vec<u16>,
    #[serde(flatten)]
    tokens: Tokens,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Tokens {
    trained: u64,
    duplicate: u64,
    redone: u64,
    lost: u64,
}

impl Tokens {
    fn add(&mut self, sums: &Sums, tokens: u64) {
        self.trained += sums.trained * tokens;
        self.duplicate += sums.duplicate * tokens;
        self.redone += sums.redone * tokens;
        self.lost += sums.lost * tokens;
    }
}

impl LedgerReport {
    /// Reads the ledger in the folder of a run, where its coordinator runs or ran.
    ///
    /// # Errors
    /// It is no run's folder, or its coordinator has stored nothing.
    pub(crate) fn of(folder: &Path) -> Result<Self, Failure> {
        let (spec, _) = run::kept(folder)?;
        let path = state_path(folder);
        if !path.exists() {
            return Err(Failure::failed(format!("there is no {}", path.display()))
                .hint("the ledger is in the folder of the coordinator, not in a peer's"));
        }
        let read = |error: StateFileError| Failure::failed(&error).hint("name the folder of a run");
        let accounts = State::look(&path).and_then(|state| state.ledger()).map_err(read)?;
        Ok(Self::sum(&spec, &accounts))
    }

    fn sum(spec: &RunSpec, accounts: &[Account]) -> Self {
        let tokens = u64::from(spec.pipeline.microbatch_size) * u64::from(spec.model.sequence_len);
        let planned = Agenda::new(spec).train_microbatches() * tokens;
        let mut stages: Vec<StageTokens> =
            (0..spec.stages()).map(|stage| StageTokens { stage, tokens: Tokens::default() }).collect();
        let mut peers: BTreeMap<String, PeerTokens> = BTreeMap::new();
        for Account { peer, stage, sums } in accounts {
            if let Some(of_stage) = stages.get_mut(usize::from(stage.0)) {
                of_stage.tokens.add(sums, tokens);
            }
            let hex = peer.to_hex();
            let none = PeerTokens { peer: hex.clone(), stages: Vec::new(), tokens: Tokens::default() };
            let of_peer = peers.entry(hex).or_insert(none);
            of_peer.stages.push(stage.0);
            of_peer.tokens.add(sums, tokens);
        }
        let exact = stages.iter().all(|stage| stage.tokens.trained == planned);
        Self { run: spec.name.clone(), planned, exact, stages, peers: peers.into_values().collect() }
    }
}

impl fmt::Display for LedgerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run          {}", self.run)?;
        writeln!(f, "planned      {} tokens at each stage", count(self.planned))?;
        let columns = ["trained", "duplicate", "redone", "lost"];
        let [trained, duplicate, redone, lost] = columns;
        writeln!(f, "\n{:<24} {trained:>14} {duplicate:>12} {redone:>12} {lost:>12}", "tokens of")?;
        for StageTokens { stage, tokens } in &self.stages {
            line(f, &format!("stage {stage}"), *tokens)?;
        }
        for PeerTokens { peer, stages, tokens } in &self.peers {
            let stages: Vec<String> = stages.iter().map(u16::to_string).collect();
            line(f, &format!("{:.10} at {}", peer, stages.join(", ")), *tokens)?;
        }
        let least = self.stages.iter().map(|stage| stage.tokens.trained).min().unwrap_or(0);
        match (self.exact, self.stages.iter().find(|stage| stage.tokens.trained > self.planned)) {
            (true, _) => writeln!(f, "\nexact        trained = planned at every stage"),
            (false, Some(stage)) => {
                writeln!(f, "\nwrong        stage {} has trained more than was planned", stage.stage)
            }
            (false, None) => {
                let share = percent(least as f64 / self.planned.max(1) as f64);
                writeln!(f, "\nunder way    {share} of what is planned is trained at every stage")
            }
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, what: &str, tokens: Tokens) -> fmt::Result {
    let Tokens { trained, duplicate, redone, lost } = tokens;
    let [trained, duplicate, redone, lost] = [trained, duplicate, redone, lost].map(count);
    writeln!(f, "{what:<24} {trained:>14} {duplicate:>12} {redone:>12} {lost:>12}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::{Digest, PeerId, StageId};

    use crate::run_file::RunFile;
    use crate::run_file::source::Override;

    fn report(trained: [u64; 2]) -> LedgerReport {
        let text = "[model]\nwidth = 16\nlayers = 2\nheads = 2\nffn_width = 32\nsequence_len = 8\n\
                    [training]\nsteps = 3\n[pipeline]\nmicrobatch_size = 2\nmicrobatches_per_step = 4";
        let stages = [Override::parse("pipeline.stages=2").unwrap()];
        let spec = RunFile::parse(Path::new("small.toml"), text, &stages)
            .unwrap()
            .spec(Digest([0; 32]), 256)
            .unwrap();
        let account = |id: u8, stage: u16, trained| {
            let sums = Sums { trained, duplicate: 1, lost: 0, redone: 2 };
            Account { peer: PeerId([id; 32]), stage: StageId(stage), sums }
        };
        let [first, second] = trained;
        LedgerReport::sum(&spec, &[account(1, 0, first), account(2, 1, second - 2), account(1, 1, 2)])
    }

    #[test]
    fn a_run_is_exact_when_every_stage_has_trained_what_was_planned() {
        // Three steps of four microbatches, each of two samples of eight tokens.
        let exact = report([12, 12]);
        assert_eq!((exact.planned, exact.exact), (192, true));
        assert_eq!(exact.stages[1].tokens, Tokens { trained: 192, duplicate: 32, redone: 64, lost: 0 });
        assert_eq!((exact.peers.len(), &exact.peers[0].stages), (2, &vec![0, 1]));
        assert_eq!(exact.peers[0].tokens.trained, 14 * 16);
        assert!(exact.to_string().ends_with("exact        trained = planned at every stage\n"), "{exact}");
    }

    #[test]
    fn too_little_is_under_way_and_too_much_is_wrong() {
        let under_way = report([12, 9]);
        assert!(!under_way.exact && under_way.to_string().contains("under way    75.0 %"), "{under_way}");
        let wrong = report([12, 13]);
        assert!(!wrong.exact && wrong.to_string().contains("stage 1 has trained more"), "{wrong}");
    }
}
