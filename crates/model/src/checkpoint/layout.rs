//! Owns how a checkpoint lies in its file: the safetensors header with our two labels, the places of the tensors, and the
//! digest of it all. It may not know tensors' numbers, nor move files about.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Kind, TchError, Tensor};

use crate::checkpoint::error::{CheckpointError, FORMAT, io_error};

/// Labels that begin so belong to the format.
const RESERVED: &str = "trestle.";
const FORMAT_LABEL: &str = "trestle.format";
const DIGEST_LABEL: &str = "trestle.digest";

/// The safetensors format begins with the header's length in this many bytes.
const LENGTH_BYTES: u64 = 8;

/// The bound that the safetensors format sets on its header.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// What a file says of itself; to be believed once the digest is compared.
pub(crate) struct Header {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) infos: HashMap<String, TensorInfo>,
    /// Names in the order of their place in the file.
    pub(crate) names: Vec<String>,
    /// The digest that its label says, in hexadecimal.
    pub(crate) digest: String,
    pub(crate) file_bytes: u64,
}

pub(crate) fn check_names(
    path: &Path,
    tensors: &[(String, Tensor)],
    labels: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let refuse = |name: &str, reason| {
        Err(CheckpointError::Name { path: path.to_path_buf(), name: name.to_string(), reason })
    };
    if let Some(name) = labels.keys().find(|name| name.starts_with(RESERVED)) {
        return refuse(name, "labels that begin with \"trestle.\" are the format's own");
    }
    let mut seen = BTreeSet::new();
    for (name, _) in tensors {
        if name == "__metadata__" {
            return refuse(name, "safetensors keeps the labels under it");
        }
        if !seen.insert(name) {
            return refuse(name, "two tensors have it");
        }
    }
    Ok(())
}

/// Places the tensors one after the other, wide numbers first so that each lies at a multiple of its width, then by name.
pub(crate) fn lay_out(
    path: &Path,
    tensors: &[(String, Tensor)],
) -> Result<(BTreeMap<String, TensorInfo>, Vec<usize>), CheckpointError> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| {
        let (name, tensor) = &tensors[index];
        (Reverse(tensor.kind().elt_size_in_bytes()), name)
    });
    let (mut infos, mut start) = (BTreeMap::new(), 0);
    for &index in &order {
        let (name, tensor) = &tensors[index];
        let kind = tensor.kind();
        let dtype = dtype_of(kind).ok_or_else(|| CheckpointError::NumberFormat {
            path: path.to_path_buf(),
            name: name.clone(),
            kind: format!("{kind:?}"),
        })?;
        let end = start + tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        infos.insert(name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) });
        start = end;
    }
    Ok((infos, order))
}

/// Returns the file's first bytes: the header's length and the header. Its parts are in the order of their names, so that
/// the same content gives the same bytes.
pub(crate) fn header(
    path: &Path,
    infos: &BTreeMap<String, TensorInfo>,
    labels: &BTreeMap<String, String>,
    digest: &[u8; 32],
) -> Result<Vec<u8>, CheckpointError> {
    let unwritable = |reason: String| CheckpointError::Header { path: path.to_path_buf(), reason };
    let mut metadata = labels.clone();
    metadata.insert(FORMAT_LABEL.to_string(), FORMAT.to_string());
    metadata.insert(DIGEST_LABEL.to_string(), hex(digest));
    let mut parts = BTreeMap::new();
    let json =
        |part: serde_json::Result<serde_json::Value>| part.map_err(|error| unwritable(error.to_string()));
    parts.insert("__metadata__", json(serde_json::to_value(&metadata))?);
    for (name, info) in infos {
        parts.insert(name, json(serde_json::to_value(info))?);
    }
    let mut text = serde_json::to_vec(&parts).map_err(|error| unwritable(error.to_string()))?;
    text.resize(text.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    if text.len() as u64 > HEADER_BYTES_MAX {
        return Err(unwritable(format!("it has {} bytes, the format allows {HEADER_BYTES_MAX}", text.len())));
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok(bytes)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    [Dtype::F32, Dtype::BF16, Dtype::I64]
        .into_iter()
        .find(|&dtype| kind_of(dtype).is_ok_and(|known| known == kind))
}

/// Returns libtorch's name of a number format.
pub(crate) fn kind_of(dtype: Dtype) -> Result<Kind, TchError> {
    let kinds = [(Dtype::F32, Kind::Float), (Dtype::BF16, Kind::BFloat16), (Dtype::I64, Kind::Int64)];
    let known = kinds.into_iter().find(|&(known, _)| known == dtype);
    known.map(|(_, kind)| kind).ok_or_else(|| TchError::Kind(format!("{dtype} has no place in a checkpoint")))
}

/// The digest's input: labels and tensors in the order of their names, each text and list led by its length, so that no
/// two contents give the same input.
pub(crate) fn digest_of(
    labels: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (TensorInfo, [u8; 32])>,
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let text = |hasher: &mut blake3::Hasher, text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    text(&mut hasher, FORMAT);
    hasher.update(&(labels.len() as u64).to_le_bytes());
    for (name, label) in labels {
        text(&mut hasher, name);
        text(&mut hasher, label);
    }
    hasher.update(&(tensors.len() as u64).to_le_bytes());
    for (name, (info, content)) in tensors {
        text(&mut hasher, name);
        text(&mut hasher, &info.dtype.to_string());
        hasher.update(&(info.shape.len() as u64).to_le_bytes());
        for &size in &info.shape {
            hasher.update(&(size as u64).to_le_bytes());
        }
        hasher.update(content);
    }
    *hasher.finalize().as_bytes()
}

pub(crate) fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

pub(crate) fn read_header(path: &Path, file: &mut BufReader<File>) -> Result<Header, CheckpointError> {
    let unreadable = |reason: String| CheckpointError::Header { path: path.to_path_buf(), reason };
    let length_error = |got, expected| CheckpointError::Length { path: path.to_path_buf(), got, expected };
    let file_bytes = file.get_ref().metadata().map_err(io_error("measuring", path))?.len();
    if file_bytes < LENGTH_BYTES {
        return Err(length_error(file_bytes, LENGTH_BYTES));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(io_error("reading", path))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(unreadable(format!(
            "it would have {length} bytes, the format allows {HEADER_BYTES_MAX}"
        )));
    }
    if file_bytes < LENGTH_BYTES + length {
        return Err(length_error(file_bytes, LENGTH_BYTES + length));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(io_error("reading", path))?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    let expected = LENGTH_BYTES + length + metadata.data_len() as u64;
    if file_bytes != expected {
        return Err(length_error(file_bytes, expected));
    }
    let mut labels: BTreeMap<String, String> =
        metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    let found = labels
        .remove(FORMAT_LABEL)
        .ok_or_else(|| unreadable(format!("it lacks the label {FORMAT_LABEL}")))?;
    if found != FORMAT {
        return Err(CheckpointError::Format { path: path.to_path_buf(), found });
    }
    let digest = labels
        .remove(DIGEST_LABEL)
        .ok_or_else(|| unreadable(format!("it lacks the label {DIGEST_LABEL}")))?;
    let infos = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    Ok(Header { labels, infos, names: metadata.offset_keys(), digest, file_bytes })
}
