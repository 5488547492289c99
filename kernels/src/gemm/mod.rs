//! Matrix products with any strides on the left and right operands, summed in `f32`.
//!
//! `c = alpha a b + beta c` with `a` `[m, k]`, `b` `[k, n]`, and `c` `[m, n]` row-major:
//! [`gemm`], many at once as [`gemm_batched`] (equal sizes) and [`gemm_grouped`] (experts), and [`gemm_fused`], which adds
//! operands and outputs in `f16` and `bf16`, weights in any format, activations and residuals.
//!
//! Two algorithms share the inner kernels of each instruction set:
//!
//! * `blocked`: packed panels and cache blocks; also behind the linear layers, whose
//!   weights are decoded by the packer.
//! * `thin`: one side of at most 16; the large operand is read once, unpacked.
//!
//! Where a matrix unit multiplies `bf16` only ([`crate::isa::Isa::Amx`]), operands of large products are split into three such parts each
//! (`crate::split`); six products of parts are as exact as one of floats and still faster.
//!
//! Processors without a kernel of ours use the `gemm` crate (`fallback`).
//!
//! The choice depends on shapes and strides only, and no sum over `k` is ever
//! shared between threads: results are bitwise the same for any thread count.
//! The error of an element is at most about `k / 16 + 16` roundings of
//! `sum |a| |b|`, usually far less; instruction sets differ within that.

use crate::pool::{Disjoint, Pool};

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod blocked;
#[cfg(any(test, not(target_arch = "x86_64")))]
mod fallback;
pub(crate) mod finish;
mod fused;
mod grouped;
pub(crate) mod kernel;
mod operand;
pub(crate) mod pack;
mod scalar;
pub(crate) mod scratch;
#[cfg(test)]
mod tests;
mod thin;

pub use fused::{Addend, Factor, Fused, Output, gemm_fused};
pub use grouped::{Member, gemm_grouped};
pub use operand::{MatRef, Operand};
pub use scratch::SCRATCH_BYTES;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::transposed;

use blocked::{Out, Sizes, blocked};
use kernel::Epilogue;
use pack::Panels;
use thin::{THIN, Thin};

/// `c = alpha a b + beta c`; `c` is overwritten, not read, when `beta` is zero.
///
/// Rows of `c` are `ldc >= n` apart; elements between rows are untouched. Error and
/// determinism: see the [module](self).
///
/// # Panics
/// When an operand or `c` is too short for its shape.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of BLAS, which every caller knows")]
pub fn gemm(
    pool: &Pool,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: &mut [f32],
    ldc: usize,
    beta: f32,
) {
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    check_output(m, n, c.len(), ldc);
    product(pool, Sizes { m, n, k }, a, b, Disjoint::new(c), ldc, alpha, beta);
}

/// Distances between the matrices of a batch, in elements.
#[derive(Clone, Copy, Debug)]
pub struct BatchStrides {
    /// Between left operands; zero repeats one for the whole batch.
    pub a: usize,
    /// Between right operands; zero repeats one for the whole batch.
    pub b: usize,
    /// Between outputs; they may interleave but must not overlap.
    pub c: usize,
}

/// `batch` independent products, each as [`gemm`] computes it, bitwise.
///
/// # Panics
/// When an operand or `c` is too short, or outputs of the batch would overlap.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of BLAS, which every caller knows")]
pub fn gemm_batched(
    pool: &Pool,
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: &mut [f32],
    ldc: usize,
    beta: f32,
    strides: BatchStrides,
) {
    if batch == 0 || m == 0 || n == 0 {
        return;
    }
    let last = |data: &[f32], stride: usize| (batch - 1).saturating_mul(stride).min(data.len());
    MatRef { data: &a.data[last(a.data, strides.a)..], ..a }.check(m, k);
    MatRef { data: &b.data[last(b.data, strides.b)..], ..b }.check(k, n);
    check_output(m, n, c.len() - last(c, strides.c), ldc);
    // Either whole matrices follow each other, or they share rows side by side.
    let apart = strides.c >= (m - 1) * ldc + n;
    let beside = strides.c >= n && ldc >= (batch - 1) * strides.c + n;
    assert!(batch == 1 || apart || beside, "outputs of the batch overlap");
    let sizes = Sizes { m, n, k };
    let c = Disjoint::new(c);
    let one = |index: usize| {
        let (a0, b0, c0) = (index * strides.a, index * strides.b, index * strides.c);
        let a = MatRef { data: &a.data[a0.min(a.data.len())..], ..a };
        let b = MatRef { data: &b.data[b0.min(b.data.len())..], ..b };
        product(pool, sizes, a, b, c.after(c0), ldc, alpha, beta);
    };
    // Whole products per thread where there are enough; a nested run goes inline.
    blocked::run(pool, batch < 2 * pool.threads(), batch, &one);
}

#[track_caller]
fn check_output(m: usize, n: usize, len: usize, ldc: usize) {
    assert!(ldc >= n, "rows of the output overlap");
    assert!(len >= (m - 1) * ldc + n, "output is shorter than its {m} by {n} shape");
}

/// Chooses the algorithm; shapes are non-empty (but for `k`) and have been checked.
#[expect(clippy::too_many_arguments, reason = "one private hop between two public signatures")]
fn product(pool: &Pool, sizes: Sizes, a: MatRef<'_>, b: MatRef<'_>, c: Disjoint<'_, f32>, ldc: usize, alpha: f32, beta: f32) {
    let Sizes { m, n, k } = sizes;
    let epilogue = Epilogue { alpha, beta, bias: None, addend: None };
    if k == 0 {
        for i in 0..m {
            // SAFETY: the output was checked, and nothing else runs.
            let row = unsafe { c.slice(i * ldc, n) };
            if beta == 0.0 {
                row.fill(0.0);
            } else {
                row.iter_mut().for_each(|c| *c *= beta);
            }
        }
        return;
    }
    #[cfg(not(target_arch = "x86_64"))]
    if crate::isa::Isa::detect() == crate::isa::Isa::Scalar && !cfg!(test) {
        return fallback::product(pool, sizes, a, b, c, ldc, alpha, beta);
    }
    let right = Thin { sizes: Sizes { m: n, n: m, k }, small: b.transposed(), large: a.transposed(), strides: (1, ldc) };
    let left = Thin { sizes, small: a, large: b, strides: (ldc, 1) };
    if n <= THIN && a.col_stride == 1 {
        thin::dots(pool, right, c, epilogue);
    } else if n <= THIN && a.row_stride == 1 {
        thin::outer(pool, right, c, epilogue);
    } else if m <= THIN && b.col_stride == 1 {
        thin::outer(pool, left, c, epilogue);
    } else if m <= THIN && b.row_stride == 1 {
        thin::dots(pool, left, c, epilogue);
    } else {
        blocked(pool, sizes, a.into(), Panels::Dense(b), Out::Plain(c, ldc), epilogue, None);
    }
}
