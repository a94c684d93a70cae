//! Arrows between crates: which may use which, as data, against what each `Cargo.toml` asks for.

use toml::{Table, Value};

use crate::tidy::complaint::Complaint;
use crate::tidy::tree::Tree;

/// Each crate of ours and those of ours it may use: the table "may use" of `ARCHITECTURE.md`. Every arrow falls.
pub const MAY_USE: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("model", &[]),
    ("data", &[]),
    ("net", &["protocol"]),
    ("settings", &["protocol", "model", "data"]),
    ("node", &["protocol", "model", "data", "settings", "net"]),
    ("fleet", &["protocol", "model", "settings"]),
    ("sim", &["protocol", "model", "data", "settings", "fleet"]),
    ("dashboard", &["protocol"]),
    ("cli", &["protocol", "model", "data", "settings", "net", "node", "sim", "fleet", "dashboard"]),
    ("tests", &["protocol", "model", "data", "settings", "net", "node", "sim", "fleet", "dashboard", "cli"]),
];

/// Foreign crates with a home: no other crate of ours may use them outside its tests.
pub const HOMES: &[(&str, &[&str])] = &[
    ("anyhow", &["cli"]),
    ("axum", &["dashboard"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("iroh", &["net"]),
    ("noq-proto", &["net"]),
    ("plotters", &["cli"]),
    ("ratatui", &["cli", "dashboard"]),
    ("rusqlite", &["node"]),
    ("tch", &["model"]),
    ("tokenizers", &["data"]),
    ("tokio", &["net", "node", "dashboard", "cli"]),
    ("toml", &["cli", "fleet", "tests"]),
];

/// Complains of each arrow between crates that the tables forbid, each crate they do not know, and each dependency
/// that goes by another name than its own.
pub fn check(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.texts(&["Cargo.toml"]) {
        match text.parse::<Table>() {
            Ok(manifest) => look(path, text, &manifest, &mut complaints),
            Err(error) => {
                complaints.push(Complaint::new(path, 0, format!("is not TOML: {error}"), "correct it"))
            }
        }
    }
    complaints
}

fn look(path: &str, text: &str, manifest: &Table, complaints: &mut Vec<Complaint>) {
    let owner = crate_name(path);
    if let Some(owner) = owner
        && !MAY_USE.iter().any(|(name, _)| *name == owner)
    {
        let instead = "put it into a crate there is; or add to ARCHITECTURE.md what it may use and may not know, then to MAY_USE here";
        complaints.push(Complaint::new(
            path,
            0,
            format!("the crate `{owner}` is not in the table of crates"),
            instead,
        ));
        return;
    }
    for (kind, name, value) in dependencies(manifest) {
        let line = line_of(text, &name);
        if value.get("package").is_some() {
            let instead = "ask for it by its own name, so that a reader and a search find it";
            complaints.push(Complaint::new(
                path,
                line,
                format!("the dependency `{name}` is renamed"),
                instead,
            ));
        }
        let Some(owner) = owner else { continue };
        if let Some((found, instead)) = forbidden(owner, &name, kind) {
            complaints.push(Complaint::new(path, line, found, instead));
        }
    }
}

/// The crate a manifest belongs to; None for the workspace's root and for packages outside `crates/` and `tests/`.
fn crate_name(path: &str) -> Option<&str> {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["tests", "Cargo.toml"] => Some("tests"),
        ["crates", name, "Cargo.toml"] => Some(name),
        _ => None,
    }
}

fn forbidden(owner: &str, name: &str, kind: &str) -> Option<(String, String)> {
    if let Some(used) = name.strip_prefix("trestle-") {
        let (_, may_use) = MAY_USE.iter().find(|(name, _)| *name == owner)?;
        let instead = match may_use {
            [] => format!(
                "`{owner}` may use nothing of ours: pass in what it needs, or move the code to a crate above both"
            ),
            names => format!(
                "`{owner}` may use {}: pass in what it needs, or move the code to a crate above both",
                names.join(", ")
            ),
        };
        return (!may_use.contains(&used))
            .then(|| (format!("the arrow {owner} -> {used} is not allowed"), instead));
    }
    let (_, homes) = HOMES.iter().find(|(foreign, _)| *foreign == name)?;
    let allowed = kind == "dev-dependencies" || homes.contains(&owner);
    let instead = || {
        format!(
            "`{name}` lives in {}: say there what `{owner}` needs, in that crate's own words",
            homes.join(", ")
        )
    };
    (!allowed).then(|| (format!("`{owner}` may not know `{name}`"), instead()))
}

/// Lists kind, name and value of every dependency: plain, of builds, of tests, of the workspace, and for one target.
fn dependencies(manifest: &Table) -> Vec<(&'static str, String, &Value)> {
    const KINDS: [&str; 3] = ["dependencies", "build-dependencies", "dev-dependencies"];
    let targets = manifest.get("target").and_then(Value::as_table);
    let per_target = targets.into_iter().flat_map(|targets| targets.values()).filter_map(Value::as_table);
    let workspace = manifest.get("workspace").and_then(Value::as_table);
    let mut found = Vec::new();
    for table in std::iter::once(manifest).chain(per_target).chain(workspace) {
        for kind in KINDS {
            let entries = table.get(kind).and_then(Value::as_table);
            found.extend(entries.into_iter().flatten().map(|(name, value)| (kind, name.clone(), value)));
        }
    }
    found
}

fn line_of(text: &str, name: &str) -> usize {
    let starts = |line: &str| {
        line.trim_start()
            .trim_matches('"')
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with([' ', '.', '=', '"']))
    };
    text.lines().position(starts).map_or(0, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Tree::of(&[(path, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn upward_arrows_are_found() {
        for (owner, text, said) in [
            ("protocol", "[dependencies]\ntrestle-model.workspace = true", "protocol -> model"),
            ("model", "[dependencies]\ntrestle-protocol = { path = \"../protocol\" }", "model -> protocol"),
            ("sim", "[dependencies]\ntrestle-net.workspace = true", "sim -> net"),
            ("net", "[dev-dependencies]\ntrestle-node.workspace = true", "net -> node"),
            ("data", "[build-dependencies]\ntrestle-model.workspace = true", "data -> model"),
            ("node", "[target.'cfg(unix)'.dependencies]\ntrestle-sim.workspace = true", "node -> sim"),
        ] {
            let complaints = found(&format!("crates/{owner}/Cargo.toml"), text);
            assert_eq!(complaints.len(), 1, "{owner}: {complaints:?}");
            assert!(complaints[0].contains(said), "{owner}: {complaints:?}");
        }
    }

    #[test]
    fn foreign_crates_stay_at_home() {
        for (owner, name) in
            [("node", "anyhow"), ("protocol", "tokio"), ("sim", "tch"), ("node", "iroh"), ("data", "clap")]
        {
            let complaints = found(
                &format!("crates/{owner}/Cargo.toml"),
                &format!("[dependencies]\n{name}.workspace = true"),
            );
            assert_eq!(complaints.len(), 1, "{owner} {name}: {complaints:?}");
            assert!(
                complaints[0].contains(&format!("Cargo.toml:2: `{owner}` may not know `{name}`")),
                "{complaints:?}"
            );
        }
        assert_eq!(found("crates/node/Cargo.toml", "[dev-dependencies]\ntoml.workspace = true"), [""; 0]);
    }

    #[test]
    fn renamed_dependencies_are_found() {
        let text =
            "[workspace.dependencies]\nbytes = \"1\"\njson = { package = \"serde_json\", version = \"1\" }";
        let complaints = found("Cargo.toml", text);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].contains("Cargo.toml:3: the dependency `json` is renamed"), "{complaints:?}");
        assert_eq!(
            found("crates/net/Cargo.toml", "[dependencies]\nj = { package = \"serde_json\" }").len(),
            1
        );
    }

    #[test]
    fn a_new_crate_must_say_what_it_may_not_know() {
        assert!(found("crates/gossip/Cargo.toml", "")[0].contains("`gossip` is not in the table"));
    }

    #[test]
    fn falling_arrows_pass() {
        let text = "[dependencies]\ntrestle-net.workspace = true\ntokio.workspace = true\nserde = { workspace = true }";
        assert_eq!(found("crates/node/Cargo.toml", text), [""; 0]);
    }

    #[test]
    fn the_table_itself_has_no_circle() {
        for (index, (owner, may_use)) in MAY_USE.iter().enumerate() {
            for used in *may_use {
                let below = MAY_USE.iter().position(|(name, _)| name == used);
                assert!(below.is_some_and(|below| below < index), "{owner} -> {used} does not fall");
            }
        }
    }
}
