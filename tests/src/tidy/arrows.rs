//! Arrows between the files of a target: they fall, and never close a ring.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::tidy::complaint::Complaint;
use crate::tidy::mentions::{Import, Mention, mentions};
use crate::tidy::modules::{ModulePath, Target, targets};
use crate::tidy::source::Source;

/// From each file to the files it uses, with the line of the first use.
type Graph = BTreeMap<String, BTreeMap<String, usize>>;

/// Complains of each ring of files, each import that goes through a re-export, each root file that defines things, and
/// each file that no module declares. Items for tests alone may use what they like.
pub fn check(sources: &[Source]) -> Vec<Complaint> {
    let trees = targets(sources);
    let mut complaints = undeclared(sources, &trees);
    complaints.extend(
        sources.iter().filter(|source| source.path.ends_with("/src/lib.rs")).flat_map(definitions_in_root),
    );
    for target in &trees {
        let mut graph = Graph::new();
        for path in target.live_files() {
            let Some(source) = sources.iter().find(|source| source.path == path) else { continue };
            let arrows = arrows_of(source, target, &mut complaints);
            graph.insert(path.to_owned(), arrows);
        }
        complaints.extend(rings(&graph).iter().map(|ring| ring_complaint(ring, &graph)));
    }
    complaints
}

fn undeclared(sources: &[Source], trees: &[Target]) -> Vec<Complaint> {
    let declared: BTreeSet<&str> =
        trees.iter().flat_map(|target| target.modules.values()).map(|module| module.path.as_str()).collect();
    let forgotten = sources
        .iter()
        .filter(|source| source.path.contains("/src/") && !declared.contains(source.path.as_str()));
    forgotten
        .map(|source| {
            Complaint::new(
                &source.path,
                0,
                "no module declares this file, so it is never compiled",
                "declare it with `mod`, or delete it",
            )
        })
        .collect()
}

fn definitions_in_root(source: &Source) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for item in &source.live().items {
        let allowed = matches!(
            item,
            syn::Item::Mod(_) | syn::Item::Use(_) | syn::Item::ExternCrate(_) | syn::Item::Macro(_)
        );
        if !allowed {
            let line = syn::spanned::Spanned::span(item).start().line;
            let instead = "move it into a file named after it; the root declares modules and re-exports them for outsiders";
            complaints.push(Complaint::new(
                &source.path,
                line,
                "the root of the crate defines something itself",
                instead,
            ));
        }
    }
    complaints
}

fn arrows_of(source: &Source, target: &Target, complaints: &mut Vec<Complaint>) -> BTreeMap<String, usize> {
    let mut arrows = BTreeMap::new();
    let Some(home) = target.module_of(&source.path) else { return arrows };
    let named = mentions(&source.live());
    let resolver = Resolver { target, home, aliases: aliases(&named, target, home) };
    for mention in &named {
        let Some((module, rest)) = resolver.resolve(mention) else { continue };
        let path = &target.modules[&module].path;
        let below_home = module.starts_with(home) && module != *home;
        // A parent that passes on what its child defines says nothing about its own work.
        let passes_on = matches!(mention.import, Import::Public(_)) && below_home;
        if *path == source.path || passes_on {
            continue;
        }
        if let Some(complaint) = through_reexport(source, mention, target, &module, &rest) {
            complaints.push(complaint);
            continue;
        }
        arrows.entry(path.clone()).or_insert(mention.line);
    }
    arrows
}

/// Local names of modules that the file imports: `use crate::stage;` lets it say `stage::block::Block`.
fn aliases(named: &[Mention], target: &Target, home: &ModulePath) -> BTreeMap<String, ModulePath> {
    let resolver = Resolver { target, home, aliases: BTreeMap::new() };
    let imported = named.iter().filter_map(|mention| match &mention.import {
        Import::Private(name) | Import::Public(name) if name != "*" => {
            let (module, rest) = resolver.resolve(mention)?;
            rest.is_empty().then(|| (name.clone(), module))
        }
        Import::Private(_) | Import::Public(_) | Import::No => None,
    });
    imported.collect()
}

struct Resolver<'a> {
    target: &'a Target,
    home: &'a ModulePath,
    aliases: BTreeMap<String, ModulePath>,
}

impl Resolver<'_> {
    /// Finds the innermost module a path leads into, and what it names there; None for paths to other crates.
    fn resolve(&self, mention: &Mention) -> Option<(ModulePath, Vec<String>)> {
        let here: ModulePath = self.home.iter().chain(&mention.inside).cloned().collect();
        let (first, rest) = mention.segments.split_first()?;
        let mut module = match first.as_str() {
            "crate" => ModulePath::new(),
            "self" => here,
            "super" => here.split_last().map(|(_, above)| above.to_vec())?,
            name => {
                let child = with(&here, name);
                if self.target.modules.contains_key(&child) { child } else { self.aliases.get(name)?.clone() }
            }
        };
        let mut rest = rest.to_vec();
        while let Some(next) = rest.first() {
            let below = if next == "super" { module.split_last()?.1.to_vec() } else { with(&module, next) };
            if !self.target.modules.contains_key(&below) {
                break;
            }
            module = below;
            rest.remove(0);
        }
        self.target.modules.contains_key(&module).then_some((module, rest))
    }
}

fn with(module: &[String], name: &str) -> ModulePath {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn through_reexport(
    source: &Source,
    mention: &Mention,
    target: &Target,
    module: &ModulePath,
    rest: &[String],
) -> Option<Complaint> {
    let name = rest.first()?;
    let holder = &target.modules[module];
    // Macros with `#[macro_export]` live at the root wherever they are written.
    let exported_macro =
        module.is_empty() && target.modules.values().any(|other| other.defined.contains(name));
    let defines_it = holder.defined.contains(name);
    let is_macro =
        exported_macro && name.chars().all(|one| one.is_lowercase() || one == '_' || one.is_numeric());
    if defines_it || is_macro {
        return None;
    }
    let definer = target.modules.iter().find(|(_, other)| !other.is_test && other.defined.contains(name));
    let instead = match definer {
        Some((path, _)) => {
            format!("import it from the file that defines it: `crate::{}::{name}`", path.join("::"))
        }
        None => "import it from the file or the crate that defines it".to_owned(),
    };
    let found = format!(
        "`{}` comes through {}, which only passes `{name}` on",
        mention.segments.join("::"),
        holder.path
    );
    Some(Complaint::new(&source.path, mention.line, found, instead))
}

/// Finds the shortest ring through each file that is in one; files of a ring already found are not told again.
fn rings(graph: &Graph) -> Vec<Vec<String>> {
    let mut told: BTreeSet<&str> = BTreeSet::new();
    let mut rings = Vec::new();
    for start in graph.keys() {
        if told.contains(start.as_str()) {
            continue;
        }
        if let Some(ring) = shortest_ring(graph, start) {
            told.extend(
                ring.iter().filter_map(|path| graph.get_key_value(path)).map(|(path, _)| path.as_str()),
            );
            rings.push(ring);
        }
    }
    rings
}

fn shortest_ring(graph: &Graph, start: &str) -> Option<Vec<String>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for next in graph.get(file).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut ring = vec![file.to_owned()];
                let mut at = file;
                while let Some(before) = came_from.get(at) {
                    ring.push((*before).to_owned());
                    at = before;
                }
                ring.reverse();
                return Some(ring);
            }
            if next != start && !came_from.contains_key(next.as_str()) {
                came_from.insert(next, file);
                queue.push_back(next);
            }
        }
    }
    None
}

fn ring_complaint(ring: &[String], graph: &Graph) -> Complaint {
    let arrow = |index: usize| {
        let (from, to) = (&ring[index], &ring[(index + 1) % ring.len()]);
        let line = graph.get(from).and_then(|uses| uses.get(to)).copied().unwrap_or(0);
        (line, format!("\n      {from}:{line} uses {to}"))
    };
    let steps: String = (0..ring.len()).map(|index| arrow(index).1).collect();
    let instead =
        "a third thing below them is missing its name: give what both need a file of its own, or pass it in";
    Complaint::new(&ring[0], arrow(0).0, format!("these files form a ring:{steps}"), instead)
}

/// Counts the files whose arrows are measured: a test of the repository uses it to be sure that there are some.
pub fn files_seen(sources: &[Source]) -> usize {
    targets(sources).iter().map(|target| target.live_files().len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let paths: Vec<String> = files.iter().map(|(path, _)| format!("a/src/{path}")).collect();
        let files: Vec<(&str, &str)> =
            paths.iter().map(String::as_str).zip(files.iter().map(|(_, text)| *text)).collect();
        check(&fixtures(&files)).iter().map(ToString::to_string).collect()
    }

    const ROOT: (&str, &str) = ("lib.rs", "pub mod b; pub mod c; pub mod d; pub use b::B;");

    #[test]
    fn rings_are_found_however_the_arrow_is_written() {
        for back in [
            "use crate::b::B; pub struct C;",
            "use super::b::B; pub struct C;",
            "use crate::{b::B, d}; pub struct C;",
            "use crate::b; pub struct C; fn c(x: b::B) {}",
            "pub struct C; fn c(x: crate::b::B) {}",
            "pub struct C; fn c() { assert!(crate::b::B == 1); }",
            "pub struct C; impl From<super::b::B> for C {}",
            "pub struct C; fn c() { use crate::b::*; }",
            "pub struct C; mod inner { use super::super::b::B; }",
            "pub struct C; pub use crate::b::B;",
        ] {
            let complaints =
                found(&[ROOT, ("b.rs", "use crate::c::C; pub struct B;"), ("c.rs", back), ("d.rs", "")]);
            assert_eq!(complaints.len(), 1, "{back}: {complaints:?}");
            assert!(
                complaints[0].contains("a/src/b.rs:1 uses a/src/c.rs\n      a/src/c.rs:1 uses a/src/b.rs"),
                "{complaints:?}"
            );
        }
    }

    #[test]
    fn longer_rings_are_named_in_order() {
        let complaints = found(&[
            ROOT,
            ("b.rs", "use crate::c::C; pub struct B;"),
            ("c.rs", "use crate::d::D; pub struct C;"),
            ("d.rs", "\nuse crate::b::B; pub struct D;"),
        ]);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        let ring = "a/src/b.rs:1 uses a/src/c.rs\n      a/src/c.rs:1 uses a/src/d.rs\n      a/src/d.rs:2 uses a/src/b.rs";
        assert!(complaints[0].contains(ring), "{complaints:?}");
    }

    #[test]
    fn a_parent_and_its_child_can_form_a_ring() {
        let root = ("lib.rs", "mod b;");
        let child = ("b/c.rs", "use super::B; pub struct C;");
        let complaints = found(&[root, ("b.rs", "pub mod c; pub struct B; fn b(x: c::C) {}"), child]);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("form a ring"), "{complaints:?}");
        assert_eq!(found(&[root, ("b.rs", "pub mod c; pub struct B; pub use c::C;"), child]), [""; 0]);
    }

    #[test]
    fn falling_arrows_and_tests_form_no_ring() {
        let c = "pub struct C; pub(in crate::b) fn c() { let b = 1; b; std::b::x(); } #[cfg(test)] mod tests { use crate::b::B; }";
        assert_eq!(
            found(&[
                ROOT,
                ("b.rs", "use crate::c::C; use crate::d; pub struct B;"),
                ("c.rs", c),
                ("d.rs", "use crate::c::C;")
            ]),
            [""; 0]
        );
    }

    #[test]
    fn imports_through_a_reexport_name_the_defining_file() {
        for text in ["use crate::B;", "use super::B;", "fn c(x: crate::B) {}", "use crate::d::B;"] {
            let complaints =
                found(&[ROOT, ("b.rs", "pub struct B;"), ("c.rs", text), ("d.rs", "pub use crate::b::B;")]);
            assert_eq!(complaints.len(), 1, "{text}: {complaints:?}");
            assert!(complaints[0].contains("`crate::b::B`"), "{text}: {complaints:?}");
        }
    }

    #[test]
    fn exported_macros_are_found_at_the_root() {
        let b = "#[macro_export] macro_rules! ring_bell { () => {} } pub struct B;";
        assert_eq!(
            found(&[ROOT, ("b.rs", b), ("c.rs", "fn c() { crate::ring_bell!(); }"), ("d.rs", "")]),
            [""; 0]
        );
    }

    #[test]
    fn the_root_defines_nothing() {
        for (text, complaints) in
            [("pub fn a() {}", 1), ("pub struct A;", 1), ("mod b {} pub use b::x; extern crate alloc;", 0)]
        {
            assert_eq!(found(&[("lib.rs", text)]).len(), complaints, "{text}");
        }
    }

    #[test]
    fn a_forgotten_file_is_found() {
        let complaints = found(&[("lib.rs", "mod b;"), ("b.rs", ""), ("c.rs", "")]);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].starts_with("a/src/c.rs: no module declares"), "{complaints:?}");
    }
}
