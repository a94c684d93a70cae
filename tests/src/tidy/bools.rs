//! No `bool` parameters in what others call: `Audit::Full`, not `true`.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::tidy::complaint::Complaint;
use crate::tidy::source::Source;

/// Complains of each `bool` parameter of a function that other files can call. Tests are free.
pub fn check(sources: &[Source]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let mut finder = Finder { path: &source.path, complaints: &mut complaints };
        finder.visit_file(&source.live());
    }
    complaints
}

struct Finder<'a> {
    path: &'a str,
    complaints: &'a mut Vec<Complaint>,
}

impl Finder<'_> {
    fn look(&mut self, signature: &syn::Signature) {
        for input in &signature.inputs {
            if let syn::FnArg::Typed(argument) = input
                && is_bool(&argument.ty)
            {
                let found = format!(
                    "`{}` takes a bool, which reads as a bare `true` where it is called",
                    signature.ident
                );
                let instead = "take an enum of two variants whose names say what happens";
                self.complaints.push(Complaint::new(self.path, argument.span().start().line, found, instead));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if !matches!(function.vis, syn::Visibility::Inherited) {
            self.look(&function.sig);
        }
        visit::visit_item_fn(self, function);
    }

    // The methods of `impl Trait for X` carry no visibility: what they take was decided by the trait.
    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !matches!(function.vis, syn::Visibility::Inherited) {
            self.look(&function.sig);
        }
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_trait(&mut self, definition: &'ast syn::ItemTrait) {
        for item in &definition.items {
            if let syn::TraitItem::Fn(function) = item
                && !matches!(definition.vis, syn::Visibility::Inherited)
            {
                self.look(&function.sig);
            }
        }
        visit::visit_item_trait(self, definition);
    }
}

fn is_bool(kind: &syn::Type) -> bool {
    if let syn::Type::Reference(reference) = kind {
        return is_bool(&reference.elem);
    }
    matches!(kind, syn::Type::Path(path) if path.path.is_ident("bool"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    #[test]
    fn bool_parameters_others_can_pass_are_found() {
        let texts = [
            "pub fn a(full: bool) {}",
            "pub(crate) fn a(full: bool) {}",
            "pub fn a(x: u32,\n full: &bool) {}",
            "impl A { pub fn a(&self, full: bool) {} }",
            "pub trait A { fn a(&self, full: bool); }",
            "mod b { pub const fn a(full: bool) {} }",
        ];
        for text in texts {
            let found = check(&fixtures(&[("crates/a/src/b.rs", text)]));
            assert_eq!(found.len(), 1, "{text}");
            assert!(found[0].found.starts_with("`a` takes a bool"), "{}", found[0]);
        }
    }

    #[test]
    fn private_functions_results_and_tests_are_free() {
        let text = "fn a(full: bool) {} pub fn b() -> bool { true } impl Set for A { fn set(&mut self, on: bool) {} }
            #[cfg(test)] mod tests { pub fn c(full: bool) {} }";
        assert_eq!(check(&fixtures(&[("crates/a/src/b.rs", text)])), []);
        assert_eq!(check(&fixtures(&[("crates/a/tests/b.rs", "pub fn a(full: bool) {}")])), []);
    }
}
