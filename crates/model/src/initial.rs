//! Owns how a parameter's first numbers are drawn. Number `i` of a parameter is a pure function of the seed, the
//! parameter's name and `i`, in additions, multiplications, divisions and square roots only: whoever holds a stage, on
//! whatever machine and with however many threads, starts from the same bits.

use crate::parameter::{Initial, ParameterSpec};

/// Below this many numbers a thread costs more than it saves.
const NUMBERS_PER_THREAD_LEAST: usize = 1 << 18;

/// Draws the numbers of a parameter, row major, with up to `threads` threads.
pub(crate) fn draw(spec: &ParameterSpec, seed: u64, threads: usize) -> Vec<f32> {
    let mut numbers = vec![1.0; spec.numel() as usize];
    match spec.initial {
        Initial::Ones => {}
        Initial::Normal(deviation) => {
            let key = key(seed, &spec.name);
            let share = numbers.len().div_ceil(threads.max(1)).max(NUMBERS_PER_THREAD_LEAST);
            std::thread::scope(|scope| {
                for (part, chunk) in numbers.chunks_mut(share).enumerate() {
                    let first = (part * share) as u64;
                    scope.spawn(move || fill(chunk, key, first, deviation));
                }
            });
        }
    }
    numbers
}

fn fill(chunk: &mut [f32], key: u64, first: u64, deviation: f64) {
    for (index, number) in (first..).zip(chunk) {
        *number = (deviation * normal(mix(key, index))) as f32;
    }
}

fn key(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut key = [0; 8];
    hasher.finalize_xof().fill(&mut key);
    u64::from_le_bytes(key)
}

/// Returns output `index` of the splitmix64 generator started at `key` (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014). Its state is a counter, so any output can be had at once.
pub(crate) fn mix(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Maps 64 random bits to a number strictly between 0 and 1.
pub(crate) fn uniform(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// Maps 64 random bits to a standard normal number by the inverse distribution function, in P. J. Acklam's rational
/// approximation (2003; relative error below 1.15e-9).
fn normal(bits: u64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
        1.0,
    ];
    const TAIL: f64 = 0.02425;
    let p = uniform(bits);
    if p < TAIL {
        return tail(p);
    }
    if p > 1.0 - TAIL {
        return -tail(1.0 - p);
    }
    let q = p - 0.5;
    let r = q * q;
    polynomial(&A, r) * q / polynomial(&B, r)
}

fn tail(p: f64) -> f64 {
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] =
        [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    let q = (-2.0 * logarithm(p)).sqrt();
    polynomial(&C, q) / polynomial(&D, q)
}

fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

/// Returns the natural logarithm of a positive normal number. The standard library's may differ in the last bit between
/// platforms; this one cannot.
fn logarithm(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as f64 - 1023.0;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1.0;
    }
    // ln m = 2 artanh s with |s| below 0.172: eleven terms reach the last bit of f64.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let mut sum = 0.0;
    for term in (0..11).rev() {
        sum = sum * s * s + 1.0 / f64::from(2 * term + 1);
    }
    2.0 * s * sum + exponent * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameter::Role;

    fn spec(name: &str, numbers: i64, deviation: f64) -> ParameterSpec {
        let shape = vec![numbers, 1];
        let initial = Initial::Normal(deviation);
        ParameterSpec { name: name.into(), shape, stage: 0, role: Role::Hidden, initial }
    }

    #[test]
    fn moments_are_those_of_a_normal_distribution() {
        let numbers = draw(&spec("a", 1 << 20, 0.02), 7, 2);
        let moment = |power: i32| {
            numbers.iter().map(|&x| (f64::from(x) / 0.02).powi(power)).sum::<f64>() / numbers.len() as f64
        };
        // Standard errors at 2^20 numbers: 0.001, 0.0014, 0.0038 and 0.0096.
        assert!(moment(1).abs() < 0.005, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.007, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.02, "third moment {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.05, "fourth moment {}", moment(4));
    }

    #[test]
    fn threads_do_not_change_the_numbers() {
        let spec = spec("a", 3 * NUMBERS_PER_THREAD_LEAST as i64 + 5, 1.0);
        assert_eq!(draw(&spec, 1, 1), draw(&spec, 1, 3));
    }

    #[test]
    fn seed_and_name_change_the_numbers() {
        let numbers = draw(&spec("a", 4, 1.0), 1, 1);
        assert_ne!(numbers, draw(&spec("b", 4, 1.0), 1, 1));
        assert_ne!(numbers, draw(&spec("a", 4, 1.0), 2, 1));
    }

    #[test]
    fn the_first_numbers_are_fixed_for_ever() {
        let bits: Vec<u32> =
            draw(&spec("embedding.weight", 4, 0.02), 0, 1).iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, GOLDEN);
    }

    const GOLDEN: [u32; 4] = [1_014_261_519, 3_172_381_383, 3_160_812_596, 1_026_369_424];

    #[test]
    fn logarithm_agrees_with_the_standard_library() {
        for p in [1e-16, 3.7e-9, 0.001, 0.02, 0.5, 0.999, 1.0, 1.5] {
            assert!((logarithm(p) - f64::ln(p)).abs() <= 1e-15 * f64::ln(p).abs().max(1.0), "ln {p}");
        }
    }
}
