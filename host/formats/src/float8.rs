//! 8-bit floats of safetensors, decoded when a tensor is loaded.
//!
//! `F8_E4M3` (the variant without infinities, "fn") and `F8_E5M2` of "FP8 Formats for Deep Learning" (arXiv 2209.05433).
//! bf16 has more exponent and mantissa bits than either, so it holds every value exactly.
//!
//! Published FP8 checkpoints keep a scale beside a weight `W`: `W_scale_inv` for blocks (DeepSeek's 128 × 128), `W_scale` for
//! the whole tensor or for its rows. Despite the first name, both are multiplied with. The product is rounded to bf16, as the
//! conversion scripts of these models do.

use std::path::Path;

use half::bf16;

use crate::{Format, FormatError, Result, TensorView};

/// An 8-bit float format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float8 {
    E4M3,
    E5M2,
}

impl Float8 {
    /// Every value of the format, by its byte.
    fn table(self) -> [f32; 256] {
        std::array::from_fn(|byte| {
            let (mantissa_bits, bias) = match self {
                Self::E4M3 => (3u32, 7i32),
                Self::E5M2 => (2, 15),
            };
            let magnitude = byte as u32 & 0x7f;
            let (exponent, mantissa) = ((magnitude >> mantissa_bits) as i32, magnitude & ((1 << mantissa_bits) - 1));
            let fraction = mantissa as f32 / (1 << mantissa_bits) as f32;
            let value = match self {
                Self::E4M3 if magnitude == 0x7f => f32::NAN,
                Self::E5M2 if exponent == 31 && mantissa == 0 => f32::INFINITY,
                Self::E5M2 if exponent == 31 => f32::NAN,
                _ if exponent == 0 => fraction * 2f32.powi(1 - bias),
                _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
            };
            if byte >= 0x80 { -value } else { value }
        })
    }
}

/// The values as stored, without a scale.
pub(crate) fn plain(kind: Float8, shape: &[usize], data: &[u8]) -> TensorView<'static> {
    let table = kind.table().map(|value| bf16::from_f32(value).to_le_bytes());
    let data: Vec<u8> = data.iter().flat_map(|&byte| table[usize::from(byte)]).collect();
    TensorView { format: Format::BF16, shape: shape.to_vec(), data: data.into() }
}

/// The values times the scale that lies beside them; `other` gives tensors of the same model by name.
pub(crate) fn scaled<'a>(
    path: &Path,
    name: &str,
    kind: Float8,
    (shape, data): (&[usize], &[u8]),
    other: impl Fn(&str) -> Result<Option<TensorView<'a>>>,
) -> Result<TensorView<'static>> {
    let mut found = None;
    for suffix in ["_scale_inv", "_scale"] {
        let scale = format!("{name}{suffix}");
        if let Some(view) = other(&scale)? {
            found = Some((scale, view));
            break;
        }
    }
    let Some((scale_name, scale)) = found else { return Ok(plain(kind, shape, data)) };
    let [rows, columns] = match *shape {
        [columns] => [1, columns],
        [rows, columns] => [rows, columns],
        _ => {
            let reason = format!("tensor `{name}` of shape {shape:?} has a scale; only vectors and matrices may");
            return Err(FormatError::unsupported(path, reason));
        }
    };
    let (scale_rows, scale_columns) = match *scale.shape.as_slice() {
        [] | [1] => (1, 1),
        [count] if count == rows => (rows, 1),
        [scale_rows, scale_columns] => (scale_rows, scale_columns),
        _ => (0, 0),
    };
    // Blocks of DeepSeek's size may be cut off at the edges; otherwise the scales divide the matrix evenly.
    let block = |size: usize, scales: usize| match scales {
        0 => None,
        _ if size.div_ceil(DEEPSEEK_BLOCK) == scales => Some(DEEPSEEK_BLOCK),
        _ if size.is_multiple_of(scales) && size > 0 => Some(size / scales),
        _ => None,
    };
    let blocks = block(rows, scale_rows).zip(block(columns, scale_columns));
    let Some(((block_rows, block_columns), scales)) = blocks.zip(scale.to_f32().filter(|_| !scale.format.is_quantized())) else {
        let reason = format!("`{scale_name}` of shape {:?} does not scale `{name}` of shape {shape:?}", scale.shape);
        return Err(FormatError::invalid(path, reason));
    };
    let table = kind.table();
    let mut out = Vec::with_capacity(data.len() * 2);
    for (row, bytes) in data.chunks_exact(columns).enumerate() {
        let scales = &scales[row / block_rows * scale_columns..][..scale_columns];
        for (chunk, scale) in bytes.chunks(block_columns).zip(scales) {
            out.extend(chunk.iter().flat_map(|&byte| bf16::from_f32(table[usize::from(byte)] * scale).to_le_bytes()));
        }
    }
    Ok(TensorView { format: Format::BF16, shape: shape.to_vec(), data: out.into() })
}

/// Side of the blocks that share a scale in DeepSeek's checkpoints.
const DEEPSEEK_BLOCK: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let (a, b) = (Float8::E4M3.table(), Float8::E5M2.table());
        for (byte, value) in [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x07, 7.0 * 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0x38, 1.0)]
        {
            assert_eq!(a[byte], value);
            assert_eq!(a[byte | 0x80], -value);
        }
        assert_eq!((a[0x7e], a[0x3c]), (448.0, 1.5));
        assert!(a[0x7f].is_nan() && a[0xff].is_nan());
        assert_eq!(
            (b[0x01], b[0x3c], b[0x7b], b[0x7c], b[0xfc]),
            (2f32.powi(-16), 1.0, 57344.0, f32::INFINITY, f32::NEG_INFINITY)
        );
        assert!(b[0x7d].is_nan() && b[0x7f].is_nan());
        for value in a.into_iter().chain(b) {
            let stored = bf16::from_f32(value).to_f32();
            assert!(stored == value || (stored.is_nan() && value.is_nan()));
        }
    }
}
