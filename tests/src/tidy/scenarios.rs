//! The page of the simulator: every verb that a scenario may have, every key of it and every measure is explained there, and
//! none that there is not.

use std::collections::BTreeSet;

use crate::tidy::complaint::Complaint;
use crate::tidy::source::Source;
use crate::tidy::tree::Tree;

/// Where scenarios are explained.
pub const PATH: &str = "docs/simulator.md";

/// Where the verbs are listed, and what each takes.
const VERBS: (&str, &str) = ("crates/sim/src/scenario/script.rs", "VERBS");
const TAKES: (&str, &str) = ("crates/sim/src/scenario/script.rs", "TAKES");

/// Where the measures are listed that are numbers, and how a running may end.
const MEASURES: (&str, &str) = ("crates/sim/src/scenario/expectation.rs", "MEASURES");
const OUTCOMES: (&str, &str) = ("crates/sim/src/scenario/expectation.rs", "OUTCOMES");

/// The measures that are no numbers.
const WORDS: [&str; 4] = ["outcome", "digest", "losses", "laws"];

/// Stands in a row for the ways to say to whom something is done, which a paragraph of its own explains.
const WHOM: &str = "WHOM";

/// A row of the page: its line, the code in its first cell, and the whole of it.
struct Row<'a> {
    line: usize,
    code: Vec<&'a str>,
    text: &'a str,
}

/// Complains of each verb, key, measure and outcome without a word in the page, and of each row about none.
pub fn check(tree: &Tree, sources: &[Source]) -> Vec<Complaint> {
    let Some(text) = tree.text(PATH) else {
        return vec![Complaint::new(PATH, 0, "is missing", "write tables of verbs and of measures")];
    };
    let mut complaints = Vec::new();
    let mut listed = |(path, name): (&str, &str)| {
        let found = strings(sources, path, name);
        if found.is_empty() {
            let found = format!("has no list `{name}`");
            complaints.push(Complaint::new(path, 0, found, "correct the check of scenarios"));
        }
        found
    };
    let verbs: BTreeSet<String> = listed(VERBS).iter().flat_map(|all| words(all)).collect();
    let takes = listed(TAKES);
    let outcomes = listed(OUTCOMES);
    let measures: BTreeSet<String> = listed(MEASURES).into_iter().chain(WORDS.map(String::from)).collect();
    let (of_verbs, of_measures) = (rows(text, "verb"), rows(text, "measure"));
    let verb_of = |code: &str| code.split([' ', '[']).next().unwrap_or_default().to_owned();
    let measure_of = |code: &str| code.split(['=', '<', '>']).next().unwrap_or_default().to_owned();
    complaints.extend(compare(&verbs, &of_verbs, "verb", verb_of));
    complaints.extend(compare(&measures, &of_measures, "measure", measure_of));
    let whom: String = text.split("\n\n").filter(|part| part.starts_with(&format!("*{WHOM}*"))).collect();
    for (verb, takes) in takes.iter().zip(takes.iter().skip(1)).step_by(2) {
        let about = of_verbs.iter().filter(|row| row.code.iter().any(|code| verb_of(code) == *verb));
        let mut about: String = about.map(|row| row.text).collect();
        if about.contains(WHOM) {
            about += &whom;
        }
        for key in keys(takes).filter(|key| !about.contains(&format!("{key}="))) {
            let found = format!("does not explain `{key}=` of `{verb}`");
            complaints.push(Complaint::new(PATH, 0, found, "add it to the row of the verb"));
        }
    }
    let outcome: String =
        of_measures.iter().filter(|row| row.code.contains(&"outcome")).map(|row| row.text).collect();
    for word in outcomes.iter().filter(|word| !outcome.contains(&format!("`{word}`"))) {
        let found = format!("does not explain the outcome `{word}`");
        complaints.push(Complaint::new(PATH, 0, found, "add it to the row of `outcome`"));
    }
    complaints
}

fn compare(
    known: &BTreeSet<String>,
    rows: &[Row<'_>],
    what: &str,
    name: impl Fn(&str) -> String,
) -> Vec<Complaint> {
    let told = rows.iter().flat_map(|row| row.code.iter().map(|code| (row.line, name(code))));
    let told: Vec<(usize, String)> = told.collect();
    let missing = known.iter().filter(|one| told.iter().all(|(_, other)| other != *one));
    let missing = missing.map(|one| {
        Complaint::new(PATH, 0, format!("does not explain the {what} `{one}`"), "add a row for it")
    });
    let surplus = told.iter().filter(|(_, one)| !known.contains(one)).map(|(line, one)| {
        let found = format!("explains the {what} `{one}`, which there is not");
        Complaint::new(PATH, *line, found, "delete the row, or correct its name")
    });
    missing.chain(surplus).collect()
}

/// Lists the strings in a constant, in their order.
fn strings(sources: &[Source], path: &str, name: &str) -> Vec<String> {
    struct Strings(Vec<String>);
    impl<'a> syn::visit::Visit<'a> for Strings {
        fn visit_lit_str(&mut self, literal: &'a syn::LitStr) {
            self.0.push(literal.value());
        }
    }
    let mut found = Strings(Vec::new());
    for item in sources.iter().filter(|source| source.path == path).flat_map(|source| &source.syntax.items) {
        if let syn::Item::Const(item) = item
            && item.ident == name
        {
            syn::visit::Visit::visit_expr(&mut found, &item.expr);
        }
    }
    found.0
}

fn words(list: &str) -> impl Iterator<Item = String> + '_ {
    list.split(',').map(|word| word.trim().to_owned())
}

/// Lists the words that end in `=`.
fn keys(takes: &str) -> impl Iterator<Item = &str> {
    takes.split([' ', ',', ';']).filter_map(|word| word.strip_suffix('='))
}

/// Lists the rows of the tables whose first column has this heading.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Row<'a>> {
    let (mut rows, mut within) = (Vec::new(), false);
    for (line, text) in (1..).zip(text.lines()) {
        let Some(cells) = text.strip_prefix("| ") else {
            within &= text.starts_with("|-");
            continue;
        };
        if !within {
            within = cells.starts_with(&format!("{heading} |"));
            continue;
        }
        // A bar in code is written with a stroke before it.
        let first = cells.replace("\\|", "  ").find('|').map_or(cells, |end| &cells[..end]);
        rows.push(Row { line, code: first.split('`').skip(1).step_by(2).collect(), text });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> Vec<Source> {
        let script = r#"const VERBS: &str = "steps, \
            kill"; const TAKES: [(&str, &str); 1] = [("kill", "a name or stage=, restart= or at=")];"#;
        let expectation =
            r#"const MEASURES: [(&str, u8); 1] = [("lost", 1)]; const OUTCOMES: [&str; 1] = ["done"];"#;
        let parse = |path, text| Source::parse(path, text).expect("it parses");
        vec![parse(VERBS.0, script), parse(MEASURES.0, expectation)]
    }

    fn found(verbs: &str, measures: &str) -> Vec<String> {
        let rest = "| `digest=same-twice` | x |\n| `losses=a`, `laws=kept` | x |\n";
        let page = format!(
            "*WHOM* is `stage=1`, or a name.\n\n| verb | does |\n|---|---|\n{verbs}\n\n| measure | is |\n|---|---|\n{measures}\n{rest}"
        );
        check(&Tree::of(&[(PATH, &page)]), &code()).into_iter().map(|complaint| complaint.found).collect()
    }

    const STEPS: &str = "| `steps N` | many |\n";
    const KILL: &str = "| `kill WHOM [restart=a\\|b]`, | with `at=` |";
    const OUTCOME: &str = "| `outcome` | `done` |\n";
    const LOST: &str = "| `lost` | gone |";

    #[test]
    fn everything_that_a_scenario_may_say_has_a_word() {
        let (verbs, measures) = (format!("{STEPS}{KILL}"), format!("{OUTCOME}{LOST}"));
        assert_eq!(found(&verbs, &measures), [""; 0]);
        assert_eq!(found(KILL, &measures), ["does not explain the verb `steps`"]);
        let half = format!("{STEPS}| `kill WHOM` | `at=` |");
        assert_eq!(found(&half, &measures), ["does not explain `restart=` of `kill`"]);
        let nobody = format!("{STEPS}| `kill [restart=a]` | `at=` |");
        assert_eq!(found(&nobody, &measures), ["does not explain `stage=` of `kill`"]);
        let more = format!("{verbs}\n| `save` | x |");
        assert_eq!(found(&more, &measures), ["explains the verb `save`, which there is not"]);
        assert_eq!(found(&verbs, OUTCOME.trim()), ["does not explain the measure `lost`"]);
        let more = format!("{measures}\n| `won<2` | x |");
        assert_eq!(found(&verbs, &more), ["explains the measure `won`, which there is not"]);
        let none = format!("| `outcome` | how |\n{LOST}");
        assert_eq!(found(&verbs, &none), ["does not explain the outcome `done`"]);
    }

    #[test]
    fn lists_that_are_not_found_are_said() {
        let complaints = check(&Tree::of(&[(PATH, "")]), &[]);
        assert!(complaints.iter().filter(|complaint| complaint.found.contains("has no list")).count() == 4);
        assert!(check(&Tree::of(&[]), &[])[0].found.contains("is missing"));
    }
}
