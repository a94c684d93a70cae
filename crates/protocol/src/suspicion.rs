//! Suspicion: whether a silent peer is late or gone, judged by how regularly it was heard before.
//!
//! Owns what is remembered of one peer's silences, the three levels, and when each begins; a phi-accrual failure
//! detector (Hayashibara et al., "The phi accrual failure detector", SRDS 2004) in integers. Knows nothing of what was
//! said, nor of what is done about a peer that is suspected or lost.

use crate::time::{Span, Time};
use alloc::collections::VecDeque;

/// Silences that are remembered: enough for a steady deviation, few enough to follow a link that changes.
pub const SAMPLES_MAX: usize = 64;

/// The least deviation that is assumed: with it a word may be lost and sent again without any suspicion. A machine whose scheduler
/// delays words by more than that teaches it.
pub const DEVIATION_MIN: Span = Span::millis(150);

/// From here on a peer is suspected, in thousandths of phi: of 10^8 silences that end by themselves, one is as long.
pub const SUSPECT_PHI_MILLI: u32 = 8_000;

/// From here on a peer may be lost, in thousandths of phi.
pub const LOST_PHI_MILLI: u32 = 12_000;

/// The least silence after which a peer is lost. To lose a peer costs work, to suspect one costs nothing, so this
/// outlasts what a machine that pages or a link that routes anew takes to come back.
pub const LOST_SILENCE_MIN: Span = Span::seconds(6);

/// What one silence teaches at most, in multiples of the expected silence and the least deviation together. It bounds
/// the patience that a peer can teach, by accident or on purpose: see `lesson_max`.
const LESSON_MULTIPLES: u64 = 4;

/// What is made of a peer's silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It may be given work.
    Trusted,
    /// It is given no new work where another can do it; what it has, it keeps.
    Suspect,
    /// Its work is given to others.
    Lost,
}

/// How long one peer is silent as a rule, and what follows from it for its present silence.
///
/// Silence is counted from the first word; until then nothing is suspected, so the caller says `heard` when it meets a
/// peer.
#[derive(Clone, Debug)]
pub struct Suspicion {
    expected: u64,
    silence_min: u64,
    samples: VecDeque<u64>,
    silences: Silences,
    heard: Option<Heard>,
    link: Link,
}

/// What the transport says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Down,
}

/// When the last word came, and the one that the last lesson was drawn from.
#[derive(Clone, Copy, Debug)]
struct Heard {
    last: Time,
    lesson: Time,
}

/// The distribution of silences as the samples show it, and the silences at which the levels change, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Silences {
    mean: u64,
    deviation: u64,
    suspect: u64,
    lost: u64,
}

impl Suspicion {
    /// Starts for a peer that promised a word every `expected`, to be lost after `LOST_SILENCE_MIN` at the earliest.
    pub fn new(expected: Span) -> Self {
        Self::with_silence_min(expected, LOST_SILENCE_MIN)
    }

    /// Starts for a peer that promised a word every `expected`, to be lost after `silence_min` at the earliest.
    ///
    /// Two samples a quarter below and above what is expected stand for experience until there is some, as in Akka.
    pub fn with_silence_min(expected: Span, silence_min: Span) -> Self {
        let (expected, quarter) = (expected.0, expected.0 / 4);
        let samples = VecDeque::from([expected - quarter, expected.saturating_add(quarter)]);
        let silences = Silences::of(&samples, silence_min.0);
        Self { expected, silence_min: silence_min.0, samples, silences, heard: None, link: Link::Up }
    }

    /// Notes any word of the peer: it is trusted at once, and its silence teaches how long it may be silent.
    ///
    /// Words may come far more often than promised while the peer has work, and say nothing of its silence when it has
    /// none. So each expected span has one lesson at most, and it is the longest silence in the span or what was
    /// expected, whichever is more: a silence that is longer than expected ends the span. One across a lost connection
    /// teaches nothing.
    pub fn heard(&mut self, now: Time) {
        let link = core::mem::replace(&mut self.link, Link::Up);
        let (Some(heard), Link::Up) = (&mut self.heard, link) else {
            self.heard = Some(Heard { last: now, lesson: now });
            return;
        };
        let silence = now.since(heard.last).0;
        heard.last = heard.last.max(now);
        if now.since(heard.lesson).0 >= self.expected {
            heard.lesson = now;
            self.learn(silence);
        }
    }

    /// Notes that the transport gave the connection up: the peer is suspected, at the least, until it is heard again.
    pub fn disconnected(&mut self, now: Time) {
        self.link = Link::Down;
        self.heard.get_or_insert(Heard { last: now, lesson: now });
    }

    /// Returns what is made of the peer's silence.
    pub fn level(&self, now: Time) -> Level {
        let silence = self.silence(now);
        if silence >= self.silences.lost {
            return Level::Lost;
        }
        match self.link {
            Link::Up if silence < self.silences.suspect => Level::Trusted,
            Link::Up | Link::Down => Level::Suspect,
        }
    }

    /// Returns phi in thousandths: -1000 log10 of the chance that a peer that is there is silent for longer than this.
    ///
    /// Grows with the silence up to `u32::MAX`, and is at least `SUSPECT_PHI_MILLI` without a connection. Its error is
    /// that of `tail_milli`.
    pub fn phi_milli(&self, now: Time) -> u32 {
        let phi = self.heard.map_or(0, |_| self.silences.phi_milli(self.silence(now)));
        match self.link {
            Link::Up => phi,
            Link::Down => phi.max(SUSPECT_PHI_MILLI),
        }
    }

    /// Returns the next moment at which the level changes if nothing is heard until then; `None` if it will not.
    pub fn next_change(&self, now: Time) -> Option<Time> {
        let silence = match self.level(now) {
            Level::Trusted => self.silences.suspect,
            Level::Suspect => self.silences.lost,
            Level::Lost => return None,
        };
        self.heard?.last.0.checked_add(silence).map(Time)
    }

    fn silence(&self, now: Time) -> u64 {
        self.heard.map_or(0, |heard| now.since(heard.last).0)
    }

    /// Remembers a silence. What came after the peer was suspected was a fault and no habit, and teaches nothing.
    fn learn(&mut self, silence: u64) {
        let most = self.silences.suspect.min(self.lesson_max());
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(silence.min(most).max(self.expected));
        self.silences = Silences::of(&self.samples, self.silence_min);
    }

    /// Returns what one silence teaches at most. If a share p of the samples is as long as this and the rest 0, their
    /// mean is p times this and their deviation sqrt(p (1 - p)) times; phi is 12 at 7.04 deviations above the mean. So
    /// whatever a peer does, it is lost after 4.1 times this, or `silence_min` if that is longer.
    fn lesson_max(&self) -> u64 {
        self.expected.saturating_add(DEVIATION_MIN.0).saturating_mul(LESSON_MULTIPLES)
    }
}

impl Silences {
    /// Fits a normal distribution, and finds the first silences at which its phi reaches the bounds.
    fn of(samples: &VecDeque<u64>, silence_min: u64) -> Self {
        let count = samples.len().max(1) as u128;
        let mean = samples.iter().map(|sample| u128::from(*sample)).sum::<u128>() / count;
        let square = |sample: &u64| u128::from(*sample).abs_diff(mean).pow(2) / count;
        let variance = samples.iter().map(square).fold(0, u128::saturating_add);
        let deviation = narrow(variance.isqrt()).max(DEVIATION_MIN.0);
        let mut silences = Self { mean: narrow(mean), deviation, suspect: u64::MAX, lost: u64::MAX };
        silences.suspect = silences.first_with(SUSPECT_PHI_MILLI);
        silences.lost = silences.first_with(LOST_PHI_MILLI).max(silence_min);
        silences
    }

    /// Returns phi of a silence, in thousandths.
    fn phi_milli(&self, silence: u64) -> u32 {
        let beyond = i128::from(silence) - i128::from(self.mean);
        tail_milli((beyond << Z_BITS).div_euclid(i128::from(self.deviation)))
    }

    /// Returns the least silence with this phi, by halving: phi never falls as silence grows.
    fn first_with(&self, phi_milli: u32) -> u64 {
        // A silence of so many deviations is beyond every level that is asked for; where it is not, all are looked through.
        let far = self.mean.saturating_add(self.deviation.saturating_mul(FAR_DEVIATIONS));
        let (mut low, mut high) = (0, if self.phi_milli(far) >= phi_milli { far } else { u64::MAX });
        while low < high {
            let middle = low + (high - low) / 2;
            if self.phi_milli(middle) < phi_milli { low = middle + 1 } else { high = middle }
        }
        low
    }
}

fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// So many deviations beyond the mean phi is 28.
const FAR_DEVIATIONS: u64 = 11;

/// Bits after the point of a z, which is a distance from the mean in deviations.
const Z_BITS: u32 = 16;

/// The z of the first entry of `TAIL_MILLI`, in quarters.
const TAIL_FIRST: i128 = -16;

/// -1000 log10 Q(z), with Q the upper tail of the standard normal distribution, for z from -4 to 8 in steps of a
/// quarter; computed to 40 digits (mpmath) and rounded to nearest.
const TAIL_MILLI: [u32; 49] = [
    0, 0, 0, 0, 1, 1, 3, 5, 10, 18, 30, 48, 75, 112, 160, 223, // z = -4 to -0.25
    301, 397, 511, 645, 800, 976, 1175, 1397, 1643, 1913, 2207, 2526, 2870, 3239, 3633,
    4053, // 0 to 3.75
    4499, 4971, 5469, 5993, 6543, 7119, 7721, 8350, 9006, 9688, 10396, 11131, 11893, 12681, 13496,
    14338, // 4 to 7.75
    15206, // 8
];

/// Returns -1000 log10 Q(z) of the standard normal distribution; never falls as z grows.
///
/// Up to z = 8 it interpolates a table linearly. The function is convex with a second derivative below 435, so that the
/// result is at most 435 / 4^2 / 8 = 3.4 thousandths too high; with rounding it is within 5. Beyond it goes on as
/// z^2 / (2 ln 10), the leading term, and is up to 0.6 % too low.
fn tail_milli(z: i128) -> u32 {
    let step = 1 << (Z_BITS - 2);
    let last = TAIL_FIRST + TAIL_MILLI.len() as i128 - 1;
    let z = z.clamp(TAIL_FIRST * step, Z_MAX << Z_BITS);
    let beyond = z * z - (last * step).pow(2);
    let at = (z.div_euclid(step).min(last) - TAIL_FIRST) as usize;
    let here = TAIL_MILLI[at];
    let Some(next) = TAIL_MILLI.get(at + 1) else {
        // 1000 / (2 ln 10) = 217.147
        let more = ((beyond * 217_147) >> (2 * Z_BITS)) / 1_000;
        return u32::try_from(more).unwrap_or(u32::MAX).saturating_add(here);
    };
    here + ((i128::from(next - here) * z.rem_euclid(step)) / step) as u32
}

/// Where z ends: there its tail is beyond `u32::MAX` thousandths, and its square within 128 bits.
const Z_MAX: i128 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Span = Span::seconds(1);

    /// Notes a word after each of the silences, in milliseconds, and returns the moment of the last.
    fn listen(suspicion: &mut Suspicion, from: Time, silences: impl IntoIterator<Item = u64>) -> Time {
        suspicion.heard(from);
        silences.into_iter().fold(from, |last, silence| {
            let now = last + Span::millis(silence);
            suspicion.heard(now);
            now
        })
    }

    fn wait(suspicion: &Suspicion, now: Time) -> Span {
        suspicion.next_change(now).unwrap().since(now)
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014), to below a bound.
    fn draws(mut seed: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % below
        }
    }

    #[test]
    fn the_tail_is_that_of_the_normal_distribution() {
        // z in hundredths, and -1000 log10 Q(z) by mpmath; none of them is in the table
        let exact = [
            (-310, 0),
            (-162, 23),
            (-87, 93),
            (13, 348),
            (88, 723),
            (110, 868),
            (260, 2_332),
            (413, 4_741),
            (537, 7_405),
            (561, 7_995),
            (688, 11_524),
            (704, 12_017),
            (787, 14_751),
        ];
        for (hundredths, phi) in exact {
            let got = tail_milli((hundredths << Z_BITS) / 100);
            assert!(got.abs_diff(phi) <= 5, "z = {hundredths}/100: {got}, not {phi}");
        }
        for (z, phi) in [(9, 18_947), (10, 23_118), (16, 57_195), (30, 197_309), (300, 19_546_128)] {
            let got = tail_milli(z << Z_BITS);
            assert!(got <= phi && (phi - got) * 1_000 <= phi * 6, "z = {z}: {got}, not {phi}");
        }
        assert_eq!((tail_milli(i128::MIN), tail_milli(i128::MAX)), (0, u32::MAX));
    }

    #[test]
    fn the_tail_never_falls_and_has_no_dent() {
        let bend = |w: &[u32]| i64::from(w[2]) - 2 * i64::from(w[1]) + i64::from(w[0]);
        let bends: alloc::vec::Vec<i64> = TAIL_MILLI.windows(3).map(bend).collect();
        assert!(bends.iter().all(|bend| (-2..=435 / 16 + 2).contains(bend)), "{bends:?}");
        let mut before = 0;
        for z in (-5 << Z_BITS)..(12 << Z_BITS) {
            let phi = tail_milli(z);
            assert!(phi >= before, "z = {z}/65536");
            before = phi;
        }
    }

    #[test]
    fn a_regular_peer_is_never_suspected() {
        let mut suspicion = Suspicion::new(BEAT);
        let mut draw = draws(1);
        let mut now = Time(0);
        suspicion.heard(now);
        for beat in 0..10_000 {
            now = now + Span::millis(900 + draw(900));
            assert_eq!(suspicion.level(now), Level::Trusted, "beat {beat}");
            suspicion.heard(now);
            assert_eq!(suspicion.phi_milli(now).max(100), 100, "beat {beat}");
        }
        assert_eq!(suspicion.samples.len(), SAMPLES_MAX);
    }

    #[test]
    fn silence_raises_the_level_step_by_step() {
        let mut suspicion = Suspicion::new(BEAT);
        let last = listen(&mut suspicion, Time(0), [1_000; 20]);
        let mut before = (Level::Trusted, 0);
        let mut seen = alloc::vec![];
        for millis in 0..60_000 {
            let now = last + Span::millis(millis);
            let present = (suspicion.level(now), suspicion.phi_milli(now));
            assert!(present.0 >= before.0 && present.1 >= before.1, "after {millis} ms: {present:?}");
            assert_eq!(present.0 >= Level::Suspect, present.1 >= SUSPECT_PHI_MILLI, "after {millis} ms");
            if present.0 != before.0 {
                seen.push((millis, present.0));
            }
            before = present;
        }
        // 1 s + 5.61 deviations of 0.15 s; phi is 12 after 2.1 s, which is less than the least silence
        assert_eq!(seen, [(1_842, Level::Suspect), (6_000, Level::Lost)]);
        assert_eq!(suspicion.phi_milli(Time(u64::MAX)), u32::MAX);
    }

    #[test]
    fn a_lost_peer_has_both_a_high_phi_and_a_long_silence() {
        let mut slow = Suspicion::new(Span::seconds(20));
        let last = listen(&mut slow, Time(0), [20_000, 30_000, 25_000, 40_000].repeat(20));
        assert_eq!(slow.level(last + Span::seconds(50)), Level::Trusted, "6 s are nothing to this one");
        let suspect = last + wait(&slow, last);
        let lost = suspect + wait(&slow, suspect);
        assert!(slow.phi_milli(lost) >= LOST_PHI_MILLI && slow.phi_milli(lost - Span(1)) < LOST_PHI_MILLI);
        let mut patient = Suspicion::with_silence_min(BEAT, Span::seconds(60));
        let last = listen(&mut patient, Time(0), [1_000; 5]);
        assert_eq!(patient.level(last + Span::millis(59_999)), Level::Suspect);
        assert_eq!(patient.level(last + Span::seconds(60)), Level::Lost);
    }

    #[test]
    fn jitter_teaches_patience() {
        let [mut even, mut jittery] = [Suspicion::new(BEAT), Suspicion::new(BEAT)];
        let even_last = listen(&mut even, Time(0), [1_000; 64]);
        let mut draw = draws(2);
        let jittery_last = listen(&mut jittery, Time(0), (0..64).map(|_| 200 + draw(2_600)));
        let [even, jittery] = [wait(&even, even_last), wait(&jittery, jittery_last)];
        assert!(jittery.0 > even.0 + Span::seconds(1).0, "even {even:?}, jittery {jittery:?}");
    }

    #[test]
    fn a_burst_of_words_teaches_no_impatience() {
        let [mut busy, mut idle] = [Suspicion::new(Span::seconds(5)), Suspicion::new(Span::seconds(5))];
        let last = listen(&mut busy, Time(0), [10; 20_000]);
        let idle_last = listen(&mut idle, Time(0), [5_000; 40]);
        assert_eq!(wait(&busy, last), wait(&idle, idle_last));
        // and 4 s of silence between bursts are remembered over thousands of words
        let mut halting = Suspicion::new(BEAT);
        let burst = core::iter::once(3_000).chain(core::iter::repeat_n(10, 500));
        let last = listen(&mut halting, Time(0), burst.cycle().take(5_010));
        assert!(wait(&halting, last) > Span::millis(4_500), "{:?}", wait(&halting, last));
    }

    #[test]
    fn a_frozen_peer_is_trusted_when_it_is_back_and_its_freeze_is_not_learnt() {
        let mut suspicion = Suspicion::new(BEAT);
        let last = listen(&mut suspicion, Time(0), [1_000; 64]);
        let before = wait(&suspicion, last);
        let back = last + Span::seconds(30);
        assert_eq!(suspicion.level(back), Level::Lost);
        suspicion.heard(back);
        assert_eq!((suspicion.level(back), suspicion.phi_milli(back) < 1_000), (Level::Trusted, true));
        let after = wait(&suspicion, back);
        assert!(after >= before && after.0 - before.0 < Span::millis(100).0, "{before:?}, then {after:?}");
        let last = listen(&mut suspicion, back, [1_000; 64]);
        assert_eq!(wait(&suspicion, last), before, "and what it did teach is forgotten");
    }

    #[test]
    fn no_peer_can_teach_endless_patience() {
        let mut suspicion = Suspicion::new(BEAT);
        let mut now = Time(0);
        suspicion.heard(now);
        let mut draw = draws(3);
        for word in 0..2_000 {
            let suspect = suspicion.next_change(now).unwrap();
            let lost = suspicion.next_change(suspect).unwrap();
            assert!(
                lost.since(now) <= Span::millis(41 * 4 * (1_000 + 150) / 10).max(LOST_SILENCE_MIN),
                "word {word}"
            );
            now = if draw(4) == 0 { now + BEAT } else { suspect - Span(draw(2)) };
            suspicion.heard(now);
        }
    }

    #[test]
    fn a_lost_connection_is_suspect_until_the_next_word() {
        let mut suspicion = Suspicion::new(BEAT);
        let last = listen(&mut suspicion, Time(0), [1_000; 10]);
        let before = wait(&suspicion, last);
        let cut = last + Span::millis(100);
        suspicion.disconnected(cut);
        assert_eq!((suspicion.level(cut), suspicion.phi_milli(cut)), (Level::Suspect, SUSPECT_PHI_MILLI));
        assert_eq!(suspicion.next_change(cut), Some(last + LOST_SILENCE_MIN), "the next level is lost");
        assert_eq!(suspicion.level(last + LOST_SILENCE_MIN), Level::Lost);
        let back = last + Span::seconds(3);
        suspicion.heard(back);
        assert_eq!(
            (suspicion.level(back), wait(&suspicion, back)),
            (Level::Trusted, before),
            "nothing learnt"
        );
        let mut unheard = Suspicion::new(BEAT);
        assert_eq!((unheard.level(Time(u64::MAX)), unheard.next_change(Time(5))), (Level::Trusted, None));
        unheard.disconnected(Time(7));
        assert_eq!((unheard.level(Time(7)), unheard.level(Time(6_000_007))), (Level::Suspect, Level::Lost));
    }

    #[test]
    fn the_next_change_is_exact() {
        let mut draw = draws(4);
        for case in 0..300 {
            let expected = Span(draw(20_000_000));
            let mut suspicion = Suspicion::with_silence_min(expected, Span(draw(30_000_000)));
            let mut now = Time(draw(1_000_000));
            for _ in 0..draw(100) {
                now = now + Span(draw(2 * expected.0 + 1));
                suspicion.heard(now);
            }
            suspicion.heard(now);
            if draw(3) == 0 {
                suspicion.disconnected(now);
            }
            let mut level = suspicion.level(now);
            while let Some(next) = suspicion.next_change(now) {
                assert!(next > now, "case {case}");
                assert_eq!(suspicion.level(next - Span(1)), level, "case {case}: just before {next}");
                assert!(suspicion.level(next) > level, "case {case}: at {next}");
                assert_eq!(suspicion.next_change(next - Span(1)), Some(next), "case {case}");
                (now, level) = (next, suspicion.level(next));
            }
            assert_eq!(level, Level::Lost, "case {case}");
        }
    }

    #[test]
    fn extremes_neither_wrap_nor_panic() {
        for expected in [Span(0), Span(1), Span(u64::MAX)] {
            let mut suspicion = Suspicion::with_silence_min(expected, Span(u64::MAX));
            for now in [Time(9), Time(3), Time(u64::MAX), Time(u64::MAX)] {
                suspicion.heard(now);
                assert_eq!(suspicion.level(now), Level::Trusted);
                assert!(suspicion.next_change(now).is_none_or(|next| next > now));
            }
        }
        let mut late = Suspicion::new(BEAT);
        late.heard(Time(10_000_000));
        late.heard(Time(1_000_000));
        assert_eq!(late.heard.map(|heard| heard.last), Some(Time(10_000_000)), "time never runs back");
    }
}
