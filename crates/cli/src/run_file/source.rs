//! The text of a run file with the options that override it: parsed, and every field traced back to where it stands.
//!
//! Owns TOML. May not know what any field means.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::run_file::error::{Origin, RunFileError};
use crate::run_file::raw::RawRun;

/// One field that an option on the command line sets, whatever the run file says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Override {
    /// The field, such as `boundary.width`.
    pub(crate) field: String,
    /// Its value.
    pub(crate) value: Value,
    /// The option as it was written, such as `--set boundary.width=32`.
    pub(crate) option: String,
}

impl Override {
    /// Reads the `key=value` of a `--set`. What is no TOML value is text, so that quotes are not needed.
    pub(crate) fn parse(text: &str) -> Result<Self, RunFileError> {
        let malformed = || RunFileError::NotAnAssignment { text: text.into() };
        let (field, value) = text.split_once('=').ok_or_else(malformed)?;
        let (field, value) = (field.trim(), value.trim());
        if value.is_empty() || field.split('.').any(|part| part.trim().is_empty()) {
            return Err(malformed());
        }
        let parsed = format!("x = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("x"));
        let value = parsed.unwrap_or_else(|| Value::String(value.into()));
        Ok(Self { field: field.into(), value, option: format!("--set {text}") })
    }
}

/// A run file as it was written, and where each field stands.
#[derive(Debug)]
pub(crate) struct Written {
    file: PathBuf,
    lines: BTreeMap<String, usize>,
    options: BTreeMap<String, String>,
}

impl Written {
    /// Parses the text of a run file and applies overrides in their order.
    ///
    /// # Errors
    /// Text that is no TOML, unknown fields, and values of a wrong type, each with its line or option.
    pub(crate) fn parse(
        file: &Path,
        text: &str,
        overrides: &[Override],
    ) -> Result<(Self, RawRun), RunFileError> {
        let tree = DeTable::parse(text).map_err(|error| syntax_error(file, text, &error))?;
        let mut places = Vec::new();
        collect_places(tree.get_ref(), "", &mut places);
        let lines =
            places.iter().map(|place| (place.field.clone(), line_at(text, place.key.start))).collect();
        let mut written = Self { file: file.into(), lines, options: BTreeMap::new() };

        let mut table: Table = toml::from_str(text).map_err(|error| syntax_error(file, text, &error))?;
        let mut raw: RawRun =
            toml::from_str(text).map_err(|error| shape_error(file, text, &places, &error))?;
        for wanted in overrides {
            let origin = Origin::Option(wanted.option.clone());
            let shape = |message: String| RunFileError::Shape { origin: origin.clone(), message };
            insert(&mut table, &wanted.field, wanted.value.clone()).map_err(shape)?;
            raw = table.clone().try_into().map_err(|error: toml::de::Error| {
                shape(format!("`{}` is {}: {}", wanted.field, wanted.value, plain(error.message())))
            })?;
            written.options.insert(wanted.field.clone(), wanted.option.clone());
        }
        Ok((written, raw))
    }

    /// Returns where a field's value comes from.
    pub(crate) fn origin(&self, field: &str) -> Origin {
        if let Some(option) = self.options.get(field) {
            return Origin::Option(option.clone());
        }
        match self.lines.get(field) {
            Some(&line) => Origin::Line { file: self.file.clone(), line },
            None => Origin::File(self.file.clone()),
        }
    }
}

struct Place {
    field: String,
    key: Range<usize>,
    value: Range<usize>,
}

fn collect_places(table: &DeTable<'_>, prefix: &str, places: &mut Vec<Place>) {
    for (key, value) in table {
        let field =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        if let DeValue::Table(inner) = value.get_ref() {
            collect_places(inner, &field, places);
        }
        places.push(Place { field, key: key.span(), value: value.span() });
    }
}

fn insert(table: &mut Table, field: &str, value: Value) -> Result<(), String> {
    let Some((section, rest)) = field.split_once('.') else {
        table.insert(field.into(), value);
        return Ok(());
    };
    let inner = table.entry(section.trim()).or_insert_with(|| Value::Table(Table::new()));
    let inner =
        inner.as_table_mut().ok_or_else(|| format!("`{section}` is a field, which has no field `{rest}`"))?;
    insert(inner, rest.trim(), value)
}

fn line_at(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

fn origin_of(file: &Path, text: &str, error: &toml::de::Error) -> Origin {
    match error.span() {
        Some(span) => Origin::Line { file: file.into(), line: line_at(text, span.start) },
        None => Origin::File(file.into()),
    }
}

fn syntax_error(file: &Path, text: &str, error: &toml::de::Error) -> RunFileError {
    RunFileError::Syntax {
        origin: origin_of(file, text, error),
        message: error.message().replace('\n', ", "),
    }
}

/// Names the field whose value has the wrong type; an unknown field is named by the parser.
fn shape_error(file: &Path, text: &str, places: &[Place], error: &toml::de::Error) -> RunFileError {
    let message = plain(error.message());
    let at_value = error.span().and_then(|span| places.iter().find(|place| place.value == span));
    let message = match at_value {
        Some(place) => format!("`{}` is {}: {message}", place.field, &text[place.value.clone()]),
        None => message,
    };
    RunFileError::Shape { origin: origin_of(file, text, error), message }
}

/// Turns the names of Rust's types into words.
fn plain(message: &str) -> String {
    message
        .replace("expected i64", "expected a whole number")
        .replace("expected f64", "expected a number")
        .replace('\n', ", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_without_quotes_is_text() {
        let set = Override::parse("boundary.form=fused").unwrap();
        assert_eq!((set.field.as_str(), set.value), ("boundary.form", Value::String("fused".into())));
        assert_eq!(Override::parse("boundary.width = 32").unwrap().value, Value::Integer(32));
        assert_eq!(
            Override::parse("pipeline.stage_layers=[1, 2]").unwrap().value.as_array().map(Vec::len),
            Some(2)
        );
        for text in ["boundary.width", "=3", "boundary.=3", "boundary.width="] {
            assert!(Override::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_field_is_traced_to_its_line_or_option() {
        let text = "seed = 1\n\n[model]\nwidth = 64\nlayers = 2\n";
        let set = [Override::parse("model.layers=4").unwrap()];
        let (written, raw) = Written::parse(Path::new("a.toml"), text, &set).unwrap();
        assert_eq!(raw.model.layers, Some(4));
        assert_eq!(written.origin("model.width").to_string(), "a.toml:4");
        assert_eq!(written.origin("model.layers").to_string(), "`--set model.layers=4`");
        assert_eq!(written.origin("model.heads").to_string(), "a.toml");
    }
}
