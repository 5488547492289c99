//! The one matrix product of attention: small operands, the left one read element by element with
//! any strides, the right one by rows of whole vectors.

use crate::isa::Isa;
use crate::simd::{Simd, simd_fn};

/// Where the rows of the right operand are.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// This far apart.
    Rows(usize),
    /// In panels of [`panel`] columns, one after the other: a strided half of each row would crowd
    /// into half of the first-level cache's sets.
    Panels,
}

/// Columns of a panel: two vectors.
pub(super) fn panel(isa: Isa) -> usize {
    if isa >= Isa::Avx512 { 32 } else { 16 }
}

/// `c[i, j] (+)= sum_p a[i a_row + p a_step] b[p, j]`, for `m` by `n` outputs over `k` terms.
///
/// Each output is summed in the order of `p`, one rounding for each term, whatever the sizes.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) m: usize,
    /// A multiple of the lanes.
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    pub(super) b: *const f32,
    pub(super) b_layout: Layout,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Add to `c` rather than overwrite it.
    pub(super) adds: bool,
}

impl Product {
    /// # Safety
    /// The operands are readable and `c` is writable for these sizes, and `c` overlaps neither.
    pub(super) unsafe fn run(self, isa: Isa) {
        product(isa, self);
    }
}

simd_fn! {
    /// Callers uphold the contract of [`Product::run`].
    fn product<S>(s, p: Product) {
        let mut j = 0;
        // SAFETY: blocks lie inside `m` by `n`.
        unsafe {
            while j + 2 * S::LANES <= p.n {
                columns::<S, 2>(s, &p, j);
                j += 2 * S::LANES;
            }
            if j < p.n {
                columns::<S, 1>(s, &p, j);
            }
        }
    }
}

/// All rows of `NV` vectors of columns.
///
/// # Safety
/// As [`block`], for all rows.
#[inline(always)]
unsafe fn columns<S: Simd, const NV: usize>(s: S, p: &Product, j: usize) {
    let mut i = 0;
    // SAFETY: promised by the caller.
    unsafe {
        // Sixteen sums fill the 32 registers of AVX-512 well; AVX2 has room for eight.
        if S::LANES == 16 {
            while i + 8 <= p.m {
                block::<S, 8, NV>(s, p, i, j);
                i += 8;
            }
        }
        while i + 4 <= p.m {
            block::<S, 4, NV>(s, p, i, j);
            i += 4;
        }
        while i < p.m {
            block::<S, 1, NV>(s, p, i, j);
            i += 1;
        }
    }
}

/// `MR` rows of `NV` vectors, kept in registers.
///
/// # Safety
/// The operands hold rows `i..i + MR` and columns `j..j + NV * LANES`.
#[inline(always)]
unsafe fn block<S: Simd, const MR: usize, const NV: usize>(s: S, p: &Product, i: usize, j: usize) {
    let mut acc = [[s.zero(); NV]; MR];
    // SAFETY: promised by the caller; the pointers only pass the end after the last term.
    unsafe {
        let c = p.c.add(i * p.ldc + j);
        if p.adds {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(c.add(r * p.ldc + v * S::LANES));
                }
            }
        }
        let mut a = p.a.add(i * p.a_row);
        let (mut b, ldb) = match p.b_layout {
            Layout::Rows(ldb) => (p.b.add(j), ldb),
            Layout::Panels => (p.b.add(j * p.k), 2 * S::LANES),
        };
        for _ in 0..p.k {
            let mut row = [s.zero(); NV];
            for (v, row) in row.iter_mut().enumerate() {
                *row = s.load(b.add(v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = s.splat(*a.add(r * p.a_row));
                for (acc, &row) in acc.iter_mut().zip(&row) {
                    *acc = s.fma(x, row, *acc);
                }
            }
            a = a.wrapping_add(p.a_step);
            b = b.wrapping_add(ldb);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                s.store(c.add(r * p.ldc + v * S::LANES), acc);
            }
        }
    }
}
