//! Bad input of every kind: each a named error with its values and a hint.

use std::fs;
use std::path::{Path, PathBuf};

use trestle_data::{DataConfig, DataError, Dataset, GeneratedConfig, Source, TokenizerKind};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    }
}

fn config(source: Source) -> DataConfig {
    DataConfig { source, tokenizer: TokenizerKind::Bytes, sequence_len: 4, seed: 1, held_out_permille: 0 }
}

fn text(path: impl AsRef<Path>) -> DataConfig {
    config(Source::Text(path.as_ref().to_path_buf()))
}

fn lines(path: PathBuf) -> DataConfig {
    config(Source::JsonLines { path, field: "text".to_owned() })
}

/// Opens a data set that must be refused; checks that the hint adds something, and gives the message with
/// the folder's name taken out.
fn refusal(folder: &Folder, config: &DataConfig) -> (DataError, String) {
    let error = Dataset::open(config).expect_err("must be refused");
    let message = error.to_string().replace(&folder.0.path().display().to_string(), "DIR");
    assert!(error.hint().len() > 20 && !message.contains(error.hint()), "{message}: {}", error.hint());
    assert!(!message.ends_with('.'), "{message}");
    (error, message)
}

#[test]
fn a_path_that_leads_nowhere() {
    let folder = Folder::new();
    let nowhere = folder.0.path().join("nowhere");
    for config in [
        text(&nowhere),
        lines(nowhere.clone()),
        DataConfig {
            tokenizer: TokenizerKind::File(nowhere.clone()),
            ..text(folder.file("a.txt", "some text"))
        },
    ] {
        let (error, message) = refusal(&folder, &config);
        assert!(matches!(error, DataError::NotFound { .. }), "{error:?}");
        assert_eq!(message, "no such file or folder: DIR/nowhere");
    }
}

#[test]
fn a_folder_where_a_file_must_be() {
    let folder = Folder::new();
    let (error, message) = refusal(&folder, &lines(folder.0.path().to_path_buf()));
    assert!(matches!(error, DataError::Read { .. }), "{error:?}");
    assert!(message.starts_with("cannot read DIR: "), "{message}");
}

#[test]
fn a_folder_without_text() {
    let folder = Folder::new();
    folder.file("notes.md", "some text");
    let (error, message) = refusal(&folder, &text(folder.0.path()));
    assert!(matches!(error, DataError::NoTextFiles { .. }), "{error:?}");
    assert_eq!(message, "folder DIR holds no .txt file");
}

#[test]
fn files_with_nothing_in_them() {
    let folder = Folder::new();
    let empty = folder.file("empty.txt", "");
    for (config, at) in [
        (text(&empty), "DIR/empty.txt"),
        (text(folder.0.path()), "DIR"),
        (lines(empty), "DIR/empty.txt"),
        (lines(folder.file("blank.jsonl", "\n{\"text\": \"\"}\n\n")), "DIR/blank.jsonl"),
    ] {
        let (error, message) = refusal(&folder, &config);
        assert!(matches!(error, DataError::Empty { .. }), "{error:?}");
        assert_eq!(message, format!("{at} holds no text"));
    }
}

#[test]
fn a_generated_corpus_of_no_size_or_of_any() {
    let folder = Folder::new();
    for tokens in [0, u64::MAX] {
        let source = Source::Generated(GeneratedConfig { tokens, seed: 1 });
        let (error, _) = refusal(&folder, &config(source));
        assert!(matches!(error, DataError::GeneratedTokens { .. }), "{error:?}");
    }
}

#[test]
fn a_text_shorter_than_one_sample() {
    let folder = Folder::new();
    let (error, message) = refusal(&folder, &text(folder.file("short.txt", "four")));
    assert!(matches!(error, DataError::TooShort { tokens: 4, needed: 5 }), "{error:?}");
    assert_eq!(message, "the text has 4 tokens, and one sample needs 5");
    Dataset::open(&text(folder.file("enough.txt", "five!"))).expect("just long enough");
}

#[test]
fn a_sequence_length_out_of_bounds() {
    let folder = Folder::new();
    for sequence_len in [0, usize::MAX] {
        let config = DataConfig { sequence_len, ..text(folder.file("a.txt", "some text")) };
        let (error, _) = refusal(&folder, &config);
        assert!(matches!(error, DataError::SequenceLen { .. }), "{error:?}");
    }
}

#[test]
fn held_out_shares_that_leave_one_side_empty() {
    let folder = Folder::new();
    let path = folder.file("a.txt", "five!".repeat(19));
    let (error, message) = refusal(&folder, &DataConfig { held_out_permille: 50, ..text(&path) });
    assert!(matches!(error, DataError::TooFewHeldOut { held_out: 0, needed: 1 }), "{error:?}");
    assert_eq!(message, "0 samples are held out, and 1 are needed");
    Dataset::open(&DataConfig { held_out_permille: 53, ..text(&path) }).expect("one of nineteen");
    for permille in [1000, u32::MAX] {
        let (error, _) = refusal(&folder, &DataConfig { held_out_permille: permille, ..text(&path) });
        assert!(matches!(error, DataError::HeldOutShare { .. }), "{error:?}");
    }
}

#[test]
fn lines_that_are_no_objects_and_lines_without_the_field() {
    let folder = Folder::new();
    let good = "{\"text\": \"some text\"}\n";
    for (second, reason) in [
        ("{\"text\": ", "EOF while parsing a value at column 9"),
        ("[1, 2]", "invalid type: sequence, expected a map at column 0"),
        ("{\"text\": \"a\"} x", "trailing characters at column 15"),
    ] {
        let file = folder.file("a.jsonl", format!("{good}\n{second}"));
        let (error, message) = refusal(&folder, &lines(file));
        assert!(matches!(error, DataError::JsonLine { line: 3, .. }), "{error:?}");
        assert_eq!(message, format!("line 3 of DIR/a.jsonl is not a JSON object: {reason}"));
    }
    let (error, _) = refusal(&folder, &lines(folder.file("b.jsonl", b"{\"text\": \"\xff\"}")));
    assert!(matches!(error, DataError::JsonLine { line: 1, .. }), "{error:?}");
    for second in ["{\"body\": \"a\"}", "{\"text\": 5}", "{\"text\": null}"] {
        let (error, message) = refusal(&folder, &lines(folder.file("c.jsonl", format!("{good}{second}\n"))));
        assert!(matches!(error, DataError::JsonField { line: 2, .. }), "{error:?}");
        assert_eq!(message, "line 2 of DIR/c.jsonl has no string in the field \"text\"");
    }
}

#[test]
fn files_that_are_no_tokenizers() {
    let folder = Folder::new();
    let path = folder.file("a.txt", "some text");
    let nothing = "{\"model\":{\"type\":\"WordLevel\",\"vocab\":{},\"unk_token\":\"?\"}}";
    for content in [&b"{}"[..], b"\x00\xff", b"", nothing.as_bytes()] {
        let tokenizer = TokenizerKind::File(folder.file("tokenizer.json", content));
        let (error, message) = refusal(&folder, &DataConfig { tokenizer, ..text(&path) });
        assert!(matches!(error, DataError::Tokenizer { .. }), "{error:?}");
        assert!(message.starts_with("DIR/tokenizer.json is not a tokenizer: "), "{message}");
    }
}

#[test]
fn text_that_a_tokenizer_cannot_take() {
    let folder = Folder::new();
    let model = "\"model\":{\"type\":\"WordLevel\",\"vocab\":{\"a\":0},\"unk_token\":\"?\"}";
    let content = format!("{{\"pre_tokenizer\":{{\"type\":\"Whitespace\"}},{model}}}");
    let tokenizer = TokenizerKind::File(folder.file("tokenizer.json", content));

    let config = DataConfig { tokenizer, ..text(folder.file("latin.txt", b"a a a a\xe9")) };
    let (error, message) = refusal(&folder, &config);
    assert!(matches!(error, DataError::NotUtf8 { offset: 7, .. }), "{error:?}");
    assert_eq!(message, "DIR/latin.txt is not UTF-8: byte 7 begins no character");
    Dataset::open(&DataConfig { tokenizer: TokenizerKind::Bytes, ..config.clone() }).expect("bytes take all");

    let source = Source::Text(folder.file("unknown.txt", "a a a a b"));
    let (error, _) = refusal(&folder, &DataConfig { source, ..config });
    assert!(matches!(error, DataError::Encode { .. }), "{error:?}");
}
