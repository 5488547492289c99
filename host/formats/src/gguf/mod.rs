//! GGUF, versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | version u32 | tensor count u64 | metadata count u64
//! metadata:  key string | type u32 | value            (string = length u64, UTF-8 bytes)
//! tensors:   name string | rank u32 | dims u64 × rank | type u32 | offset u64 within the data section
//! padding to `general.alignment` (default 32)
//! data section
//! ```
//!
//! Dimensions are stored innermost first, the reverse of Hugging Face order. Specification: `docs/gguf.md` of ggml.

pub(crate) mod architecture;
mod config;
pub mod llama;
mod read;
mod split;
pub(crate) mod view;
mod write;

pub(crate) use config::config;
pub use read::Gguf;
pub(crate) use split::is_later_part;
pub use write::{TensorSource, write};

use crate::Format;

/// First four bytes of a GGUF file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensor data when the file names none.
pub(crate) const DEFAULT_ALIGNMENT: usize = 32;
/// Metadata key of the alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// A storage type of ggml, known by size whether or not we compute with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType {
    /// Number in the file.
    pub id: u32,
    /// Name as ggml spells it.
    pub name: &'static str,
    /// Elements in a block.
    pub block: usize,
    /// Bytes in a block.
    pub bytes: usize,
}

const fn ggml(id: u32, name: &'static str, block: usize, bytes: usize) -> GgmlType {
    GgmlType { id, name, block, bytes }
}

/// Every type whose size is known; removed ids (Q4_2, Q4_3, the repacked Q4_0 kinds) are absent on purpose.
const TYPES: [GgmlType; 32] = [
    ggml(0, "F32", 1, 4),
    ggml(1, "F16", 1, 2),
    ggml(2, "Q4_0", 32, 18),
    ggml(3, "Q4_1", 32, 20),
    ggml(6, "Q5_0", 32, 22),
    ggml(7, "Q5_1", 32, 24),
    ggml(8, "Q8_0", 32, 34),
    ggml(9, "Q8_1", 32, 36),
    ggml(10, "Q2_K", 256, 84),
    ggml(11, "Q3_K", 256, 110),
    ggml(12, "Q4_K", 256, 144),
    ggml(13, "Q5_K", 256, 176),
    ggml(14, "Q6_K", 256, 210),
    ggml(15, "Q8_K", 256, 292),
    ggml(16, "IQ2_XXS", 256, 66),
    ggml(17, "IQ2_XS", 256, 74),
    ggml(18, "IQ3_XXS", 256, 98),
    ggml(19, "IQ1_S", 256, 50),
    ggml(20, "IQ4_NL", 32, 18),
    ggml(21, "IQ3_S", 256, 110),
    ggml(22, "IQ2_S", 256, 82),
    ggml(23, "IQ4_XS", 256, 136),
    ggml(24, "I8", 1, 1),
    ggml(25, "I16", 1, 2),
    ggml(26, "I32", 1, 4),
    ggml(27, "I64", 1, 8),
    ggml(28, "F64", 1, 8),
    ggml(29, "IQ1_M", 256, 56),
    ggml(30, "BF16", 1, 2),
    ggml(34, "TQ1_0", 256, 54),
    ggml(35, "TQ2_0", 256, 66),
    ggml(39, "MXFP4", 32, 17),
];

impl GgmlType {
    /// The type of that number.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().copied().find(|kind| kind.id == id)
    }

    /// The type that holds a format; NF4 has none.
    pub fn of(format: Format) -> Option<Self> {
        TYPES.iter().copied().find(|kind| kind.format() == Some(format))
    }

    /// The storage format, where it is one that this program computes with.
    pub fn format(self) -> Option<Format> {
        match self.id {
            0 => Some(Format::F32),
            1 => Some(Format::F16),
            2 => Some(Format::Q4_0),
            3 => Some(Format::Q4_1),
            8 => Some(Format::Q8_0),
            30 => Some(Format::BF16),
            6 => Some(Format::Q5_0),
            7 => Some(Format::Q5_1),
            20 => Some(Format::Iq4Nl),
            10 => Some(Format::Q2K),
            11 => Some(Format::Q3K),
            12 => Some(Format::Q4K),
            13 => Some(Format::Q5K),
            14 => Some(Format::Q6K),
            _ => None,
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned 8-bit.
    U8(u8),
    /// Signed 8-bit.
    I8(i8),
    /// Unsigned 16-bit.
    U16(u16),
    /// Signed 16-bit.
    I16(i16),
    /// Unsigned 32-bit.
    U32(u32),
    /// Signed 32-bit.
    I32(i32),
    /// 32-bit float.
    F32(f32),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(Array),
    /// Unsigned 64-bit.
    U64(u64),
    /// Signed 64-bit.
    I64(i64),
    /// 64-bit float.
    F64(f64),
}

/// A metadata array; arrays of arrays are refused, no model uses them.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Unsigned 8-bit.
    U8(Vec<u8>),
    /// Signed 8-bit.
    I8(Vec<i8>),
    /// Unsigned 16-bit.
    U16(Vec<u16>),
    /// Signed 16-bit.
    I16(Vec<i16>),
    /// Unsigned 32-bit.
    U32(Vec<u32>),
    /// Signed 32-bit.
    I32(Vec<i32>),
    /// 32-bit float.
    F32(Vec<f32>),
    /// Boolean.
    Bool(Vec<bool>),
    /// UTF-8 text.
    String(Vec<String>),
    /// Unsigned 64-bit.
    U64(Vec<u64>),
    /// Signed 64-bit.
    I64(Vec<i64>),
    /// 64-bit float.
    F64(Vec<f64>),
}

impl Value {
    /// The value as an unsigned integer, if it is an integer and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float. A 32-bit float becomes the shortest decimal that means the same `f32` (1e-5, not
    /// 9.99999974e-6), which is what `config.json` of the same model says.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => value.to_string().parse().ok(),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a list of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::String(values)) => Some(values),
            _ => None,
        }
    }

    /// The value as a list of 32-bit floats.
    pub fn as_floats(&self) -> Option<&[f32]> {
        match self {
            Self::Array(Array::F32(values)) => Some(values),
            _ => None,
        }
    }

    /// The value as a list of small integers, whatever integer type holds them.
    pub fn as_ints(&self) -> Option<Vec<i64>> {
        match self {
            Self::Array(Array::U8(values)) => Some(values.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I8(values)) => Some(values.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::U16(values)) => Some(values.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I16(values)) => Some(values.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::U32(values)) => Some(values.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I32(values)) => Some(values.iter().map(|&v| v.into()).collect()),
            Self::Array(Array::I64(values)) => Some(values.clone()),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

/// Where a tensor lies in the file.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Dimensions, innermost first as stored.
    pub dims: Vec<usize>,
    /// Storage type.
    pub kind: GgmlType,
    /// Which file of a split model holds it, counted from 0.
    pub part: usize,
    /// First byte, counted from the start of that file.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
}

impl TensorInfo {
    /// Dimensions outermost first: `[out, in]` of a linear weight.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }

    /// One of which only the name matters.
    #[cfg(test)]
    fn named(name: &str) -> TensorInfo {
        TensorInfo {
            name: name.into(),
            dims: vec![1],
            kind: GgmlType::of(crate::Format::F32).unwrap(),
            part: 0,
            start: 0,
            len: 4,
        }
    }
}
