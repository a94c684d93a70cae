//! The generated corpus: pseudo-words from a Markov chain whose entropy per token is known exactly.
//!
//! Owns the language, the text and the entropy. May not know samples, splits or files.
//!
//! # The language
//!
//! A text over thirty symbols (letters, blank, comma, full stop, line end), one byte each. The next symbol
//! depends on the two before it, the *context*. Every context has 64 slots, each holding a symbol, and a slot
//! is drawn with equal chance, so that every probability is an exact multiple of 1/64 and no draw depends on
//! floating point. Few symbols follow a context (two to five), and few letters follow a letter (six), so
//! that a small transformer has some two hundred short lists to learn.
//!
//! # The entropy
//!
//! With π the stationary distribution of contexts and H(c) the entropy of context c, in nats:
//!
//! - the *rate* is the mean of H(c) under π (Cover and Thomas, Elements of Information Theory, theorem 4.2.4):
//!   the mean cost of a token whose two predecessors are seen;
//! - a window of n + 1 tokens has n targets. The first has one predecessor in sight, and costs
//!   H(X₁ | X₀) = H(X₀, X₁) − H(X₀), both taken from π, since a context *is* a pair of neighbours; the other
//!   n − 1 cost the rate each. Hence the floor of the mean loss: (H(X₁ | X₀) + (n − 1) · rate) / n.
//!
//! No model that sees a window alone can do better in expectation, and one that has learnt the slots does
//! exactly that. A finite stretch of text differs from it by chance; see the test for how much.
//!
//! # Why π is unique
//!
//! At most two consonants stand together, so every context leads to a vowel within three symbols; every vowel
//! can be followed by a full stop, and that by a line end. So the context in which the text starts, (full
//! stop, line end), is reached from everywhere, and what it reaches is one closed class.

use crate::draws::Draws;

/// The symbols, letters first.
const SYMBOLS: [u8; 30] = *b"abcdefghijklmnopqrstuvwxyz ,.\n";
const LETTERS: usize = 26;
const BLANK: u8 = 26;
const COMMA: u8 = 27;
const STOP: u8 = 28;
const LINE_END: u8 = 29;

/// Slots of a context: a power of two, so that a draw is six bits of a byte.
const SLOTS: usize = 64;

type Slots = [u8; SLOTS];

/// Says what part of a word a symbol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Vowel,
    Consonant,
    Gap,
    Comma,
    Stop,
}

/// Writes the text of one generated language, and knows its entropy.
#[derive(Debug, Clone)]
pub struct MarkovSource {
    seed: u64,
    /// By context, that is, earlier symbol times the number of symbols plus later symbol.
    slots: Vec<Slots>,
    rate: f64,
    first: f64,
}

impl MarkovSource {
    /// Draws the language of a seed and works out its entropy.
    pub fn new(seed: u64) -> MarkovSource {
        let slots = language(seed);
        let stationary = stationary(&slots);
        let rate = stationary.iter().zip(&slots).map(|(share, slots)| share * slots_entropy(slots)).sum();
        let mut later = [0.0; SYMBOLS.len()];
        for (context, share) in stationary.iter().enumerate() {
            later[context % SYMBOLS.len()] += share;
        }
        MarkovSource { seed, slots, rate, first: entropy(&stationary) - entropy(&later) }
    }

    /// Writes the first `tokens` bytes of the text. A longer text begins with the shorter one.
    pub fn text(&self, tokens: usize) -> Vec<u8> {
        let mut draws = Draws::new("trestle-data 1 generated text", &[self.seed]);
        let mut context = START;
        let mut text = Vec::with_capacity(tokens);
        for _ in 0..tokens {
            let next = self.slots[context][usize::from(draws.byte()) % SLOTS];
            text.push(SYMBOLS[usize::from(next)]);
            context = after(context, next);
        }
        text
    }

    /// Gives the entropy of a token whose two predecessors are known, in nats.
    pub fn entropy_rate(&self) -> f64 {
        self.rate
    }

    /// Gives the least mean loss of a model that sees `sequence_len` inputs and nothing before them, in nats a
    /// token.
    pub fn entropy_floor(&self, sequence_len: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a sequence is far shorter than 2^52 tokens")]
        let targets = sequence_len.max(1) as f64;
        (self.first + (targets - 1.0) * self.rate) / targets
    }
}

/// The context in which every text starts: as after the end of a line.
const START: usize = STOP as usize * SYMBOLS.len() + LINE_END as usize;

fn after(context: usize, next: u8) -> usize {
    context % SYMBOLS.len() * SYMBOLS.len() + usize::from(next)
}

fn class(symbol: u8) -> Class {
    match symbol {
        COMMA => Class::Comma,
        STOP => Class::Stop,
        BLANK | LINE_END => Class::Gap,
        letter if b"aeiou".contains(&SYMBOLS[usize::from(letter)]) => Class::Vowel,
        _ => Class::Consonant,
    }
}

/// Holds the letters that may follow one letter at all.
struct Following {
    vowels: Vec<u8>,
    consonants: Vec<u8>,
}

/// Draws the slots of every context.
fn language(seed: u64) -> Vec<Slots> {
    let mut draws = Draws::new("trestle-data 1 generated language", &[seed]);
    let letters = || (0..BLANK).filter(|&letter| usize::from(letter) < LETTERS);
    let vowels: Vec<u8> = letters().filter(|&letter| class(letter) == Class::Vowel).collect();
    let consonants: Vec<u8> = letters().filter(|&letter| class(letter) == Class::Consonant).collect();
    let following: Vec<Following> = letters()
        .map(|letter| {
            let (vowels_kept, consonants_kept) = if class(letter) == Class::Vowel { (1, 5) } else { (4, 2) };
            Following {
                vowels: pick(&mut draws, &vowels, vowels_kept),
                consonants: pick(&mut draws, &consonants, consonants_kept),
            }
        })
        .collect();
    let mut starts = pick(&mut draws, &consonants, 7);
    starts.extend(pick(&mut draws, &vowels, 3));

    let mut slots = Vec::with_capacity(SYMBOLS.len() * SYMBOLS.len());
    for earlier in 0..=LINE_END {
        for later in 0..=LINE_END {
            slots.push(context_slots(&mut draws, earlier, later, &following, &starts));
        }
    }
    slots
}

/// Draws what follows one context: signs with a fixed number of slots, and letters that share the rest.
fn context_slots(draws: &mut Draws, earlier: u8, later: u8, following: &[Following], starts: &[u8]) -> Slots {
    let mut slots: Vec<u8> = Vec::with_capacity(SLOTS);
    let mut give = |symbol: u8, count: usize| slots.extend(core::iter::repeat_n(symbol, count));
    let mut letters = Vec::new();
    match class(later) {
        Class::Stop => {
            give(BLANK, 48);
            give(LINE_END, 16);
        }
        Class::Comma => give(BLANK, SLOTS),
        Class::Gap => letters = pick(draws, starts, 4),
        Class::Vowel => {
            give(BLANK, 16);
            give(STOP, 2);
            give(COMMA, 1);
            let following = &following[usize::from(later)];
            if class(earlier) == Class::Vowel {
                letters = pick(draws, &following.consonants, 2);
            } else {
                letters = pick(draws, &following.consonants, 2);
                letters.extend(&following.vowels);
            }
        }
        Class::Consonant => {
            let following = &following[usize::from(later)];
            letters = pick(draws, &following.vowels, 2);
            if class(earlier) != Class::Consonant {
                letters.extend(pick(draws, &following.consonants, 1));
            }
            if class(earlier) == Class::Vowel {
                give(BLANK, 10);
            }
        }
    }
    share_rest(draws, &mut slots, &letters);
    slots.try_into().expect("every slot of a context is filled once")
}

/// Shares the empty slots among letters: each gets one, and each further slot copies one drawn from those
/// already given to letters (Pólya's urn), which makes every split as likely as any other.
fn share_rest(draws: &mut Draws, slots: &mut Vec<u8>, letters: &[u8]) {
    let signs = slots.len();
    slots.extend(letters);
    while slots.len() < SLOTS {
        let copied = signs + draws.below(slots.len() - signs);
        slots.push(slots[copied]);
    }
}

/// Draws `count` different symbols.
fn pick(draws: &mut Draws, from: &[u8], count: usize) -> Vec<u8> {
    let mut left = from.to_vec();
    (0..count).map(|_| left.swap_remove(draws.below(left.len()))).collect()
}

/// Finds the share of time spent in each context.
///
/// Iterates π ← (π + πP) / 2 from the start context: the half that stays where it is makes the chain aperiodic
/// and leaves its stationary distribution as it was.
fn stationary(slots: &[Slots]) -> Vec<f64> {
    /// Far below what a test of a loss can see, far above the rounding of the sums.
    const CHANGE_MAX: f64 = 1e-13;
    /// A few hundred rounds are enough for any seed tried; the bound keeps a mistake from hanging.
    const ROUNDS_MAX: usize = 100_000;

    #[expect(clippy::cast_precision_loss, reason = "64")]
    let slot_share = 0.5 / SLOTS as f64;
    let mut shares = vec![0.0; slots.len()];
    shares[START] = 1.0;
    for _ in 0..ROUNDS_MAX {
        let mut next: Vec<f64> = shares.iter().map(|share| share * 0.5).collect();
        for (context, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            for &symbol in &slots[context] {
                next[after(context, symbol)] += share * slot_share;
            }
        }
        let change: f64 = next.iter().zip(&shares).map(|(new, old)| (new - old).abs()).sum();
        shares = next;
        if change < CHANGE_MAX {
            break;
        }
    }
    shares
}

fn slots_entropy(slots: &Slots) -> f64 {
    let mut shares = [0.0; SYMBOLS.len()];
    #[expect(clippy::cast_precision_loss, reason = "64")]
    for &symbol in slots {
        shares[usize::from(symbol)] += 1.0 / SLOTS as f64;
    }
    entropy(&shares)
}

/// Sums −p ln p, in nats.
fn entropy(shares: &[f64]) -> f64 {
    shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(byte: u8) -> u8 {
        let at = SYMBOLS.iter().position(|&symbol| symbol == byte).expect("a symbol of the language");
        u8::try_from(at).expect("thirty symbols")
    }

    fn share(slots: &Slots, symbol: u8) -> f64 {
        let count = slots.iter().filter(|&&slot| slot == symbol).count();
        f64::from(u32::try_from(count).expect("64 slots")) / 64.0
    }

    /// Scores `text` by the language itself: the mean of −ln p over tokens with two predecessors.
    fn mean_loss(source: &MarkovSource, text: &[u8]) -> f64 {
        let mut context = START;
        let mut sum = 0.0;
        for &byte in text {
            let symbol = index(byte);
            sum -= share(&source.slots[context], symbol).ln();
            context = after(context, symbol);
        }
        sum / f64::from(u32::try_from(text.len()).expect("a short text"))
    }

    #[test]
    fn the_text_costs_what_the_rate_says() {
        for seed in 0..8 {
            let source = MarkovSource::new(seed);
            let loss = mean_loss(&source, &source.text(400_000));
            let ratio = loss / source.entropy_rate();
            assert!((ratio - 1.0).abs() < 0.01, "seed {seed}: {loss} against {}", source.entropy_rate());
        }
    }

    #[test]
    fn the_first_target_of_a_window_costs_what_pairs_of_neighbours_say() {
        let source = MarkovSource::new(3);
        let text = source.text(400_000);
        let mut pairs = vec![0_u32; 256 * 256];
        let mut singles = vec![0_u32; 256];
        for pair in text.windows(2) {
            pairs[usize::from(pair[0]) * 256 + usize::from(pair[1])] += 1;
            singles[usize::from(pair[0])] += 1;
        }
        let empirical = |counts: &[u32]| {
            let all = f64::from(counts.iter().sum::<u32>());
            entropy(&counts.iter().map(|&count| f64::from(count) / all).collect::<Vec<_>>())
        };
        let first = empirical(&pairs) - empirical(&singles);
        assert!((first / source.entropy_floor(1) - 1.0).abs() < 0.01, "{first} {}", source.entropy_floor(1));
    }

    #[test]
    fn the_floor_falls_to_the_rate_as_windows_grow() {
        let source = MarkovSource::new(3);
        assert!(source.entropy_floor(1) > source.entropy_floor(2));
        assert!(source.entropy_floor(2) > source.entropy_floor(128));
        assert!(source.entropy_floor(128) > source.entropy_rate());
        assert!(source.entropy_floor(1_000_000) - source.entropy_rate() < 1e-5);
    }

    #[test]
    fn stationary_shares_sum_to_one_and_stay_put_under_one_step() {
        let slots = language(11);
        let shares = stationary(&slots);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let mut next = vec![0.0; shares.len()];
        for (context, share) in shares.iter().enumerate() {
            for &symbol in &slots[context] {
                next[after(context, symbol)] += share / 64.0;
            }
        }
        let change: f64 = next.iter().zip(&shares).map(|(new, old)| (new - old).abs()).sum();
        assert!(change < 1e-12, "{change}");
    }

    #[test]
    fn every_language_is_small_and_has_something_to_learn() {
        for seed in 0..50 {
            let slots = language(seed);
            let reached = stationary(&slots).iter().filter(|share| **share > 0.0).count();
            assert!((100..320).contains(&reached), "seed {seed}: {reached} contexts");
            let source = MarkovSource::new(seed);
            assert!((0.8..1.4).contains(&source.entropy_rate()), "seed {seed}: {}", source.entropy_rate());
            // One predecessor must not be enough, or the corpus would not test attention.
            assert!(source.entropy_floor(1) > 1.15 * source.entropy_rate(), "seed {seed}");
        }
    }

    #[test]
    fn the_start_is_reached_again_from_every_context() {
        for seed in 0..50 {
            let slots = language(seed);
            let mut reaches = vec![false; slots.len()];
            reaches[START] = true;
            for _ in 0..slots.len() {
                for context in 0..slots.len() {
                    reaches[context] |= slots[context].iter().any(|&symbol| reaches[after(context, symbol)]);
                }
            }
            assert!(reaches.iter().all(|&reached| reached), "seed {seed}");
        }
    }

    #[test]
    fn a_longer_text_begins_with_the_shorter_and_seeds_differ() {
        let source = MarkovSource::new(1);
        assert_eq!(source.text(500), source.text(5000)[..500]);
        assert_ne!(source.text(500), MarkovSource::new(2).text(500));
    }
}
