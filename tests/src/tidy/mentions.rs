//! Mentions: every path a file names, in its imports, its code and its macro calls. Resolves none of them.

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// How a path came to be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Import {
    /// Written out in code.
    No,
    /// Brought in by `use`, under this name (`*` for everything).
    Private(String),
    /// Brought in and passed on by `pub use` of any width, under this name.
    Public(String),
}

/// Holds one path that a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// Its segments, without a leading `::`; never empty.
    pub segments: Vec<String>,
    /// The line it is on.
    pub line: usize,
    /// The inline modules it is inside of, from the file's own module down.
    pub inside: Vec<String>,
    /// How it is named.
    pub import: Import,
}

/// Lists every path of two or more segments that the syntax names, and every import.
pub fn mentions(syntax: &syn::File) -> Vec<Mention> {
    let mut collector = Collector::default();
    collector.visit_file(syntax);
    collector.found
}

#[derive(Default)]
struct Collector {
    found: Vec<Mention>,
    inside: Vec<String>,
}

impl Collector {
    fn add(&mut self, segments: Vec<String>, line: usize, import: Import) {
        self.found.push(Mention { segments, line, inside: self.inside.clone(), import });
    }

    fn flatten(&mut self, tree: &syn::UseTree, before: &[String], passed_on: Passed) {
        let make = |name: String| match passed_on {
            Passed::On => Import::Public(name),
            Passed::Nowhere => Import::Private(name),
        };
        let with = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(path) => self.flatten(&path.tree, &with(&path.ident), passed_on),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.flatten(item, before, passed_on))
            }
            syn::UseTree::Glob(glob) => {
                self.add(before.to_vec(), glob.star_token.spans[0].start().line, make("*".to_owned()))
            }
            // `use a::b::{self}` names `a::b`.
            syn::UseTree::Name(name) if name.ident == "self" && !before.is_empty() => {
                let last = before.last().cloned().unwrap_or_default();
                self.add(before.to_vec(), name.ident.span().start().line, make(last));
            }
            syn::UseTree::Name(name) => {
                self.add(with(&name.ident), name.ident.span().start().line, make(name.ident.to_string()))
            }
            syn::UseTree::Rename(name) => {
                self.add(with(&name.ident), name.ident.span().start().line, make(name.rename.to_string()))
            }
        }
    }

    /// Collects what looks like a path in the tokens of a macro call, which syn leaves as they are.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colons = |at: usize| {
            tokens.get(at..at + 2).is_some_and(|pair| {
                pair.iter().all(|one| matches!(one, TokenTree::Punct(punct) if punct.as_char() == ':'))
            })
        };
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Ident(first) => {
                    let mut segments = vec![first.to_string()];
                    while colons(at + 1)
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        segments.push(next.to_string());
                        at += 3;
                    }
                    if segments.len() > 1 {
                        self.add(segments, first.span().start().line, Import::No);
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
    }
}

#[derive(Clone, Copy)]
enum Passed {
    On,
    Nowhere,
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.inside.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let passed_on =
            if matches!(item.vis, syn::Visibility::Inherited) { Passed::Nowhere } else { Passed::On };
        self.flatten(&item.tree, &[], passed_on);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.add(
            vec![item.ident.to_string()],
            item.ident.span().start().line,
            Import::Private(item.ident.to_string()),
        );
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(segments, path.segments[0].ident.span().start().line, Import::No);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.scan(call.tokens.clone());
    }

    // `pub(in crate::a)` says who may look, and uses nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let syntax = syn::parse_file(text).expect("the fixture is Rust");
        let describe = |one: Mention| {
            let import = match one.import {
                Import::No => String::new(),
                Import::Private(name) => format!(" as {name}"),
                Import::Public(name) => format!(" for others as {name}"),
            };
            let inside =
                if one.inside.is_empty() { String::new() } else { format!(" in {}", one.inside.join("::")) };
            format!("{}{import}{inside} @{}", one.segments.join("::"), one.line)
        };
        mentions(&syntax).into_iter().map(describe).collect()
    }

    #[test]
    fn imports_are_flattened() {
        let text = "use a::{b, c::{self, D as E}};\npub use f::G;\npub(crate) use h::*;\nextern crate alloc;";
        assert_eq!(
            found(text),
            [
                "a::b as b @1",
                "a::c as c @1",
                "a::c::D as E @1",
                "f::G for others as G @2",
                "h for others as * @3",
                "alloc as alloc @4"
            ]
        );
    }

    #[test]
    fn paths_are_found_in_code_types_and_macros() {
        assert_eq!(found("fn a() { b::c(); d(); }"), ["b::c @1"]);
        assert_eq!(found("fn a(x: b::C<d::E>) {}"), ["b::C @1", "d::E @1"]);
        assert_eq!(
            found("fn a() {\n assert_eq!(\n  crate::b::c(1), [super::D]);\n}"),
            ["crate::b::c @3", "super::D @3"]
        );
        assert_eq!(found("mod m { fn a() { super::b::c() } }"), ["super::b::c in m @1"]);
        assert_eq!(found("fn a() { use b::c; }"), ["b::c as c @1"]);
        assert_eq!(found("pub(in crate::a::b) fn c() {}"), [""; 0]);
    }
}
