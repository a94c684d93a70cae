//! What an outer step sends, and how long that takes.
//!
//! Owns the sums over a stage's replicas. Knows nothing of when an exchange runs.

use serde::Serialize;
use trestle_protocol::spec::sync::{SyncCodec, SyncSpec};

/// How the replicas of a stage come to one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Exchange {
    /// Each reduces a share, with a second beside it from three replicas up, and all send and receive at once (this system).
    Butterfly,
    /// Each uploads its whole contribution to one place, then downloads the whole result (the reference system).
    Bridge,
}

/// Bytes that one replica sends and receives in an outer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Traffic {
    /// Sent.
    pub up: f64,
    /// Received.
    pub down: f64,
}

impl Exchange {
    /// Adds up what one of some replicas sends and receives, for so many parameters.
    pub fn traffic(self, sync: &SyncSpec, parameters: u64, replicas: usize) -> Traffic {
        let whole = contribution_bytes(sync, parameters);
        let n = replicas as f64;
        let share = match (self, replicas) {
            (_, 0 | 1) => 0.0,
            (Exchange::Bridge, _) => 1.0,
            // To each shard's reducers, and from them to those who did not reduce it.
            (Exchange::Butterfly, _) => {
                let reducers = if replicas > 2 { 2.0 } else { 1.0 };
                (reducers * (n - 1.0) + n - reducers) / n
            }
        };
        Traffic { up: share * whole, down: share * whole }
    }

    /// Returns the seconds that traffic takes at some bytes a second up and down.
    pub fn seconds(self, traffic: Traffic, up: f64, down: f64) -> f64 {
        match self {
            Exchange::Butterfly => (traffic.up / up).max(traffic.down / down),
            Exchange::Bridge => traffic.up / up + traffic.down / down,
        }
    }
}

/// Returns the bytes of a whole contribution.
pub fn contribution_bytes(sync: &SyncSpec, parameters: u64) -> f64 {
    parameters as f64 * bits(sync) / 8.0
}

/// Bits a parameter on the wire (docs/outer-step.md, "Codecs").
fn bits(sync: &SyncSpec) -> f64 {
    match sync.codec {
        SyncCodec::F32 => 32.0,
        SyncCodec::Bf16 => 16.0,
        SyncCodec::Int8 => 8.008,
        SyncCodec::SparseLoCo => 0.218_75,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(codec: SyncCodec) -> SyncSpec {
        SyncSpec { codec, ..SyncSpec::mean(10) }
    }

    /// Each byte that is sent is received by one other: counted one by one for shards of one unit.
    #[test]
    fn a_butterfly_s_bytes_are_those_of_its_messages() {
        for (n, reducers) in [(2_usize, 1_usize), (3, 2), (4, 2), (7, 2)] {
            let mut sent = vec![0.0; n];
            for shard in 0..n {
                let reduces = |replica: usize| (replica + n - shard) % n < reducers;
                for replica in 0..n {
                    let others = (0..n).filter(|to| *to != replica && reduces(*to)).count();
                    sent[replica] += others as f64;
                    if !reduces(replica) {
                        let from: Vec<usize> = (0..n).filter(|of| reduces(*of)).collect();
                        from.iter().for_each(|of| sent[*of] += 1.0 / from.len() as f64);
                    }
                }
            }
            let parameters = n as u64;
            let traffic = Exchange::Butterfly.traffic(&sync(SyncCodec::F32), parameters, n);
            assert!(
                sent.iter().all(|sent| (4.0 * sent - traffic.up).abs() < 1e-9),
                "{n}: {sent:?} {traffic:?}"
            );
        }
    }

    #[test]
    fn a_bridge_takes_its_two_ways_one_after_the_other() {
        let traffic = Exchange::Bridge.traffic(&sync(SyncCodec::Bf16), 6_225_000_000, 3);
        let seconds = Exchange::Bridge.seconds(traffic, 856e6 / 8.0, 1322e6 / 8.0);
        assert!((seconds - 191.7).abs() < 0.5, "{seconds}: 116 s up and 75 s down, as published");
        assert_eq!(Exchange::Bridge.traffic(&sync(SyncCodec::Bf16), 100, 1), Traffic { up: 0.0, down: 0.0 });
    }
}
