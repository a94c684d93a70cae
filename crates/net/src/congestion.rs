//! Congestion control: BBR3, with a floor under it between neighbours.
//!
//! Owns that one rule. BBR keeps no more in flight than the product of bandwidth and round trip asks for. Between processes
//! of one computer or one rack that is a few packets, and a receiver that waits 30 ms for its turn on a busy processor stalls
//! the sender for as long: measured, four replicas on two busy cores exchanged 5 MB/s. Where the least round trip says that
//! nothing but the peer itself can be congested, the window has a floor, and the receiver's own windows are the bound.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noq_proto::RttEstimator;
use noq_proto::congestion::{Bbr3Config, Controller, ControllerFactory, ControllerMetrics};

/// A path with a shorter round trip has no router with a queue worth protecting.
const NEAR: Duration = Duration::from_millis(1);

/// Bytes in flight to a neighbour, whatever BBR makes of it: what all lanes' windows hold.
const WINDOW_MIN: u64 = 8 * 1024 * 1024;

/// Bytes a second below which a neighbour is not paced.
const RATE_MIN: u64 = 4_000_000_000;

/// Makes controllers.
#[derive(Debug, Default)]
pub(crate) struct Factory(Arc<Bbr3Config>);

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floored { inner: Arc::clone(&self.0).build(now, current_mtu), distance: Distance::Far })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distance {
    Near,
    Far,
}

fn distance(rtt_min: Duration) -> Distance {
    if rtt_min < NEAR { Distance::Near } else { Distance::Far }
}

#[derive(Debug)]
struct Floored {
    inner: Box<dyn Controller>,
    distance: Distance,
}

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.inner.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.inner.on_packet_sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.inner.on_cwnd_limited();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        pn: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.distance = distance(rtt.min());
        self.inner.on_ack(now, sent, bytes, pn, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest_lost_pn: u64,
    ) {
        self.inner.on_congestion_event(
            now,
            sent,
            is_persistent_congestion,
            is_ecn,
            lost_bytes,
            largest_lost_pn,
        );
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        self.inner.on_packet_lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.inner.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(&mut self, threshold: u64, requested_max_ack_delay: Duration) {
        self.inner.on_ack_frequency_update(threshold, requested_max_ack_delay);
    }

    fn window(&self) -> u64 {
        match self.distance {
            Distance::Near => self.inner.window().max(WINDOW_MIN),
            Distance::Far => self.inner.window(),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        match self.distance {
            Distance::Near => {
                metrics.congestion_window = self.window();
                metrics.pacing_rate = metrics.pacing_rate.map(|rate| rate.max(RATE_MIN));
            }
            Distance::Far => {}
        }
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), distance: self.distance })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A controller that allows next to nothing.
    #[derive(Clone, Debug)]
    struct Timid;

    impl Controller for Timid {
        fn on_ack(&mut self, _: Instant, _: Instant, _: u64, _: u64, _: bool, _: &RttEstimator) {}

        fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: bool, _: u64, _: u64) {}

        fn on_mtu_update(&mut self, _: u16) {}

        fn window(&self) -> u64 {
            3_000
        }

        fn clone_box(&self) -> Box<dyn Controller> {
            Box::new(self.clone())
        }

        fn initial_window(&self) -> u64 {
            3_000
        }

        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    #[test]
    fn only_neighbours_have_a_floor() {
        let window = |rtt| Floored { inner: Box::new(Timid), distance: distance(rtt) }.window();
        assert_eq!(window(Duration::from_micros(999)), WINDOW_MIN);
        assert_eq!(window(Duration::from_millis(1)), 3_000);
        assert_eq!(window(Duration::from_millis(40)), 3_000);
    }

    #[test]
    fn a_copy_keeps_its_distance() {
        let near = Floored { inner: Box::new(Timid), distance: Distance::Near };
        assert_eq!(near.clone_box().window(), WINDOW_MIN);
        assert_eq!(near.metrics().congestion_window, WINDOW_MIN);
    }
}
