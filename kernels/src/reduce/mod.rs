//! Reductions over one axis, softmax over rows, and reductions of rows by segment.
//!
//! Outputs are overwritten. Sums and products accumulate in `f64` lanes in an order fixed by the
//! shapes and are rounded once, so their relative error is that of one rounding unless terms
//! cancel. `Max` and `Min` are NaN if any element is. Exponentials are within `2e-6`
//! relative, down to `e^-40` of the largest.
//! The reduction of nothing is 0 (`Sum`), NaN (`Mean`), 1 (`Prod`), or an infinity.

mod scalar;
mod segment;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

pub use segment::segment_reduce;
pub(crate) use segment::sort_by_number;

use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::stream;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Longer rows are cut into blocks of this length, whose results are combined in order.
const BLOCK: usize = 64 * 1024;

/// Columns of one task when the reduced axis is not the last.
const COLUMNS: usize = 64;

/// What is computed over the reduced axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// Sum.
    Sum,
    /// Sum divided by the length.
    Mean,
    /// Largest.
    Max,
    /// Smallest.
    Min,
    /// Product.
    Prod,
    /// `log(sum(e^x))`, without overflow.
    LogSumExp,
}

impl Reduce {
    /// All reductions.
    pub const ALL: [Reduce; 6] = [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min, Reduce::Prod, Reduce::LogSumExp];
}

/// Reduces the middle axis of `x: [outer, len, inner]` into `out: [outer, inner]`.
#[track_caller]
pub fn reduce(pool: &Pool, op: Reduce, outer: usize, len: usize, inner: usize, x: &[f32], out: &mut [f32]) {
    assert!(x.len() == outer * len * inner && out.len() == outer * inner, "length of an operand of reduce");
    let isa = pool.isa();
    if inner != 1 {
        let tiles = inner.div_ceil(COLUMNS);
        let out = Disjoint::new(out);
        pool.run(outer * tiles, &|task| {
            let (index, column) = (task / tiles, task % tiles * COLUMNS);
            let width = COLUMNS.min(inner - column);
            let x = &x[index * len * inner..][..len * inner];
            // SAFETY: each part of `out` belongs to one task.
            let out = unsafe { out.slice(index * inner + column, width) };
            match isa {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                _ if isa.is_wide() => vector::columns(isa, op, x, inner, column, out),
                _ => scalar::columns(op, x, inner, column, out),
            }
        });
    } else if len > BLOCK && op != Reduce::LogSumExp {
        let blocks = len.div_ceil(BLOCK);
        let mut partial = vec![0.0; outer * blocks];
        pool.run_pieces(&mut partial, 1, |task, partial| {
            let (row, block) = (task / blocks, task % blocks);
            let start = block * BLOCK;
            let x = &x[row * len + start..][..BLOCK.min(len - start)];
            partial[0] = row_value(isa, op, x);
        });
        for (out, partial) in out.iter_mut().zip(partial.chunks_exact(blocks)) {
            *out = scalar::finish(op, scalar::combine(op, partial), len);
        }
    } else {
        let per_task = (stream::grain(GRAIN, outer * len) / len.max(1)).max(1);
        pool.run_pieces(out, per_task, |task, out| {
            for (index, out) in out.iter_mut().enumerate() {
                let x = &x[(task * per_task + index) * len..][..len];
                *out = scalar::finish(op, row_value(isa, op, x), len);
            }
        });
    }
}

/// The reduction of a row, before [`scalar::finish`].
fn row_value(isa: Isa, op: Reduce, x: &[f32]) -> f64 {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::row(isa, op, x),
        _ => scalar::row(op, x),
    }
}

/// Softmax of each row of `x: [rows, cols]`. A row of `-inf` alone gives NaN.
#[track_caller]
pub fn softmax(pool: &Pool, rows: usize, cols: usize, x: &[f32], out: &mut [f32]) {
    assert!(x.len() == rows * cols && out.len() == rows * cols, "length of an operand of softmax");
    if cols == 0 {
        return;
    }
    let per_task = (stream::grain(GRAIN, rows * cols) / cols).max(1);
    let past = cols.is_multiple_of(16) && stream::is_large(pool.isa(), out.len(), out.as_ptr(), &[]);
    pool.run_pieces(out, per_task * cols, |task, out| {
        let x = &x[task * per_task * cols..][..out.len()];
        with_scratch(if past { cols } else { 0 }, |row| {
            for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                let terms = if past { row.as_mut_ptr() } else { out.as_mut_ptr() };
                match pool.isa() {
                    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                    isa if isa.is_wide() => vector::softmax(isa, past, x, terms, out),
                    _ => scalar::softmax(x, out),
                }
            }
        });
        if past {
            stream::fence();
        }
    });
}

/// Gradient of [`softmax`] from its result: `dx = y (dy - sum(y dy))`.
#[track_caller]
pub fn softmax_dx(pool: &Pool, rows: usize, cols: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(y.len() == rows * cols && dy.len() == rows * cols && dx.len() == rows * cols, "length of an operand of softmax_dx");
    if cols == 0 {
        return;
    }
    let per_task = (stream::grain(GRAIN, rows * cols) / cols).max(1);
    let past = cols.is_multiple_of(16) && stream::is_large(pool.isa(), dx.len(), dx.as_ptr(), &[]);
    pool.run_pieces(dx, per_task * cols, |task, dx| {
        let start = task * per_task * cols;
        for (index, dx) in dx.chunks_exact_mut(cols).enumerate() {
            let range = start + index * cols..start + (index + 1) * cols;
            let (y, dy) = (&y[range.clone()], &dy[range]);
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => vector::softmax_dx(isa, past, y, dy, dx),
                _ => scalar::softmax_dx(y, dy, dx),
            }
        }
        if past {
            stream::fence();
        }
    });
}
