//! Panels in `f32`: what products in the arithmetic of the decoded weight read.
//!
//! A level times its scale is exact in `f32` and a minimum is added with one rounding, so values are bitwise those that
//! [`crate::quant`] decodes from a file's blocks.

use std::ops::Range;

use super::{BLOCK, Block, Kind, PANEL};
use crate::format::{Layout, Weight};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;

#[cfg(test)]
mod tests;

/// A checked weight in panels, whose values are read as floats.
#[derive(Clone, Copy)]
pub(crate) struct Decoded<'a> {
    isa: Isa,
    kind: Kind,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

/// A panel's values of consecutive columns, each with those of all rows side by side.
pub(crate) type Column = [f32; PANEL];

impl<'a> Decoded<'a> {
    /// `None` if the weight lies in rows.
    #[track_caller]
    pub(crate) fn new(isa: Isa, weight: &Weight<'a>) -> Option<Decoded<'a>> {
        if weight.layout == Layout::Rows {
            return None;
        }
        weight.check();
        let &Weight { format, rows, cols, data, .. } = weight;
        Some(Decoded { isa, kind: Kind::of(format).expect("the format was repacked"), rows, cols, data })
    }

    /// Columns of the weight.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Columns that are decoded together.
    pub(crate) fn unit(&self) -> usize {
        self.kind.unit
    }

    /// The units of a panel that hold columns `cols`, whole ones.
    #[track_caller]
    fn units(&self, panel: usize, cols: Range<usize>) -> &'a [u8] {
        let Kind { unit, .. } = self.kind;
        assert!(cols.start.is_multiple_of(unit) && cols.end.is_multiple_of(unit), "columns are decoded in whole units");
        assert!(cols.end <= self.cols && panel * PANEL < self.rows, "columns of a panel of the weight");
        let bytes = self.kind.unit_bytes();
        &self.data[panel * (self.cols / unit) * bytes..][cols.start / unit * bytes..cols.end / unit * bytes]
    }

    /// Writes columns `cols` of a panel, `stride` floats apart; values of rows past the last one are arbitrary.
    ///
    /// # Panics
    /// When the columns are no whole units, or `out` is too short.
    #[track_caller]
    pub(crate) fn columns(&self, panel: usize, cols: Range<usize>, stride: usize, out: &mut [f32]) {
        let units = self.units(panel, cols.clone());
        if cols.is_empty() {
            return;
        }
        assert!(stride >= PANEL && out.len() >= (cols.len() - 1) * stride + PANEL, "room for the columns of a panel");
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level comes from a pool, which has checked it against the CPU; there is room by the checks.
            Isa::Avx512 | Isa::Amx => unsafe { super::avx512::columns(self.kind, units, out.as_mut_ptr(), stride) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => vector(self.isa, self.kind, units, stride, out),
            _ => columns_with(self.kind, units, stride, out),
        }
    }

    /// Writes all columns of one row. Its panel is decoded for it: meant for few rows.
    ///
    /// # Panics
    /// When there is no such row, or the length of `out` does not match.
    #[track_caller]
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of the weight");
        self.in_rows(row / PANEL, row % PANEL, out);
    }

    /// Writes the first rows of a panel, as many as fit into `out`.
    ///
    /// # Panics
    /// When there is no such panel, or `out` is no whole number of rows or more than the panel has.
    #[track_caller]
    pub(crate) fn panel(&self, panel: usize, out: &mut [f32]) {
        let rows = out.len() / self.cols;
        assert!(rows * self.cols == out.len() && rows <= PANEL && panel * PANEL + rows <= self.rows, "rows of a panel");
        self.in_rows(panel, 0, out);
    }

    /// Writes whole rows from row `first` of a panel on.
    fn in_rows(&self, panel: usize, first: usize, out: &mut [f32]) {
        let Kind { unit, .. } = self.kind;
        with_scratch(unit * PANEL, |values| {
            for start in (0..self.cols).step_by(unit) {
                self.columns(panel, start..start + unit, PANEL, values);
                let (columns, _) = values.as_chunks::<PANEL>();
                for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                    let out = &mut out[start..start + unit];
                    out.iter_mut().zip(columns).for_each(|(out, column)| *out = column[first + row]);
                }
            }
        });
    }

    /// Sums of panels with `m` rows of activations, `[m, cols]`, at most eight: of panel `first`, and of as many others, each `apart` after
    /// the one before, as `out` has places.
    ///
    /// # Panics
    /// When there is no such panel, or a length does not match.
    #[track_caller]
    pub(crate) fn dots(&self, first: usize, apart: usize, m: usize, x: &[f32], out: &mut [[Column; FEW]]) {
        assert!(m <= FEW && x.len() == m * self.cols, "activations of the weight");
        let units = |index: usize| self.units(first + index * apart, 0..self.cols);
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => {
                let mut start = 0;
                while start < out.len() {
                    let panels = super::avx512::panels(m, out.len() - start);
                    // Those past `panels` are not read.
                    let units = std::array::from_fn(|index| units(start + index.min(panels - 1)));
                    let out = &mut out[start..start + panels];
                    // SAFETY: the level comes from a pool, which has checked it against the CPU; lengths are checked.
                    unsafe { super::avx512::dots(self.kind, units, m, x.as_ptr(), self.cols, out) };
                    start += panels;
                }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                out.iter_mut().enumerate().for_each(|(i, out)| vector_dots(self.isa, self.kind, units(i), m, x, out));
            }
            _ => out.iter_mut().enumerate().for_each(|(i, out)| dots_with(self.kind, units(i), m, x, out)),
        }
    }
}

/// Most rows of activations for which panels are multiplied as they are decoded.
pub(crate) const FEW: usize = 8;

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector<S>(_s, kind: Kind, units: &[u8], stride: usize, out: &mut [f32]) {
        columns_with(kind, units, stride, out);
    }
}

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector_dots<S>(_s, kind: Kind, units: &[u8], m: usize, x: &[f32], out: &mut [Column; FEW]) {
        dots_with(kind, units, m, x, out);
    }
}

/// Calls a function with each block of 32 columns.
#[inline(always)]
fn each_block(kind: Kind, units: &[u8], mut body: impl FnMut(usize, &Block)) {
    let mut blocks = [const { Block::ZERO }; MOST];
    let blocks = &mut blocks[..kind.blocks()];
    for (index, unit) in units.chunks_exact(kind.unit_bytes()).enumerate() {
        super::widen_with(kind, unit, blocks);
        blocks.iter().enumerate().for_each(|(i, block)| body(index * kind.blocks() + i, block));
    }
}

/// Most blocks of a unit.
const MOST: usize = 8;

/// Column `p` of a block.
#[inline(always)]
fn column(kind: Kind, block: &Block, p: usize) -> Column {
    let group = p * kind.groups / BLOCK;
    let levels = &block.levels[p / 4 * 4 * PANEL..][..4 * PANEL];
    let (scales, minima) = (&block.scales[group], &block.minima[group]);
    std::array::from_fn(|row| {
        let level = levels[4 * row + p % 4];
        match kind.signed {
            // They have 128 added.
            true => scales[row] * f32::from((level ^ 128) as i8),
            false => scales[row] * f32::from(level) + minima[row],
        }
    })
}

#[inline(always)]
fn columns_with(kind: Kind, units: &[u8], stride: usize, out: &mut [f32]) {
    each_block(kind, units, |index, block| {
        for p in 0..BLOCK {
            out[(index * BLOCK + p) * stride..][..PANEL].copy_from_slice(&column(kind, block, p));
        }
    });
}

/// The specification: one sum of each row, in the order of columns.
#[inline(always)]
fn dots_with(kind: Kind, units: &[u8], m: usize, x: &[f32], out: &mut [Column; FEW]) {
    let k = x.len() / m.max(1);
    *out = [[0.0; PANEL]; FEW];
    each_block(kind, units, |index, block| {
        for p in 0..BLOCK {
            let w = column(kind, block, p);
            for (x, out) in x.chunks_exact(k.max(1)).zip(&mut *out) {
                let x = x[index * BLOCK + p];
                out.iter_mut().zip(&w).for_each(|(out, w)| *out += x * w);
            }
        }
    });
}
