//! Leftovers: stubs, debugging prints, ignored tests and notes to oneself.

use proc_macro2::{TokenStream, TokenTree};

use crate::tidy::complaint::Complaint;
use crate::tidy::source::Source;
use crate::tidy::tree::Tree;

/// Macros that have no place in a commit, and what to do instead.
const MACROS: &[(&str, &str)] = &[
    ("todo", "write it, or leave the function out until it is needed"),
    ("unimplemented", "write it, or return an error that names what is not supported"),
    ("dbg", "remove it; what should stay visible goes through `tracing`"),
    ("debug_assert", "use `assert!`: assertions stay on in release"),
    ("debug_assert_eq", "use `assert_eq!`: assertions stay on in release"),
    ("debug_assert_ne", "use `assert_ne!`: assertions stay on in release"),
];

/// Notes to oneself. Each is spelled in two parts, so that this list does not find itself.
const NOTES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// Complains of each stub, debugging print and ignored test in Rust code.
pub fn stubs(sources: &[Source]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for source in sources {
        // The syntax tree keeps the insides of macro calls as tokens: looking at tokens alone finds both.
        let tokens: TokenStream = source.text.parse().unwrap_or_default();
        look(&source.path, tokens, &mut complaints);
        for (index, line) in source.text.lines().enumerate() {
            let fence = line.trim_start().trim_start_matches(['/', '!', ' ']);
            if line.trim_start().starts_with("//") && fence.starts_with("```") && fence.contains("ignore") {
                complaints.push(ignored(&source.path, index + 1, "documentation example"));
            }
        }
    }
    complaints
}

/// Complains of each note to oneself in any text of the repository.
pub fn notes(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.texts(&[".rs", ".py", ".sh", ".js", ".toml", ".md", "Makefile", ".ci/run"]) {
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            if let Some(note) = words.find(|word| NOTES.contains(word)) {
                let instead = "do it now, or open an issue; describe the code as it is";
                complaints.push(Complaint::new(
                    path,
                    index + 1,
                    format!("a note to oneself: {note}"),
                    instead,
                ));
            }
        }
    }
    complaints
}

fn look(path: &str, tokens: TokenStream, complaints: &mut Vec<Complaint>) {
    let mut before: [Option<TokenTree>; 2] = [None, None];
    for token in tokens {
        if let TokenTree::Group(group) = &token {
            let first = group.stream().into_iter().next();
            let attribute = before[1].as_ref().is_some_and(|one| is_punct(one, '#'));
            if attribute && first.as_ref().is_some_and(|one| is_ident(one, "ignore")) {
                complaints.push(ignored(path, group.span().start().line, "test"));
            }
            // Only a call counts: a name, an exclamation mark, then what is in brackets.
            if let [Some(TokenTree::Ident(name)), Some(mark)] = &before
                && is_punct(mark, '!')
                && let Some((name, instead)) = MACROS.iter().find(|(stub, _)| name == stub)
            {
                let line = group.span().start().line;
                complaints.push(Complaint::new(path, line, format!("`{name}!` is left over"), *instead));
            }
            look(path, group.stream(), complaints);
        }
        let [_, last] = before;
        before = [last, Some(token)];
    }
}

fn ignored(path: &str, line: usize, what: &str) -> Complaint {
    let instead = "make it pass, or delete it; mark an example that must not run `no_run`, and one that is not Rust `text`";
    Complaint::new(path, line, format!("a {what} that is ignored"), instead)
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn is_ident(token: &TokenTree, wanted: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::fixtures;

    #[test]
    fn stubs_are_found_in_code_and_inside_macros() {
        let texts = [
            "fn a() { todo!() }",
            "fn a() { unimplemented!(\"later\") }",
            "fn a() { let x = dbg!(1); }",
            "fn a() { debug_assert!(1 > 0); }",
            "fn a() { assert_eq!(todo!(), 1); }",
            "fn a() { std::todo!() }",
            "#[test] #[ignore] fn a() {}",
            "#[test] #[ignore = \"slow\"] fn a() {}",
            "proptest! { #[ignore] fn a() {} }",
            "/// Adds.\n/// ```ignore\n/// x\n/// ```\nfn a() {}",
            "//! ```rust,ignore\n//! x\n//! ```\n",
        ];
        for text in texts {
            assert_eq!(stubs(&fixtures(&[("a.rs", text)])).len(), 1, "{text}");
        }
    }

    #[test]
    fn words_in_strings_comments_and_names_are_no_stubs() {
        let text = "// dbg!(x) is a macro, #[ignore] an attribute\nfn todo(ignore: u32) -> bool { \"todo!()\"; todo != ignore }
            /// ```no_run\n/// x\n/// ```\nfn a() {}";
        assert_eq!(stubs(&fixtures(&[("a.rs", text)])), []);
    }

    #[test]
    fn notes_are_found_in_every_kind_of_text() {
        for note in NOTES {
            for path in ["a.rs", "a.py", "a.sh", "a.toml", "docs/a.md", "Makefile", ".ci/run"] {
                let text = format!("first\n# {note}: later\n");
                let found = notes(&Tree::of(&[(path, &text)]));
                assert_eq!(found.len(), 1, "{path} {note}");
                assert_eq!(found[0].line, 2);
            }
        }
        let longer = format!("mktemp x.{0}{0}; {0}_LATER; {1}", NOTES[2], NOTES[0].to_lowercase());
        assert_eq!(notes(&Tree::of(&[("a.sh", &longer)])), []);
    }
}
