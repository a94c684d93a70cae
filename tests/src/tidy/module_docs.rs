//! Every file opens by saying what it owns and what it may not know.

use crate::tidy::complaint::Complaint;
use crate::tidy::source::Source;

/// A shorter opening repeats the name of the file and says nothing.
const WORDS_MIN: usize = 3;

/// Complains of each Rust file that does not open with `//!` documentation.
pub fn check(sources: &[Source]) -> Vec<Complaint> {
    let bare = sources.iter().filter(|source| !opens_with_docs(source));
    bare.map(|source| {
        let instead = "begin the file with `//!`: what it owns, and what it may not know";
        Complaint::new(&source.path, 1, "does not open with documentation of the module", instead)
    })
    .collect()
}

fn opens_with_docs(source: &Source) -> bool {
    let docs: Vec<String> = source.syntax.attrs.iter().map_while(doc_line).collect();
    docs.iter()
        .flat_map(|line| line.split_whitespace())
        .filter(|word| word.chars().any(char::is_alphanumeric))
        .count()
        >= WORDS_MIN
}

fn doc_line(attribute: &syn::Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else { return None };
    attribute.path().is_ident("doc").then(|| text.value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    #[test]
    fn a_file_without_opening_docs_is_found() {
        let bad = [
            "",
            "fn a() {}",
            "// owns the a\nfn a() {}",
            "/// Owns the a.\nfn a() {}",
            "//! a.\n",
            "#![no_std]\n//! Owns the a.\n",
        ];
        for text in bad {
            assert_eq!(check(&fixtures(&[("a.rs", text)])).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn opening_docs_pass() {
        for text in ["//! Owns the a.\n", "//! Owns\n//! the a.\n#![no_std]\nfn a() {}", "/*! Owns the a. */"]
        {
            assert_eq!(check(&fixtures(&[("a.rs", text)])), [], "{text:?}");
        }
    }
}
