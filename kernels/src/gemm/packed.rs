//! Right operands packed once and used many times.

use super::blocked::even_block;
use super::kernel::kernels;
use super::operand::{Operand, Source};
use super::pack::{GROUP, Panels, Part};
use super::scratch::Aligned;
use crate::format::Weight;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::quant::decoder;

/// Columns packed by one task.
const COLUMNS: usize = 256;

/// A matrix `[k, n]` in the panels that the inner kernels read: `4 k n` bytes beside the original, `n` padded to 32.
///
/// For a weight that few rows are multiplied with, again and again: what a product spends on decoding and packing is spent once. The
/// results are bitwise those of the unpacked operand wherever that goes through panels.
///
/// Panels suit one instruction set: products on a pool with another panic.
pub struct Packed {
    isa: Isa,
    k: usize,
    n: usize,
    /// Most values of `k` per pass; passes follow each other.
    kc: usize,
    values: Aligned,
}

impl Packed {
    /// Packs the `[k, n]` matrix `b`.
    ///
    /// # Panics
    /// When the operand is too short.
    #[track_caller]
    pub fn new<'a>(pool: &Pool, k: usize, n: usize, b: impl Into<Operand<'a>>) -> Packed {
        let b = b.into();
        b.check(k, n);
        let panels = match b.source(pool.isa()) {
            Source::Floats(b) => Panels::Dense(b),
            Source::Halves(b) => Panels::Halves(b),
        };
        Packed::from_panels(pool, k, n, &panels)
    }

    /// Packs the transpose of a weight in any format: the right operand of a linear layer, `[w.cols, w.rows]`.
    ///
    /// # Panics
    /// When the weight does not match its shape.
    #[track_caller]
    pub fn transposed(pool: &Pool, w: &Weight<'_>) -> Packed {
        w.check();
        Packed::from_panels(pool, w.cols, w.rows, &Panels::Transposed(*w, decoder(pool.isa(), w.format)))
    }

    fn from_panels(pool: &Pool, k: usize, n: usize, panels: &Panels<'_>) -> Packed {
        let kernels = kernels(pool.isa());
        let kc = if k == 0 { 1 } else { even_block(k, kernels.kc, panels.units().0) };
        let padded = n.next_multiple_of(GROUP);
        let mut values = Aligned::zeros(k * padded);
        let out = Disjoint::new(values.values_mut());
        pool.run(n.div_ceil(COLUMNS), &|task| {
            let j0 = task * COLUMNS;
            let cols = COLUMNS.min(n - j0);
            for k0 in (0..k).step_by(kc) {
                let len = kc.min(k - k0);
                // SAFETY: tasks have columns of their own.
                let out = unsafe { out.slice(k0 * padded + j0 * len, cols.next_multiple_of(GROUP) * len) };
                panels.pack(kernels, Part { k0, k: len, j0, cols }, out);
            }
        });
        Packed { isa: pool.isa(), k, n, kc, values }
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes of the panels.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.values())
    }

    pub(super) fn kc(&self) -> usize {
        self.kc
    }

    /// Panics unless the panels are for products of these sizes and instructions.
    #[track_caller]
    pub(super) fn check(&self, isa: Isa, k: usize, n: usize) {
        assert_eq!((self.k, self.n), (k, n), "packed operand does not match the product");
        assert_eq!(self.isa, isa, "operand was packed for other instructions than the pool's");
    }

    /// The panels of `part`, one pass or its columns from some panel on.
    pub(super) fn panels(&self, part: Part) -> *const f32 {
        self.values.values()[part.k0 * self.n.next_multiple_of(GROUP) + part.j0 * part.k..].as_ptr()
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").field("isa", &self.isa).field("k", &self.k).field("n", &self.n).finish()
    }
}
