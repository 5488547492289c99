//! Tiles in the matrix unit: floats in three parts of `bf16`, six products of parts for one of floats (see [`crate::split`]).

use std::mem::MaybeUninit;

use super::avx512;
use super::blocked::Sizes;
use super::kernel::{Kernels, Split, Tile};
use super::scratch::with_scratch;
use crate::amx::{self, ROW_BYTES, ROWS};
use crate::split::{self, Columns, DEPTH, WIDTH, left_row, right_column};

pub(super) static KERNELS: Kernels = Kernels {
    mr: WIDTH,
    nr: WIDTH,
    kc: 512,
    strip: 150 << 10,
    tile,
    split: Some(Split { room, left, right, tiles: amx::Tiles::take }),
    ..avx512::KERNELS
};

/// Whether tiles pay for a product: splitting an operand takes about as long as its product with 32 rows or columns of the other. Tests
/// take them where they can.
pub(super) fn pays(sizes: Sizes) -> bool {
    let (rows, columns) = if cfg!(test) { (WIDTH, WIDTH) } else { (2 * WIDTH, 5 * WIDTH) };
    sizes.m >= rows && sizes.n >= columns && sizes.k >= DEPTH
}

/// Floats that `k` values of a panel take the room of, split: chunks, and a cache line for whether all are finite.
fn room(k: usize) -> usize {
    split::room(k) + ROW_BYTES / size_of::<f32>()
}

/// # Safety
/// As [`split::left`], with this [`room`].
unsafe fn left(src: *const f32, stride: usize, rows: usize, k: usize, out: *mut f32) {
    // SAFETY: the caller's promise; the word after the chunks.
    unsafe { *out.add(split::room(k)) = f32::from(split::left(src, stride, rows, k, out)) };
}

/// # Safety
/// As [`split::right`], with this [`room`].
unsafe fn right(src: *const f32, stride: usize, cols: usize, k: usize, out: *mut f32) {
    // SAFETY: the caller's promise; the word after the chunks.
    unsafe { *out.add(split::room(k)) = f32::from(split::right(src, stride, cols, k, out)) };
}

/// Whether all values of an operand of `k` values are finite.
///
/// # Safety
/// `operand` points to what [`left`] or [`right`] wrote.
unsafe fn is_finite(operand: *const f32, k: usize) -> bool {
    // SAFETY: the word after the chunks.
    unsafe { *operand.add(split::room(k)) == 1.0 }
}

/// Sums of a tile, rows one after the other.
#[repr(align(64))]
struct Sums([f32; WIDTH * WIDTH]);

/// # Safety
/// See [`Kernels`]; both operands are split, `copy` is null, and this thread has taken [`amx::Tiles`].
unsafe fn tile(t: &Tile) {
    const HALF: usize = ROWS * WIDTH;
    // SAFETY: both operands are split.
    if !unsafe { is_finite(t.a, t.k) && is_finite(t.b, t.k) } {
        // SAFETY: as promised.
        return unsafe { restored(t) };
    }
    let mut sums = MaybeUninit::<Sums>::uninit();
    // SAFETY: as promised; all of the sums are written.
    let sums = unsafe {
        let (chunks, to) = (t.k.div_ceil(DEPTH), sums.as_mut_ptr().cast());
        if t.rows > ROWS {
            split::product(t.a, t.b, chunks, to, WIDTH, Columns::Both);
        } else {
            split::low_product(t.a, t.b, chunks, to);
        }
        sums.assume_init_mut()
    };
    if t.rows <= ROWS {
        let (first, second) = sums.0.split_at_mut(HALF);
        first.iter_mut().zip(second).for_each(|(first, second)| *first += *second);
    }
    // SAFETY: the output is the caller's promise.
    unsafe { avx512::finish(t, &sums.0, WIDTH) };
}

/// A tile with values that are not finite, multiplied as floats.
///
/// # Safety
/// As [`tile`].
#[cold]
unsafe fn restored(t: &Tile) {
    let chunks = |operand: *const f32| {
        // SAFETY: the operands have chunks for `k`.
        unsafe { std::slice::from_raw_parts(operand, split::room(t.k)) }
    };
    with_scratch((t.rows + WIDTH) * t.k, |scratch| {
        let (a, b) = scratch.split_at_mut(t.rows * t.k);
        for (row, out) in a.chunks_exact_mut(t.k).enumerate() {
            left_row(chunks(t.a), row, t.k, out);
        }
        for column in 0..t.cols {
            right_column(chunks(t.b), column, t.k, |p, value| b[p * WIDTH + column] = value);
        }
        let vectors = &avx512::KERNELS;
        for row in (0..t.rows).step_by(vectors.mr) {
            let part = Tile {
                rows: vectors.mr.min(t.rows - row),
                a: a[row * t.k..].as_ptr(),
                a_stride: t.k,
                b: b.as_ptr(),
                b_stride: WIDTH,
                c: t.c.wrapping_add(row * t.ldc),
                d: t.d.wrapping_add(row * t.ldd),
                ..*t
            };
            // SAFETY: operands as they were just written, outputs as promised.
            unsafe { (vectors.tile)(&part) };
        }
    });
}
