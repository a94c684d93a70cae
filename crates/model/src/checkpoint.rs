//! Owns the file that a run resumes from: tensors and labels in the safetensors format, written atomically and checked to
//! the last bit when read. It may not know what the tensors or labels mean, nor where in a run they belong.
//!
//! Two labels are ours: `trestle.format`, the version of this layout, and `trestle.digest`, the BLAKE3 digest of all other
//! labels and of every tensor's name, number format, shape and bytes. All else is the writer's, and any reader of
//! safetensors can open the file.

pub mod error;
mod layout;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use tch::{Device, TchError, Tensor};

use crate::checkpoint::error::{io_error, torch_error};
use crate::checkpoint::layout::{Header, check_names, digest_of, header, hex, kind_of, lay_out, read_header};
use crate::codec::raw_bytes;

pub use crate::checkpoint::error::{CheckpointError, FORMAT};

/// A checkpoint in memory, checked.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file it came from.
    pub path: PathBuf,
    /// The writer's labels.
    pub labels: BTreeMap<String, String>,
    /// The tensors not yet taken, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Digest of labels and tensors; the one that [`write()`] returned.
    pub digest: [u8; 32],
}

impl Checkpoint {
    /// Takes a tensor out.
    ///
    /// # Errors
    /// It is not there, or has another shape.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
        let path = || self.path.clone();
        let Some(tensor) = self.tensors.remove(name) else {
            return Err(CheckpointError::Missing { path: path(), name: name.to_string() });
        };
        if tensor.size() != shape {
            let (name, got, expected) = (name.to_string(), tensor.size(), shape.to_vec());
            return Err(CheckpointError::Shape { path: path(), name, got, expected });
        }
        Ok(tensor)
    }

    /// Checks that every tensor was taken.
    ///
    /// # Errors
    /// Names the first that is left.
    pub fn finish(self) -> Result<(), CheckpointError> {
        let count = self.tensors.len();
        match self.tensors.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(CheckpointError::Unexpected { path: self.path, name, count }),
        }
    }
}

/// What a checkpoint holds, without its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The writer's labels.
    pub labels: BTreeMap<String, String>,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, TensorSummary>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Digest of labels and tensors.
    pub digest: [u8; 32],
}

/// What a checkpoint says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSummary {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its number format, as safetensors writes it: `F32`, `BF16` or `I64`.
    pub dtype: String,
}

/// Writes a checkpoint and returns its digest. Either the whole file is there afterwards, on disk, or the one before it
/// is: the content goes to `PATH.partial` first, is forced to disk, and takes the name in one move. At most one writer
/// may use a path at a time.
///
/// The same labels and tensors give the same bytes. Tensors are f32, bf16 or i64, on any device, and are copied to the
/// host one at a time.
///
/// # Errors
/// The file system's and libtorch's refusals; a name twice; a label that begins with `trestle.`; another number format.
pub fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    labels: &BTreeMap<String, String>,
) -> Result<[u8; 32], CheckpointError> {
    let partial = partial_path(path);
    let digest = write_partial(&partial, tensors, labels).inspect_err(|_| {
        // What is left of it is of no use, and the disk may be full. If this fails too, the next write replaces it.
        let _ = fs::remove_file(&partial);
    })?;
    publish(&partial, path).map_err(io_error("moving into place", path))?;
    Ok(digest)
}

/// Reads a checkpoint, checks it whole, and puts its tensors on `device`.
///
/// # Errors
/// The file system's and libtorch's refusals; a file that is truncated, changed in any bit, or of another layout.
pub fn read(path: &Path, device: Device) -> Result<Checkpoint, CheckpointError> {
    let mut tensors = BTreeMap::new();
    let (header, digest) = walk(path, |name, info, bytes| {
        let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        let tensor = Tensor::f_from_data_size(bytes, &shape, kind_of(info.dtype)?)?.f_to_device(device)?;
        tensors.insert(name.to_string(), tensor);
        Ok(())
    })?;
    Ok(Checkpoint { path: path.to_path_buf(), labels: header.labels, tensors, digest })
}

/// Checks a checkpoint whole and says what it holds.
///
/// # Errors
/// Those of [`read`].
pub fn inspect(path: &Path) -> Result<Summary, CheckpointError> {
    let mut tensors = BTreeMap::new();
    let (header, digest) = walk(path, |name, info, _| {
        tensors.insert(
            name.to_string(),
            TensorSummary { shape: info.shape.clone(), dtype: info.dtype.to_string() },
        );
        Ok(())
    })?;
    Ok(Summary { labels: header.labels, tensors, bytes: header.file_bytes, digest })
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

fn write_partial(
    path: &Path,
    tensors: &[(String, Tensor)],
    labels: &BTreeMap<String, String>,
) -> Result<[u8; 32], CheckpointError> {
    check_names(path, tensors, labels)?;
    let (infos, order) = lay_out(path, tensors)?;
    let doing = "writing";
    let file = File::create(path).map_err(io_error(doing, path))?;
    let mut writer = BufWriter::new(file);
    // The digest is known only after the last tensor: its place is filled with zeros of the same length until then.
    writer.write_all(&header(path, &infos, labels, &[0; 32])?).map_err(io_error(doing, path))?;
    let mut contents = BTreeMap::new();
    for index in order {
        let (name, tensor) = &tensors[index];
        let bytes = raw_bytes(tensor).map_err(torch_error(path))?;
        contents.insert(name.clone(), (infos[name].clone(), *blake3::hash(&bytes).as_bytes()));
        writer.write_all(&bytes).map_err(io_error(doing, path))?;
    }
    let digest = digest_of(labels, &contents);
    writer.seek(SeekFrom::Start(0)).map_err(io_error(doing, path))?;
    writer.write_all(&header(path, &infos, labels, &digest)?).map_err(io_error(doing, path))?;
    let file = writer.into_inner().map_err(|error| io_error(doing, path)(error.into_error()))?;
    file.sync_all().map_err(io_error("forcing to disk", path))?;
    Ok(digest)
}

fn publish(partial: &Path, path: &Path) -> io::Result<()> {
    fs::rename(partial, path)?;
    // The new name is durable only once the folder is; other systems than Unix cannot open a folder, nor need to.
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Reads the header and then each tensor's bytes in turn, hands them to `visit`, and compares the digest at the end: what
/// `visit` made of them may be used only if this returns without error.
fn walk(
    path: &Path,
    mut visit: impl FnMut(&str, &TensorInfo, &[u8]) -> Result<(), TchError>,
) -> Result<(Header, [u8; 32]), CheckpointError> {
    let mut file = BufReader::new(File::open(path).map_err(io_error("opening", path))?);
    let header = read_header(path, &mut file)?;
    let mut contents = BTreeMap::new();
    let mut bytes = Vec::new();
    for name in &header.names {
        let info = &header.infos[name];
        if kind_of(info.dtype).is_err() {
            let (path, name, kind) = (path.to_path_buf(), name.clone(), info.dtype.to_string());
            return Err(CheckpointError::NumberFormat { path, name, kind });
        }
        // The header's sizes add up to the file's length, so this asks for no more memory than the file has bytes.
        bytes.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        file.read_exact(&mut bytes).map_err(io_error("reading", path))?;
        contents.insert(name.clone(), (info.clone(), *blake3::hash(&bytes).as_bytes()));
        visit(name, info, &bytes).map_err(torch_error(path))?;
    }
    let digest = digest_of(&header.labels, &contents);
    if hex(&digest) != header.digest {
        let (path, got, expected) = (path.to_path_buf(), hex(&digest), header.digest);
        return Err(CheckpointError::Digest { path, got, expected });
    }
    Ok((header, digest))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        tensors: Vec<(String, Tensor)>,
        labels: BTreeMap<String, String>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let named = |name: &str, tensor: Tensor| (name.to_string(), tensor);
            Fixture {
                folder: tempfile::tempdir().expect("a folder"),
                tensors: vec![
                    named("b", Tensor::from_slice(&[1.5f32, -2.0, f32::NAN, 0.25]).reshape([2, 2])),
                    named("a", Tensor::from_slice(&[1.0f32, 2.0, 3.0]).to_kind(Kind::BFloat16)),
                    named("steps", Tensor::from_slice(&[7_i64])),
                    named("scalar", Tensor::from(0.5f32)),
                    named("empty", Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
                ],
                labels: [("step", "12"), ("boundary", "resbm"), ("note", "\"quoted\" \u{2603}")]
                    .map(|(name, label)| (name.to_string(), label.to_string()))
                    .into(),
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("stage-0.safetensors")
        }

        fn write(&self) -> Result<[u8; 32], CheckpointError> {
            write(&self.path(), &self.tensors, &self.labels)
        }

        fn read(&self) -> Result<Checkpoint, CheckpointError> {
            read(&self.path(), Device::Cpu)
        }

        /// Writes bytes in the checkpoint's place and returns what reading them says.
        fn read_instead(&self, bytes: &[u8]) -> CheckpointError {
            fs::write(self.path(), bytes).expect("a file");
            self.read().expect_err("it was damaged")
        }
    }

    fn bits(tensor: &Tensor) -> (Vec<i64>, Kind, Vec<u8>) {
        (tensor.size(), tensor.kind(), raw_bytes(tensor).expect("copy"))
    }

    #[test]
    fn what_was_written_comes_back_bit_for_bit() {
        let fixture = Fixture::new();
        let digest = fixture.write().expect("written");
        let checkpoint = fixture.read().expect("undamaged");
        assert_eq!((&checkpoint.labels, checkpoint.digest), (&fixture.labels, digest));
        assert_eq!(checkpoint.tensors.len(), fixture.tensors.len());
        for (name, tensor) in &fixture.tensors {
            assert_eq!(bits(&checkpoint.tensors[name]), bits(tensor), "{name}");
        }
        assert!(!partial_path(&fixture.path()).exists());
    }

    #[test]
    fn the_same_content_gives_the_same_file_and_other_content_another_digest() {
        let fixture = Fixture::new();
        let digest = fixture.write().expect("written");
        let first = fs::read(fixture.path()).expect("file");
        let mut other = Fixture::new();
        other.tensors.reverse();
        assert_eq!(other.write().expect("written"), digest);
        assert_eq!(fs::read(other.path()).expect("file"), first);
        other.labels.insert("step".into(), "13".into());
        assert_ne!(other.write().expect("written"), digest);
        other.labels = fixture.labels.clone();
        other.tensors[0].0 = "scalars".into();
        assert_ne!(other.write().expect("written"), digest);
    }

    #[test]
    fn any_reader_of_safetensors_can_open_it() {
        let fixture = Fixture::new();
        fixture.write().expect("written");
        let bytes = fs::read(fixture.path()).expect("file");
        let open = safetensors::SafeTensors::deserialize(&bytes).expect("the format");
        assert_eq!(open.tensor("b").expect("there").shape(), [2, 2]);
        let read = Tensor::read_safetensors(fixture.path()).expect("libtorch's own reader");
        assert_eq!(read.len(), 5);
    }

    #[test]
    fn inspecting_says_what_is_there() {
        let fixture = Fixture::new();
        let digest = fixture.write().expect("written");
        let summary = inspect(&fixture.path()).expect("undamaged");
        assert_eq!((summary.labels, summary.digest), (fixture.labels.clone(), digest));
        assert_eq!(summary.bytes, fs::metadata(fixture.path()).expect("file").len());
        assert_eq!(summary.tensors["a"], TensorSummary { shape: vec![3], dtype: "BF16".into() });
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let fixture = Fixture::new();
        fixture.write().expect("written");
        let mut bytes = fs::read(fixture.path()).expect("file");
        let mut corrupt = 0;
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = fixture.read_instead(&bytes);
            corrupt += usize::from(matches!(error, CheckpointError::Digest { .. }));
            assert!(error.hint().is_some(), "bit {bit}: {error}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(corrupt >= 8 * (4 * 4 + 3 * 2 + 8 + 4), "{corrupt}");
        fs::write(fixture.path(), &bytes).expect("a file");
        assert!(fixture.read().is_ok());
    }

    #[test]
    fn every_truncation_and_a_longer_file_are_noticed() {
        let fixture = Fixture::new();
        fixture.write().expect("written");
        let bytes = fs::read(fixture.path()).expect("file");
        for length in 0..bytes.len() {
            let error = fixture.read_instead(&bytes[..length]);
            let full = bytes.len() as u64;
            assert!(
                matches!(error, CheckpointError::Length { got, expected, .. } if got == length as u64 && expected <= full),
                "{length}: {error}"
            );
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(fixture.read_instead(&longer), CheckpointError::Length { .. }));
    }

    #[test]
    fn files_of_another_kind_are_refused_by_name() {
        let fixture = Fixture::new();
        assert!(matches!(fixture.read_instead(&[0xff; 64]), CheckpointError::Header { .. }));
        assert!(matches!(fixture.read_instead(b"step,loss\n0,5.5\n1,5.4\n"), CheckpointError::Header { .. }));
        let foreign =
            safetensors::serialize::<&str, &safetensors::tensor::TensorView<'_>, _>([], None).expect("empty");
        let words = fixture.read_instead(&foreign).to_string();
        assert!(words.contains("lacks the label trestle.format"), "{words}");
        fixture.write().expect("written");
        let text = fs::read(fixture.path()).expect("file");
        let at =
            text.windows(20).position(|window| window == b"\"trestle.format\":\"1\"").expect("the label");
        let mut newer = text;
        newer[at + 18] = b'2';
        let error = fixture.read_instead(&newer);
        assert!(matches!(&error, CheckpointError::Format { found, .. } if found == "2"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let fixture = Fixture::new();
        let error = fixture.read().expect_err("nothing there");
        assert!(error.to_string().contains("stage-0.safetensors"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("check the path")));
        let nowhere = fixture.folder.path().join("no/such/folder/x.safetensors");
        assert!(matches!(write(&nowhere, &[], &BTreeMap::new()), Err(CheckpointError::Io { .. })));
    }

    #[test]
    fn tensors_are_taken_by_name_and_shape() {
        let fixture = Fixture::new();
        fixture.write().expect("written");
        let mut checkpoint = fixture.read().expect("undamaged");
        assert!(checkpoint.take("b", &[2, 2]).is_ok());
        let error = checkpoint.take("b", &[2, 2]).expect_err("taken already");
        assert!(matches!(&error, CheckpointError::Missing { name, .. } if name == "b"), "{error}");
        let error = checkpoint.take("a", &[4]).expect_err("another shape");
        assert!(error.to_string().ends_with("tensor a with shape [3], expected [4]"), "{error}");
        let error = checkpoint.finish().expect_err("three are left");
        assert!(
            error.to_string().contains("3 tensors that do not belong here, the first is empty"),
            "{error}"
        );
        let mut whole = fixture.read().expect("undamaged");
        for (name, tensor) in &fixture.tensors {
            let taken = whole.take(name, &tensor.size()).expect("there");
            assert_eq!(bits(&taken), bits(tensor));
        }
        assert!(whole.finish().is_ok());
    }

    #[test]
    fn a_crash_before_the_move_leaves_the_old_file() {
        let mut fixture = Fixture::new();
        let digest = fixture.write().expect("written");
        fixture.labels.insert("step".into(), "13".into());
        // All of a write but its last act, and a write cut short.
        let partial = partial_path(&fixture.path());
        write_partial(&partial, &fixture.tensors, &fixture.labels).expect("written");
        assert_eq!(fixture.read().expect("the old one").digest, digest);
        let bytes = fs::read(&partial).expect("file");
        fs::write(&partial, &bytes[..bytes.len() / 2]).expect("a file");
        assert_eq!(fixture.read().expect("the old one").digest, digest);
        let newer = fixture.write().expect("what is left of the crash does not hinder");
        assert_ne!(newer, digest);
        assert_eq!(fixture.read().expect("the new one").digest, newer);
        assert!(!partial.exists());
    }

    #[test]
    fn a_refused_write_leaves_the_old_file_and_no_rest() {
        let mut fixture = Fixture::new();
        let digest = fixture.write().expect("written");
        let refused = |fixture: &Fixture| {
            let words = fixture.write().expect_err("refused").to_string();
            assert_eq!(fixture.read().expect("the old one").digest, digest);
            assert!(!partial_path(&fixture.path()).exists());
            words
        };
        fixture.tensors.push(("b".into(), Tensor::from(1.0f32)));
        assert!(refused(&fixture).ends_with("cannot hold the name b: two tensors have it"));
        fixture.tensors.pop();
        fixture.tensors.push(("mask".into(), Tensor::from_slice(&[true])));
        assert!(refused(&fixture).contains("tensor mask of checkpoint"));
        fixture.tensors.pop();
        // One that fails only when its turn comes, in the middle of the file.
        let options = (Kind::Float, Device::Cpu);
        fixture.tensors.push(("sparse".into(), Tensor::eye(2, options).to_sparse_sparse_dim(2)));
        assert!(refused(&fixture).contains("libtorch failed during copying a tensor"));
        fixture.tensors.pop();
        fixture.labels.insert("trestle.digest".into(), "00".into());
        assert!(refused(&fixture).contains("trestle.digest"));
    }
}
