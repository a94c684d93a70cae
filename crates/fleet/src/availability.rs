//! Availability: when a peer of a group is there, by a rate of failures, by a recorded trace, and by the time of day.
//!
//! Owns the outages that follow from it, and the form of a trace. Knows nothing of stages.

use crate::quantity::Quantity;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use std::collections::BTreeMap;

const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;

/// Where in a trace a second peer of the same line begins, as a part of it: the golden section, so that none begin together.
const SHIFT: f64 = 0.618_034;

/// The first line of a trace.
const HEADER: &str = "seconds,peer,event";

/// Seconds that a trace records at least: a run repeats it, and may be long.
const LENGTH_MIN: f64 = 60.0;

/// Lines of a trace at most.
const LINES_MAX: usize = 1_000_000;

/// What a peer that comes back has of what it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Disk {
    /// Its checkpoints: the same machine, or a volume that goes with it.
    Kept,
    /// Nothing: another machine.
    Lost,
}

/// When the peers of a group are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Availability {
    /// Failures of one peer in an hour of its being there.
    pub failures_per_hour: f64,
    /// Seconds from a failure until another works in its place.
    pub replaced_after: f64,
    /// What was recorded of such peers, in place of a rate.
    pub trace: Option<Trace>,
    /// The times of day at which they are there; always, if nothing is said.
    pub online: Option<Online>,
    /// What one that comes back has.
    pub disk: Disk,
}

/// A time in which a peer is away: from, until, in seconds.
pub type Outage = (f64, f64);

/// When some peers were away, as recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// How long was recorded, in seconds.
    pub length: f64,
    /// The outages of each peer, in order.
    pub peers: Vec<Vec<Outage>>,
}

/// Why a trace is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TraceError {
    line: usize,
    what: String,
}

/// A time of each day, in seconds from midnight; one that ends before it begins goes through midnight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Online {
    /// When peers come.
    pub from: f64,
    /// When they go.
    pub until: f64,
}

impl Availability {
    /// Failures at a rate, day and night.
    pub fn rate(failures_per_hour: f64, replaced_after: f64) -> Self {
        Self { failures_per_hour, replaced_after, trace: None, online: None, disk: Disk::Kept }
    }

    /// Takes a recorded trace in place of a rate; the rate is then that of the trace.
    pub fn follow(&mut self, trace: Trace) {
        (self.failures_per_hour, self.replaced_after) = trace.rate();
        self.trace = Some(trace);
    }

    /// Lists the outages of a peer of the group, counted from 0, from the start at midnight until some seconds later, in order and
    /// apart from each other. Those of a rate are drawn from the seed: exponential times between failures.
    pub fn outages(&self, seed: u64, peer: usize, until: f64) -> Vec<Outage> {
        let mut outages = match &self.trace {
            Some(trace) => trace.repeated(seed, peer, until),
            None => self.drawn(seed, peer, until),
        };
        if let Some(online) = self.online {
            outages.extend(online.nights(until));
        }
        outages.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut apart: Vec<Outage> = Vec::new();
        for (from, to) in outages {
            match apart.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => apart.push((from, to)),
            }
        }
        apart.retain(|(from, _)| *from < until);
        apart
    }

    fn drawn(&self, seed: u64, peer: usize, until: f64) -> Vec<Outage> {
        let mut outages = Vec::new();
        if self.failures_per_hour <= 0.0 {
            return outages;
        }
        let mut draws =
            ChaCha8Rng::seed_from_u64(seed ^ (peer as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut at = 0.0;
        loop {
            // From above 0 to 1, so that its logarithm is a number.
            let part = ((draws.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
            at += -part.ln() * HOUR / self.failures_per_hour;
            if at >= until {
                return outages;
            }
            outages.push((at, at + self.replaced_after));
            at += self.replaced_after;
        }
    }
}

impl Online {
    /// Reads `20:00-08:00`; `None` if it is no such time.
    pub fn read(text: &str) -> Option<Self> {
        let clock = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours <= 24 && minutes < 60 && hours * 60 + minutes <= 1440)
                .then(|| f64::from(hours) * HOUR + f64::from(minutes) * 60.0)
        };
        let (from, until) = text.split_once('-')?;
        let (from, until) = (clock(from)?, clock(until)?);
        (from != until).then_some(Self { from, until })
    }

    /// Returns whether peers are there, at a time of day in seconds.
    pub fn is_on(&self, at: f64) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&at)
        } else {
            at >= self.from || at < self.until
        }
    }

    /// Lists the times at which they are not there, until some seconds after the first midnight.
    fn nights(&self, until: f64) -> Vec<Outage> {
        let length = (self.from - self.until).rem_euclid(DAY);
        let days = (until / DAY).ceil() as i64;
        let night = |day: i64| {
            let from = self.until + (day - 1) as f64 * DAY;
            (from.max(0.0), from + length)
        };
        (0..=days).map(night).filter(|(from, to)| to > from).collect()
    }
}

impl Trace {
    /// Reads a trace: CSV with the header `seconds,peer,event`, in the order of time, where an event is `gone`, `back`, or, once, `end`.
    ///
    /// # Errors
    /// The first line that is wrong, and what of it.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let refuse = |line: usize, what: String| TraceError { line, what };
        let mut lines =
            (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        match lines.next() {
            Some((_, line)) if line.trim() == HEADER => {}
            other => {
                let (line, said) = other.unwrap_or((1, "nothing"));
                return Err(refuse(line, format!("\"{said}\" where the header `{HEADER}` is expected")));
            }
        }
        let (mut gone, mut outages, mut last) = (BTreeMap::new(), BTreeMap::<usize, Vec<Outage>>::new(), 0.0);
        let (mut ended, mut last_line) = (None, 1);
        for (number, line) in lines {
            let words: Vec<&str> = line.split(',').map(str::trim).collect();
            let &[seconds, peer, event] = words.as_slice() else {
                return Err(refuse(number, format!("\"{line}\" has {} columns, expected 3", words.len())));
            };
            let at = Quantity::Count.read(seconds).filter(|at| *at >= last);
            let at = at.ok_or_else(|| {
                refuse(number, format!("`seconds` is \"{seconds}\", expected a number from {last} on"))
            })?;
            if ended.is_some() || number > LINES_MAX {
                return Err(refuse(
                    number,
                    format!("\"{line}\" comes after the end, or after {LINES_MAX} lines"),
                ));
            }
            (last, last_line) = (at, number);
            if event == "end" {
                ended = Some(at);
                continue;
            }
            let peer = peer.parse::<usize>().ok().filter(|peer| *peer < LINES_MAX);
            let peer = peer.ok_or_else(|| {
                refuse(number, format!("`peer` is \"{}\", expected a number from 0 on", words[1]))
            })?;
            let since = gone.remove(&peer);
            match (event, since) {
                ("gone", None) => drop(gone.insert(peer, at)),
                ("back", Some(since)) => outages.entry(peer).or_default().push((since, at)),
                ("gone" | "back", _) => {
                    return Err(refuse(number, format!("peer {peer} is `{event}`, and was before")));
                }
                (_, _) => {
                    return Err(refuse(
                        number,
                        format!("`event` is \"{event}\", expected gone, back or end"),
                    ));
                }
            }
        }
        let length = ended.unwrap_or(last);
        for (peer, since) in gone {
            outages.entry(peer).or_default().push((since, length));
        }
        if length < LENGTH_MIN {
            return Err(refuse(
                last_line,
                format!("{length} seconds are recorded, expected at least {LENGTH_MIN}"),
            ));
        }
        let count = outages.keys().last().map_or(1, |last| last + 1);
        let mut peers = vec![Vec::new(); count];
        outages.into_iter().for_each(|(peer, of)| peers[peer] = of);
        Ok(Self { length, peers })
    }

    /// Returns the failures of a peer in an hour of its being there, and the mean seconds that it was away.
    pub fn rate(&self) -> (f64, f64) {
        let outages = self.peers.iter().flatten();
        let (count, away) =
            outages.fold((0.0, 0.0), |(count, sum), (from, to)| (count + 1.0, sum + to - from));
        let there = self.length * self.peers.len() as f64 - away;
        if count == 0.0 { (0.0, 0.0) } else { (count / (there / HOUR), away / count) }
    }

    /// Lists the outages of a peer, which has the line of its number, or where there are fewer that of the remainder, later in the
    /// trace; a seed begins the trace elsewhere, and what is longer than it repeats it.
    fn repeated(&self, seed: u64, peer: usize, until: f64) -> Vec<Outage> {
        let lines = self.peers.len();
        let line = &self.peers[peer % lines];
        let turns = (peer / lines) as f64 + seed.saturating_sub(1) as f64;
        let begins = (turns * SHIFT).fract() * self.length;
        let rounds = ((until + begins) / self.length).ceil() as usize;
        let moved = |round: usize| {
            let by = round as f64 * self.length - begins;
            line.iter().map(move |(from, to)| ((from + by).max(0.0), to + by))
        };
        (0..rounds.max(1)).flat_map(moved).filter(|(from, to)| to > from).collect()
    }
}

/// Cuts a day where the peers of some groups come or go: how long each part lasts, as a part of the day, and a time in it.
pub fn parts_of_day<'a>(all: impl Iterator<Item = &'a Availability>) -> Vec<(f64, f64)> {
    let mut edges: Vec<f64> =
        all.filter_map(|one| one.online).flat_map(|on| [on.from % DAY, on.until % DAY]).collect();
    edges.push(0.0);
    edges.sort_by(f64::total_cmp);
    edges.dedup();
    let ends = edges.iter().skip(1).copied().chain([DAY]);
    edges.iter().zip(ends).map(|(from, to)| ((to - from) / DAY, (from + to) / 2.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "seconds,peer,event\n10,1,gone\n# a comment\n40,1,back\n50,0,gone\n100,,end\n";

    #[test]
    fn a_trace_is_read_and_repeats_later_for_others() {
        let trace = Trace::parse(TRACE).expect("it is whole");
        assert_eq!((trace.length, &trace.peers), (100.0, &vec![vec![(50.0, 100.0)], vec![(10.0, 40.0)]]));
        let mut peers = Availability::rate(0.0, 0.0);
        peers.follow(trace);
        // Two failures in 120 seconds of being there.
        assert_eq!((peers.failures_per_hour, peers.replaced_after), (60.0, 40.0));
        assert_eq!(peers.outages(1, 1, 230.0), [(10.0, 40.0), (110.0, 140.0), (210.0, 240.0)]);
        assert_eq!(peers.outages(1, 0, 210.0), [(50.0, 100.0), (150.0, 200.0)]);
        let shifted = peers.outages(1, 3, 100.0);
        assert!((shifted[0].0 - 48.1966).abs() < 1e-3 && shifted.len() == 1, "{shifted:?}");
        assert_eq!(shifted, peers.outages(2, 1, 100.0), "a seed moves the beginning");
    }

    #[test]
    fn what_a_trace_gets_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("", "line 1: \"nothing\" where the header"),
            ("time,peer\n", "line 1: \"time,peer\" where the header"),
            ("seconds,peer,event\n5,0\n", "line 2: \"5,0\" has 2 columns, expected 3"),
            (
                "seconds,peer,event\n5,0,gone\n4,0,back\n",
                "line 3: `seconds` is \"4\", expected a number from 5 on",
            ),
            ("seconds,peer,event\n5,x,gone\n", "line 2: `peer` is \"x\", expected a number"),
            ("seconds,peer,event\n5,0,back\n", "line 2: peer 0 is `back`, and was before"),
            ("seconds,peer,event\n5,0,left\n", "line 2: `event` is \"left\", expected gone, back or end"),
            ("seconds,peer,event\n5,,end\n6,0,gone\n", "line 3: \"6,0,gone\" comes after the end"),
            ("seconds,peer,event\n", "line 1: 0 seconds are recorded, expected at least 60"),
            ("seconds,peer,event\n1,0,gone\n\n2,0,back\n", "line 4: 2 seconds are recorded"),
        ] {
            let error = Trace::parse(text).expect_err(said).to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn failures_are_drawn_at_their_rate_and_apart() {
        let peers = Availability::rate(2.0, 600.0);
        let hours = 2000.0;
        let all: Vec<Outage> = (0..4).flat_map(|peer| peers.outages(5, peer, hours * HOUR)).collect();
        // Each hour of being there has two; 20 minutes of each 50 are away.
        let expected = 4.0 * hours / (0.5 + 1.0 / 6.0);
        assert!((all.len() as f64 / expected - 1.0).abs() < 0.03, "{} of {expected}", all.len());
        let one = peers.outages(5, 0, hours * HOUR);
        assert!(one.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert_ne!(one, peers.outages(5, 1, hours * HOUR));
        assert_ne!(one, peers.outages(6, 0, hours * HOUR));
    }

    #[test]
    fn the_day_has_its_hours() {
        let night = Online::read("20:00-08:00").expect("it is a time");
        assert!(night.is_on(0.0) && !night.is_on(12.0 * HOUR) && night.is_on(23.0 * HOUR));
        let mut peers = Availability::rate(0.0, 0.0);
        peers.online = Some(night);
        let hours = |outages: Vec<Outage>| -> Vec<(f64, f64)> {
            outages.into_iter().map(|(from, to)| (from / HOUR, to / HOUR)).collect()
        };
        assert_eq!(hours(peers.outages(1, 0, 40.0 * HOUR)), [(8.0, 20.0), (32.0, 44.0)]);
        peers.online = Online::read("08:00-20:30");
        assert_eq!(hours(peers.outages(1, 0, 24.0 * HOUR)), [(0.0, 8.0), (20.5, 32.0)]);
        let trace = "seconds,peer,event\n25200,0,gone\n32400,0,back\n86400,,end\n";
        let mut both = peers.clone();
        both.follow(Trace::parse(trace).expect("it is whole"));
        let apart = hours(both.outages(1, 0, 24.0 * HOUR));
        assert_eq!(apart, [(0.0, 9.0), (20.5, 32.0)], "what overlaps is one outage");
        let day = parts_of_day([&peers].into_iter());
        assert_eq!(day.iter().map(|(part, _)| part * 24.0).collect::<Vec<_>>(), [8.0, 12.5, 3.5]);
        for wrong in ["8-20", "08:00", "25:00-08:00", "08:00-08:00", "08:61-09:00", "24:01-03:00"] {
            assert_eq!(Online::read(wrong), None, "{wrong}");
        }
    }
}
