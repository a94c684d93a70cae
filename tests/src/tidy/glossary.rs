//! The glossary: a table of terms, each with one meaning.

use std::collections::BTreeMap;

use crate::tidy::complaint::Complaint;
use crate::tidy::tree::Tree;

/// Where the terms are.
pub const PATH: &str = "docs/glossary.md";

/// Complains when the glossary is missing or empty, and of each term without a meaning or with two.
pub fn check(tree: &Tree) -> Vec<Complaint> {
    let Some(text) = tree.text(PATH) else {
        return vec![Complaint::new(PATH, 0, "is missing", "write a table: `| term | meaning |`")];
    };
    let mut complaints = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (line, term, meaning) in rows(text) {
        if term.is_empty() || !meaning.chars().any(char::is_alphabetic) {
            let found = format!("the term `{term}` has no meaning beside it");
            complaints.push(Complaint::new(
                PATH,
                line,
                found,
                "say in one line what it is, or delete the row",
            ));
        }
        if let Some(first) = seen.insert(term.to_lowercase(), line) {
            let found = format!("the term `{term}` is on line {first} already");
            complaints.push(Complaint::new(PATH, line, found, "keep one row: one word for each idea"));
        }
    }
    if seen.is_empty() {
        complaints.push(Complaint::new(PATH, 0, "has no rows", "write a table: `| term | meaning |`"));
    }
    complaints
}

/// Lists line, term and meaning of each row of each table, without headings.
fn rows(text: &str) -> Vec<(usize, String, String)> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_rule = |line: &str| {
        line.starts_with('|') && line.contains("--") && line.chars().all(|one| "|-: ".contains(one))
    };
    let mut rows = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let heading = lines.get(index + 1).is_some_and(|next| is_rule(next));
        if line.starts_with('|') && !is_rule(line) && !heading {
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().replace(['*', '`'], ""));
            let term = cells.next().unwrap_or_default();
            rows.push((index + 1, term, cells.collect::<Vec<_>>().join("|").trim().to_owned()));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check(&Tree::of(&[(PATH, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn terms_need_one_meaning_each() {
        let head = "# Glossary\n\n| term | meaning |\n|---|---|\n";
        assert_eq!(found(&format!("{head}| **run** | one training |\n| peer | a computer |\n")), [""; 0]);
        for (rows, said) in [
            ("| run | |\n", "`run` has no meaning"),
            ("| run |\n", "`run` has no meaning"),
            ("| run | - |\n", "`run` has no meaning"),
            ("| | one training |\n", "`` has no meaning"),
            ("| run | one training |\n| Run | another |\n", "`Run` is on line 5 already"),
            ("", "has no rows"),
        ] {
            let complaints = found(&format!("{head}{rows}"));
            assert_eq!(complaints.len(), 1, "{rows:?}: {complaints:?}");
            assert!(complaints[0].contains(said), "{rows:?}: {complaints:?}");
        }
    }

    #[test]
    fn a_missing_glossary_is_said() {
        assert!(check(&Tree::of(&[]))[0].found.contains("is missing"));
    }
}
