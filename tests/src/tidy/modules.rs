//! The module tree of each target: which file holds which module, and what each module defines. Knows no rule.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::source::{Source, is_test_only};

/// Names a module by its path below the target's root; the root is the empty path.
pub type ModulePath = Vec<String>;

/// Holds one module of a target.
#[derive(Debug, Default)]
pub struct Module {
    /// The file its items are in; a module written inline is in its parent's file.
    pub path: String,
    /// Whether it is compiled for tests alone.
    pub is_test: bool,
    /// The names it defines itself.
    pub defined: BTreeSet<String>,
}

/// Holds the modules of one target (a library, a binary, a test), from its root file down.
#[derive(Debug)]
pub struct Target {
    /// The root file: `src/lib.rs`, `src/main.rs`, `tests/x.rs` and the like.
    pub root: String,
    /// Its modules.
    pub modules: BTreeMap<ModulePath, Module>,
}

impl Target {
    /// Returns the module a file holds: the outermost one, since inline modules lie below it.
    pub fn module_of(&self, file: &str) -> Option<&ModulePath> {
        self.modules
            .iter()
            .filter(|(_, module)| module.path == file)
            .map(|(path, _)| path)
            .min_by_key(|path| path.len())
    }

    /// Lists the files of this target that are not for tests alone, each once.
    pub fn live_files(&self) -> BTreeSet<&str> {
        self.modules.values().filter(|module| !module.is_test).map(|module| module.path.as_str()).collect()
    }
}

/// Builds the module tree of every target.
pub fn targets(sources: &[Source]) -> Vec<Target> {
    let by_path: BTreeMap<&str, &Source> =
        sources.iter().map(|source| (source.path.as_str(), source)).collect();
    let roots = sources.iter().filter(|source| is_root(&source.path));
    roots
        .map(|root| {
            let mut builder = Builder { by_path: by_path.clone(), modules: BTreeMap::new() };
            let place = Place { path: &root.path, folder: folder(&root.path).to_owned(), is_test: false };
            builder.add(Vec::new(), &place, &root.syntax.items);
            Target { root: root.path.clone(), modules: builder.modules }
        })
        .collect()
}

/// Tells whether cargo would take a file for the root of a target by its place alone.
pub fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let (name, folders) = parts.split_last().unwrap_or((&"", &[]));
    let inside_src = folders.contains(&"src");
    let is_target_folder = |folder: &str| match folder {
        "bin" => inside_src,
        "tests" | "benches" | "examples" | "fuzz_targets" => !inside_src,
        _ => false,
    };
    let last = folders.last().copied().unwrap_or("");
    let above = folders.iter().rev().nth(1).copied().unwrap_or("");
    match *name {
        "lib.rs" | "main.rs" if last == "src" => true,
        "main.rs" if is_target_folder(above) => true,
        "build.rs" => !inside_src,
        name => name.ends_with(".rs") && is_target_folder(last),
    }
}

struct Builder<'a> {
    by_path: BTreeMap<&'a str, &'a Source>,
    modules: BTreeMap<ModulePath, Module>,
}

/// Where the items of a module are, and where the files of its children lie.
struct Place<'a> {
    path: &'a str,
    folder: String,
    is_test: bool,
}

impl<'a> Builder<'a> {
    fn add(&mut self, module: ModulePath, place: &Place<'a>, items: &'a [syn::Item]) {
        let defined = items.iter().filter_map(defined_name).collect();
        let record = Module { path: place.path.to_owned(), is_test: place.is_test, defined };
        self.modules.insert(module.clone(), record);
        for item in items {
            let syn::Item::Mod(child) = item else { continue };
            let name = child.ident.to_string();
            let is_test = place.is_test || is_test_only(&child.attrs);
            let below: ModulePath = module.iter().cloned().chain([name.clone()]).collect();
            if let Some((_, inner)) = &child.content {
                self.add(
                    below,
                    &Place { path: place.path, folder: join(&place.folder, &name), is_test },
                    inner,
                );
            } else if let Some(source) = self.file_of(child, place) {
                let owns_folder = source.path.ends_with("/mod.rs") || stated_path(child).is_some();
                let folder =
                    if owns_folder { folder(&source.path).to_owned() } else { join(&place.folder, &name) };
                self.add(below, &Place { path: &source.path, folder, is_test }, &source.syntax.items);
            }
        }
    }

    /// Finds the file of `mod child;`: where its attribute says, or `child.rs`, or `child/mod.rs`.
    fn file_of(&self, child: &syn::ItemMod, place: &Place<'_>) -> Option<&'a Source> {
        let name = &child.ident;
        let places = match stated_path(child) {
            Some(stated) => vec![join(folder(place.path), &stated)],
            None => vec![
                join(&place.folder, &format!("{name}.rs")),
                join(&place.folder, &format!("{name}/mod.rs")),
            ],
        };
        places.iter().find_map(|path| self.by_path.get(path.as_str()).copied())
    }
}

fn stated_path(child: &syn::ItemMod) -> Option<String> {
    child.attrs.iter().find_map(|attribute| {
        let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else { return None };
        attribute.path().is_ident("path").then(|| text.value())
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is syn's, and may grow; other items define no name"
)]
fn defined_name(item: &syn::Item) -> Option<String> {
    use syn::Item::{Const, Enum, Fn, Macro, Mod, Static, Struct, Trait, TraitAlias, Type, Union};
    let name = match item {
        Const(item) => &item.ident,
        Enum(item) => &item.ident,
        Fn(item) => &item.sig.ident,
        Macro(item) => item.ident.as_ref()?,
        Mod(item) => &item.ident,
        Static(item) => &item.ident,
        Struct(item) => &item.ident,
        Trait(item) => &item.ident,
        TraitAlias(item) => &item.ident,
        Type(item) => &item.ident,
        Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    #[test]
    fn modules_are_found_where_rust_finds_them() {
        let files = fixtures(&[
            (
                "a/src/lib.rs",
                "mod plan; mod stage; mod inline { mod deep; } #[path = \"odd/place.rs\"] mod odd; #[cfg(test)] mod checks;",
            ),
            ("a/src/plan.rs", "mod route; pub struct Plan;"),
            ("a/src/plan/route.rs", "fn pick() {} mod tests {}"),
            ("a/src/stage/mod.rs", "mod block;"),
            ("a/src/stage/block.rs", ""),
            ("a/src/inline/deep.rs", ""),
            ("a/src/odd/place.rs", ""),
            ("a/src/checks.rs", ""),
        ]);
        let trees = targets(&files);
        assert_eq!(trees.len(), 1);
        let place = |path: &str| {
            let path: ModulePath =
                path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            trees[0].modules.get(&path).map(|module| module.path.as_str())
        };
        for (module, file) in [
            ("", "a/src/lib.rs"),
            ("plan", "a/src/plan.rs"),
            ("plan::route", "a/src/plan/route.rs"),
            ("plan::route::tests", "a/src/plan/route.rs"),
            ("stage::block", "a/src/stage/block.rs"),
            ("inline", "a/src/lib.rs"),
            ("inline::deep", "a/src/inline/deep.rs"),
            ("odd", "a/src/odd/place.rs"),
            ("checks", "a/src/checks.rs"),
        ] {
            assert_eq!(place(module), Some(file), "{module}");
        }
        assert!(trees[0].modules[&vec!["plan".to_owned()]].defined.contains("Plan"));
        assert!(!trees[0].live_files().contains("a/src/checks.rs"));
        assert_eq!(
            trees[0].module_of("a/src/plan/route.rs"),
            Some(&vec!["plan".to_owned(), "route".to_owned()])
        );
    }

    #[test]
    fn roots_are_known_by_their_place() {
        for root in [
            "a/src/lib.rs",
            "a/src/main.rs",
            "a/src/bin/b.rs",
            "a/src/bin/b/main.rs",
            "a/tests/b.rs",
            "a/build.rs",
            "a/examples/b.rs",
        ] {
            assert!(is_root(root), "{root}");
        }
        for other in [
            "a/src/b.rs",
            "a/src/b/main.rs",
            "a/src/b/tests/c.rs",
            "a/tests/b/mod.rs",
            "a/src/build.rs",
            "a/src/b/lib.rs",
        ] {
            assert!(!is_root(other), "{other}");
        }
    }
}
