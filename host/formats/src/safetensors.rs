//! Safetensors files, mapped for reading and replaced atomically on writing.
//!
//! The header is parsed and checked by the `safetensors` crate: tensors must tile the data section without holes or
//! overlaps. The sum of header and data lengths is checked here, in checked arithmetic.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, View};

use crate::float8::{self, Float8};
use crate::mapped::FileBytes;
use crate::{Format, FormatError, NamedTensor, Result, TensorView, atomic};

/// Largest header that is parsed, the limit of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the header length in front of the header.
const LENGTH_BYTES: usize = 8;

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: FileBytes,
    metadata: Metadata,
    /// Where the data section starts.
    data: usize,
}

impl SafetensorsFile {
    /// Maps and checks a file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, FileBytes::open(path)?)
    }

    /// Checks bytes that are not in a file; `label` stands for the path in errors.
    pub fn from_bytes(label: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(label, FileBytes::Owned(bytes))
    }

    /// Says that bytes which this file gave will not be read soon.
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.bytes.release(bytes);
    }

    fn parse(path: &Path, bytes: FileBytes) -> Result<Self> {
        let corrupt = |offset: usize, reason: String| FormatError::corrupt(path, offset, reason);
        let length: [u8; LENGTH_BYTES] = bytes
            .get(..LENGTH_BYTES)
            .and_then(|prefix| prefix.try_into().ok())
            .ok_or_else(|| corrupt(0, format!("{} bytes are too few for a safetensors file", bytes.len())))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return Err(corrupt(0, format!("header length {length} is over the limit of {MAX_HEADER_BYTES}")));
        }
        let data = LENGTH_BYTES + length as usize;
        let header = bytes
            .get(LENGTH_BYTES..data)
            .ok_or_else(|| corrupt(0, format!("header of {length} bytes in a file of {}", bytes.len())))?;
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|error| corrupt(LENGTH_BYTES, format!("the header does not describe tensors: {error}")))?;
        if data.checked_add(metadata.data_len()) != Some(bytes.len()) {
            let held = bytes.len() - data;
            let ends = |name: &String| metadata.info(name).map_or(0, |info| info.data_offsets.1);
            let what = match metadata.offset_keys().into_iter().find(|name| ends(name) > held) {
                Some(name) => format!("the file is cut off, from tensor `{name}` on; get it again"),
                None => "something is appended to the file; get it again".into(),
            };
            let reason = format!("tensors take {} bytes but {held} follow the header: {what}", metadata.data_len());
            return Err(corrupt(data, reason));
        }
        Ok(Self { path: path.to_owned(), bytes, metadata, data })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file in bytes.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Free-form metadata of the header, sorted by key.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Tensor names in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// A tensor of one of the formats that this program computes with; 8-bit floats become bf16, which holds them exactly.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let (shape, data) = self.stored(name)?;
        let format = match self.dtype(name)? {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            Dtype::F8_E4M3 => return Ok(float8::plain(Float8::E4M3, shape, data)),
            Dtype::F8_E5M2 => return Ok(float8::plain(Float8::E5M2, shape, data)),
            other => {
                let reason = format!("tensor `{name}` has type {other:?}; only F32, F16, BF16, F8_E4M3 and F8_E5M2 are read");
                return Err(FormatError::unsupported(&self.path, reason));
            }
        };
        Ok(TensorView { format, shape: shape.to_vec(), data: Cow::Borrowed(data) })
    }

    /// Shape and bytes of a tensor of type U8; `None` if it has another type.
    pub fn bytes(&self, name: &str) -> Result<Option<(&[usize], &[u8])>> {
        let found = self.stored(name)?;
        Ok((self.dtype(name)? == Dtype::U8).then_some(found))
    }

    fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.metadata.info(name).ok_or_else(|| FormatError::missing(&self.path, name))?.dtype)
    }

    /// Which 8-bit float a tensor is stored in, if any.
    pub(crate) fn float8(&self, name: &str) -> Result<Option<Float8>> {
        Ok(match self.dtype(name)? {
            Dtype::F8_E4M3 => Some(Float8::E4M3),
            Dtype::F8_E5M2 => Some(Float8::E5M2),
            _ => None,
        })
    }

    /// Shape and bytes of a tensor of whatever type.
    pub(crate) fn stored(&self, name: &str) -> Result<(&[usize], &[u8])> {
        let info = self.metadata.info(name).ok_or_else(|| FormatError::missing(&self.path, name))?;
        let (start, end) = info.data_offsets;
        Ok((&info.shape, &self.bytes[self.data + start..self.data + end]))
    }
}

/// A tensor of bytes that mean something to their reader alone, such as codes of an optimizer's state: type U8.
#[derive(Clone, Copy, Debug)]
pub struct NamedBytes<'a> {
    /// Name.
    pub name: &'a str,
    /// Sizes.
    pub shape: &'a [usize],
    /// As many bytes.
    pub data: &'a [u8],
}

/// A tensor of `f32` whose values are made while it is written, so that those of one tensor at a time are in memory.
pub struct LateTensor<'a> {
    /// Name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<usize>,
    /// As many values as the sizes say, made or where they lie.
    pub values: Box<dyn Fn() -> Cow<'a, [f32]> + 'a>,
}

/// Hands one of our tensors to the reference implementation.
struct Stored<'a, 't> {
    dtype: Dtype,
    shape: &'a [usize],
    data: Data<'a, 't>,
}

enum Data<'a, 't> {
    Ready(&'a [u8]),
    Late(&'a (dyn Fn() -> Cow<'t, [f32]> + 't)),
}

impl View for Stored<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.data {
            Data::Ready(data) => Cow::Borrowed(data),
            Data::Late(values) => {
                let values = values();
                assert_eq!(4 * values.len(), self.data_len(), "a late tensor has the values that its shape says");
                Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
        }
    }

    fn data_len(&self) -> usize {
        match self.data {
            Data::Ready(data) => data.len(),
            Data::Late(_) => 4 * self.shape.iter().product::<usize>(),
        }
    }
}

/// Writes tensors and metadata, replacing `path` only once everything is on disk.
///
/// The order within the file is the reference implementation's (by alignment, then name), so equal content gives
/// equal bytes as long as `metadata` has at most one entry.
pub fn write_safetensors(path: &Path, tensors: &[NamedTensor<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut stored = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let (name, view) = (&tensor.name, &tensor.view);
        let dtype = match view.format {
            Format::F32 => Dtype::F32,
            Format::F16 => Dtype::F16,
            Format::BF16 => Dtype::BF16,
            other => {
                let reason = format!("tensor `{name}` is {other}, which safetensors cannot hold; write GGUF instead");
                return Err(FormatError::refused(path, reason));
            }
        };
        if view.format.bytes(&view.shape) != Some(view.data.len()) {
            let reason = format!("tensor `{name}` of shape {:?} in {} has {} bytes", view.shape, view.format, view.data.len());
            return Err(FormatError::refused(path, reason));
        }
        stored.push((name.as_str(), Stored { dtype, shape: &view.shape, data: Data::Ready(&view.data) }));
    }
    write(path, stored, metadata)
}

/// As [`write_safetensors`], with values that are made late, and tensors of bytes beside them.
///
/// # Panics
/// When a tensor makes another number of values than its shape says.
pub fn write_safetensors_late(
    path: &Path,
    tensors: &[LateTensor<'_>],
    bytes: &[NamedBytes<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut stored: Vec<(&str, Stored<'_, '_>)> = tensors
        .iter()
        .map(|t| (t.name.as_str(), Stored { dtype: Dtype::F32, shape: &t.shape, data: Data::Late(&*t.values) }))
        .collect();
    for &NamedBytes { name, shape, data } in bytes {
        if shape.iter().product::<usize>() != data.len() {
            let reason = format!("tensor `{name}` of shape {shape:?} in U8 has {} bytes", data.len());
            return Err(FormatError::refused(path, reason));
        }
        stored.push((name, Stored { dtype: Dtype::U8, shape, data: Data::Ready(data) }));
    }
    write(path, stored, metadata)
}

fn write(path: &Path, stored: Vec<(&str, Stored<'_, '_>)>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut seen = HashSet::new();
    for &(name, _) in &stored {
        if name == "__metadata__" || !seen.insert(name) {
            return Err(FormatError::refused(path, format!("tensor name `{name}` is reserved or appears twice")));
        }
    }
    let metadata = (!metadata.is_empty())
        .then(|| metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<HashMap<_, _>>());
    atomic::replace(path, |temporary| {
        safetensors::serialize_to_file(stored, metadata, temporary).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => FormatError::io("write", path, source),
            other => FormatError::refused(path, other.to_string()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn round_trip_keeps_tensors_and_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = [
            NamedTensor::from_f32("b", vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, f32::NAN]),
            NamedTensor::from_f32("a", vec![0, 3], &[]),
        ];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let read = SafetensorsFile::open(&path).unwrap();
        assert_eq!(read.metadata(), metadata);
        assert_eq!(read.tensor("b").unwrap().data, tensors[0].view.data);
        assert_eq!(read.tensor("a").unwrap().shape, [0, 3]);
        assert!(matches!(read.tensor("c"), Err(FormatError::MissingTensor { .. })));
    }

    #[test]
    fn bytes_go_beside_floats() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let floats = [LateTensor { name: "m.absmax".into(), shape: vec![1], values: Box::new(|| vec![0.5].into()) }];
        let codes = NamedBytes { name: "m", shape: &[2, 2], data: &[1, 2, 3, 255] };
        write_safetensors_late(&path, &floats, &[codes], &BTreeMap::new()).unwrap();
        let read = SafetensorsFile::open(&path).unwrap();
        assert_eq!(read.bytes("m").unwrap(), Some((&[2, 2][..], &[1, 2, 3, 255][..])));
        assert!(read.bytes("m.absmax").unwrap().is_none() && read.tensor("m").is_err());
        assert_eq!(read.tensor("m.absmax").unwrap().to_f32().unwrap(), [0.5]);
        for wrong in [NamedBytes { shape: &[3], ..codes }, NamedBytes { name: "m.absmax", ..codes }] {
            assert!(write_safetensors_late(&path, &floats, &[wrong], &BTreeMap::new()).is_err());
        }
    }

    #[test]
    fn every_truncation_of_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = [NamedTensor::from_f32("w", vec![2, 2], &[1.0, 2.0, 3.0, 4.0])];
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            assert!(SafetensorsFile::from_bytes(&path, whole[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        let says = |bytes: Vec<u8>| SafetensorsFile::from_bytes(&path, bytes).unwrap_err().to_string();
        let error = says(whole[..whole.len() - 1].to_vec());
        assert!(error.contains("from tensor `w` on"), "{error}");
        let error = says([&whole[..], &[0]].concat());
        assert!(error.contains("appended"), "{error}");
    }

    #[test]
    fn hostile_headers_are_refused() {
        let huge = format!(r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,8]}}}}"#, u64::MAX);
        // Eight tensors whose sizes each pass but add up to 2^64 - 1.
        let mut wrapping = String::from("{");
        for i in 0..8u64 {
            let size = (1u64 << 61) - 1;
            let (start, end) = (i * size, (i + 1) * size);
            wrapping += &format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}},"#);
        }
        wrapping += &format!(r#""u":{{"dtype":"U8","shape":[7],"data_offsets":[{},{}]}}}}"#, u64::MAX - 7, u64::MAX);
        let cases: [(&str, Vec<u8>); 9] = [
            ("empty", vec![]),
            ("huge header", u64::MAX.to_le_bytes().to_vec()),
            ("header past end", 1000u64.to_le_bytes().to_vec()),
            ("not JSON", file("{", &[])),
            ("deep", file(&"[".repeat(100_000), &[])),
            ("overflowing shape", file(&huge, &[0; 8])),
            ("wrapping offsets", file(&wrapping, &[])),
            ("hole", file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#, &[0; 4])),
            ("backwards", file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[4,2]}}"#, &[0; 4])),
        ];
        for (name, bytes) in cases {
            let error = SafetensorsFile::from_bytes(Path::new("evil"), bytes).expect_err(name);
            assert!(error.to_string().contains("evil"), "{name}: {error}");
        }
    }

    #[test]
    fn quantized_tensors_are_refused_before_the_old_file_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        std::fs::write(&path, "precious").unwrap();
        let view = TensorView { format: Format::Q8_0, shape: vec![32], data: vec![0; 34].into() };
        let error = write_safetensors(&path, &[NamedTensor { name: "w".into(), view }], &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("Q8_0"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
