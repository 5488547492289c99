//! Portable streamed dot products: the specification.

use super::{Dots, Rows};
use crate::isa::Isa;
use crate::quant::decoder;

/// # Safety
/// See [`super::RowDots`].
pub(super) unsafe fn row_dots(rows: &Rows, out: &mut Dots) {
    const STEP: usize = 256;
    let decode = decoder(Isa::Scalar, rows.format);
    let mut values = [0f32; STEP];
    for (r, bytes) in rows.bytes.into_iter().enumerate() {
        for start in (0..rows.k).step_by(STEP) {
            let values = &mut values[..STEP.min(rows.k - start)];
            // SAFETY: whole blocks, since `k` and `STEP` are; `x` has `m` rows of `k`.
            unsafe {
                let src = bytes.add(rows.format.row_bytes(start));
                decode(src, values.len(), values.as_mut_ptr());
                for (i, out) in out.iter_mut().enumerate().take(rows.m) {
                    let x = std::slice::from_raw_parts(rows.x.add(i * rows.k + start), values.len());
                    out[r] += x.iter().zip(&*values).map(|(x, w)| x * w).sum::<f32>();
                }
            }
        }
    }
}
