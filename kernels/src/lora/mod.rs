//! Linear layers with a product of low rank beside them, in one pass over the output (LoRA, Hu et al. 2021):
//! `y = alpha x Wᵀ + factor h Vᵀ + bias + addend` and, backward, `dx = alpha dy W + factor h V + addend`.
//!
//! The rank stays a `k` of its own: where a register tile of the blocked product is written first, the low-rank product adds
//! to it while it is in the first-level cache. As a product of its own it would read and write all of the output for a few multiply-adds
//! an element, which takes a tenth of the time of a layer.
//!
//! The error of an element is at most about `(k + r) / 16 + 32` roundings of the sum of the magnitudes of its terms; determinism is
//! that of [`crate::gemm`]. What is not finite in a row of `x`, `dy` or `h` stays in that row of the output. Few rows or columns,
//! where the output is small beside the weight, take two products.

#[cfg(test)]
mod tests;

use crate::format::Weight;
use crate::gemm::blocked::{Sizes, blocked_with};
use crate::gemm::kernel::{Epilogue, Kernels, Tile, kernels};
use crate::gemm::pack::{COLUMNS, GROUP, Panels, Part};
use crate::gemm::scratch::with_scratch;
use crate::gemm::{Addend, MatRef};
use crate::linear::{self, Layer};
use crate::pool::{Disjoint, Pool};

/// Rows or columns up to which two products are taken.
const FEW: usize = 16;

/// The product of low rank: `factor h Vᵀ` forward, with `V` `[n, r]`, and `factor h V` backward, with `V` `[r, n]`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// Multiplies the product.
    pub factor: f32,
    /// `[m, r]`.
    pub h: &'a [f32],
    /// The other side.
    pub v: Weight<'a>,
}

/// `y = alpha x Wᵀ + factor h Vᵀ + bias + addend`: `x` is `[m, w.cols]`, `y` is `[m, w.rows]`.
///
/// # Panics
/// When a length does not match, or a weight has no columns.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of a linear layer and the other product")]
pub fn low_rank_linear(
    pool: &Pool,
    m: usize,
    alpha: f32,
    x: &[f32],
    w: &Weight<'_>,
    low: &LowRank<'_>,
    bias: Option<&[f32]>,
    addend: Addend<'_>,
    y: &mut [f32],
) {
    assert_eq!(low.v.rows, w.rows, "both weights have the output's columns");
    if m <= FEW || w.rows <= FEW {
        linear::linear_fused(pool, m, x, w, &Layer { alpha, bias, activation: None, addend }, y);
        return linear::linear(pool, m, low.factor, low.h, &low.v, None, y, 1.0);
    }
    let sizes = Sizes { m, n: w.rows, k: w.cols };
    linear::check(sizes, x, w, y);
    linear::check(Sizes { k: low.v.cols, ..sizes }, low.h, &low.v, y);
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias does not match the weight's rows");
    let [w, v] = [w, &low.v].map(|w| Panels::transposed(pool.isa(), w));
    both(pool, sizes, x, &w, low, low.v.cols, &v, y, (alpha, bias, addend));
}

/// `dx = alpha dy W + factor h V + addend`: `dy` is `[m, w.rows]`, `dx` is `[m, w.cols]`.
///
/// # Panics
/// When a length does not match, or a weight has no rows.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of a linear layer and the other product")]
pub fn low_rank_linear_dx(
    pool: &Pool,
    m: usize,
    alpha: f32,
    dy: &[f32],
    w: &Weight<'_>,
    low: &LowRank<'_>,
    addend: Addend<'_>,
    dx: &mut [f32],
) {
    assert_eq!(low.v.cols, w.cols, "both weights have the output's columns");
    if m <= FEW || w.cols <= FEW {
        let beta = before(addend, m, w.cols, dx);
        linear::linear_dx(pool, m, alpha, dy, w, dx, beta);
        return linear::linear_dx(pool, m, low.factor, low.h, &low.v, dx, 1.0);
    }
    let sizes = Sizes { m, n: w.cols, k: w.rows };
    linear::check(sizes, dy, w, dx);
    linear::check(Sizes { k: low.v.rows, ..sizes }, low.h, &low.v, dx);
    let [w, v] = [w, &low.v].map(|w| Panels::straight(pool.isa(), w));
    both(pool, sizes, dy, &w, low, low.v.rows, &v, dx, (alpha, None, addend));
}

/// Writes an addend that lies elsewhere to the output, for products that know only that; gives the factor of what is there then.
fn before(addend: Addend<'_>, m: usize, n: usize, out: &mut [f32]) -> f32 {
    match addend {
        Addend::None => 0.0,
        Addend::Output { beta } => beta,
        Addend::Matrix { values, row_stride, beta } => {
            for i in 0..m {
                out[i * n..][..n].copy_from_slice(&values[i * row_stride..][..n]);
            }
            beta
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "one private hop from two public signatures")]
fn both(
    pool: &Pool,
    sizes: Sizes,
    x: &[f32],
    w: &Panels<'_>,
    low: &LowRank<'_>,
    rank: usize,
    v: &Panels<'_>,
    out: &mut [f32],
    (alpha, bias, addend): (f32, Option<&[f32]>, Addend<'_>),
) {
    let Sizes { m, n, k } = sizes;
    let epilogue = match addend {
        Addend::None => Epilogue { alpha, beta: 0.0, bias, addend: None },
        Addend::Output { beta } => Epilogue { alpha, beta, bias, addend: None },
        Addend::Matrix { values, row_stride, beta } => {
            assert!(row_stride >= n && values.len() >= (m - 1) * row_stride + n, "addend is shorter than its {m} by {n} shape");
            Epilogue { alpha, beta, bias, addend: Some((values, row_stride)) }
        }
    };
    let kernels = kernels(pool.isa());
    with_scratch(rank * n.next_multiple_of(GROUP), |panels| {
        let width = COLUMNS.max(v.units().1);
        for j0 in (0..n).step_by(width) {
            let cols = width.min(n - j0);
            v.pack(kernels, Part { k0: 0, k: rank, j0, cols }, &mut panels[j0 * rank..][..cols.next_multiple_of(GROUP) * rank]);
        }
        let second = Second { factor: low.factor, rank, h: MatRef::new(low.h, rank), panels };
        blocked_with(pool, sizes, &MatRef::new(x, k), w, Disjoint::new(out), n, epilogue, &second);
    });
}

/// A product of low rank that is added to tiles of another's output.
pub(crate) struct Second<'a> {
    factor: f32,
    rank: usize,
    /// `[m, rank]`.
    h: MatRef<'a>,
    /// Panels of the other side, `rank` values for each column.
    panels: &'a [f32],
}

impl Second<'_> {
    /// Adds to the tile of the output at row `i` and column `j`, a multiple of the panels' width.
    ///
    /// # Safety
    /// `c` points to `rows` rows of `cols` values, `ldc` apart, and nobody else uses them.
    pub(crate) unsafe fn add(
        &self,
        kernels: &Kernels,
        (i, rows): (usize, usize),
        (j, cols): (usize, usize),
        c: *mut f32,
        ldc: usize,
    ) {
        let b = &self.panels[j * self.rank..];
        debug_assert!(b.len() >= kernels.nr * (self.rank - 1) + cols);
        for row in (0..rows).step_by(kernels.mr) {
            let (h, c) = (&self.h.data[self.h.at(i + row, 0)..], c.wrapping_add(row * ldc));
            let rows = kernels.mr.min(rows - row);
            debug_assert!(h.len() >= rows * self.rank);
            // SAFETY: `h` has these rows, the other side is packed for these columns; the output by the caller's promise.
            unsafe {
                (kernels.tile)(&Tile {
                    rows,
                    cols,
                    k: self.rank,
                    a: h.as_ptr(),
                    a_stride: self.rank,
                    b: b.as_ptr(),
                    b_stride: kernels.nr,
                    copy: std::ptr::null_mut(),
                    c,
                    ldc,
                    alpha: self.factor,
                    beta: 1.0,
                    d: c,
                    ldd: ldc,
                    bias: std::ptr::null(),
                });
            }
        }
    }
}
