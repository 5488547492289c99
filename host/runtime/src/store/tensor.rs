//! A tensor of the store: in the format of its file, in panels beside that, or as floats of its own.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use swift_kernels::format::{Layout, Weight};
use swift_kernels::pool::Pool;
use swift_kernels::{panels, quant};

use super::Bytes;
use crate::buffer::Buffer;
use crate::{Format, Result};

/// Bytes of a weight that are repacked before their memory is let go.
const REPACKED_AT_ONCE: usize = 8 << 20;

pub(crate) enum Storage {
    /// Blocks of a format; F32 only if aligned to four bytes. Panels are made when first asked for, once for all that share the bytes.
    Shared(Format, Bytes, Arc<OnceLock<Buffer>>),
    /// f32.
    Owned(Buffer),
}

pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) storage: Storage,
}

impl Tensor {
    pub(super) fn owned(shape: Vec<usize>, data: &[f32], what: &'static str) -> Result<Tensor> {
        Ok(Tensor { storage: Storage::Owned(Buffer::of(data, what)?), shape })
    }

    pub(super) fn to_floats(&self) -> Vec<f32> {
        self.part(0..self.shape.iter().product()).expect("rows are whole blocks").into_owned()
    }

    /// Some elements, whole blocks of the format; `None` if there are no such.
    pub(super) fn part(&self, part: Range<usize>) -> Option<Cow<'_, [f32]>> {
        let (block, len) = (self.format().block_len(), self.shape.iter().product::<usize>());
        if part.start > part.end || part.end > len || !part.start.is_multiple_of(block) || !part.end.is_multiple_of(block) {
            return None;
        }
        Some(match &self.storage {
            Storage::Owned(buffer) => Cow::Borrowed(&buffer.floats()[part]),
            Storage::Shared(format, bytes, _) => {
                let mut out = vec![0.0; part.len()];
                let bytes = &bytes.as_slice()[format.row_bytes(part.start)..format.row_bytes(part.end)];
                quant::dequantize(*format, bytes, &mut out);
                out.into()
            }
        })
    }

    pub(crate) fn format(&self) -> Format {
        match &self.storage {
            Storage::Shared(format, ..) => *format,
            Storage::Owned(_) => Format::F32,
        }
    }

    /// A frozen matrix, or a stack of them with panels for each, repacked on the first call; `None` if it has none.
    pub(crate) fn panels(&self, pool: &Pool) -> Result<Option<Weight<'_>>> {
        let Storage::Shared(format, bytes, panels) = &self.storage else { return Ok(None) };
        let (format, (count, n, cols)) = match *self.shape.as_slice() {
            [n, cols] => (*format, (1, n, cols)),
            [count, n, cols] => (*format, (count, n, cols)),
            _ => return Ok(None),
        };
        let Some(len) = panels::repacked_bytes(format, n, cols) else { return Ok(None) };
        if panels.get().is_none() {
            let mut buffer = Buffer::zeroed(count * len, "a repacked weight")?;
            let (data, row) = (bytes.as_slice(), format.row_bytes(cols));
            // In bands of whole panels, so that a weight is not in memory twice.
            let band = (REPACKED_AT_ONCE / row.max(1)).next_multiple_of(panels::PANEL);
            for (matrix, mut out) in buffer.bytes_mut().chunks_exact_mut(len.max(1)).enumerate() {
                for first in (0..n).step_by(band.max(1)) {
                    let rows = band.min(n - first);
                    let start = (matrix * n + first) * row;
                    let range = start..start + rows * row;
                    let size = panels::repacked_bytes(format, rows, cols).unwrap_or(0);
                    let (panels, rest) = out.split_at_mut(size);
                    panels::repack(pool, &Weight::new(format, rows, cols, &data[range.clone()]), panels);
                    bytes.release_part(range);
                    out = rest;
                }
            }
            // Another store may have been faster, with the same result.
            let _ = panels.set(buffer);
        }
        let data = panels.get().map(|buffer| &buffer.as_slice()[..count * len]);
        Ok(data.map(|data| Weight { format, layout: Layout::Panels, rows: count * n, cols, data }))
    }

    /// Whether [`Tensor::panels`] has been called with success.
    pub(crate) fn has_panels(&self) -> bool {
        matches!(&self.storage, Storage::Shared(_, _, panels) if panels.get().is_some())
    }
}
