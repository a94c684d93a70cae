//! Names of files, folders and crates: nouns that say what is inside.

use std::collections::BTreeSet;

use crate::tidy::complaint::Complaint;
use crate::tidy::tree::Tree;

/// Words that hold anything and so say nothing.
const VAGUE: &[&str] =
    &["common", "helper", "helpers", "manager", "managers", "misc", "stuff", "util", "utils", "utilities"];

/// Names of crates that would draw everything to themselves.
const VAGUE_CRATES: &[&str] = &["api", "common", "core", "types", "utils"];

/// Complains of each vague word in the name of a file, a folder or a crate.
pub fn check(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut told = BTreeSet::new();
    for path in tree.paths() {
        let mut so_far = String::new();
        for (depth, part) in path.split('/').enumerate() {
            so_far = if depth == 0 { part.to_owned() } else { format!("{so_far}/{part}") };
            let crate_name = depth == 1 && path.starts_with("crates/");
            if let Some(word) = vague_word(part, crate_name)
                && told.insert(so_far.clone())
            {
                let instead = "name it after the one thing it holds, as a noun (`sync.rs`, `route.rs`); split it if that takes two";
                complaints.push(Complaint::new(
                    &so_far,
                    0,
                    format!("`{word}` says nothing of what is inside"),
                    instead,
                ));
            }
        }
    }
    complaints
}

fn vague_word(part: &str, crate_name: bool) -> Option<&'static str> {
    let stem = part.split('.').next().unwrap_or(part).to_lowercase();
    if crate_name && let Some(word) = VAGUE_CRATES.iter().find(|word| **word == stem) {
        return Some(word);
    }
    let words: Vec<&str> = stem.split(['_', '-']).collect();
    VAGUE.iter().find(|vague| words.contains(vague)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vague_names_are_told_once_each() {
        let paths = [
            ("crates/a/src/utils.rs", ""),
            ("crates/a/src/peer_manager.rs", ""),
            ("crates/a/tests/common/one.rs", ""),
            ("crates/a/tests/common/two.rs", ""),
            ("crates/types/src/lib.rs", ""),
            ("docs/misc.md", ""),
        ];
        let found: Vec<String> = check(&Tree::of(&paths)).into_iter().map(|one| one.path).collect();
        assert_eq!(
            found,
            [
                "crates/a/src/peer_manager.rs",
                "crates/a/src/utils.rs",
                "crates/a/tests/common",
                "crates/types",
                "docs/misc.md"
            ]
        );
    }

    #[test]
    fn good_names_pass() {
        let paths =
            [("crates/a/src/sync.rs", ""), ("crates/a/src/types.rs", ""), ("runs/commonplace.toml", "")];
        assert_eq!(check(&Tree::of(&paths)), []);
    }
}
