//! 4-bit weights of bitsandbytes, as Transformers saves them.
//!
//! A weight `W` is its codes, two a byte with the first in the high nibble, over all elements in row-major order, and beside it:
//!
//! ```text
//! W.quant_state.bitsandbytes__nf4   JSON in bytes: shape, blocksize, of nested scales their offset and blocksize
//! W.quant_map                       16 levels
//! W.absmax                          a scale for every block: f32, or 8-bit codes of nested scales
//! W.nested_quant_map                256 levels of those codes
//! W.nested_absmax                   a scale for every block of codes
//! ```
//!
//! A value is `quant_map[code] * absmax`, where a nested `absmax` is `nested_quant_map[code] * nested_absmax + offset`. Nested scales
//! are multiplied out; NF4 in rows of whole blocks of 64 becomes [`Format::Nf4`], with every scale beside its nibbles. What does not
//! fit that (FP4, rows of other lengths, blocks of 32) becomes f32. The type that bitsandbytes would round values to is not applied.

use std::path::Path;

use serde_json::Value;

use crate::{Format, FormatError, Result, SafetensorsFile, TensorView};

/// Last parts of the names of what lies beside a weight.
const STATES: [&str; 2] = ["quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"];
const PARTS: [&str; 4] = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];

/// Values of a block of [`Format::Nf4`].
const BLOCK: usize = 64;

/// Levels of NF4, ascending: what a file must say that it uses. The kernels, which this crate does not know, have them too.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The weight that `name` is a part of, if `name` is that of a part.
pub(crate) fn weight_of(name: &str) -> Option<&str> {
    let part = |part: &&str| name.strip_suffix(*part)?.strip_suffix('.');
    STATES.iter().chain(&PARTS).find_map(part)
}

/// Files of one model, by the tensors that they hold.
pub(crate) trait Files {
    /// The file with that tensor.
    fn holding(&self, tensor: &str) -> Option<&SafetensorsFile>;
}

/// The name of a weight's state, if it has one.
fn state_of(files: &impl Files, name: &str) -> Option<String> {
    STATES.iter().map(|state| format!("{name}.{state}")).find(|state| files.holding(state).is_some())
}

/// Whether a weight is stored in 4 bits.
pub(crate) fn has_state(files: &impl Files, name: &str) -> bool {
    state_of(files, name).is_some()
}

/// A weight with a state; `None` when it has none.
pub(crate) fn tensor(path: &Path, files: &impl Files, name: &str) -> Result<Option<TensorView<'static>>> {
    let Some(state_name) = state_of(files, name) else { return Ok(None) };
    let invalid = |reason: String| FormatError::invalid(path, format!("4-bit tensor `{name}`: {reason}"));
    let file_of = |tensor: &str| files.holding(tensor).ok_or_else(|| FormatError::missing(path, tensor));
    let floats = |part: &str, count: Option<usize>| -> Result<Vec<f32>> {
        let part = format!("{name}.{part}");
        let view = file_of(&part)?.tensor(&part)?;
        let found = view.elements();
        match view.to_f32().filter(|_| count.is_none_or(|count| count == found)) {
            Some(values) => Ok(values),
            None => Err(invalid(format!("`{part}` has {found} values, not {}", count.unwrap_or(0)))),
        }
    };
    let state: Value = serde_json::from_slice(file_of(&state_name)?.stored(&state_name)?.1)
        .map_err(|error| invalid(format!("`{state_name}` is not JSON: {error}")))?;
    let number = |key: &str| {
        let number = state[key].as_u64().and_then(|number| usize::try_from(number).ok());
        number.filter(|&number| number > 0).ok_or_else(|| invalid(format!("its state has no usable `{key}`")))
    };
    let dims = state["shape"].as_array().ok_or_else(|| invalid("its state has no `shape`".into()))?;
    let dims = dims.iter().map(|dim| dim.as_u64().and_then(|dim| usize::try_from(dim).ok())).collect::<Option<Vec<_>>>();
    let shape = dims.ok_or_else(|| invalid("its state's `shape` is no list of sizes".into()))?;
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let (_, codes) = file_of(name)?.stored(name)?;
    let elements = elements.filter(|elements| elements.div_ceil(2) == codes.len());
    let elements = elements.ok_or_else(|| invalid(format!("{} bytes do not hold the shape {shape:?}", codes.len())))?;
    let block = number("blocksize")?;
    let count = elements.div_ceil(block);
    let levels = floats("quant_map", Some(16))?;
    let scales = match files.holding(&format!("{name}.nested_absmax")) {
        None => floats("absmax", Some(count))?,
        Some(_) => {
            let part = format!("{name}.absmax");
            let (_, codes) = file_of(&part)?.stored(&part)?;
            let block = number("nested_blocksize")?;
            let offset = state["nested_offset"].as_f64().ok_or_else(|| invalid("its state has no `nested_offset`".into()))?;
            if codes.len() != count {
                return Err(invalid(format!("`{part}` has {} scales, not {count}", codes.len())));
            }
            let levels = floats("nested_quant_map", Some(256))?;
            let scales = floats("nested_absmax", Some(count.div_ceil(block)))?;
            let value = |(i, &code): (usize, &u8)| levels[usize::from(code)] * scales[i / block] + offset as f32;
            codes.iter().enumerate().map(value).collect()
        }
    };
    let columns = shape.last().copied().unwrap_or(1);
    if levels == NF4 && block.is_multiple_of(BLOCK) && columns.is_multiple_of(BLOCK) {
        let mut data = Vec::with_capacity(elements / BLOCK * Format::Nf4.block().1);
        for (index, codes) in codes.chunks_exact(BLOCK / 2).enumerate() {
            data.extend(scales[index * BLOCK / block].to_le_bytes());
            data.extend(codes);
        }
        return Ok(Some(TensorView { format: Format::Nf4, shape, data: data.into() }));
    }
    let value = |i: usize| levels[usize::from(codes[i / 2] >> (4 - i % 2 * 4) & 15)] * scales[i / block];
    let data: Vec<u8> = (0..elements).flat_map(|i| value(i).to_le_bytes()).collect();
    Ok(Some(TensorView { format: Format::F32, shape, data: data.into() }))
}
