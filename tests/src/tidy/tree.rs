//! The repository's files, read once. Knows nothing of what is looked for in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

/// A larger file is data, not text that somebody wrote: it is listed, and not read.
const TEXT_BYTES_MAX: u64 = 2 << 20;

/// Holds the text of every file, by its path from the root, with `/` between folders.
#[derive(Debug, Default, Clone)]
pub struct Tree {
    /// None for a file that is no text, or too large to be read.
    files: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// Reads the files below `root` that git tracks, or would track if they were added. Without git (a source archive)
    /// it reads every file but build outputs and hidden folders.
    ///
    /// # Errors
    /// When a folder or a listed file cannot be read.
    pub fn read(root: &Path) -> io::Result<Self> {
        let paths = match listed_by_git(root) {
            Some(paths) => paths,
            None => {
                let mut paths = Vec::new();
                walk(root, "", &mut paths)?;
                paths
            }
        };
        let mut files = BTreeMap::new();
        for path in paths {
            let file = root.join(&path);
            // Git still lists what was deleted and not yet committed.
            let Ok(metadata) = fs::metadata(&file) else { continue };
            if metadata.is_file() {
                let readable = metadata.len() <= TEXT_BYTES_MAX;
                let text = if readable { String::from_utf8(fs::read(&file)?).ok() } else { None };
                files.insert(path, text);
            }
        }
        Ok(Self { files })
    }

    /// Makes a tree of given paths and texts: a fixture.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let owned = files.iter().map(|(path, text)| ((*path).to_owned(), Some((*text).to_owned())));
        Self { files: owned.collect() }
    }

    /// Lists every path, in order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Lists path and text of the files whose name ends in one of `endings`, in order.
    pub fn texts(&self, endings: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        let chosen = move |path: &str| endings.iter().any(|ending| path.ends_with(ending));
        self.files
            .iter()
            .filter(move |(path, _)| chosen(path))
            .filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// Returns the text of one file; None when there is no such file, or it is no text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Tells whether a file or a folder of that path exists; the root is the empty path.
    pub fn holds(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|file| file.starts_with(&folder))
    }
}

fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<String> = text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    (output.status.success() && !paths.is_empty()).then_some(paths)
}

fn walk(root: &Path, below: &str, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        let hidden = name.starts_with('.') && !matches!(name.as_str(), ".ci" | ".config" | ".gitignore");
        if hidden || matches!(name.as_str(), "target" | "trestle-run" | "__pycache__") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            walk(root, &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_files_are_held() {
        let tree = Tree::of(&[("docs/glossary.md", "x"), ("a.rs", "y")]);
        for path in ["", "docs", "docs/glossary.md", "a.rs"] {
            assert!(tree.holds(path), "{path}");
        }
        for path in ["doc", "docs/other.md", "a"] {
            assert!(!tree.holds(path), "{path}");
        }
    }

    #[test]
    fn texts_are_chosen_by_ending() {
        let tree = Tree::of(&[("a.rs", "1"), ("b.md", "2"), ("c.toml", "3")]);
        let chosen: Vec<_> = tree.texts(&[".rs", ".md"]).collect();
        assert_eq!(chosen, [("a.rs", "1"), ("b.md", "2")]);
    }

    #[test]
    fn a_folder_without_git_is_walked_past_build_outputs() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for path in ["src/a.rs", "target/b.rs", ".ci/run", ".hidden/c.rs"] {
            let file = folder.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("folders");
            fs::write(file, "text").expect("a file");
        }
        fs::write(folder.path().join("src/image.bin"), [0xff, 0xfe]).expect("a file");
        let mut paths = Vec::new();
        walk(folder.path(), "", &mut paths).expect("a walk");
        paths.sort();
        assert_eq!(paths, [".ci/run", "src/a.rs", "src/image.bin"]);
        let tree = Tree::read(folder.path()).expect("a tree");
        assert_eq!(tree.text("src/a.rs"), Some("text"));
        assert!(tree.holds("src/image.bin") && tree.text("src/image.bin").is_none());
    }
}
