//! Products with all that can happen to them in one pass over the output, and operands and outputs of all kinds.

use half::{bf16, f16};

use super::blocked::{Sizes, blocked};
use super::check_output;
use super::finish::{Cells, Finish};
use super::operand::Operand;
use super::pack::Panels;
use super::scratch::with_scratch;
use crate::elementwise::Unary;
use crate::format::Weight;
use crate::pool::{Disjoint, Pool};

/// `c = activation(alpha a b + bias) + addend` with `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Fused<'a> {
    /// Rows of `a` and `c`.
    pub m: usize,
    /// The left operand.
    pub a: Operand<'a>,
    /// The right operand.
    pub b: Factor<'a>,
    /// Factor of the product.
    pub alpha: f32,
    /// `n` values, one for each column.
    pub bias: Option<&'a [f32]>,
    /// What is applied to each element of the product and its bias.
    pub activation: Option<Unary>,
    /// What is added in the end.
    pub addend: Addend<'a>,
}

/// The right operand of a [`Fused`] product.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// A matrix `[k, n]`, read as it is.
    Matrix {
        /// Its elements.
        b: Operand<'a>,
        /// Its rows.
        k: usize,
        /// Its columns.
        n: usize,
    },
    /// The transpose of a weight in any format, decoded panel by panel: the right operand of a linear layer.
    Weight(Weight<'a>),
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Addend<'a> {
    /// Nothing: `c` is overwritten, not read.
    None,
    /// `beta` times the old value of `c`.
    Output {
        /// Its factor.
        beta: f32,
    },
    /// `beta` times another matrix `[m, n]`: a residual.
    Matrix {
        /// Its elements.
        values: &'a [f32],
        /// Distance between its rows.
        row_stride: usize,
        /// Its factor.
        beta: f32,
    },
}

impl Addend<'_> {
    /// Panics unless a matrix holds `m` by `n` elements.
    #[track_caller]
    pub(crate) fn check(&self, m: usize, n: usize) {
        if let &Addend::Matrix { values, row_stride, .. } = self {
            assert!(row_stride >= n && values.len() >= (m - 1) * row_stride + n, "addend is shorter than its {m} by {n} shape");
        }
    }
}

/// The output of a [`Fused`] product: sums are `f32` and rounded once, to nearest, ties to even.
#[derive(Debug)]
pub enum Output<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// IEEE half precision; what is beyond its range becomes infinite.
    F16(&'a mut [f16]),
    /// Upper halves of IEEE singles.
    BF16(&'a mut [bf16]),
}

impl Output<'_> {
    fn len(&self) -> usize {
        match self {
            Output::F32(c) => c.len(),
            Output::F16(c) => c.len(),
            Output::BF16(c) => c.len(),
        }
    }
}

/// Computes `product` into `c`, whose rows are `ldc >= n` apart; elements between rows are untouched.
///
/// The sums of an element are those of [`super::gemm`] within its error; the activation has the error that
/// [`crate::elementwise`] states.
///
/// # Panics
/// When an operand, the bias, the addend or `c` is too short for its shape.
#[track_caller]
pub fn gemm_fused(pool: &Pool, product: &Fused<'_>, c: Output<'_>, ldc: usize) {
    let &Fused { m, a, b, alpha, bias, activation, addend } = product;
    let (k, n) = match b {
        Factor::Matrix { k, n, .. } => (k, n),
        Factor::Weight(w) => (w.cols, w.rows),
    };
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    check_output(m, n, c.len(), ldc);
    assert!(bias.is_none_or(|bias| bias.len() == n), "bias does not match the columns");
    addend.check(m, n);
    let right = match b {
        Factor::Matrix { b, .. } => {
            b.check(k, n);
            Panels::of(pool.isa(), b)
        }
        Factor::Weight(w) => {
            w.check();
            Panels::transposed(pool.isa(), &w)
        }
    };
    let c = match c {
        Output::F32(c) => Cells::F32(Disjoint::new(c)),
        Output::F16(c) => Cells::F16(Disjoint::new(c)),
        Output::BF16(c) => Cells::BF16(Disjoint::new(c)),
    };
    let sizes = Sizes { m, n, k };
    let finish = Finish { isa: pool.isa(), activation, addend, c, ldc };
    if k == 0 {
        return empty(&finish, sizes, bias);
    }
    let source = a.source(pool.isa());
    let (out, epilogue) = finish.out(alpha, bias);
    blocked(pool, sizes, source, right, out, epilogue, None);
}

/// A product over nothing: the bias alone is finished.
fn empty(finish: &Finish<'_>, Sizes { m, n, .. }: Sizes, bias: Option<&[f32]>) {
    with_scratch(n, |row| {
        for i in 0..m {
            match bias {
                Some(bias) => row.copy_from_slice(bias),
                None => row.fill(0.0),
            }
            // SAFETY: the output was checked, and nothing else runs.
            unsafe { finish.tile(row, n, (i, 0), n) };
        }
    });
}
