//! Linear layers with a product of low rank beside them, in one pass over the output (LoRA, Hu et al. 2021):
//! `y = activation(alpha x Wᵀ + factor h Vᵀ + bias) + addend` and, backward, `dx = alpha dy W + factor h V + addend`.
//!
//! The rank stays a `k` of its own: where a register tile of the blocked product is written first, the low-rank product adds
//! to it while it is in the first-level cache. As a product of its own it would read and write all of the output for a few multiply-adds
//! an element, which takes a tenth of the time of a layer.
//!
//! The error of an element is at most about `(k + r) / 16 + 32` roundings of the sum of the magnitudes of its terms; determinism is
//! that of [`crate::gemm`], an activation's error that of [`crate::elementwise`]. What is not finite in a row of `x`, `dy` or `h` stays in
//! that row of the output. Few rows or columns, where the output is small beside the weight, take two products.

#[cfg(test)]
mod tests;

use crate::elementwise::Unary;
use crate::format::Weight;
use crate::gemm::blocked::{Out, Sizes, blocked, run};
use crate::gemm::finish::Finish;
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

/// `y = activation(alpha x Wᵀ + factor h Vᵀ + bias) + addend`: `x` is `[m, w.cols]`, `y` is `[m, w.rows]`.
///
/// # Panics
/// When a length does not match, or a weight has no columns.
#[track_caller]
pub fn low_rank_linear(pool: &Pool, m: usize, x: &[f32], w: &Weight<'_>, low: &LowRank<'_>, layer: &Layer<'_>, y: &mut [f32]) {
    assert_eq!(low.v.rows, w.rows, "both weights have the output's columns");
    let &Layer { alpha, bias, activation, addend } = layer;
    let sizes = Sizes { m, n: w.rows, k: w.cols };
    if m <= FEW || w.rows <= FEW {
        if activation.is_none() {
            linear::linear_fused(pool, m, x, w, layer, y);
            return linear::linear(pool, m, low.factor, low.h, &low.v, None, y, 1.0);
        }
        return with_scratch(y.len(), |sums| {
            linear::linear(pool, m, alpha, x, w, bias, sums, 0.0);
            add_few(pool, sizes, low, sums, &Finish::new(pool.isa(), activation, addend, y, w.rows));
        });
    }
    linear::check(sizes, x, w, y);
    linear::check(Sizes { k: low.v.cols, ..sizes }, low.h, &low.v, y);
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias does not match the weight's rows");
    let [w, v] = [w, &low.v].map(|w| Panels::transposed(pool.isa(), w));
    both(pool, sizes, x, w, low, (low.v.cols, &v), layer, y);
}

/// `y = activation(y + factor h Vᵀ) + addend`, for a product that has been computed in another way.
///
/// # Panics
/// When a length does not match, the weight has no columns, or the addend is what `y` held.
#[track_caller]
pub fn low_rank_add(pool: &Pool, m: usize, low: &LowRank<'_>, activation: Option<Unary>, addend: Addend<'_>, y: &mut [f32]) {
    assert!(!matches!(addend, Addend::Output { .. }), "the output holds the other product");
    let sizes = Sizes { m, n: low.v.rows, k: low.v.cols };
    linear::check(sizes, low.h, &low.v, y);
    if m <= FEW || low.v.rows <= FEW {
        return with_scratch(y.len(), |sums| {
            sums.copy_from_slice(y);
            add_few(pool, sizes, low, sums, &Finish::new(pool.isa(), activation, addend, y, low.v.rows));
        });
    }
    addend.check(m, sizes.n);
    let v = Panels::transposed(pool.isa(), &low.v);
    let finish = Finish::new(pool.isa(), activation, addend, y, sizes.n);
    // Sums begin with what they find in the output, and end there.
    let epilogue = Epilogue { alpha: low.factor, beta: 1.0, bias: None, addend: None };
    blocked(pool, sizes, MatRef::new(low.h, sizes.k).into(), v, Out::Finished(&finish), epilogue, None);
}

/// Adds the product of low rank to `sums`, of few rows or columns, and finishes them.
fn add_few(pool: &Pool, Sizes { m, n, .. }: Sizes, low: &LowRank<'_>, sums: &mut [f32], finish: &Finish<'_>) {
    // Values of a task: a microsecond of an activation.
    const PIECE: usize = 1024;
    if sums.is_empty() {
        return;
    }
    linear::linear(pool, m, low.factor, low.h, &low.v, None, sums, 1.0);
    finish.addend().check(m, n);
    let (sums, pieces) = (Disjoint::new(sums), n.div_ceil(PIECE));
    run(pool, m * n <= PIECE, m * pieces, &|task| {
        let (i, j) = (task / pieces, task % pieces * PIECE);
        let cols = PIECE.min(n - j);
        // SAFETY: this task alone has these sums, and these cells of the output, whose length is that of the sums.
        unsafe { finish.tile(sums.slice(i * n + j, cols), cols, (i, j), cols) };
    });
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
    let layer = Layer { alpha, bias: None, activation: None, addend };
    both(pool, sizes, dy, w, low, (low.v.rows, &v), &layer, dx);
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
    w: Panels<'_>,
    low: &LowRank<'_>,
    (rank, v): (usize, &Panels<'_>),
    layer: &Layer<'_>,
    out: &mut [f32],
) {
    let Sizes { m, n, k } = sizes;
    layer.addend.check(m, n);
    let finish = Finish::new(pool.isa(), layer.activation, layer.addend, out, n);
    let (out, epilogue) = finish.out(layer.alpha, layer.bias);
    let kernels = kernels(pool.isa());
    with_scratch(rank * n.next_multiple_of(GROUP), |panels| {
        let width = COLUMNS.max(v.units().1);
        for j0 in (0..n).step_by(width) {
            let cols = width.min(n - j0);
            v.pack(kernels, Part { k0: 0, k: rank, j0, cols }, &mut panels[j0 * rank..][..cols.next_multiple_of(GROUP) * rank]);
        }
        let second = Second::new(low.factor, rank, MatRef::new(low.h, rank), panels);
        blocked(pool, sizes, MatRef::new(x, k).into(), w, out, epilogue, Some(&second));
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

impl<'a> Second<'a> {
    /// `factor h V`, with `h` `[m, rank]` and panels of `V`.
    pub(crate) fn new(factor: f32, rank: usize, h: MatRef<'a>, panels: &'a [f32]) -> Second<'a> {
        Second { factor, rank, h, panels }
    }

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
