//! Products on processors that have no kernel of ours: those of the `gemm` crate.
//!
//! It is used where no better instruction set than [`crate::isa::Isa::Scalar`] could be detected *and* the target is not x86-64. Where a
//! pool is told to be scalar, in tests above all, the portable kernels run, which are the specification.

use gemm::Parallelism;

use super::MatRef;
use super::blocked::{Sizes, run};
use crate::pool::{Disjoint, Pool};

/// Columns of one task; strips depend on shapes alone.
const STRIP: usize = 256;

/// `c = alpha a b + beta c` for non-empty sizes; operands and `c` have been checked.
#[expect(clippy::too_many_arguments, reason = "the private hop that it replaces has the same")]
pub(super) fn product(
    pool: &Pool,
    Sizes { m, n, k }: Sizes,
    a: MatRef<'_>,
    b: MatRef<'_>,
    c: Disjoint<'_, f32>,
    ldc: usize,
    alpha: f32,
    beta: f32,
) {
    let small = Sizes { m, n, k }.is_small();
    run(pool, small, n.div_ceil(STRIP), &|strip| {
        let j = strip * STRIP;
        let cols = STRIP.min(n - j);
        // SAFETY: strides and sizes are those of the operands; this task alone has these columns of `c`.
        unsafe {
            gemm::gemm(
                m,
                cols,
                k,
                c.as_mut_ptr().add(j),
                1,
                ldc as isize,
                beta != 0.0,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data[b.at(0, j)..].as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                beta,
                alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    });
}
