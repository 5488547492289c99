//! Writing GGUF version 3.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use super::{ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, Value};
use crate::{FormatError, Result, atomic};

/// A tensor to write.
#[derive(Debug, Clone, Copy)]
pub struct TensorSource<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Dimensions, innermost first.
    pub dims: &'a [usize],
    /// Storage type.
    pub kind: GgmlType,
    /// Exactly the bytes of that many elements.
    pub data: &'a [u8],
}

/// Writes a file with the default alignment of 32, replacing `path` only once everything is on disk.
///
/// What is refused: repeated keys or names, a `general.alignment` entry other than 32, data whose length does not fit.
pub fn write(path: &Path, metadata: &[(String, Value)], tensors: &[TensorSource<'_>]) -> Result<()> {
    check(path, metadata, tensors)?;
    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0usize;
    for tensor in tensors {
        put_string(&mut header, tensor.name);
        header.extend((tensor.dims.len() as u32).to_le_bytes());
        for &dim in tensor.dims {
            header.extend((dim as u64).to_le_bytes());
        }
        header.extend(tensor.kind.id.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += tensor.data.len().next_multiple_of(DEFAULT_ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    atomic::write_file(path, |out| {
        out.write_all(&header)?;
        tensors.iter().try_for_each(|tensor| {
            out.write_all(tensor.data)?;
            pad(out, tensor.data.len())
        })
    })
}

fn pad(out: &mut dyn Write, written: usize) -> io::Result<()> {
    let zeros = [0; DEFAULT_ALIGNMENT];
    out.write_all(&zeros[..written.next_multiple_of(DEFAULT_ALIGNMENT) - written])
}

fn check(path: &Path, metadata: &[(String, Value)], tensors: &[TensorSource<'_>]) -> Result<()> {
    let mut keys = HashSet::new();
    for (key, value) in metadata {
        if !keys.insert(key) {
            return Err(FormatError::refused(path, format!("metadata key `{key}` is given twice")));
        }
        if key == ALIGNMENT_KEY && value.as_u64() != Some(DEFAULT_ALIGNMENT as u64) {
            return Err(FormatError::refused(path, format!("only an alignment of {DEFAULT_ALIGNMENT} is written")));
        }
    }
    let mut names = HashSet::new();
    for TensorSource { name, dims, kind, data } in tensors {
        if !names.insert(name) {
            return Err(FormatError::refused(path, format!("tensor `{name}` is given twice")));
        }
        let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).unwrap_or(0);
        let whole = dims.first().is_some_and(|dim| dim % kind.block == 0) && elements > 0 && dims.len() <= 4;
        if !whole || (elements / kind.block).checked_mul(kind.bytes) != Some(data.len()) {
            let reason = format!("tensor `{name}` of {dims:?} in {} does not fit its {} bytes", kind.name, data.len());
            return Err(FormatError::refused(path, reason));
        }
    }
    Ok(())
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_array_head(out: &mut Vec<u8>, kind: u32, count: usize) {
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! put {
        ($kind:expr, $value:expr) => {{
            out.extend(u32::to_le_bytes($kind));
            out.extend($value.to_le_bytes());
        }};
    }
    match value {
        Value::U8(value) => put!(0, value),
        Value::I8(value) => put!(1, value),
        Value::U16(value) => put!(2, value),
        Value::I16(value) => put!(3, value),
        Value::U32(value) => put!(4, value),
        Value::I32(value) => put!(5, value),
        Value::F32(value) => put!(6, value),
        Value::Bool(value) => put!(7, u8::from(*value)),
        Value::String(value) => {
            out.extend(8u32.to_le_bytes());
            put_string(out, value);
        }
        Value::Array(value) => {
            out.extend(9u32.to_le_bytes());
            put_array(out, value);
        }
        Value::U64(value) => put!(10, value),
        Value::I64(value) => put!(11, value),
        Value::F64(value) => put!(12, value),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    macro_rules! put {
        ($kind:expr, $values:expr) => {{
            put_array_head(out, $kind, $values.len());
            $values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(values) => put!(0, values),
        Array::I8(values) => put!(1, values),
        Array::U16(values) => put!(2, values),
        Array::I16(values) => put!(3, values),
        Array::U32(values) => put!(4, values),
        Array::I32(values) => put!(5, values),
        Array::F32(values) => put!(6, values),
        Array::Bool(values) => {
            put_array_head(out, 7, values.len());
            out.extend(values.iter().map(|&value| u8::from(value)));
        }
        Array::String(values) => {
            put_array_head(out, 8, values.len());
            values.iter().for_each(|value| put_string(out, value));
        }
        Array::U64(values) => put!(10, values),
        Array::I64(values) => put!(11, values),
        Array::F64(values) => put!(12, values),
    }
}
