//! Data sets as their callers use them: what comes out of a configuration, sample by sample.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use trestle_data::{
    DataConfig, DataError, Dataset, GeneratedConfig, SampleId, Source, SourceKind, Split, TokenizerKind,
};

fn generated(tokens: u64, seed: u64) -> DataConfig {
    DataConfig {
        source: Source::Generated(GeneratedConfig { tokens, seed }),
        tokenizer: TokenizerKind::Bytes,
        sequence_len: 64,
        seed: 3,
        held_out_permille: 100,
    }
}

fn text(path: &Path, sequence_len: usize) -> DataConfig {
    DataConfig {
        source: Source::Text(path.to_path_buf()),
        tokenizer: TokenizerKind::Bytes,
        sequence_len,
        seed: 3,
        held_out_permille: 0,
    }
}

fn hexadecimal(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex().to_string()
}

/// A tokenizer of whole words, as the file of a Hugging Face model.
fn words(end_of_text: &str) -> String {
    format!(
        r#"{{"version":"1.0","truncation":{{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}},
        "padding":null,
        "added_tokens":[{{"id":4,"content":"{end_of_text}","single_word":false,"lstrip":false,"rstrip":false,
        "normalized":false,"special":true}}],
        "normalizer":null,"pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,
        "model":{{"type":"WordLevel","vocab":{{"?":0,"one":1,"two":2,"three":700,"{end_of_text}":4}},"unk_token":"?"}}}}"#
    )
}

#[test]
fn the_generated_corpus_is_the_same_for_ever() {
    let dataset = Dataset::open(&generated(100_000, 1)).expect("nothing is read");
    let manifest = dataset.manifest();
    assert_eq!(
        hexadecimal(manifest.tokens_digest),
        "9b71e18ed24fdaa8c3ba2b0903da09307e61e61379146cd1f6c6eeaa6f5f4e54"
    );
    assert_eq!(
        hexadecimal(manifest.digest),
        "581a3cb2112f6d87a917f1e652d152b02fde1004e368dd0a88e05840a1951acb"
    );
    let order: Vec<u64> = (0..6).map(|position| dataset.sample_at(Split::Train, position).0).collect();
    assert_eq!(order, [211, 177, 583, 478, 220, 180]);
    let floor = dataset.entropy_floor().expect("a generated corpus");
    assert!((floor - 1.139_034_415_048).abs() < 1e-9, "{floor}");
}

#[test]
fn seeds_choose_the_text_and_the_order_apart() {
    let one = Dataset::open(&generated(50_000, 1)).expect("nothing is read");
    let other_text = Dataset::open(&generated(50_000, 2)).expect("nothing is read");
    assert_ne!(one.manifest().tokens_digest, other_text.manifest().tokens_digest);
    let other_order =
        Dataset::open(&DataConfig { seed: 4, ..generated(50_000, 1) }).expect("nothing is read");
    assert_eq!(one.manifest().tokens_digest, other_order.manifest().tokens_digest);
    assert_ne!(one.manifest().digest, other_order.manifest().digest);
    let order = |dataset: &Dataset| (0..50).map(|at| dataset.sample_at(Split::Train, at)).collect::<Vec<_>>();
    assert_ne!(order(&one), order(&other_order));
    assert_eq!(order(&one), order(&other_text));
}

#[test]
fn no_token_is_both_trained_and_held_out_and_none_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("counted.txt");
    // Every window begins with its own number, so that a shift or an overlap shows.
    let bytes: Vec<u8> = (0..200_u8).flat_map(|window| [window, 7, 8, 9, 10]).chain([1, 2, 3]).collect();
    fs::write(&file, &bytes).expect("a file");
    let config = DataConfig { held_out_permille: 99, ..text(&file, 4) };
    let dataset = Dataset::open(&config).expect("plain bytes");
    assert_eq!((dataset.samples(Split::Train), dataset.samples(Split::HeldOut)), (181, 19));
    assert_eq!(dataset.manifest().tokens, 1003);
    for window in 0..200_u32 {
        let (split, id) = match window.checked_sub(181) {
            None => (Split::Train, window),
            Some(id) => (Split::HeldOut, id),
        };
        let sample = dataset.sample(split, SampleId(u64::from(id))).expect("a known id");
        assert_eq!(sample, [window, 7, 8, 9, 10]);
    }
}

#[test]
fn every_epoch_trains_every_sample_once_and_in_another_order() {
    let dataset = Dataset::open(&generated(20_000, 1)).expect("nothing is read");
    let samples = dataset.samples(Split::Train);
    let mut orders = BTreeSet::new();
    for epoch in 0..4 {
        let order: Vec<SampleId> =
            (0..samples).map(|at| dataset.sample_at(Split::Train, epoch * samples + at)).collect();
        let seen: BTreeSet<SampleId> = order.iter().copied().collect();
        assert_eq!(seen, (0..samples).map(SampleId).collect(), "epoch {epoch}");
        orders.insert(order);
    }
    assert_eq!(orders.len(), 4);
    let held_out = dataset.samples(Split::HeldOut);
    assert!((0..held_out).all(|at| dataset.sample_at(Split::HeldOut, at) == SampleId(at)));
}

#[test]
fn a_microbatch_is_its_samples_row_by_row_shifted_by_one() {
    let dataset = Dataset::open(&generated(20_000, 1)).expect("nothing is read");
    // Far enough to run over the end of an epoch.
    for index in [0, 1, dataset.samples(Split::Train) / 3, 1000] {
        let batch = dataset.microbatch(Split::Train, index, 3).expect("any position can be trained");
        assert_eq!((batch.inputs.len(), batch.targets.len()), (192, 192));
        for row in 0..3 {
            let id = dataset.sample_at(Split::Train, index * 3 + row as u64);
            let sample = dataset.sample(Split::Train, id).expect("a known id");
            assert_eq!(batch.inputs[row * 64..row * 64 + 64], sample[..64]);
            assert_eq!(batch.targets[row * 64..row * 64 + 64], sample[1..]);
        }
    }
}

#[test]
fn ids_positions_and_sizes_out_of_bounds_are_refused() {
    let dataset = Dataset::open(&generated(20_000, 1)).expect("nothing is read");
    let (train, held_out) = (dataset.samples(Split::Train), dataset.samples(Split::HeldOut));
    let error = dataset.sample(Split::Train, SampleId(train)).expect_err("one too many");
    assert_eq!(error.to_string(), format!("there is no training sample {train} among {train}"));
    let error = dataset.sample(Split::HeldOut, SampleId(u64::MAX)).expect_err("far too many");
    assert!(matches!(error, DataError::UnknownSample { split: Split::HeldOut, .. }));

    let whole = dataset.microbatches(Split::HeldOut, 4);
    assert_eq!(whole, held_out / 4);
    dataset.microbatch(Split::HeldOut, whole - 1, 4).expect("the last whole one");
    let error = dataset.microbatch(Split::HeldOut, whole, 4).expect_err("past the end");
    assert_eq!(
        error.to_string(),
        format!("{held_out} samples are held out, and {} are needed", whole * 4 + 4)
    );
    for (index, size) in [(0, 0), (u64::MAX, 1), (u64::MAX / 2, 4), (0, usize::MAX)] {
        let error = dataset.microbatch(Split::Train, index, size).expect_err("out of bounds");
        assert!(matches!(error, DataError::UnknownMicrobatch { .. }), "{index} {size}: {error}");
    }
    dataset.microbatch(Split::Train, u64::MAX / 2 - 1, 2).expect("a far epoch");
}

#[test]
fn a_folder_is_read_in_the_order_of_its_paths_with_line_ends_between() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("b");
    fs::create_dir(&inner).expect("a folder");
    for (path, content) in [
        (folder.path().join("c.txt"), "four"),
        (inner.join("2.txt"), "three"),
        (inner.join("1.TXT"), "two"),
        (folder.path().join("a.txt"), "one"),
        (folder.path().join("d.txt"), ""),
        (folder.path().join("0.md"), "not read"),
    ] {
        fs::write(path, content).expect("a file");
    }
    let dataset = Dataset::open(&text(folder.path(), 17)).expect("four files");
    let sample = dataset.sample(Split::Train, SampleId(0)).expect("one sample");
    assert_eq!(dataset.decode(&sample), "one\ntwo\nthree\nfour"[..18]);
    assert_eq!(dataset.manifest().tokens, 18);
    assert_eq!(dataset.manifest().source, SourceKind::Text);
    assert_eq!(dataset.entropy_floor(), None);
}

#[test]
fn json_lines_are_documents_and_end_with_the_tokenizers_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("lines.jsonl");
    let lines = "{\"text\":\"one two\"}\n\n{\"n\":1,\"text\":\"two\\nthree one one\"}\n{\"text\":\"\"}\n{\"text\":\"zzz\"}";
    fs::write(&file, lines).expect("a file");
    let tokenizer = folder.path().join("tokenizer.json");
    fs::write(&tokenizer, words("<|endoftext|>")).expect("a file");
    let config = DataConfig {
        source: Source::JsonLines { path: file, field: "text".to_owned() },
        tokenizer: TokenizerKind::File(tokenizer),
        ..text(folder.path(), 8)
    };
    let dataset = Dataset::open(&config).expect("well-formed lines");
    let sample = dataset.sample(Split::Train, SampleId(0)).expect("one sample");
    // The file asks to cut every text after two tokens, which must not be done to a corpus.
    assert_eq!(sample, [1, 2, 4, 2, 700, 1, 1, 4, 0]);
    assert_eq!(dataset.vocabulary(), 701);
    assert_eq!(dataset.encode("three two").expect("known words"), [700, 2]);
    assert!(dataset.decode(&[700, 2]).contains("three two"));

    dataset.check_vocabulary(701).expect("a row for every id");
    let error = dataset.check_vocabulary(700).expect_err("one row too few");
    assert_eq!(error.to_string(), "a vocabulary of 700 has no place for token id 700");
}

#[test]
fn a_tokenizer_gives_a_long_text_the_tokens_it_gives_its_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("long.txt");
    // Longer than the pieces in which a file is read.
    let lines = 200_000;
    fs::write(&file, "one two three\n".repeat(lines)).expect("a file");
    let tokenizer = folder.path().join("tokenizer.json");
    fs::write(&tokenizer, words("<none>")).expect("a file");
    let config = DataConfig { tokenizer: TokenizerKind::File(tokenizer), ..text(&file, 2) };
    let dataset = Dataset::open(&config).expect("plain text");
    assert_eq!(dataset.samples(Split::Train), lines as u64);
    for id in 0..lines as u64 {
        assert_eq!(dataset.sample(Split::Train, SampleId(id)).expect("a known id"), [1, 2, 700]);
    }
}

#[test]
fn the_tokenizer_is_part_of_the_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text.txt");
    fs::write(&file, "one two one two one two").expect("a file");
    let open = |content: &str| {
        let tokenizer = folder.path().join("tokenizer.json");
        fs::write(&tokenizer, content).expect("a file");
        let config = DataConfig { tokenizer: TokenizerKind::File(tokenizer), ..text(&file, 2) };
        Dataset::open(&config).expect("plain text").manifest().clone()
    };
    let (one, other) = (open(&words("<eos>")), open(&format!("{} ", words("<eos>"))));
    assert_eq!(one.tokens_digest, other.tokens_digest);
    assert!(one.difference(&other).expect("other file").starts_with("tokenizer_digest: "));
}

#[test]
fn the_floor_is_known_for_generated_bytes_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokenizer = folder.path().join("tokenizer.json");
    fs::write(&tokenizer, words("<eos>")).expect("a file");
    let config = generated(20_000, 1);
    let floor = Dataset::open(&config).expect("nothing is read").entropy_floor();
    assert_eq!(floor, Some(trestle_data::MarkovSource::new(1).entropy_floor(64)));
    let config = DataConfig { tokenizer: TokenizerKind::File(tokenizer), ..config };
    assert_eq!(Dataset::open(&config).expect("a tokenizer").entropy_floor(), None);
}
