//! Packing of operands into panels that the inner kernels stream.
//!
//! ```text
//! A panel of h rows     a[k0][0..h], a[k0 + 1][0..h], ...         (h <= mr)
//! B panels of nr columns    b[k0][0..nr], b[k0 + 1][0..nr], ...   (the last may be ragged)
//! ```
//!
//! The right operand is anything that can fill panels: strided floats, or a weight
//! matrix decoded on the way. Panels are packed several at a time ([`COLUMNS`]), so
//! that a source with contiguous rows is read in stretches that the hardware
//! prefetches, and in multiples of [`GROUP`] columns, one quantization block, so
//! that a weight that is read along its columns decodes block by block.

mod repacked;

use super::kernel::{Kernels, Split, Transpose};
use super::operand::{Halves, MatRef, Operand, Source};
use super::scratch::with_scratch;
use crate::format::Weight;
use crate::isa::Isa;
use crate::panels::Decoded;
use crate::quant::{Decoder, decoder};

/// A multiple of every `nr` and of every block length; packed columns are padded to it.
pub(crate) const GROUP: usize = 32;

/// Columns packed at a time.
pub(crate) const COLUMNS: usize = 4 * GROUP;

/// Values along `k` that are decoded at a time, unless a block is longer, so that 32 rows of them stay in L1.
const STEP: usize = 128;

/// Added to the row stride of decoded values: an odd number of cache lines, against set conflicts.
const SKEW: usize = 16;

/// Decoded values held at a time.
const DECODED: usize = GROUP * (STEP + SKEW);

/// Where the panels of the right operand come from.
#[derive(Clone, Copy)]
pub(crate) enum Panels<'a> {
    /// A matrix `[k, n]` of floats.
    Dense(MatRef<'a>),
    /// A matrix `[k, n]` of halves.
    Halves(Halves<'a>),
    /// The transpose of a weight `[n, k]`: the forward pass of a linear layer.
    Transposed(Weight<'a>, Decoder),
    /// A weight `[k, n]` as it is: the gradient of a linear layer's input.
    Straight(Weight<'a>, Decoder),
    /// As `Transposed`, of a weight that was repacked.
    RepackedTransposed(Decoded<'a>),
    /// As `Straight`, of a weight that was repacked.
    RepackedStraight(Decoded<'a>),
    /// A matrix that does not exist but while it is packed.
    Made(&'a dyn Rows),
    /// The transpose of such a matrix.
    MadeTransposed(&'a dyn Rows),
}

/// A matrix whose rows are made a stretch at a time.
pub(crate) trait Rows: Sync {
    /// Writes the values of row `i` from column `j` on.
    fn stretch(&self, i: usize, j: usize, out: &mut [f32]);
}

/// The part of the right operand that fills some panels.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) k0: usize,
    pub(crate) k: usize,
    /// A multiple of [`GROUP`].
    pub(crate) j0: usize,
    pub(crate) cols: usize,
}

impl<'a> Panels<'a> {
    /// An operand as it is.
    pub(crate) fn of(isa: Isa, b: Operand<'a>) -> Panels<'a> {
        match b.source(isa) {
            Source::Floats(b) => Panels::Dense(b),
            Source::Halves(b) => Panels::Halves(b),
        }
    }

    /// A weight as the right operand of a linear layer; floats and halves are taken as they are.
    pub(crate) fn transposed(isa: Isa, w: &Weight<'a>) -> Panels<'a> {
        match (Operand::of_weight(w), Decoded::new(isa, w)) {
            (Some(b), _) => Panels::of(isa, b.transposed()),
            (_, Some(w)) => Panels::RepackedTransposed(w),
            _ => Panels::Transposed(*w, decoder(isa, w.format)),
        }
    }

    /// A weight as the right operand of the gradient in a linear layer's input.
    pub(crate) fn straight(isa: Isa, w: &Weight<'a>) -> Panels<'a> {
        match (Operand::of_weight(w), Decoded::new(isa, w)) {
            (Some(b), _) => Panels::of(isa, b),
            (_, Some(w)) => Panels::RepackedStraight(w),
            _ => Panels::Straight(*w, decoder(isa, w.format)),
        }
    }

    /// The matrix, if its rows are contiguous floats, which inner kernels read as they are.
    pub(crate) fn rows(&self) -> Option<MatRef<'a>> {
        match self {
            Panels::Dense(b) if b.col_stride == 1 && b.row_stride > 0 => Some(*b),
            _ => None,
        }
    }

    /// What parts are to be cut at multiples of: along `k`, and columns.
    pub(crate) fn units(&self) -> (usize, usize) {
        match self {
            Panels::Dense(_) | Panels::Halves(_) | Panels::Made(_) | Panels::MadeTransposed(_) => (GROUP, GROUP),
            Panels::Transposed(weight, _) => (weight.format.block_len().max(GROUP), GROUP),
            Panels::Straight(weight, _) => (GROUP, weight.format.block_len().max(GROUP)),
            Panels::RepackedTransposed(weight) => (weight.unit().max(GROUP), GROUP),
            Panels::RepackedStraight(weight) => (GROUP, weight.unit().max(GROUP)),
        }
    }

    /// Packs `part` into `out`, [`Kernels::room`] for its columns and those that pad them to a group.
    ///
    /// Shapes have been checked by the caller: the part lies within the operand.
    pub(crate) fn pack(&self, kernels: &Kernels, part: Part, out: &mut [f32]) {
        let Part { k, cols, .. } = part;
        assert!(out.len() >= kernels.room(k, cols.next_multiple_of(GROUP)));
        let columns = self.units().1.max(COLUMNS);
        let parts = (0..cols)
            .step_by(columns)
            .map(|first| (first, Part { j0: part.j0 + first, cols: columns.min(cols - first), ..part }));
        let Some(split) = kernels.split else {
            return parts.for_each(|(first, part)| self.pack_some(kernels, part, &mut out[first * k..]));
        };
        if let Some(rows) = self.rows() {
            rows.check(part.k0 + k, part.j0 + cols);
            return split_panels(kernels, split, &rows.data[rows.at(part.k0, part.j0)..], rows.row_stride, 1, part, out);
        }
        with_scratch(columns.min(cols.next_multiple_of(GROUP)) * k, |floats| {
            for (first, part) in parts {
                if let Panels::Made(b) = self {
                    // Rows are split from where they are made.
                    let rows = floats.chunks_exact_mut(part.cols).take(k);
                    rows.enumerate().for_each(|(p, row)| b.stretch(part.k0 + p, part.j0, row));
                    split_panels(kernels, split, floats, part.cols, 1, part, &mut out[kernels.room(k, first)..]);
                    continue;
                }
                self.pack_some(kernels, part, floats);
                split_panels(kernels, split, floats, kernels.nr, k, part, &mut out[kernels.room(k, first)..]);
            }
        });
    }

    /// [`Panels::pack`] for as many columns as are packed at a time.
    fn pack_some(&self, kernels: &Kernels, part: Part, out: &mut [f32]) {
        match self {
            Panels::Dense(b) if b.col_stride == 1 => pack_rows(kernels, b, part, out),
            Panels::Dense(b) if b.row_stride == 1 => {
                b.check(part.k0 + part.k, part.j0 + part.cols);
                let src = &b.data[part.k0 + part.j0 * b.col_stride..];
                // SAFETY: `cols` columns of `k` contiguous values were just checked.
                unsafe {
                    let target = Target { first: 0, k: part.k, column: 0, cols: part.cols };
                    pack_columns(kernels, src.as_ptr(), b.col_stride, part.k, target, out);
                }
            }
            Panels::Dense(b) => pack_strided(kernels, part, out, |p, j| b.data[b.at(p, j)]),
            Panels::Halves(b) if b.matrix.col_stride == 1 => {
                pack_made(kernels, part, out, |p, j, row| b.run(b.matrix.at(p, j), row));
            }
            Panels::Halves(b) if b.matrix.row_stride == 1 => {
                pack_made_transposed(kernels, part, out, |j, p, column| b.run(b.matrix.at(p, j), column));
            }
            Panels::Halves(b) => pack_strided(kernels, part, out, |p, j| b.get(p, j)),
            Panels::Made(b) => pack_made(kernels, part, out, |p, j, row| b.stretch(p, j, row)),
            Panels::MadeTransposed(b) => {
                pack_made_transposed(kernels, part, out, |j, p, column| b.stretch(j, p, column));
            }
            Panels::Transposed(weight, decode) => pack_transposed(kernels, weight, *decode, part, out),
            Panels::Straight(weight, decode) => pack_straight(kernels, weight, *decode, part, out),
            Panels::RepackedTransposed(weight) => repacked::transposed(kernels, weight, part, out),
            Panels::RepackedStraight(weight) => repacked::straight(kernels, weight, part, out),
        }
    }
}

/// Splits panels: rows of the columns of `part`, `stride` apart, column `j` at `j * apart`.
fn split_panels(kernels: &Kernels, split: Split, floats: &[f32], stride: usize, apart: usize, part: Part, out: &mut [f32]) {
    let Part { k, cols, .. } = part;
    for (first, out) in (0..cols).step_by(kernels.nr).zip(out.chunks_exact_mut((split.room)(k))) {
        let (floats, cols) = (&floats[first * apart..], kernels.nr.min(cols - first));
        assert!(floats.len() >= (k - 1) * stride + cols);
        // SAFETY: `k` rows of the columns, and a panel's room.
        unsafe { (split.right)(floats.as_ptr(), stride, cols, k, out.as_mut_ptr()) };
    }
}

/// Rows of `b` are contiguous: copies `nr` values at a time.
fn pack_rows(kernels: &Kernels, b: &MatRef<'_>, part: Part, out: &mut [f32]) {
    for p in 0..part.k {
        let start = (part.k0 + p) * b.row_stride + part.j0;
        let row = &b.data[start..][..part.cols];
        for j in (0..part.cols).step_by(16) {
            prefetch(b.data.as_ptr().wrapping_add(start + AHEAD * b.row_stride + j));
        }
        spread(kernels, row, p, part.k, out);
    }
}

/// Rows that a strided source is prefetched ahead, which the hardware does not do across pages.
const AHEAD: usize = 8;

/// Asks for the cache line at `address`, which need not be valid.
#[inline]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and SSE is part of the architecture.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Writes row `p` of the part to its panels.
#[inline]
fn spread(kernels: &Kernels, row: &[f32], p: usize, k: usize, out: &mut [f32]) {
    let nr = kernels.nr;
    for (panel, values) in row.chunks(nr).enumerate() {
        let out = &mut out[(panel * k + p) * nr..][..values.len()];
        let (whole, rest) = values.as_chunks::<16>();
        let (whole_out, rest_out) = out.as_chunks_mut::<16>();
        // Lengths known to the compiler, for all but a ragged end: no calls to copy.
        for (out, values) in whole_out.iter_mut().zip(whole) {
            *out = *values;
        }
        rest_out.copy_from_slice(rest);
    }
}

/// Place within panels with `k` rows: rows from `first`, columns from `column`, a multiple of 16.
#[derive(Clone, Copy)]
struct Target {
    first: usize,
    k: usize,
    column: usize,
    cols: usize,
}

/// Columns are contiguous: transposes `len` values of each into rows `first..` of the panels.
///
/// # Safety
/// `src` holds `target.cols` columns of `len` values, `stride` apart.
unsafe fn pack_columns(kernels: &Kernels, src: *const f32, stride: usize, len: usize, target: Target, out: &mut [f32]) {
    let Target { first, k, column: start, cols } = target;
    assert!(out.len() >= (start + cols).next_multiple_of(GROUP) * k && first + len <= k);
    let width = kernels.nr.min(16);
    for j in (0..cols).step_by(width) {
        let (panel, column) = ((start + j) / kernels.nr, (start + j) % kernels.nr);
        // SAFETY: source by the caller's promise; the destination rows lie in the
        // panel, whose extent was checked above.
        unsafe {
            (kernels.transpose)(Transpose {
                rows: width.min(cols - j),
                len,
                src: src.add(j * stride),
                src_stride: stride,
                dst: out.as_mut_ptr().add((panel * k + first) * kernels.nr + column),
                dst_stride: kernels.nr,
            });
        }
    }
}

/// Neither is contiguous: takes element `(p, j)` from `get`.
fn pack_strided(kernels: &Kernels, part: Part, out: &mut [f32], get: impl Fn(usize, usize) -> f32) {
    let nr = kernels.nr;
    for p in 0..part.k {
        for j in 0..part.cols {
            out[(j / nr * part.k + p) * nr + j % nr] = get(part.k0 + p, part.j0 + j);
        }
    }
}

/// `make(p, j, out)` writes row `p` from column `j` on.
fn pack_made(kernels: &Kernels, part: Part, out: &mut [f32], make: impl Fn(usize, usize, &mut [f32])) {
    let mut row = [0f32; COLUMNS];
    let row = &mut row[..part.cols];
    for p in 0..part.k {
        make(part.k0 + p, part.j0, row);
        spread(kernels, row, p, part.k, out);
    }
}

/// `make(j, p, out)` writes column `j` from row `p` on.
fn pack_made_transposed(kernels: &Kernels, part: Part, out: &mut [f32], make: impl Fn(usize, usize, &mut [f32])) {
    let stride = STEP + SKEW;
    let mut made = [0f32; DECODED];
    for column in (0..part.cols).step_by(GROUP) {
        let cols = GROUP.min(part.cols - column);
        for first in (0..part.k).step_by(STEP) {
            let len = STEP.min(part.k - first);
            for (j, values) in made.chunks_exact_mut(stride).enumerate().take(cols) {
                make(part.j0 + column + j, part.k0 + first, &mut values[..len]);
            }
            let target = Target { first, k: part.k, column, cols };
            // SAFETY: `made` holds `cols` columns of `len` values.
            unsafe { pack_columns(kernels, made.as_ptr(), stride, len, target, out) };
        }
    }
}

fn pack_transposed(kernels: &Kernels, weight: &Weight<'_>, decode: Decoder, part: Part, out: &mut [f32]) {
    let format = weight.format;
    let mut decoded = [0f32; DECODED];
    // Long blocks go half a group at a time; both are whole panels, or whole parts of one, to `pack_columns`.
    let (step, group) = if format.block_len() > STEP { (format.block_len(), GROUP / 2) } else { (STEP, GROUP) };
    let stride = step + SKEW;
    for j0 in (0..part.cols).step_by(group) {
        let cols = group.min(part.cols - j0);
        for first in (0..part.k).step_by(step) {
            let len = step.min(part.k - first);
            let start = format.row_bytes(part.k0 + first);
            let bytes = format.row_bytes(len);
            for (j, dst) in decoded.chunks_exact_mut(stride).enumerate().take(cols) {
                let src = &weight.row(part.j0 + j0 + j)[start..start + bytes];
                // SAFETY: `src` encodes exactly `len` values; the decoder suits the pool's level.
                unsafe { decode(src.as_ptr(), len, dst[..len].as_mut_ptr()) };
            }
            let target = Target { first, k: part.k, column: j0, cols };
            // SAFETY: `decoded` holds `cols` columns of `len` values.
            unsafe { pack_columns(kernels, decoded.as_ptr(), stride, len, target, out) };
        }
    }
}

fn pack_straight(kernels: &Kernels, weight: &Weight<'_>, decode: Decoder, part: Part, out: &mut [f32]) {
    let format = weight.format;
    let start = format.row_bytes(part.j0);
    let bytes = format.row_bytes(part.cols);
    // At most so many columns are packed at a time, or one of the longest blocks.
    let mut decoded = [0f32; 2 * COLUMNS];
    let decoded = &mut decoded[..part.cols];
    for p in 0..part.k {
        let src = &weight.row(part.k0 + p)[start..start + bytes];
        // SAFETY: `src` encodes exactly `cols` values; the decoder suits the pool's level.
        unsafe { decode(src.as_ptr(), part.cols, decoded.as_mut_ptr()) };
        spread(kernels, decoded, p, part.k, out);
    }
}

/// Packs rows `i0..i0 + rows` and columns `k0..k0 + k` of the left operand into `out`, `[k][rows]`.
pub(crate) fn pack_left(kernels: &Kernels, a: &Source<'_>, (i0, rows): (usize, usize), (k0, k): (usize, usize), out: &mut [f32]) {
    match a {
        Source::Floats(a) => pack_a(kernels, a, (i0, rows), (k0, k), out),
        Source::Halves(a) if a.matrix.row_stride == 1 => {
            for (p, out) in out.chunks_exact_mut(rows).take(k).enumerate() {
                a.run(a.matrix.at(i0, k0 + p), out);
            }
        }
        Source::Halves(a) => with_scratch(rows * k, |decoded| {
            for (r, decoded) in decoded.chunks_exact_mut(k).enumerate() {
                if a.matrix.col_stride == 1 {
                    a.run(a.matrix.at(i0 + r, k0), decoded);
                } else {
                    decoded.iter_mut().enumerate().for_each(|(p, value)| *value = a.get(i0 + r, k0 + p));
                }
            }
            pack_a(kernels, &MatRef::new(decoded, k), (0, rows), (0, k), out);
        }),
    }
}

/// [`pack_left`], but rows one after the other, `[rows][k]`.
pub(crate) fn pack_left_rows(
    kernels: &Kernels,
    a: &Source<'_>,
    (i0, rows): (usize, usize),
    (k0, k): (usize, usize),
    out: &mut [f32],
) {
    let by_element = |get: &dyn Fn(usize, usize) -> f32, out: &mut [f32]| {
        for (r, out) in out.chunks_exact_mut(k).take(rows).enumerate() {
            out.iter_mut().enumerate().for_each(|(p, out)| *out = get(i0 + r, k0 + p));
        }
    };
    match a {
        Source::Floats(a) if a.row_stride == 1 => {
            a.check(i0 + rows, k0 + k);
            assert!(out.len() >= rows * k);
            for p in (0..k).step_by(16) {
                // The last columns overlap the ones before: fewer than 16 would spill over what follows them in the next row.
                let p = p.min(k.saturating_sub(16));
                let (src, dst) = (a.data[a.at(i0, k0 + p)..].as_ptr(), out[p..].as_mut_ptr());
                let part = Transpose { rows: 16.min(k), len: rows, src, src_stride: a.col_stride, dst, dst_stride: k };
                // SAFETY: up to 16 columns of `rows` values, each a row to the kernel, and as many values of each row of `out`.
                unsafe { (kernels.transpose)(part) };
            }
        }
        Source::Floats(a) => by_element(&|i, p| a.data[a.at(i, p)], out),
        Source::Halves(a) if a.matrix.col_stride == 1 => {
            for (r, out) in out.chunks_exact_mut(k).take(rows).enumerate() {
                a.run(a.matrix.at(i0 + r, k0), out);
            }
        }
        Source::Halves(a) => by_element(&|i, p| a.get(i, p), out),
    }
}

/// [`pack_left`] for floats.
pub(crate) fn pack_a(kernels: &Kernels, a: &MatRef<'_>, (i0, rows): (usize, usize), (k0, k): (usize, usize), out: &mut [f32]) {
    a.check(i0 + rows, k0 + k);
    assert!(out.len() >= k * rows && rows <= 16);
    let src = &a.data[i0 * a.row_stride + k0 * a.col_stride..];
    if a.col_stride == 1 {
        let (src, dst) = (src.as_ptr(), out.as_mut_ptr());
        let (src_stride, dst_stride) = (a.row_stride, rows);
        // SAFETY: `rows` rows of `k` contiguous values, and `k * rows` values of output.
        unsafe { (kernels.transpose)(Transpose { rows, len: k, src, src_stride, dst, dst_stride }) };
    } else if a.row_stride == 1 {
        // The heights of nearly all tiles are constants to the compiler, see `spread`.
        match rows {
            14 => copy_columns::<14>(src, a.col_stride, &mut out[..k * rows]),
            13 => copy_columns::<13>(src, a.col_stride, &mut out[..k * rows]),
            6 => copy_columns::<6>(src, a.col_stride, &mut out[..k * rows]),
            _ => {
                for (p, out) in out.chunks_exact_mut(rows).take(k).enumerate() {
                    out.copy_from_slice(&src[p * a.col_stride..][..rows]);
                }
            }
        }
    } else {
        for (p, out) in out.chunks_exact_mut(rows).take(k).enumerate() {
            for (r, out) in out.iter_mut().enumerate() {
                *out = src[r * a.row_stride + p * a.col_stride];
            }
        }
    }
}

/// Copies runs of `ROWS` values, `stride` apart in `src`, one after another.
fn copy_columns<const ROWS: usize>(src: &[f32], stride: usize, out: &mut [f32]) {
    for (p, out) in out.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        prefetch(src.as_ptr().wrapping_add((p + AHEAD) * stride));
        out.copy_from_slice(&src[p * stride..][..ROWS]);
    }
}
