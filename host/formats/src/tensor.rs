//! What a stored tensor is: a storage format, a shape in Hugging Face order, and bytes.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use half::{bf16, f16};

use crate::{FormatError, Result};

/// Elements of one quantization block of the `Q*_0` and `Q*_1` formats.
pub(crate) const BLOCK: usize = 32;

/// Storage format of a tensor that this program computes with.
///
/// The block formats hold 32 or 256 consecutive elements of a row and are laid out as in GGML, little-endian:
/// `Q8_0` = f16 scale, 32 × i8; `Q4_0` = f16 scale, 16 bytes of nibbles (element `i` low, `i + 16` high, minus 8);
/// `Q4_1` = f16 scale, f16 minimum, 16 bytes of nibbles. The others are the device's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit blocks with a scale.
    Q8_0,
    /// 4-bit blocks with a scale.
    Q4_0,
    /// 4-bit blocks with a scale and a minimum.
    Q4_1,
    /// 5-bit blocks with a scale.
    Q5_0,
    /// 5-bit blocks with a scale and a minimum.
    Q5_1,
    /// 4-bit blocks over a fixed table of levels.
    Iq4Nl,
    /// 2-bit blocks of 256 in 16 parts, each with a scale and a minimum.
    Q2K,
    /// 3-bit blocks of 256 in 16 parts with scales.
    Q3K,
    /// 4-bit blocks of 256 in 8 parts, each with a scale and a minimum.
    Q4K,
    /// 5-bit blocks of 256 in 8 parts, each with a scale and a minimum.
    Q5K,
    /// 6-bit blocks of 256 in 16 parts with scales.
    Q6K,
    /// 4-bit NormalFloat in blocks of 64: f32 scale, 32 bytes of nibbles (the first value of a byte is its high nibble).
    Nf4,
}

impl Format {
    /// Name as in GGUF and safetensors.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Iq4Nl => "IQ4_NL",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Nf4 => "NF4",
        }
    }

    /// `(elements, bytes)` of one block; plain formats are blocks of one.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_0 | Self::Iq4Nl => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
            Self::Q5_0 => (BLOCK, 22),
            Self::Q5_1 => (BLOCK, 24),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Nf4 => (64, 36),
        }
    }

    /// Whether values are stored in blocks with a scale.
    pub fn is_quantized(self) -> bool {
        self.block().0 > 1
    }

    /// Bytes of a tensor of `shape`; `None` on overflow or when a row is not whole blocks.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (elements, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if row % elements != 0 {
            return None;
        }
        let count = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        (count / elements).checked_mul(bytes)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a model file.
///
/// `data` is little-endian, rows contiguous, and **not** necessarily aligned for its element type.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Storage format.
    pub format: Format,
    /// Dimensions, outermost first: a linear weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// Exactly `format.bytes(&shape)` bytes; borrowed from the mapping where the stored order could be kept.
    pub data: Cow<'a, [u8]>,
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// A matrix `[in, out]` turned to `[out, in]`. Only floats can be turned; blocks lie along rows.
    pub(crate) fn turned(&self, path: &Path, name: &str) -> Result<TensorView<'static>> {
        let &[rows, columns] = self.shape.as_slice() else {
            return Err(FormatError::invalid(path, format!("`{name}` has shape {:?} and is no matrix", self.shape)));
        };
        let (1, width) = self.format.block() else {
            let reason = format!("`{name}` is stored in {} as [in, out], whose blocks cannot be turned", self.format);
            return Err(FormatError::unsupported(path, reason));
        };
        let mut data = Vec::with_capacity(self.data.len());
        for column in 0..columns {
            for row in 0..rows {
                let at = (row * columns + column) * width;
                data.extend_from_slice(&self.data[at..at + width]);
            }
        }
        Ok(TensorView { format: self.format, shape: vec![columns, rows], data: Cow::Owned(data) })
    }

    /// Every element as `f32`, exactly; `None` for the block formats that only devices decode (Q5_0 and on).
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let bytes = &self.data;
        let half_at = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let mut out = Vec::with_capacity(self.elements());
        match self.format {
            Format::F32 => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Format::F16 => out.extend(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Format::BF16 => out.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            Format::Q8_0 => {
                for block in bytes.chunks_exact(34) {
                    let scale = half_at(block, 0);
                    out.extend(block[2..].iter().map(|&q| scale * f32::from(q as i8)));
                }
            }
            Format::Q4_0 => {
                for block in bytes.chunks_exact(18) {
                    let scale = half_at(block, 0);
                    out.extend(block[2..].iter().map(|&q| scale * (f32::from(q & 15) - 8.0)));
                    out.extend(block[2..].iter().map(|&q| scale * (f32::from(q >> 4) - 8.0)));
                }
            }
            Format::Q4_1 => {
                for block in bytes.chunks_exact(20) {
                    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                    out.extend(block[4..].iter().map(|&q| scale * f32::from(q & 15) + minimum));
                    out.extend(block[4..].iter().map(|&q| scale * f32::from(q >> 4) + minimum));
                }
            }
            _ => return None,
        }
        Some(out)
    }
}

/// A tensor to be written, under its Hugging Face name.
#[derive(Debug, Clone)]
pub struct NamedTensor<'a> {
    /// Name, for example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Format, shape and bytes.
    pub view: TensorView<'a>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor of `f32` values; the bytes are copied.
    pub fn from_f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), view: TensorView { format: Format::F32, shape, data: Cow::Owned(data) } }
    }

    /// A tensor of 16-bit floats, rounded to nearest even.
    pub fn half_from_f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32], brain: bool) -> Self {
        let bits = |&v: &f32| if brain { bf16::from_f32(v).to_le_bytes() } else { f16::from_f32(v).to_le_bytes() };
        let format = if brain { Format::BF16 } else { Format::F16 };
        let data = values.iter().flat_map(bits).collect();
        Self { name: name.into(), view: TensorView { format, shape, data: Cow::Owned(data) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_formats_decode_as_ggml_defines_them() {
        let half = |value: f32| f16::from_f32(value).to_le_bytes();
        let mut q8 = half(0.5).to_vec();
        q8.extend((0..32).map(|i| (i as i8 - 16) as u8));
        let view = TensorView { format: Format::Q8_0, shape: vec![1, 32], data: q8.into() };
        assert_eq!(view.to_f32(), Some((0..32).map(|i| 0.5 * (i as f32 - 16.0)).collect()));

        let nibbles: Vec<u8> = (0..16).map(|i| i | ((15 - i) << 4)).collect();
        let mut q4 = half(2.0).to_vec();
        q4.extend(&nibbles);
        let decoded = TensorView { format: Format::Q4_0, shape: vec![32], data: q4.into() }.to_f32().unwrap();
        assert_eq!((decoded[0], decoded[15], decoded[16], decoded[31]), (-16.0, 14.0, 14.0, -16.0));

        let mut q41 = half(0.25).to_vec();
        q41.extend(half(-1.0));
        q41.extend(&nibbles);
        let decoded = TensorView { format: Format::Q4_1, shape: vec![32], data: q41.into() }.to_f32().unwrap();
        assert_eq!((decoded[0], decoded[15], decoded[16], decoded[31]), (-1.0, 2.75, 2.75, -1.0));
    }

    #[test]
    fn sizes_refuse_overflow_and_ragged_blocks() {
        assert_eq!(Format::Q4_1.bytes(&[2, 64]), Some(80));
        assert_eq!(Format::Q8_0.bytes(&[2, 33]), None);
        assert_eq!(Format::F32.bytes(&[usize::MAX, 2]), None);
        assert_eq!(Format::F32.bytes(&[]), Some(4));
    }
}
