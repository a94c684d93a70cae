//! Links between pages: each relative link leads to a file, and its `#anchor` to a heading.

use std::collections::BTreeMap;

use crate::tidy::complaint::Complaint;
use crate::tidy::tree::Tree;

/// Complains of each relative link in a Markdown file that leads nowhere.
pub fn check(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.texts(&[".md"]) {
        for (line, target) in links(text) {
            if let Some(found) = dead(tree, path, &target) {
                let instead = "point it at what is there now, or remove the link";
                complaints.push(Complaint::new(path, line, format!("link `{target}` {found}"), instead));
            }
        }
    }
    complaints
}

fn dead(tree: &Tree, page: &str, target: &str) -> Option<String> {
    let scheme = target.split(['/', '#']).next().is_some_and(|start| start.contains(':'));
    if scheme || target.starts_with("//") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { Some(page.to_owned()) } else { resolve(page, file) };
    let Some(path) = path else { return Some("leads out of the repository".to_owned()) };
    if !tree.holds(&path) {
        return Some(format!("leads to `{path}`, which does not exist"));
    }
    let text = tree.text(&path).filter(|_| path.ends_with(".md") && !anchor.is_empty())?;
    (!anchors(text).iter().any(|one| one == anchor)).then(|| format!("names no heading of `{path}`"))
}

/// Returns the path a link means, from the root; None above the root. A leading `/` means the root.
fn resolve(page: &str, file: &str) -> Option<String> {
    let mut parts: Vec<&str> = if file.starts_with('/') { Vec::new() } else { page.split('/').collect() };
    parts.pop();
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Lists line and target of each link: `[text](target)`, `![text](target)` and `[name]: target`, code left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (line, prose) in prose_lines(text) {
        if prose.starts_with('[')
            && let Some((_, target)) = prose.split_once("]: ")
        {
            links.extend(target.split_whitespace().next().map(|target| (line, target.to_owned())));
        }
        for after in prose.split("](").skip(1) {
            let target = after.split(')').next().unwrap_or(after);
            let target = target.split_whitespace().next().unwrap_or("");
            links.push((line, target.trim_matches(['<', '>']).to_owned()));
        }
    }
    links
}

/// Lists the lines outside fenced code, numbered from 1, with `code spans` blanked.
fn prose_lines(text: &str) -> Vec<(usize, String)> {
    let mut fence: Option<&str> = None;
    let mut prose = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, None) => {
                let outside =
                    line.split('`').enumerate().map(|(part, text)| if part % 2 == 0 { text } else { "" });
                prose.push((index + 1, outside.collect::<Vec<_>>().join("`")));
            }
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
        }
    }
    prose
}

/// Lists the anchors of a page's headings, as GitHub and GitLab make them: lower case, hyphens for spaces, a number
/// for each repetition.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let prose: std::collections::BTreeSet<usize> =
        prose_lines(text).into_iter().map(|(line, _)| line).collect();
    let headings = text
        .lines()
        .enumerate()
        .filter(|(index, line)| prose.contains(&(index + 1)) && line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one));
            let slug: String = kept.map(|one| if one == ' ' { '-' } else { one }).collect();
            let times = seen.entry(slug.clone()).or_default();
            *times += 1;
            if *times == 1 { slug } else { format!("{slug}-{}", *times - 1) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let tree = Tree::of(&[
            ("docs/page.md", text),
            ("docs/other.md", "# The `Core`, again\n## Twice\n## Twice\n```\n# code\n```\n"),
            ("README.md", "# Top"),
        ]);
        check(&tree).into_iter().map(|one| one.found).collect()
    }

    #[test]
    fn dead_links_are_found() {
        for (text, said) in [
            ("see [x](gone.md)", "leads to `docs/gone.md`"),
            ("see [x](../docs/gone.md#a)", "leads to `docs/gone.md`"),
            ("see ![x](gone.png \"title\")", "leads to `docs/gone.png`"),
            ("see [x](</gone.md>)", "leads to `gone.md`"),
            ("see [x][y]\n\n[y]: gone.md", "leads to `docs/gone.md`"),
            ("see [x](../../gone.md)", "out of the repository"),
            ("see [x](other.md#nowhere)", "names no heading of `docs/other.md`"),
            ("see [x](other.md#code)", "names no heading of `docs/other.md`"),
            ("# Here\nsee [x](#there)", "names no heading of `docs/page.md`"),
            ("fine [a](other.md), dead [b](gone.md)", "leads to `docs/gone.md`"),
        ] {
            let complaints = found(text);
            assert_eq!(complaints.len(), 1, "{text}: {complaints:?}");
            assert!(complaints[0].contains(said), "{text}: {complaints:?}");
        }
    }

    #[test]
    fn living_links_pass() {
        for text in [
            "[a](other.md) [b](../README.md) [c](/README.md#top) [d](../docs) [e](./other.md#the-core-again)",
            "[a](other.md#twice-1) [b](https://example.org/gone.md) [c](mailto:a@example.org)",
            "# Here\n[a](#here)",
            "`[a](gone.md)`",
            "```\n[a](gone.md)\n```",
            "an index `x[i](j)` beside [a](other.md)",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }
}
