//! Parsed Rust files, and which of their items are tests. Knows no rule.

use crate::tidy::complaint::Complaint;
use crate::tidy::tree::Tree;

/// Holds one parsed Rust file.
pub struct Source {
    /// Its path from the repository's root.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Its syntax, tests included.
    pub syntax: syn::File,
}

impl Source {
    /// Parses one file.
    ///
    /// # Errors
    /// A complaint that names the line, when the text is not Rust.
    pub fn parse(path: &str, text: &str) -> Result<Self, Complaint> {
        match syn::parse_file(text) {
            Ok(syntax) => Ok(Self { path: path.to_owned(), text: text.to_owned(), syntax }),
            Err(error) => {
                let found = format!("is not Rust that syn can read: {error}");
                Err(Complaint::new(path, error.span().start().line, found, "make it compile first"))
            }
        }
    }

    /// Tells whether the whole file serves tests: it lies in a package's folder for them.
    pub fn is_test(&self) -> bool {
        let folders: Vec<&str> = self.path.split('/').collect();
        // The package `tests` has a `src` of its own: only the folder next to a `src` counts.
        folders.iter().skip(1).any(|folder| matches!(*folder, "tests" | "benches" | "fuzz"))
    }

    /// Returns the syntax without items that are compiled for tests alone.
    pub fn live(&self) -> syn::File {
        let mut live = self.syntax.clone();
        if live.attrs.iter().any(is_test_attribute) {
            live.items.clear();
        }
        keep_live(&mut live.items);
        live
    }
}

/// Parses every Rust file of the tree: those that parse, and complaints about the others.
pub fn sources(tree: &Tree) -> (Vec<Source>, Vec<Complaint>) {
    let (mut parsed, mut complaints) = (Vec::new(), Vec::new());
    for (path, text) in tree.texts(&[".rs"]) {
        match Source::parse(path, text) {
            Ok(source) => parsed.push(source),
            Err(complaint) => complaints.push(complaint),
        }
    }
    (parsed, complaints)
}

/// Tells whether these attributes mean "for tests alone": `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[cfg(all(test, ..))]`.
pub fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(is_test_attribute)
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    let path = attribute.path();
    if path.segments.last().is_some_and(|last| last.ident == "test") {
        return true;
    }
    let syn::Meta::List(list) = &attribute.meta else { return false };
    if !path.is_ident("cfg") {
        return false;
    }
    let condition: String = list.tokens.to_string().split_whitespace().collect();
    condition == "test"
        || condition.starts_with("all(test,")
        || condition.contains(",test)") && condition.starts_with("all(")
}

fn keep_live(items: &mut Vec<syn::Item>) {
    items.retain(|item| !is_test_only(attributes(item)));
    for item in items {
        if let syn::Item::Mod(syn::ItemMod { content: Some((_, inner)), .. }) = item {
            keep_live(inner);
        } else if let syn::Item::Impl(block) = item {
            block
                .items
                .retain(|item| !matches!(item, syn::ImplItem::Fn(function) if is_test_only(&function.attrs)));
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is syn's, and may grow; an unknown item counts as live"
)]
fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item::{Const, Enum, Fn, Impl, Macro, Mod, Static, Struct, Trait, Type, Use};
    match item {
        Const(item) => &item.attrs,
        Enum(item) => &item.attrs,
        Fn(item) => &item.attrs,
        Impl(item) => &item.attrs,
        Macro(item) => &item.attrs,
        Mod(item) => &item.attrs,
        Static(item) => &item.attrs,
        Struct(item) => &item.attrs,
        Trait(item) => &item.attrs,
        Type(item) => &item.attrs,
        Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Parses the fixtures of a test.
///
/// # Panics
/// When one of them is not Rust: the test itself is wrong then.
#[cfg(test)]
pub(crate) fn fixtures(files: &[(&str, &str)]) -> Vec<Source> {
    let (parsed, complaints) = sources(&Tree::of(files));
    assert!(complaints.is_empty(), "{complaints:?}");
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_rust_is_named_with_its_line() {
        let (parsed, complaints) = sources(&Tree::of(&[("a.rs", "fn a() {}"), ("b.rs", "fn b() {}\nfn {")]));
        assert_eq!(parsed.len(), 1);
        assert_eq!((complaints[0].path.as_str(), complaints[0].line), ("b.rs", 2));
    }

    #[test]
    fn live_syntax_has_no_tests() {
        let text = "fn a() {} #[cfg(test)] mod tests {} #[test] fn b() {} #[tokio::test] async fn c() {}
            mod d { #[cfg(test)] use x::y; fn e() {} } #[cfg(all(test, unix))] fn f() {} #[cfg(not(test))] fn g() {}
            impl H { #[cfg(test)] fn i() {} fn j() {} }";
        let live = fixtures(&[("a.rs", text)])[0].live();
        let name = |item: &syn::Item| match (item, attributes(item).len()) {
            (syn::Item::Fn(item), _) => item.sig.ident.to_string(),
            (syn::Item::Mod(item), _) => {
                format!("d {}", item.content.as_ref().map_or(0, |(_, items)| items.len()))
            }
            (syn::Item::Impl(item), _) => format!("impl {}", item.items.len()),
            (_, attributes) => format!("other with {attributes} attributes"),
        };
        let names: Vec<String> = live.items.iter().map(name).collect();
        assert_eq!(names, ["a", "d 1", "g", "impl 1"]);
    }

    #[test]
    fn test_folders_are_told_from_the_package_of_tests() {
        let files = ["crates/a/tests/b.rs", "tests/tests/tidy.rs", "tests/src/lib.rs", "crates/a/src/b.rs"];
        let found: Vec<bool> = files.iter().map(|path| fixtures(&[(path, "")])[0].is_test()).collect();
        assert_eq!(found, [true, true, false, false]);
    }
}
