//! The run file: what a person writes to say what is trained, and how.
//!
//! Owns its reading, its checks and its defaults; what comes out is checked once and for all. May not know peers,
//! tensors or what is printed.

pub(crate) mod check;
pub(crate) mod error;
pub(crate) mod layout;
pub(crate) mod raw;
#[cfg(test)]
mod refusals;
pub(crate) mod sections;
pub(crate) mod source;
pub(crate) mod sync;

use std::path::{Path, PathBuf};

use trestle_protocol::ids::Digest;
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::spec::{
    BoundarySpec, CheckpointSpec, DataSource, DataSpec, EvaluationSpec, ModelSpec, OptimizerSpec,
    PipelineSpec, RunSpec, Tokenizer, TrainingSpec,
};

use crate::run_file::check::{Absent, Checker};
use crate::run_file::error::RunFileError;
use crate::run_file::layout::ModelSection;
use crate::run_file::sections::{DataSection, TextSource};
use crate::run_file::source::{Override, Written};

/// A name becomes a folder's name and goes to every peer.
const NAME_CHARS_MAX: usize = 64;

/// A run file whose fields are checked, with the defaults filled in.
#[derive(Debug)]
pub(crate) struct RunFile {
    written: Written,
    folder: PathBuf,
    name: String,
    seed: u64,
    model: ModelSection,
    boundary: BoundarySpec,
    pipeline: PipelineSpec,
    training: TrainingSpec,
    optimizer: OptimizerSpec,
    sync: SyncSpec,
    data: DataSection,
    evaluation: EvaluationSpec,
    checkpoint: CheckpointSpec,
}

impl RunFile {
    /// Reads a run file and applies the options given beside it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line or option, its value, what is allowed, and a hint.
    pub(crate) fn read(file: &Path, overrides: &[Override]) -> Result<Self, RunFileError> {
        let text = std::fs::read_to_string(file)
            .map_err(|reason| RunFileError::Unreadable { file: file.into(), reason })?;
        Self::parse(file, &text, overrides)
    }

    /// Parses the text of a run file; `file` serves for messages, for the default name, and for paths in the file.
    pub(crate) fn parse(file: &Path, text: &str, overrides: &[Override]) -> Result<Self, RunFileError> {
        let (written, raw) = Written::parse(file, text, overrides)?;
        let check = Checker { written: &written };
        let name = name(&check, raw.name.as_deref(), file)?;
        let seed = check.whole("seed", raw.seed, Absent::Means(1), 0..=i64::MAX as u64)?;
        let model = layout::model(&check, &raw.model)?;
        let pipeline = layout::pipeline(&check, &raw.pipeline, model.layers)?;
        let boundary = layout::boundary(&check, &raw.boundary, &model, &pipeline)?;
        let training = sections::training(&check, &raw.training)?;
        let optimizer = sections::optimizer(&check, &raw.optimizer)?;
        let sync = sync::sync(&check, &raw.sync)?;
        let data = sections::data(&check, &raw.data)?;
        let evaluation = sections::evaluation(&check, &raw.evaluation, data.held_out_permille)?;
        let checkpoint = sections::checkpoint(&check, &raw.checkpoint)?;
        if pipeline.replicas > 1 {
            sync::borders_meet(&check, &sync, &evaluation, &checkpoint)?;
        }
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self {
            written,
            folder,
            name,
            seed,
            model,
            boundary,
            pipeline,
            training,
            optimizer,
            sync,
            data,
            evaluation,
            checkpoint,
        })
    }

    /// Returns what people call the run.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the section `[data]`.
    pub(crate) fn data(&self) -> &DataSection {
        &self.data
    }

    /// Returns where a path in the run file leads: it counts from the run file's folder.
    pub(crate) fn beside(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Returns where the text is, if anywhere: what `--data` names goes before `data.path`.
    ///
    /// # Errors
    /// A generated corpus has no file; and peers tell JSON lines from plain text by the file's ending alone, so an
    /// ending that contradicts `data.source` would be read differently from peer to peer.
    pub(crate) fn text_path(&self, given: Option<&Path>) -> Result<Option<PathBuf>, RunFileError> {
        let check = Checker { written: &self.written };
        let refuse = |source: &str, allowed: String, hint: &str| {
            Err(check.refuse("data.source", format!("\"{source}\""), allowed, hint.into()))
        };
        let (source, path) = match &self.data.source {
            TextSource::Generated { .. } => ("generated", &None),
            TextSource::Text { path } => ("text", path),
            TextSource::JsonLines { path, .. } => ("jsonl", path),
        };
        let path = given.map(Path::to_path_buf).or_else(|| path.as_ref().map(|path| self.beside(path)));
        let Some(path) = path else { return Ok(None) };
        let shown = path.display();
        let lines = path.extension().is_some_and(|ending| ending == "jsonl");
        match &self.data.source {
            TextSource::Generated { .. } => {
                let allowed = format!("\"text\" or \"jsonl\", to read {shown}");
                refuse(
                    source,
                    allowed,
                    "leave --data out, or use a run file for text, such as runs/tiny.toml",
                )
            }
            TextSource::Text { .. } if lines => {
                refuse(source, format!("\"jsonl\", to read {shown}"), "add --set data.source=jsonl")
            }
            TextSource::JsonLines { .. } if !lines => {
                let allowed = format!("\"text\", for {shown} does not end in .jsonl");
                refuse(source, allowed, "if the file holds JSON lines, give it a name that ends in .jsonl")
            }
            TextSource::Text { .. } | TextSource::JsonLines { .. } => Ok(Some(path)),
        }
    }

    /// Returns the number of token ids, as far as it is known without opening any data: what the file says, else 256
    /// for bytes.
    pub(crate) fn vocabulary(&self) -> Option<u32> {
        let bytes = self.data.tokenizer.is_none().then_some(256);
        self.model.vocabulary.or(bytes)
    }

    /// Builds the spec that all peers agree on, once the data is open: with the digest of its manifest and the number
    /// of its token ids.
    ///
    /// # Errors
    /// `model.vocabulary` is smaller than that number.
    pub(crate) fn spec(&self, manifest: Digest, data_vocabulary: u32) -> Result<RunSpec, RunFileError> {
        let model = &self.model;
        let vocabulary = model.vocabulary.unwrap_or(data_vocabulary);
        if vocabulary < data_vocabulary {
            let check = Checker { written: &self.written };
            let allowed = format!("at least {data_vocabulary}, the token ids of data.tokenizer");
            let hint = "leave model.vocabulary out, to take the tokenizer's number".into();
            return Err(check.refuse("model.vocabulary", vocabulary, allowed, hint));
        }
        let source = match self.data.source {
            TextSource::Generated { tokens } => DataSource::Generated { tokens },
            TextSource::Text { .. } | TextSource::JsonLines { .. } => DataSource::Local,
        };
        Ok(RunSpec {
            name: self.name.clone(),
            seed: self.seed,
            model: ModelSpec {
                vocabulary,
                width: model.width,
                layers: model.layers,
                heads: model.heads,
                kv_heads: model.kv_heads,
                ffn_width: model.ffn_width,
                sequence_len: model.sequence_len,
                rope_theta: model.rope_theta,
                norm_epsilon: model.norm_epsilon,
            },
            boundary: self.boundary.clone(),
            pipeline: self.pipeline.clone(),
            training: self.training.clone(),
            optimizer: self.optimizer.clone(),
            sync: self.sync.clone(),
            data: DataSpec {
                source,
                tokenizer: if self.data.tokenizer.is_some() { Tokenizer::File } else { Tokenizer::Bytes },
                held_out_permille: self.data.held_out_permille,
                manifest,
            },
            evaluation: self.evaluation.clone(),
            checkpoint: self.checkpoint.clone(),
        })
    }
}

fn name(check: &Checker<'_>, given: Option<&str>, file: &Path) -> Result<String, RunFileError> {
    let stem = file.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
    let name = given.map_or(stem, Into::into);
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.') {
        return Ok(name);
    }
    let allowed = format!("1 to {NAME_CHARS_MAX} letters, digits, `-`, `_` or `.`, with no `.` in front");
    Err(check.refuse("name", format!("\"{name}\""), allowed, "for instance: name = \"my-run\"".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_file::refusals::{SMALL, parse};
    use trestle_protocol::spec::{BoundaryForm, Dtype, Schedule};

    fn spec(set: &[&str]) -> RunSpec {
        parse(SMALL, set).unwrap().spec(Digest([0; 32]), 256).unwrap()
    }

    #[test]
    fn defaults_fill_what_is_not_said() {
        let spec = spec(&[]);
        assert_eq!((spec.name.as_str(), spec.seed, spec.model.vocabulary), ("small", 3, 256));
        assert_eq!(spec.pipeline.stage_layers, [2, 2, 2]);
        assert_eq!((spec.pipeline.in_flight_max, spec.pipeline.schedule), (4, Schedule::Flush));
        assert_eq!((spec.boundary.form, spec.boundary.encoder_width), (BoundaryForm::Resbm, 16));
        assert_eq!((spec.boundary.wire, spec.pipeline.compute), (Dtype::Bf16, Dtype::F32));
        assert_eq!((spec.training.warmup_steps, spec.training.final_ratio), (5, 0.1));
        assert_eq!(spec.optimizer.muon_learning_rate, spec.optimizer.learning_rate);
        assert_eq!(spec.data.source, DataSource::Local);
    }

    #[test]
    fn defaults_follow_what_is_said() {
        assert_eq!(spec(&["pipeline.stages=4"]).pipeline.stage_layers, [2, 2, 1, 1]);
        let whole = "boundary.form=none";
        assert_eq!(spec(&[whole, "boundary.width=64"]).boundary.wire, Dtype::F32);
        assert_eq!(spec(&[whole, "boundary.width=64", "pipeline.compute=bf16"]).boundary.wire, Dtype::Bf16);
        assert_eq!(spec(&["boundary.form=fused"]).boundary.encoder_width, 64);
        assert_eq!(spec(&["optimizer.learning_rate=0.5"]).optimizer.muon_learning_rate, 0.5);
        let ahead = ["pipeline.schedule=async", "pipeline.in_flight_max=9"];
        assert_eq!(spec(&ahead).pipeline.schedule, Schedule::Async { staleness_max: 3 });
        assert_eq!(spec(&["data.held_out_permille=0"]).evaluation.microbatches, 0);
        assert_eq!(spec(&["pipeline.stages=1", "boundary.width=64"]).boundary.form, BoundaryForm::None);
    }

    #[test]
    fn every_field_can_be_set_and_reaches_the_spec() {
        let texts = [
            "name=other",
            "seed=4",
            "model.vocabulary=300",
            "model.width=72",
            "model.layers=7",
            "model.heads=2",
            "model.kv_heads=1",
            "model.ffn_width=99",
            "model.sequence_len=33",
            "model.rope_theta=10000",
            "model.norm_epsilon=1e-6",
            "boundary.form=fused",
            "boundary.width=9",
            "boundary.encoder_width=10",
            "boundary.wire=f32",
            "pipeline.stage_layers=[3, 2, 1]",
            "pipeline.stages=2",
            "pipeline.schedule=async",
            "pipeline.microbatch_size=5",
            "pipeline.microbatches_per_step=6",
            "pipeline.in_flight_max=7",
            "pipeline.retain=input",
            "pipeline.compute=bf16",
            "training.steps=101",
            "training.warmup_steps=6",
            "training.decay=constant",
            "training.final_ratio=0.2",
            "training.gradient_clip=0",
            "optimizer.kind=muon",
            "optimizer.learning_rate=0.1",
            "optimizer.beta1=0.8",
            "optimizer.beta2=0.9",
            "optimizer.epsilon=1e-7",
            "optimizer.weight_decay=0",
            "optimizer.muon_learning_rate=0.3",
            "optimizer.muon_momentum=0.9",
            "sync.inner_steps=20",
            "sync.overlap=false",
            "sync.delay=3",
            "sync.rule=mean",
            "sync.learning_rate=0.6",
            "sync.momentum=0.8",
            "sync.momentum_ramp=5",
            "sync.codec=sparseloco",
            "sync.error_decay=0.9",
            "data.source=generated",
            "data.tokenizer=t.json",
            "data.held_out_permille=60",
            "evaluation.every=20",
            "evaluation.microbatches=3",
            "checkpoint.every=30",
        ];
        let plain = spec(&[]);
        for text in texts {
            // Lines that would contradict the new value go.
            let base = match text {
                "pipeline.stage_layers=[3, 2, 1]" => SMALL.replace("stages = 3\n", ""),
                _ => SMALL.to_string(),
            };
            let run_file = parse(&base, &[text]).unwrap_or_else(|error| panic!("{text}: {error}"));
            let changed = run_file.spec(Digest([0; 32]), 256).unwrap();
            assert_ne!(plain.digest(), changed.digest(), "{text} changes nothing");
        }
    }

    #[test]
    fn text_is_found_beside_the_run_file_or_where_the_option_says() {
        let path =
            |set: &[&str], given: Option<&str>| parse(SMALL, set).unwrap().text_path(given.map(Path::new));
        let text = ["data.path=book.txt"];
        assert_eq!(path(&text, None).unwrap(), Some("runs/book.txt".into()));
        assert_eq!(path(&text, Some("other.txt")).unwrap(), Some("other.txt".into()));
        assert_eq!(path(&[], None).unwrap(), None);
        assert_eq!(path(&["data.source=jsonl"], Some("a.jsonl")).unwrap(), Some("a.jsonl".into()));
        let table = [
            (
                "data.source=generated",
                "a.txt",
                "`data.source` is \"generated\", expected \"text\" or \"jsonl\", to read a.txt",
            ),
            ("data.source=text", "a.jsonl", "`data.source` is \"text\", expected \"jsonl\", to read a.jsonl"),
            (
                "data.source=jsonl",
                "a.txt",
                "`data.source` is \"jsonl\", expected \"text\", for a.txt does not end in .jsonl",
            ),
        ];
        for (set, given, message) in table {
            let error = path(&[set], Some(given)).unwrap_err();
            assert!(error.to_string().ends_with(message), "{error}\nis not\n{message}");
        }
    }

    #[test]
    fn every_field_is_documented_in_its_section() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/run-file.md");
        let page = std::fs::read_to_string(page).unwrap();
        let others = [
            "pipeline.stages",
            "pipeline.staleness_max",
            "sync.overlap",
            "data.path",
            "data.field",
            "data.tokens",
        ];
        let fields = spec(&[]).fields().into_iter().map(|(field, _)| field).chain(others);
        for field in fields.filter(|field| *field != "data.manifest") {
            let (heading, key) = match field.split_once('.') {
                Some((section, key)) => (format!("\n## `[{section}]`\n"), key),
                None => ("\n## At the top\n".to_string(), field),
            };
            let section =
                page.split(&heading).nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
            let listed =
                section.lines().any(|line| line.starts_with("| ") && line.contains(&format!("`{key}`")));
            assert!(listed, "docs/run-file.md does not list {field}");
        }
    }
}
