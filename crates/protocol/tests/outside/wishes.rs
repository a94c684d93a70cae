//! Newcomers that ask for a stage while another stands still.

use crate::churn::{PATIENCE, check_ended_well, place_at, run_to_forward, seated};
use crate::swarm::{Swarm, spec};
use bytes::Bytes;
use trestle_protocol::ids::{InnerStep, StageId};
use trestle_protocol::message::{Join, Text};
use trestle_protocol::spec::Schedule;

/// A request for a stage, by a peer that has nothing on its disk but perhaps the text.
fn wish(stage: u16, text: Text) -> Join {
    let (address, device, held) = (Bytes::new(), "none".into(), Vec::new());
    Join { address, stage: Some(StageId(stage)), device, peak_flops: 0, text, held }
}

/// Lets the only member of a stage die before any checkpoint.
fn without(stage: u16) -> Swarm {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    let holder = usize::from(stage) + 1;
    run_to_forward(&mut swarm, holder, 2);
    swarm.kill(holder);
    swarm
}

#[test]
fn a_wish_yields_to_a_stage_that_stands_still() {
    let cases = [(1, 0, Text::Missing), (1, 2, Text::Here), (0, 1, Text::Here), (2, 1, Text::Here)];
    for (dead, wished, text) in cases {
        let mut swarm = without(dead);
        swarm.join_as(4, wish(wished, text));
        swarm.run_for(PATIENCE);
        check_ended_well(&swarm, &format!("{wished} was wished for and {dead} stood still"));
        assert_eq!(seated(&swarm), [(place_at(dead, 0), InnerStep(0))]);
    }
}

/// The ends of the pipeline read it.
#[test]
fn a_wish_yields_to_no_end_of_the_pipeline_where_the_text_is_missing() {
    for end in [0, 2] {
        let mut swarm = without(end);
        swarm.join_as(4, wish(1, Text::Missing));
        swarm.run_for(PATIENCE);
        assert_eq!(seated(&swarm), []);
        swarm.join_as(5, wish(1, Text::Here));
        swarm.run_for(PATIENCE);
        check_ended_well(&swarm, "the next has it");
        assert_eq!(seated(&swarm), [(place_at(end, 0), InnerStep(0))]);
    }
}
