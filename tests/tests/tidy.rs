//! The style of `STYLE.md` and the arrows of `ARCHITECTURE.md`, measured on this repository.
//!
//! Each check lives in `src/tidy/`, with its own tests on what must turn it red. May read every file and change none.

use std::path::Path;

use trestle_tests::tidy::complaint::{Complaint, report};
use trestle_tests::tidy::source::{Source, sources};
use trestle_tests::tidy::tree::Tree;
use trestle_tests::tidy::{
    arrows, bools, crates, glossary, guards, leftovers, lengths, links, module_docs, names, purity, reasons,
    scenarios,
};

fn repository() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository");
    Tree::read(root).expect("the repository can be read")
}

fn code() -> Vec<Source> {
    sources(&repository()).0
}

fn demand_none(complaints: &[Complaint]) {
    assert!(complaints.is_empty(), "\n\n{}\n", report(complaints));
}

/// Without this every check below could pass by looking at nothing.
#[test]
fn the_checks_see_the_repository() {
    let (tree, sources) = (repository(), code());
    for path in [
        "Cargo.toml",
        "STYLE.md",
        "crates/protocol/src/lib.rs",
        "crates/cli/src/main.rs",
        "tests/tests/tidy.rs",
    ] {
        assert!(tree.text(path).is_some(), "{path} is not among the files read");
    }
    assert!(!tree.paths().any(|path| path.starts_with("target/")), "build outputs are among the files read");
    let seen = arrows::files_seen(&sources);
    assert!(seen * 2 >= sources.len(), "only {seen} of {} Rust files are in a module tree", sources.len());
}

#[test]
fn every_rust_file_parses() {
    demand_none(&sources(&repository()).1);
}

#[test]
fn files_are_short() {
    demand_none(&lengths::files(&repository()));
}

#[test]
fn functions_fit_on_a_screen() {
    demand_none(&lengths::functions(&code()));
}

#[test]
fn arrows_between_crates_fall() {
    demand_none(&crates::check(&repository()));
}

#[test]
fn arrows_between_files_fall() {
    demand_none(&arrows::check(&code()));
}

#[test]
fn crates_do_not_know_what_they_may_not() {
    demand_none(&purity::check(&code()));
}

#[test]
fn names_say_what_is_inside() {
    demand_none(&names::check(&repository()));
}

#[test]
fn no_bool_is_a_parameter() {
    demand_none(&bools::check(&code()));
}

#[test]
fn files_open_with_what_they_own() {
    demand_none(&module_docs::check(&code()));
}

#[test]
fn no_stub_is_left() {
    demand_none(&leftovers::stubs(&code()));
}

#[test]
fn no_note_to_oneself_is_left() {
    demand_none(&leftovers::notes(&repository()));
}

#[test]
fn links_lead_somewhere() {
    demand_none(&links::check(&repository()));
}

#[test]
fn the_glossary_gives_each_term_a_meaning() {
    demand_none(&glossary::check(&repository()));
}

#[test]
fn every_reason_a_peer_is_given_is_explained() {
    demand_none(&reasons::check(&repository(), &code()));
}

#[test]
fn everything_a_scenario_may_say_is_explained() {
    demand_none(&scenarios::check(&repository(), &code()));
}

#[test]
fn every_guard_stands_where_it_is_deleted_and_has_its_test() {
    demand_none(&guards::check(&repository()));
}
