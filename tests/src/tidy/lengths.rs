//! Lengths: a file tells one story, a function fits on a screen.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use crate::tidy::complaint::Complaint;
use crate::tidy::source::Source;
use crate::tidy::tree::Tree;

/// A longer file is two stories.
pub const FILE_LINES_MAX: usize = 600;

/// A longer function leaves the screen.
pub const FUNCTION_LINES_MAX: usize = 70;

/// Complains of each code file above [`FILE_LINES_MAX`] lines.
pub fn files(tree: &Tree) -> Vec<Complaint> {
    let code = tree.texts(&[".rs", ".py", ".sh", ".js"]);
    let long =
        code.map(|(path, text)| (path, text.lines().count())).filter(|(_, lines)| *lines > FILE_LINES_MAX);
    long.map(|(path, lines)| {
        let found = format!("has {lines} lines, at most {FILE_LINES_MAX}");
        Complaint::new(path, 0, found, "find the second story in it and give that a file of its own name")
    })
    .collect()
}

/// Complains of each function above [`FUNCTION_LINES_MAX`] lines, from `fn` to its closing brace, tests included.
pub fn functions(sources: &[Source]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for source in sources {
        let mut finder = Finder { path: &source.path, complaints: &mut complaints };
        finder.visit_file(&source.syntax);
    }
    complaints
}

struct Finder<'a> {
    path: &'a str,
    complaints: &'a mut Vec<Complaint>,
}

impl Finder<'_> {
    fn measure(&mut self, name: &str, first: usize, last: usize) {
        let lines = last + 1 - first;
        if lines > FUNCTION_LINES_MAX {
            let found = format!("function `{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}");
            let instead = "keep the branches here and move the computing into functions below it";
            self.complaints.push(Complaint::new(self.path, first, found, instead));
        }
    }

    fn measure_block(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.fn_token.span.start().line;
        self.measure(&signature.ident.to_string(), first, block.brace_token.span.close().end().line);
    }

    /// Measures what looks like a function inside a macro call (`proptest! { fn ... }`), which syn leaves as tokens.
    fn measure_tokens(&mut self, tokens: TokenStream) {
        let mut open: Option<(String, usize)> = None;
        let mut after_fn = None;
        for token in tokens {
            match token {
                TokenTree::Ident(word) if word == "fn" => after_fn = Some(word.span().start().line),
                TokenTree::Ident(word) => {
                    if let Some(line) = after_fn.take() {
                        open = Some((word.to_string(), line));
                    }
                }
                TokenTree::Group(group) => {
                    if group.delimiter() == Delimiter::Brace
                        && let Some((name, first)) = open.take()
                    {
                        self.measure(&name, first, group.span_close().end().line);
                    }
                    self.measure_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => after_fn = None,
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure_block(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure_block(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.measure_block(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.measure_tokens(call.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    /// A function of exactly `lines` lines, from `fn` to its brace.
    fn function(name: &str, lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    step();\n".repeat(lines - 2))
    }

    #[test]
    fn a_file_may_have_600_lines_and_no_more() {
        let (fits, long) = ("//\n".repeat(600), "//\n".repeat(601));
        let tree =
            Tree::of(&[("fits.rs", &fits), ("long.rs", &long), ("long.md", &long), ("long.py", &long)]);
        let found = files(&tree);
        assert_eq!(found.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), ["long.py", "long.rs"]);
        assert!(found[0].found.contains("601 lines"), "{}", found[0]);
    }

    #[test]
    fn a_function_may_have_70_lines_and_no_more() {
        let text = format!(
            "/// Attributes and\n/// docs are not counted.\n{}{}",
            function("fits", 70),
            function("long", 71)
        );
        let found = functions(&fixtures(&[("a.rs", &text)]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 73);
        assert!(found[0].found.contains("`long` has 71 lines"), "{}", found[0]);
    }

    #[test]
    fn long_functions_are_found_wherever_they_hide() {
        let long = function("long", 71);
        let places = [
            format!("impl A {{ {long} }}"),
            format!("trait A {{ {long} }}"),
            format!("mod a {{ mod b {{ {long} }} }}"),
            format!("fn outer() {{ {long} }}"),
            format!("#[cfg(test)] mod tests {{ #[test] {long} }}"),
            format!("proptest! {{ #[test] {long} }}"),
            format!("proptest! {{ {} {long} }}", function("short", 3)),
        ];
        for place in places {
            let found = functions(&fixtures(&[("a.rs", &place)]));
            assert!(found.iter().any(|one| one.found.contains("`long` has 71 lines")), "{place}");
        }
    }
}
