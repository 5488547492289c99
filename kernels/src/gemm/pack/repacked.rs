//! Packing of weights that lie in panels of [`PANEL`] rows already ([`crate::panels`]): the same values as from a file's blocks.

use super::super::kernel::{Kernels, Transpose};
use super::super::scratch::with_scratch;
use super::{GROUP, Part};
use crate::panels::{Column, Decoded, PANEL};

/// Columns of the weight that are decoded at a time.
const STEP: usize = 256;

/// The columns of a panel of the weight are rows of the packed ones: they are decoded to their places.
pub(super) fn transposed(kernels: &Kernels, weight: &Decoded<'_>, part: Part, out: &mut [f32]) {
    let Part { k0, k, j0, cols } = part;
    let nr = kernels.nr;
    for j in (0..cols).step_by(PANEL) {
        let panel = (j0 + j) / PANEL;
        let to = &mut out[j / nr * k * nr + j % nr..];
        if nr >= PANEL {
            weight.columns(panel, k0..k0 + k, nr, to);
            continue;
        }
        for first in (0..k).step_by(STEP) {
            let count = STEP.min(k - first);
            with_scratch(count * PANEL, |values| {
                weight.columns(panel, k0 + first..k0 + first + count, PANEL, values);
                for (p, column) in values.as_chunks::<PANEL>().0.iter().enumerate() {
                    for (half, values) in column.chunks_exact(nr).enumerate() {
                        to[(half * k + first + p) * nr..][..nr].copy_from_slice(values);
                    }
                }
            });
        }
    }
}

/// Panels are decoded into cache and turned there.
pub(super) fn straight(kernels: &Kernels, weight: &Decoded<'_>, part: Part, out: &mut [f32]) {
    let Part { k0, k, j0, cols } = part;
    let (nr, width) = (kernels.nr, kernels.nr.min(PANEL));
    assert!(k0.is_multiple_of(PANEL) && cols.is_multiple_of(width) && out.len() >= k * cols.next_multiple_of(GROUP));
    let step = STEP.min(cols);
    with_scratch(step * PANEL, |values| {
        for p in (0..k).step_by(PANEL) {
            for first in (0..cols).step_by(step) {
                let count = step.min(cols - first);
                weight.columns((k0 + p) / PANEL, j0 + first..j0 + first + count, PANEL, values);
                let (columns, _): (&[Column], _) = values[..count * PANEL].as_chunks();
                for (index, columns) in columns.chunks_exact(width).enumerate() {
                    let j = first + index * width;
                    // SAFETY: `width` runs of a panel's values were decoded, and as many rows as follow lie in the packed panel.
                    unsafe {
                        (kernels.transpose)(Transpose {
                            rows: width,
                            len: PANEL.min(k - p),
                            src: columns.as_ptr().cast(),
                            src_stride: PANEL,
                            dst: out.as_mut_ptr().add((j / nr * k + p) * nr + j % nr),
                            dst_stride: nr,
                        });
                    }
                }
            }
        }
    });
}
