//! The page of reasons: every code that a peer can be given is explained, and no code that there is not.

use std::collections::BTreeSet;

use crate::tidy::complaint::Complaint;
use crate::tidy::source::Source;
use crate::tidy::tree::Tree;

/// Where the reasons are explained.
pub const PATH: &str = "docs/reasons.md";

/// The enums whose variants are codes, with the file that defines each.
const ENUMS: [(&str, &str); 7] = [
    ("crates/protocol/src/message.rs", "Refusal"),
    ("crates/protocol/src/message.rs", "Wait"),
    ("crates/protocol/src/message.rs", "Removal"),
    ("crates/protocol/src/message.rs", "Outcome"),
    ("crates/protocol/src/receipt.rs", "ReceiptError"),
    ("crates/protocol/src/handshake.rs", "Mismatch"),
    ("crates/net/src/event.rs", "LostReason"),
];

/// Complains of each code without a row in the page, and of each row without a code. A row is `| `Enum::Code` | ... |`.
pub fn check(tree: &Tree, sources: &[Source]) -> Vec<Complaint> {
    let Some(text) = tree.text(PATH) else {
        return vec![Complaint::new(
            PATH,
            0,
            "is missing",
            "write a row `| `Enum::Code` | what to do |` for each",
        )];
    };
    let mut complaints = Vec::new();
    let mut codes = BTreeSet::new();
    for (path, name) in ENUMS {
        let found = variants(sources, path, name);
        if found.is_empty() {
            complaints.push(Complaint::new(
                path,
                0,
                format!("has no enum `{name}`"),
                "correct the list of enums",
            ));
        }
        codes.extend(found);
    }
    let rows: Vec<(usize, String)> = rows(text).collect();
    let explained: BTreeSet<&String> = rows.iter().map(|(_, code)| code).collect();
    for code in codes.iter().filter(|code| !explained.contains(code)) {
        complaints.push(Complaint::new(PATH, 0, format!("does not explain `{code}`"), "add a row for it"));
    }
    for (line, code) in rows.iter().filter(|(_, code)| !codes.contains(code)) {
        let found = format!("explains `{code}`, which no peer is ever given");
        complaints.push(Complaint::new(PATH, *line, found, "delete the row, or correct its name"));
    }
    complaints
}

#[expect(clippy::wildcard_enum_match_arm, reason = "only enums have variants")]
fn variants(sources: &[Source], path: &str, name: &str) -> Vec<String> {
    let files = sources.iter().filter(|source| source.path == path);
    let items = files.flat_map(|source| &source.syntax.items);
    let found = items.filter_map(|item| match item {
        syn::Item::Enum(found) if found.ident == name => Some(&found.variants),
        _ => None,
    });
    found.flatten().map(|variant| format!("{name}::{}", variant.ident)).collect()
}

fn rows(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    (1..).zip(text.lines()).filter_map(|(line, text)| {
        let code = text.strip_prefix("| `")?.split('`').next()?;
        code.contains("::").then(|| (line, code.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every enum of the list, with one code each but for `Refusal`, which has two.
    fn code() -> Vec<Source> {
        let mut files: std::collections::BTreeMap<&str, String> = std::collections::BTreeMap::new();
        for (path, name) in ENUMS {
            let more = if name == "Refusal" { ", Busy { microbatch: u64 }" } else { "" };
            files.entry(path).or_default().push_str(&format!("pub enum {name} {{ One{more} }}\n"));
        }
        files.iter().map(|(path, text)| Source::parse(path, text).expect("it parses")).collect()
    }

    fn page(without: &str, with: &str) -> Tree {
        let mut codes: Vec<String> = ENUMS.iter().map(|(_, name)| format!("{name}::One")).collect();
        codes.push("Refusal::Busy".into());
        let rows = codes.iter().filter(|code| *code != without).map(|code| format!("| `{code}` | why |\n"));
        let text: String = rows.collect::<String>() + with;
        Tree::of(&[(PATH, &text)])
    }

    #[test]
    fn every_code_has_a_row_and_every_row_a_code() {
        assert_eq!(check(&page("", ""), &code()), []);
        let missing = check(&page("Refusal::Busy", ""), &code());
        assert!(missing.len() == 1 && missing[0].found.contains("`Refusal::Busy`"), "{missing:?}");
        let surplus = check(&page("", "| `Refusal::Gone` | why |\n"), &code());
        assert!(surplus.len() == 1 && surplus[0].found.contains("no peer is ever given"), "{surplus:?}");
        assert!(check(&Tree::of(&[]), &code())[0].found.contains("is missing"));
        assert_eq!(
            check(&page("", ""), &[]).len(),
            ENUMS.len() * 2 + 1,
            "enums that are not found, and their rows"
        );
    }
}
