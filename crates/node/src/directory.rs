//! A run's directory on this peer's disk: key, state, checkpoints, event log.
//!
//! Owns the layout. Knows nothing of what the files mean.
//!
//! ```text
//! DIR/run.toml                               the run file (written by the command line)
//! DIR/state.sqlite                           the coordinator's state
//! DIR/coordinator/port                       where the coordinator listened last
//! DIR/NAME/key                               a node's secret key, 64 hexadecimal digits
//! DIR/NAME/events.jsonl[.1 .. ]              a node's event log
//! DIR/checkpoints/stage-3/step-00000020.safetensors            of its first replica
//! DIR/checkpoints/stage-3-replica-1/step-00000020.safetensors  of its second
//! DIR/checkpoints/stage-3-replica-1/outer-00000020.safetensors what the replica's outer steps go on from
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use trestle_protocol::ids::{InnerStep, ReplicaId, StageId};
use trestle_protocol::plan::Place;

/// A run's directory, as one node uses it.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
    node: PathBuf,
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be made, read or written.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The key file does not hold a key.
    #[error("{} does not hold a key of 64 hexadecimal digits", .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
    },
}

impl DirectoryError {
    /// Says what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            DirectoryError::Io { .. } => "name a directory that this user may write with `--dir`",
            DirectoryError::Key { .. } => {
                "restore the file from a backup, or remove it to take part under a new key"
            }
        }
    }
}

impl Directory {
    /// Opens the directory of a run for the node called `name`, making what is missing.
    pub fn open(root: &Path, name: &str) -> Result<Self, DirectoryError> {
        let node = root.join(name);
        fs::create_dir_all(&node).map_err(|source| io_error("make", &node, source))?;
        Ok(Self { root: root.to_path_buf(), node })
    }

    /// Returns where the coordinator's state is.
    pub fn state(&self) -> PathBuf {
        state_path(&self.root)
    }

    /// Reads the port at which the node listened last, if it was kept.
    pub fn port(&self) -> Option<u16> {
        fs::read_to_string(self.node.join("port")).ok()?.trim().parse().ok()
    }

    /// Keeps the port at which the node listens, so that it is found there again when it comes back.
    pub fn keep_port(&self, port: u16) -> Result<(), DirectoryError> {
        let path = self.node.join("port");
        fs::write(&path, format!("{port}\n")).map_err(|source| io_error("write", &path, source))
    }

    /// Returns where the event log is.
    pub fn events(&self) -> PathBuf {
        self.node.join("events.jsonl")
    }

    /// Returns where a place's checkpoint at a step is.
    pub fn checkpoint(&self, place: Place, step: InnerStep) -> PathBuf {
        place_path(&self.root, place).join(format!("step-{:08}.safetensors", step.0))
    }

    /// Returns where the state of a place's outer steps is, as of a step.
    pub fn outer(&self, place: Place, step: InnerStep) -> PathBuf {
        place_path(&self.root, place).join(format!("outer-{:08}.safetensors", step.0))
    }

    /// Returns where a place's checkpoint at a step goes, after making the folder for it.
    pub fn room_for_checkpoint(&self, place: Place, step: InnerStep) -> Result<PathBuf, DirectoryError> {
        let folder = place_path(&self.root, place);
        fs::create_dir_all(&folder).map_err(|source| io_error("make", &folder, source))?;
        Ok(self.checkpoint(place, step))
    }

    /// Removes a place's checkpoints, but for the latest `keep` and any after them.
    ///
    /// Two must stay: the coordinator's state names the one before until all places have written the last.
    pub fn prune(&self, place: Place, keep: usize) -> Result<(), DirectoryError> {
        let folder = place_path(&self.root, place);
        let entries = fs::read_dir(&folder).map_err(|source| io_error("read", &folder, source))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| step_in(path).is_some())
            .collect();
        files.sort();
        let surplus = files.len().saturating_sub(keep);
        for path in &files[..surplus] {
            fs::remove_file(path).map_err(|source| io_error("remove", path, source))?;
            let outer = step_in(path).map(|step| self.outer(place, step)).filter(|outer| outer.exists());
            if let Some(outer) = outer {
                fs::remove_file(&outer).map_err(|source| io_error("remove", &outer, source))?;
            }
        }
        Ok(())
    }

    /// Lists the places of which there are checkpoints here, each with the steps of its files, the latest first.
    pub fn places(&self) -> Vec<(Place, Vec<InnerStep>)> {
        let Ok(folders) = fs::read_dir(self.root.join("checkpoints")) else { return Vec::new() };
        let mut places: Vec<_> = folders
            .filter_map(|folder| {
                let folder = folder.ok()?.path();
                let place = place_in(&folder)?;
                let files = fs::read_dir(&folder).ok()?;
                let mut steps: Vec<_> = files.filter_map(|file| step_in(&file.ok()?.path())).collect();
                steps.sort_by(|a, b| b.cmp(a));
                Some((place, steps))
            })
            .collect();
        places.sort();
        places
    }

    /// Reads the node's key, or makes one from the system's randomness; only its owner may read the file.
    pub fn key(&self) -> Result<SigningKey, DirectoryError> {
        let path = self.node.join("key");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let key = parse_key(text.trim()).ok_or_else(|| DirectoryError::Key { path: path.clone() })?;
                Ok(SigningKey::from_bytes(&key))
            }
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                let mut secret = [0_u8; 32];
                getrandom::fill(&mut secret).map_err(|error| {
                    io_error("draw a key for", &path, io::Error::other(error.to_string()))
                })?;
                write_secret(&path, &secret).map_err(|source| io_error("write", &path, source))?;
                Ok(SigningKey::from_bytes(&secret))
            }
            Err(source) => Err(io_error("read", &path, source)),
        }
    }
}

/// Returns where the coordinator's state of a run is.
pub fn state_path(root: &Path) -> PathBuf {
    root.join("state.sqlite")
}

/// Returns where the checkpoint of a stage's first replica at a step is: all replicas have the same weights in theirs.
pub fn checkpoint_path(root: &Path, stage: StageId, step: InnerStep) -> PathBuf {
    stage_path(root, stage).join(format!("step-{:08}.safetensors", step.0))
}

fn stage_path(root: &Path, stage: StageId) -> PathBuf {
    place_path(root, Place { stage, replica: ReplicaId(0) })
}

fn place_path(root: &Path, place: Place) -> PathBuf {
    let Place { stage, replica } = place;
    let folder = match replica {
        ReplicaId(0) => format!("stage-{stage}"),
        ReplicaId(_) => format!("stage-{stage}-replica-{replica}"),
    };
    root.join("checkpoints").join(folder)
}

/// Reads the place out of the name of its folder.
fn place_in(folder: &Path) -> Option<Place> {
    let name = folder.file_name()?.to_str()?.strip_prefix("stage-")?;
    let (stage, replica) = name.split_once("-replica-").unwrap_or((name, "0"));
    Some(Place { stage: StageId(stage.parse().ok()?), replica: ReplicaId(replica.parse().ok()?) })
}

/// Reads the step out of a checkpoint's file name.
pub fn step_in(path: &Path) -> Option<InnerStep> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
    digits.parse().ok().map(InnerStep)
}

/// Lists the steps for which a stage has a checkpoint file, lowest first.
pub fn steps_of(root: &Path, stage: StageId) -> Vec<InnerStep> {
    let Ok(entries) = fs::read_dir(stage_path(root, stage)) else { return Vec::new() };
    let mut steps: Vec<_> = entries.filter_map(|entry| step_in(&entry.ok()?.path())).collect();
    steps.sort();
    steps
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> DirectoryError {
    DirectoryError::Io { doing, path: path.to_path_buf(), source }
}

fn parse_key(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

fn write_secret(path: &Path, secret: &[u8; 32]) -> io::Result<()> {
    let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let open = || Directory::open(root.path(), "worker-0").unwrap();
        let first = open().key().unwrap();
        assert_eq!(open().key().unwrap().to_bytes(), first.to_bytes());
        fs::write(root.path().join("worker-0/key"), "not a key").unwrap();
        assert!(matches!(open().key(), Err(DirectoryError::Key { .. })));
    }

    #[test]
    fn pruning_keeps_the_latest_checkpoints() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "worker-1").unwrap();
        let place = |replica| Place { stage: StageId(1), replica: ReplicaId(replica) };
        for step in [5, 100, 20] {
            let path = directory.room_for_checkpoint(place(0), InnerStep(step)).unwrap();
            fs::write(path, "x").unwrap();
            fs::write(directory.outer(place(0), InnerStep(step)), "x").unwrap();
        }
        let other = directory.room_for_checkpoint(place(1), InnerStep(5)).unwrap();
        fs::write(&other, "x").unwrap();
        directory.prune(place(0), 2).unwrap();
        let outer = |step| directory.outer(place(0), InnerStep(step)).exists();
        assert!(other.exists() && outer(100) && !outer(5), "replicas do not share files");
        assert_eq!(steps_of(root.path(), StageId(1)), [InnerStep(20), InnerStep(100)]);
        let latest_first = vec![InnerStep(100), InnerStep(20)];
        assert_eq!(directory.places(), [(place(0), latest_first), (place(1), vec![InnerStep(5)])]);
    }

    #[test]
    fn a_port_is_kept_for_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        let open = || Directory::open(root.path(), "coordinator").unwrap();
        assert_eq!(open().port(), None);
        open().keep_port(4433).unwrap();
        assert_eq!(open().port(), Some(4433));
    }
}
