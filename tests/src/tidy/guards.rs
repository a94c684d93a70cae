//! The guards that `scripts/guards.py` deletes: each stands once where the table says, has the tests that it names, and has a row
//! in the page.

use std::collections::BTreeSet;

use crate::tidy::complaint::Complaint;
use crate::tidy::tree::Tree;

/// Where the guards are listed.
pub const PATH: &str = "scripts/guards.toml";

/// Where they are explained.
const PAGE: &str = "docs/guards.md";

/// Complains of each guard whose text is not there once, that names a test that there is not, or that has no row in the page,
/// and of each row without a guard.
pub fn check(tree: &Tree) -> Vec<Complaint> {
    let Some(text) = tree.text(PATH) else {
        return vec![Complaint::new(PATH, 0, "is missing", "list the guards that the script deletes")];
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return vec![Complaint::new(PATH, 0, format!("is no TOML: {error}"), "correct it")],
    };
    let guards = table.get("guard").and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if guards.is_empty() {
        return vec![Complaint::new(PATH, 0, "lists no guard", "write a `[[guard]]` for each")];
    }
    let (mut complaints, mut names, mut rows) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for guard in guards {
        let name = word(guard, "name");
        if name.is_empty() || !names.insert(name) {
            let found = format!("names a guard `{name}` that has no name of its own");
            complaints.push(Complaint::new(PATH, 0, found, "give it one"));
        }
        complaints.extend(check_text(tree, guard));
        complaints.extend(check_tests(tree, guard));
        rows.insert(row(guard));
    }
    complaints.extend(check_page(tree, &rows));
    complaints
}

fn word<'a>(guard: &'a toml::Value, field: &str) -> &'a str {
    guard.get(field).and_then(toml::Value::as_str).unwrap_or_default()
}

fn tests(guard: &toml::Value) -> Vec<&str> {
    let tests = guard.get("tests").and_then(toml::Value::as_array);
    tests.into_iter().flatten().filter_map(toml::Value::as_str).collect()
}

fn check_text(tree: &Tree, guard: &toml::Value) -> Option<Complaint> {
    let (name, file, find) = (word(guard, "name"), word(guard, "file"), word(guard, "find"));
    let times = tree.text(file).map_or(0, |text| text.matches(find).count());
    if times != 1 || find.is_empty() {
        let found = format!("holds the text of the guard `{name}` {times} times, not once");
        return Some(Complaint::new(file, 0, found, format!("correct its `file` and `find` in {PATH}")));
    }
    let same = guard.get("replace").and_then(toml::Value::as_str).is_none_or(|other| other == find);
    same.then(|| {
        Complaint::new(
            PATH,
            0,
            format!("leaves the guard `{name}` in place"),
            "say what stands there without it",
        )
    })
}

/// A test is a function of the package, or a scenario of the simulator.
fn check_tests(tree: &Tree, guard: &toml::Value) -> Vec<Complaint> {
    let (name, package) = (word(guard, "name"), word(guard, "package"));
    let folder = format!("crates/{}/", package.strip_prefix("trestle-").unwrap_or(package));
    let is_there = |test: &&str| {
        let function = format!("fn {test}(");
        let scenario = format!("sim/scenarios/{test}.txt");
        let mut files = tree.texts(&[".rs"]).filter(|(path, _)| path.starts_with(&folder));
        files.any(|(_, text)| text.contains(&function))
            || (package == "trestle-sim" && tree.text(&scenario).is_some())
    };
    let named = tests(guard);
    if named.is_empty() {
        let found = format!("names no test for the guard `{name}`");
        return vec![Complaint::new(PATH, 0, found, "name the test that turns red without it")];
    }
    let missing = named.into_iter().filter(|test| !is_there(test)).map(|test| {
        let found = format!("names the test `{test}` for `{name}`, which {folder} does not have");
        Complaint::new(PATH, 0, found, "correct its name, or write it")
    });
    missing.collect()
}

/// Returns what the page says of a guard.
fn row(guard: &toml::Value) -> String {
    let tests: Vec<String> = tests(guard).iter().map(|test| format!("`{test}`")).collect();
    format!("| `{}` | {} | {} |", word(guard, "name"), word(guard, "invariant"), tests.join(", "))
}

fn check_page(tree: &Tree, wanted: &BTreeSet<String>) -> Vec<Complaint> {
    let text = tree.text(PAGE).unwrap_or_default();
    let there: Vec<(usize, &str)> =
        (1..).zip(text.lines()).filter(|(_, text)| text.starts_with("| `")).collect();
    let missing = wanted.iter().filter(|row| there.iter().all(|(_, other)| other != row));
    let missing =
        missing.map(|row| Complaint::new(PAGE, 0, "lacks the row of a guard", format!("write: {row}")));
    let surplus = there.iter().filter(|(_, row)| !wanted.contains(*row)).map(|(line, row)| {
        let found = format!("has a row of no guard: {row}");
        Complaint::new(PAGE, *line, found, format!("say it as {PATH} does, or delete it"))
    });
    missing.chain(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
        [[guard]]
        name = "fence"
        invariant = "Late work counts for nothing."
        file = "crates/core/src/a.rs"
        find = "if late {"
        replace = "if false {"
        package = "trestle-core"
        tests = ["late_work_is_refused"]
    "#;
    const CODE: &str = "fn f() { if late { return; } }";
    const TEST: &str = "#[test] fn late_work_is_refused() {}";
    const ROW: &str = "| `fence` | Late work counts for nothing. | `late_work_is_refused` |";

    fn found(table: &str, code: &str, test: &str, page: &str) -> Vec<String> {
        let files = [
            (PATH, table),
            (PAGE, page),
            ("crates/core/src/a.rs", code),
            ("crates/core/tests/b.rs", test),
            ("crates/other/tests/b.rs", TEST),
        ];
        check(&Tree::of(&files)).into_iter().map(|complaint| complaint.found).collect()
    }

    #[test]
    fn a_guard_stands_once_and_its_test_and_row_are_there() {
        assert_eq!(found(TABLE, CODE, TEST, ROW), [""; 0]);
        let gone = found(TABLE, "fn f() {}", TEST, ROW);
        assert_eq!(gone, ["holds the text of the guard `fence` 0 times, not once"]);
        let twice = found(TABLE, "if late { if late {", TEST, ROW);
        assert_eq!(twice, ["holds the text of the guard `fence` 2 times, not once"]);
        let same = found(&TABLE.replace("if false {", "if late {"), CODE, TEST, ROW);
        assert_eq!(same, ["leaves the guard `fence` in place"]);
        let no_test = found(TABLE, CODE, "fn late_work_is_refused_too() {}", ROW);
        assert!(no_test.len() == 1 && no_test[0].contains("does not have"), "{no_test:?}");
        let unnamed = found(&TABLE.replace("\"late_work_is_refused\"", ""), CODE, TEST, ROW);
        assert!(unnamed.iter().any(|found| found.contains("names no test")), "{unnamed:?}");
        let twin = found(&format!("{TABLE}{TABLE}"), CODE, TEST, ROW);
        assert_eq!(twin, ["names a guard `fence` that has no name of its own"]);
    }

    #[test]
    fn the_page_has_a_row_for_each_guard_and_for_nothing_else() {
        assert_eq!(found(TABLE, CODE, TEST, ""), ["lacks the row of a guard"]);
        let more = found(TABLE, CODE, TEST, &format!("{ROW}\n| `gone` | x | `y` |"));
        assert_eq!(more, ["has a row of no guard: | `gone` | x | `y` |"]);
    }

    #[test]
    fn a_table_that_is_not_there_or_empty_is_said() {
        assert_eq!(check(&Tree::of(&[]))[0].found, "is missing");
        assert_eq!(found("", CODE, TEST, ROW), ["lists no guard"]);
        assert!(found("guard = [", CODE, TEST, ROW)[0].starts_with("is no TOML"));
    }

    #[test]
    fn a_scenario_is_a_test_of_the_simulator() {
        let table =
            TABLE.replace("trestle-core", "trestle-sim").replace("late_work_is_refused", "churn_kill");
        let page = ROW.replace("late_work_is_refused", "churn_kill");
        let files = [(PATH, table.as_str()), (PAGE, &page), ("crates/core/src/a.rs", CODE)];
        assert_eq!(check(&Tree::of(&files)).len(), 1);
        let scenario = ("sim/scenarios/churn_kill.txt", "train");
        assert_eq!(check(&Tree::of(&[files[0], files[1], files[2], scenario])), []);
    }
}
