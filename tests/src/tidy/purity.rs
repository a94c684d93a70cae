//! What a crate may not know inside: no clock, socket, thread or `async` in the core.

use syn::visit::{self, Visit};

use crate::tidy::complaint::Complaint;
use crate::tidy::mentions::mentions;
use crate::tidy::source::Source;

/// Paths that a crate may not name outside its tests, and what to do instead.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "protocol",
        &["std", "tokio"],
        "use `core` or `alloc`, and take time and seeds as arguments; what touches the world is an `Action` that a driver runs",
    ),
    ("model", &["std::net"], "the model knows no network: let `node` or `sim` carry the bytes"),
    ("data", &["std::net"], "data knows files alone: let `node` or `sim` carry the bytes"),
    (
        "fleet",
        &["std::net", "std::fs", "std::thread", "std::time"],
        "a forecast is arithmetic: let `cli` read files, and take what time it is as an argument",
    ),
    (
        "sim",
        &["std::net", "std::thread", "std::time::Instant", "std::time::SystemTime"],
        "the simulator has one thread and virtual time: take the time from the event heap",
    ),
];

/// The crate that decides everything, and so must build without the standard library.
const CORE: &str = "protocol";

/// Complains of each path that a crate may not name, of `async` in the core, and of a core that is not `no_std`.
pub fn check(sources: &[Source]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for source in sources {
        let Some(owner) = source
            .path
            .strip_prefix("crates/")
            .and_then(|rest| rest.split_once("/src/"))
            .map(|(name, _)| name)
        else {
            continue;
        };
        let live = source.live();
        for (_, paths, instead) in FORBIDDEN.iter().filter(|(name, ..)| *name == owner) {
            complaints.extend(forbidden(owner, source, &live, paths, instead));
        }
        if owner == CORE {
            let mut finder = AsyncFinder { path: &source.path, complaints: &mut complaints };
            finder.visit_file(&live);
            if source.path.ends_with("/src/lib.rs") && !is_no_std(&source.syntax) {
                let found = "the core builds with the standard library";
                complaints.push(Complaint::new(
                    &source.path,
                    1,
                    found,
                    "write `#![no_std]` below its documentation",
                ));
            }
        }
    }
    complaints
}

fn forbidden(
    owner: &str,
    source: &Source,
    live: &syn::File,
    paths: &[&str],
    instead: &str,
) -> Vec<Complaint> {
    let named = mentions(live).into_iter().filter_map(|mention| {
        let full = mention.segments.join("::");
        let hit = paths.iter().find(|path| full == **path || full.starts_with(&format!("{path}::")))?;
        Some(Complaint::new(
            &source.path,
            mention.line,
            format!("`{owner}` may not know `{hit}`, and names `{full}`"),
            instead,
        ))
    });
    named.collect()
}

fn is_no_std(syntax: &syn::File) -> bool {
    syntax.attrs.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.is_ident("no_std"),
        // `#![cfg_attr(not(test), no_std)]` is no_std in every build that ships.
        syn::Meta::List(list) => {
            let words: String = list.tokens.to_string().split_whitespace().collect();
            list.path.is_ident("cfg_attr") && words == "not(test),no_std"
        }
        syn::Meta::NameValue(_) => false,
    })
}

struct AsyncFinder<'a> {
    path: &'a str,
    complaints: &'a mut Vec<Complaint>,
}

impl AsyncFinder<'_> {
    fn complain(&mut self, token: &syn::token::Async) {
        let instead = "return an `Action`, and hear of its end as an `Input`";
        self.complaints.push(Complaint::new(
            self.path,
            token.span.start().line,
            "`async` in the core",
            instead,
        ));
    }
}

impl<'ast> Visit<'ast> for AsyncFinder<'_> {
    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        signature.asyncness.iter().for_each(|token| self.complain(token));
        visit::visit_signature(self, signature);
    }

    fn visit_expr_async(&mut self, block: &'ast syn::ExprAsync) {
        self.complain(&block.async_token);
        visit::visit_expr_async(self, block);
    }

    fn visit_expr_closure(&mut self, closure: &'ast syn::ExprClosure) {
        closure.asyncness.iter().for_each(|token| self.complain(token));
        visit::visit_expr_closure(self, closure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    #[test]
    fn the_core_may_not_know_the_world() {
        for text in [
            "use std::time::Instant;",
            "use {core::fmt, std::io};",
            "fn a() { std::println!(\"x\"); }",
            "fn a() { assert!(std::env::args().count() > 0); }",
            "fn a(x: std::string::String) {}",
            "extern crate std;",
            "async fn a() {}",
            "fn a() { let x = async { 1 }; }",
            "fn a() { let x = async || 1; }",
            "trait A { async fn a(); }",
        ] {
            assert_eq!(check(&fixtures(&[("crates/protocol/src/plan.rs", text)])).len(), 1, "{text}");
        }
    }

    #[test]
    fn the_core_must_be_no_std() {
        for (text, complaints) in [
            ("//! Core.\n", 1),
            ("//! Core.\n#![cfg_attr(test, no_std)]", 1),
            ("//! Core.\n#![no_std]", 0),
            ("//! Core.\n#![cfg_attr(not(test), no_std)]", 0),
        ] {
            assert_eq!(check(&fixtures(&[("crates/protocol/src/lib.rs", text)])).len(), complaints, "{text}");
        }
    }

    #[test]
    fn the_simulator_has_no_clock_and_no_socket() {
        for text in [
            "use std::time::{Duration, Instant};",
            "fn a() { std::thread::spawn(b); }",
            "use std::net::UdpSocket;",
        ] {
            assert_eq!(check(&fixtures(&[("crates/sim/src/heap.rs", text)])).len(), 1, "{text}");
        }
    }

    #[test]
    fn tests_and_other_crates_may() {
        let text = "use core::fmt; use alloc::vec::Vec; use crate::std_ish::x; #[cfg(test)] mod tests { use std::time::Instant; }";
        assert_eq!(check(&fixtures(&[("crates/protocol/src/plan.rs", text)])), []);
        for path in ["crates/protocol/tests/a.rs", "crates/node/src/clock.rs"] {
            assert_eq!(check(&fixtures(&[(path, "use std::time::Instant;")])), [], "{path}");
        }
    }
}
