//! Times the codecs of the outer step on one thread: encode and decode of a matrix of 8192 x 4096 numbers, and what a
//! replica holds at most. Prints one JSON object a codec.
//!
//! usage: codec_speed [ROUNDS]
//!
//! Speeds are GB of f32 (1e9 bytes) in, for encoding, or out, for decoding, a second of the fastest round.

use std::process::ExitCode;
use std::time::Instant;

use trestle_model::outer::{CodecKind, Exchanged, Layout, Outer, OuterConfig, OuterError, Rule, SHARES_SUM};

const ROWS: usize = 8192;
const COLUMNS: usize = 4096;

/// Numbers of a bell curve's shape (the sum of four uniform draws), as pseudo-gradients are.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: u64 = (0..4).map(|part| state >> (16 * part) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 1e-3
    };
    (0..len).map(|_| next()).collect()
}

/// Returns the fastest of some rounds, in seconds, and what the last one returned.
fn fastest<T>(rounds: usize, mut work: impl FnMut() -> T) -> (f64, Option<T>) {
    let mut best = (f64::INFINITY, None);
    for _ in 0..rounds {
        let began = Instant::now();
        let result = work();
        best = (best.0.min(began.elapsed().as_secs_f64()), Some(result));
    }
    best
}

fn measure(kind: CodecKind, layout: &Layout, values: &[f32], rounds: usize) -> Result<(), OuterError> {
    let (codec, shard) = (kind.codec(), layout.shard(0..layout.elements()));
    let gigabytes = 4e-9 * values.len() as f64;
    let refuse = |reason| OuterError::Contribution { outer: 0, shard: 0, reason };
    let (encode, bytes) = fastest(rounds, || codec.encode(&shard, values));
    let bytes = bytes.unwrap_or_else(|| Ok(Vec::new())).map_err(refuse)?;
    let mut back = vec![0.0; values.len()];
    let (decode, decoded) = fastest(rounds, || codec.decode(&shard, &bytes, &mut back));
    decoded.unwrap_or(Ok(())).map_err(refuse)?;
    drop(back);
    let (rest, most) = held(kind, layout, values)?;
    println!(
        "{{\"codec\": \"{kind:?}\", \"encode_gb_s\": {:.2}, \"decode_gb_s\": {:.2}, \"bits\": {:.5}, \
         \"rest_x\": {rest:.3}, \"most_x\": {most:.3}}}",
        gigabytes / encode,
        gigabytes / decode,
        8.0 * bytes.len() as f64 / values.len() as f64,
    );
    Ok(())
}

/// Returns what a replica without outer momentum holds after one outer step and at most, in multiples of its f32 bytes; of
/// three replicas alike, whose contributions are its own three times.
fn held(kind: CodecKind, layout: &Layout, values: &[f32]) -> Result<(f64, f64), OuterError> {
    let rule = Rule::Plain { learning_rate: 0.7 };
    let config = OuterConfig { rule, codec: kind, exchanged: Exchanged::Weights, error_decay: 1.0 };
    let mut outer = Outer::new(config, layout.clone(), vec![0.0; values.len()])?;
    outer.begin(0, values.to_vec());
    let shares = [SHARES_SUM / 3 + 1, SHARES_SUM / 3, SHARES_SUM / 3];
    let contribution = outer.encode(&shares)?;
    let mut results = Vec::new();
    for (shard, bytes) in contribution.iter().enumerate() {
        match outer.reduce(&shares, shard, &[(1, bytes), (1, bytes), (1, bytes)]) {
            Ok(result) => results.push(result),
            Err(error) => eprintln!("error: {error}"),
        }
    }
    outer.stage(&shares, &results.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    outer.commit()?;
    outer.adopt(None);
    let whole = 4.0 * values.len() as f64;
    Ok((outer.bytes() as f64 / whole, outer.bytes_max() as f64 / whole))
}

fn main() -> ExitCode {
    let rounds = match std::env::args().nth(1).map(|text| text.parse()) {
        None => 5,
        Some(Ok(rounds)) if rounds > 0 => rounds,
        Some(_) => {
            eprintln!("usage: codec_speed [ROUNDS]");
            return ExitCode::from(2);
        }
    };
    let layout = Layout::new(&[vec![ROWS, COLUMNS]]);
    let values = noise(layout.elements());
    for kind in [CodecKind::F32, CodecKind::Bf16, CodecKind::Int8, CodecKind::SparseLoCo] {
        if let Err(error) = measure(kind, &layout, &values, rounds) {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
