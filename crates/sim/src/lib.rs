//! The simulated driver: runs the same core as the real one, a whole swarm on one thread, in virtual time, from one seed.
//!
//! Owns virtual time, simulated links and devices, and scenarios. Knows nothing of sockets or real time, and takes no
//! decision of the protocol.

pub mod agreement;
pub mod churn;
pub mod clock;
pub mod compute;
pub mod connections;
pub mod contest;
pub mod cost;
pub mod course;
pub mod descent;
pub mod disk;
pub mod draws;
pub mod exchange;
pub mod fault;
pub mod fleet;
pub mod laws;
pub mod lineage;
pub mod link;
pub mod log;
pub mod losses;
pub mod peer;
pub mod queue;
pub mod real;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stranger;
pub mod swarm;
pub mod whole;

pub use report::Report;
pub use run::{ScenarioError, run_scenario, run_scenario_logged};
pub use swarm::SimOutcome;
