//! Reading: one pass over the header with every count and offset checked before use.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, TensorInfo, Value, split};
use crate::mapped::FileBytes;
use crate::{FormatError, Result};

/// Most metadata entries; real files have dozens.
const MAX_METADATA: u64 = 1 << 16;
/// Most tensors; the largest mixture models have a few thousand.
const MAX_TENSORS: u64 = 1 << 18;
/// Longest key or tensor name; the specification says 65535 and 64.
const MAX_NAME_BYTES: usize = 1 << 16;
/// Longest text value, for example a chat template.
const MAX_STRING_BYTES: usize = 16 << 20;
/// Most elements of one array; vocabularies reach 262144 tokens, merges about as many.
const MAX_ARRAY: u64 = 1 << 24;
/// Most dimensions of a tensor.
const MAX_RANK: u32 = 4;
/// Largest accepted alignment.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    /// The file, and the further parts of a model that was split.
    parts: Vec<FileBytes>,
    version: u32,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    names: HashMap<String, usize>,
}

impl Gguf {
    /// Maps a file and reads its header. Of a model that was split, `path` is the first part; the others lie beside it.
    pub fn open(path: &Path) -> Result<Self> {
        split::complete(Self::open_part(path)?)
    }

    pub(super) fn open_part(path: &Path) -> Result<Self> {
        Self::parse(path, FileBytes::open(path)?)
    }

    /// Reads bytes that are not in a file; `label` stands for the path in errors.
    pub fn from_bytes(label: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(label, FileBytes::Owned(bytes))
    }

    /// Adds the tensors of a further part.
    pub(super) fn append(&mut self, other: Self) -> Result<()> {
        for mut tensor in other.tensors {
            if self.names.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                let reason = format!("tensor `{}` is also in an earlier part", tensor.name);
                return Err(FormatError::invalid(&other.path, reason));
            }
            tensor.part += self.parts.len();
            self.tensors.push(tensor);
        }
        self.parts.extend(other.parts);
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes, of all parts.
    pub fn total_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Metadata in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// One metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&index| &self.metadata[index].1)
    }

    /// One metadata value as text.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// Tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// One tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&index| &self.tensors[index])
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.part][tensor.start..tensor.start + tensor.len]
    }

    /// Says that bytes which [`Gguf::bytes`] gave will not be read soon.
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.parts.iter().for_each(|part| part.release(bytes));
    }

    fn parse(path: &Path, bytes: FileBytes) -> Result<Self> {
        let mut cursor = Cursor { path, bytes: &bytes, at: 0 };
        let magic = cursor.take(4)?;
        if magic != MAGIC {
            return Err(cursor.fail_at(0, "the file does not begin with `GGUF`"));
        }
        let version = cursor.u32()?;
        match version {
            2 | 3 => {}
            1 => return Err(FormatError::unsupported(path, "GGUF version 1 is obsolete; convert the model again")),
            // A small number with its bytes swapped is a big-endian file.
            _ if version.swap_bytes() < 0x1_0000 => {
                return Err(FormatError::unsupported(path, "big-endian GGUF is not read; convert it to little-endian"));
            }
            _ => return Err(FormatError::unsupported(path, format!("GGUF version {version} is unknown"))),
        }
        let tensor_count = cursor.u64()?;
        let metadata_count = cursor.u64()?;
        if tensor_count > MAX_TENSORS || metadata_count > MAX_METADATA {
            let reason = format!(
                "{tensor_count} tensors and {metadata_count} metadata entries are over the limits of {MAX_TENSORS} and {MAX_METADATA}"
            );
            return Err(cursor.fail_at(8, reason));
        }

        // Vectors below grow with what is really read, so the counts above reserve nothing.
        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for _ in 0..metadata_count {
            let at = cursor.at;
            let key = cursor.string(MAX_NAME_BYTES)?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            if keys.insert(key.clone(), metadata.len()).is_some() {
                return Err(cursor.fail_at(at, format!("metadata key `{key}` appears twice")));
            }
            metadata.push((key, value));
        }
        let alignment = match keys.get(ALIGNMENT_KEY).map(|&index| &metadata[index].1) {
            None => DEFAULT_ALIGNMENT,
            Some(value) => match value.as_u64() {
                Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => alignment as usize,
                _ => {
                    let reason = format!("`{ALIGNMENT_KEY}` must be a power of two up to {MAX_ALIGNMENT}, not {value:?}");
                    return Err(cursor.fail_at(cursor.at, reason));
                }
            },
        };

        let mut tensors = Vec::new();
        let mut names = HashMap::new();
        for _ in 0..tensor_count {
            let at = cursor.at;
            let tensor = cursor.tensor_info(alignment)?;
            if names.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(cursor.fail_at(at, format!("tensor `{}` appears twice", tensor.name)));
            }
            tensors.push(tensor);
        }
        let data = if tensors.is_empty() { cursor.at } else { cursor.at.next_multiple_of(alignment) };
        for tensor in &mut tensors {
            let end = data.checked_add(tensor.start).and_then(|start| start.checked_add(tensor.len));
            match end {
                Some(end) if end <= bytes.len() => tensor.start += data,
                _ => {
                    let reason = format!(
                        "tensor `{}` needs {} bytes at offset {} of the data section, which the file of {} bytes does not hold; it may be cut off",
                        tensor.name,
                        tensor.len,
                        tensor.start,
                        bytes.len()
                    );
                    return Err(FormatError::corrupt(path, data, reason));
                }
            }
        }
        refuse_overlaps(path, &tensors)?;
        // All of the header has been copied; a vocabulary takes megabytes of it.
        bytes.release(&bytes[..data.min(bytes.len())]);
        Ok(Self { path: path.to_owned(), version, metadata, keys, tensors, names, parts: vec![bytes] })
    }
}

fn refuse_overlaps(path: &Path, tensors: &[TensorInfo]) -> Result<()> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.start);
    for pair in order.windows(2) {
        if pair[0].start + pair[0].len > pair[1].start {
            let reason = format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name);
            return Err(FormatError::corrupt(path, pair[1].start, reason));
        }
    }
    Ok(())
}

/// A reading position.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fail_at(&self, offset: usize, reason: impl Into<String>) -> FormatError {
        FormatError::corrupt(self.path, offset, reason)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let remaining = self.bytes.len() - self.at;
        if count > remaining {
            let reason = format!("{count} more bytes are needed but {remaining} are left; the file is cut off");
            return Err(self.fail_at(self.at, reason));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take returns what was asked for"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self, limit: usize) -> Result<String> {
        let at = self.at;
        let length = self.u64()?;
        if length > limit as u64 {
            return Err(self.fail_at(at, format!("text of {length} bytes is over the limit of {limit}")));
        }
        let bytes = self.take(length as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(self.fail_at(at + 8 + error.valid_up_to(), "text is not UTF-8")),
        }
    }

    fn boolean(&mut self) -> Result<bool> {
        let at = self.at;
        match self.array::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.fail_at(at, format!("{other} is not a boolean"))),
        }
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        let at = self.at;
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.boolean()?),
            8 => Value::String(self.string(MAX_STRING_BYTES)?),
            9 => Value::Array(self.array_value()?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.fail_at(at, format!("metadata type {other} is unknown"))),
        })
    }

    fn array_value(&mut self) -> Result<Array> {
        let at = self.at;
        let kind = self.u32()?;
        let count = self.u64()?;
        if count > MAX_ARRAY {
            return Err(self.fail_at(at, format!("array of {count} elements is over the limit of {MAX_ARRAY}")));
        }
        let count = count as usize;
        Ok(match kind {
            0 => Array::U8(self.take(count)?.to_vec()),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => Array::Bool((0..count).map(|_| self.boolean()).collect::<Result<_>>()?),
            8 => Array::String((0..count).map(|_| self.string(MAX_STRING_BYTES)).collect::<Result<_>>()?),
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            9 => return Err(self.fail_at(at, "an array of arrays is not supported")),
            other => return Err(self.fail_at(at, format!("array element type {other} is unknown"))),
        })
    }

    /// `count` is at most `MAX_ARRAY`, so the product cannot overflow.
    fn numbers<const N: usize, T>(&mut self, count: usize, decode: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.take(count * N)?;
        Ok(bytes.chunks_exact(N).map(|chunk| decode(chunk.try_into().expect("chunks are exact"))).collect())
    }

    /// Reads one tensor description; `start` is still relative to the data section.
    fn tensor_info(&mut self, alignment: usize) -> Result<TensorInfo> {
        let at = self.at;
        let name = self.string(MAX_NAME_BYTES)?;
        let rank = self.u32()?;
        if rank == 0 || rank > MAX_RANK {
            return Err(self.fail_at(at, format!("tensor `{name}` has {rank} dimensions, not 1 to {MAX_RANK}")));
        }
        let mut dims = Vec::new();
        let mut elements = 1usize;
        for _ in 0..rank {
            let dim = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
            elements = match elements.checked_mul(dim) {
                Some(elements) if elements > 0 => elements,
                _ => return Err(self.fail_at(at, format!("tensor `{name}` has an impossible dimension {dim}"))),
            };
            dims.push(dim);
        }
        let id = self.u32()?;
        let kind =
            GgmlType::from_id(id).ok_or_else(|| self.fail_at(at, format!("tensor `{name}` has the unknown type number {id}")))?;
        if dims[0] % kind.block != 0 {
            let reason = format!("tensor `{name}` has rows of {} elements, not whole {} blocks", dims[0], kind.name);
            return Err(self.fail_at(at, reason));
        }
        let len = (elements / kind.block)
            .checked_mul(kind.bytes)
            .ok_or_else(|| self.fail_at(at, format!("the size of tensor `{name}` overflows")))?;
        let offset = self.u64()?;
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| start % alignment == 0)
            .ok_or_else(|| self.fail_at(at, format!("offset {offset} of tensor `{name}` is not aligned to {alignment}")))?;
        Ok(TensorInfo { name, dims, kind, part: 0, start, len })
    }
}
