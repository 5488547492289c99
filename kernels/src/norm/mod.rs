//! Root-mean-square normalization (Zhang and Sennrich 2019) over rows of `[rows, d]`.
//!
//! `y = x / sqrt(mean(x^2) + eps) * w`, where `w` is one, the weight, or one plus the weight
//! (`unit_offset`, as in Gemma). Outputs are overwritten. Sums over a row run in a fixed order
//! with several accumulators; relative error is about `1e-6` for rows of some thousands.

#![allow(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use crate::pool::{Disjoint, Pool};
use crate::stream;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Rows whose products [`rms_norm_dw`] sums in one go.
const DW_ROWS: usize = 256;

/// Rows of one task.
fn rows_per_task(rows: usize, d: usize) -> usize {
    (stream::grain(GRAIN, rows * d) / d.max(1)).max(1)
}

/// Normalizes the rows of `x` into `y` and keeps `inv_rms` (one for each row) for the gradient.
#[track_caller]
pub fn rms_norm(
    pool: &Pool,
    rows: usize,
    d: usize,
    x: &[f32],
    w: Option<&[f32]>,
    eps: f32,
    unit_offset: bool,
    y: &mut [f32],
    inv_rms: &mut [f32],
) {
    assert!(x.len() == rows * d && y.len() == rows * d && inv_rms.len() == rows, "length of an operand of rms_norm");
    assert!(w.is_none_or(|w| w.len() == d), "length of the norm weight");
    let offset = f32::from(u8::from(unit_offset));
    let per_task = rows_per_task(rows, d);
    let past = d.is_multiple_of(16) && stream::is_large(pool.isa(), y.len(), y.as_ptr(), &[]);
    let y = Disjoint::new(y);
    pool.run_pieces(inv_rms, per_task, |task, inv_rms| {
        for (index, inv_rms) in inv_rms.iter_mut().enumerate() {
            let start = (task * per_task + index) * d;
            let x = &x[start..][..d];
            // SAFETY: each row belongs to one task.
            let y = unsafe { y.slice(start, d) };
            *inv_rms = match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => vector::forward(isa, past, x, w, eps, offset, y),
                _ => scalar::forward(x, w, eps, offset, y),
            };
        }
        if past {
            stream::fence();
        }
    });
}

/// Gradient of [`rms_norm`] in `x`, from the `inv_rms` that it kept.
#[track_caller]
pub fn rms_norm_dx(
    pool: &Pool,
    rows: usize,
    d: usize,
    x: &[f32],
    w: Option<&[f32]>,
    inv_rms: &[f32],
    dy: &[f32],
    unit_offset: bool,
    dx: &mut [f32],
) {
    assert!(x.len() == rows * d && dy.len() == rows * d && dx.len() == rows * d, "length of an operand of rms_norm_dx");
    assert_eq!(inv_rms.len(), rows, "length of inv_rms");
    assert!(w.is_none_or(|w| w.len() == d), "length of the norm weight");
    if d == 0 {
        return;
    }
    let offset = f32::from(u8::from(unit_offset));
    let per_task = rows_per_task(rows, d);
    let past = d.is_multiple_of(16) && stream::is_large(pool.isa(), dx.len(), dx.as_ptr(), &[]);
    pool.run_pieces(dx, per_task * d, |task, dx| {
        for (index, dx) in dx.chunks_exact_mut(d).enumerate() {
            let row = task * per_task + index;
            let (x, dy) = (&x[row * d..][..d], &dy[row * d..][..d]);
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => {
                    vector::dx(isa, past, x, w, offset, inv_rms[row], dy, dx);
                }
                _ => scalar::dx(x, w, offset, inv_rms[row], dy, dx),
            }
        }
        if past {
            stream::fence();
        }
    });
}

/// Gradient of [`rms_norm`] in the weight: `dw = sum over rows of dy x inv_rms`.
///
/// Blocks of 256 rows are summed in parallel and then added in order.
#[track_caller]
pub fn rms_norm_dw(pool: &Pool, rows: usize, d: usize, x: &[f32], inv_rms: &[f32], dy: &[f32], dw: &mut [f32]) {
    assert!(
        x.len() == rows * d && dy.len() == rows * d && inv_rms.len() == rows && dw.len() == d,
        "length of an operand of rms_norm_dw"
    );
    dw.fill(0.0);
    if d == 0 {
        return;
    }
    let mut partial = vec![0.0; rows.div_ceil(DW_ROWS) * d];
    pool.run_pieces(&mut partial, d, |block, partial| {
        let range = block * DW_ROWS..rows.min((block + 1) * DW_ROWS);
        for row in range {
            let (x, dy) = (&x[row * d..][..d], &dy[row * d..][..d]);
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => vector::dw(isa, x, inv_rms[row], dy, partial),
                _ => scalar::dw(x, inv_rms[row], dy, partial),
            }
        }
    });
    for partial in partial.chunks_exact(d) {
        for (dw, partial) in dw.iter_mut().zip(partial) {
            *dw += partial;
        }
    }
}
