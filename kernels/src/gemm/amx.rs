//! Tiles in the matrix unit: floats in three parts of `bf16`, six products of parts for one of floats (see [`super::split`]).
//!
//! The tile is 32 by 32: four registers of sums and two for each operand. A chunk of 32 values of `k` takes 24 products of 16 cycles and 14 loads:
//! products of parts follow each other so that only one operand changes.

use std::mem::MaybeUninit;

use super::blocked::Sizes;
use super::kernel::{Kernels, Split, Tile};
use super::scratch::with_scratch;
use super::split::{CHUNK, DEPTH, WIDTH, left_row, right_column};
use super::{avx512, split};
use crate::amx::{self, ROW_BYTES, ROWS, TILE_BYTES, load, store, zero};

pub(super) static KERNELS: Kernels = Kernels {
    mr: WIDTH,
    nr: WIDTH,
    kc: 512,
    strip: 150 << 10,
    tile,
    split: Some(Split { room: split::room, left: split::left, right: split::right, tiles: amx::Tiles::take }),
    ..avx512::KERNELS
};

/// Whether tiles pay for a product: splitting an operand takes about as long as its product with 32 rows or columns of the other. Tests
/// take them where they can.
pub(super) fn pays(sizes: Sizes) -> bool {
    let (rows, columns) = if cfg!(test) { (WIDTH, WIDTH) } else { (2 * WIDTH, 5 * WIDTH) };
    sizes.m >= rows && sizes.n >= columns && sizes.k >= DEPTH
}

/// Sums of a tile, rows one after the other.
#[repr(align(64))]
struct Sums([f32; WIDTH * WIDTH]);

/// # Safety
/// See [`Kernels`]; both operands are split, `copy` is null, and this thread has taken [`amx::Tiles`].
unsafe fn tile(t: &Tile) {
    const HALF: usize = ROWS * WIDTH;
    // SAFETY: both operands are split.
    if !unsafe { split::is_finite(t.a, t.k) && split::is_finite(t.b, t.k) } {
        // SAFETY: as promised.
        return unsafe { restored(t) };
    }
    let mut sums = MaybeUninit::<Sums>::uninit();
    // SAFETY: as promised; all of the sums are written.
    let sums = unsafe {
        if t.rows > ROWS {
            products::<true>(t, sums.as_mut_ptr().cast())
        } else {
            products::<false>(t, sums.as_mut_ptr().cast())
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

/// Computes the sums of a tile of more than 16 rows, or (not `TALL`) two summands for each of a lower one: two registers of
/// sums would wait for each other.
///
/// # Safety
/// As [`tile`]; `sums` has four tiles.
unsafe fn products<const TALL: bool>(t: &Tile, sums: *mut f32) {
    const PART: usize = 2 * TILE_BYTES;
    const CHUNK_BYTES: usize = CHUNK * size_of::<f32>();
    const STRIDE: usize = 2 * ROW_BYTES;
    let (mut a, mut b) = (t.a.cast::<u8>(), t.b.cast::<u8>());
    // Registers 4 and 5 hold the two halves of a part of the left operand, 6 and 7 of the right one.
    macro_rules! left {
        (upper, $part:literal) => {
            load!(4, a.add($part * PART))
        };
        (lower, $part:literal) => {
            if TALL {
                load!(5, a.add($part * PART + TILE_BYTES))
            }
        };
    }
    macro_rules! right {
        (first, $part:literal) => {
            load!(6, b.add($part * PART))
        };
        (second, $part:literal) => {
            load!(7, b.add($part * PART + TILE_BYTES))
        };
    }
    /// Adds the product of two registers. Where there is no lower half, every other pair of parts has the sums of its own.
    macro_rules! multiply {
        (upper, first, $turn:ident) => {
            if TALL || multiply!($turn) { amx::multiply!("tdpbf16ps", 0, 4, 6) } else { amx::multiply!("tdpbf16ps", 2, 4, 6) }
        };
        (upper, second, $turn:ident) => {
            if TALL || multiply!($turn) { amx::multiply!("tdpbf16ps", 1, 4, 7) } else { amx::multiply!("tdpbf16ps", 3, 4, 7) }
        };
        (lower, first, $turn:ident) => {
            if TALL {
                amx::multiply!("tdpbf16ps", 2, 5, 6)
            }
        };
        (lower, second, $turn:ident) => {
            if TALL {
                amx::multiply!("tdpbf16ps", 3, 5, 7)
            }
        };
        (even) => {
            true
        };
        (odd) => {
            false
        };
    }
    // SAFETY: these kernels are AMX's, the caller has taken the tiles, every chunk has its parts, and `sums` has room.
    unsafe {
        zero!(0);
        zero!(1);
        zero!(2);
        zero!(3);
        for _ in 0..t.k.div_ceil(DEPTH) {
            // A register is loaded again right after its last product, some products before its next.
            left!(upper, 0);
            right!(first, 2);
            multiply!(upper, first, even);
            left!(lower, 0);
            multiply!(lower, first, even);
            right!(second, 2);
            multiply!(upper, second, even);
            right!(first, 1);
            multiply!(lower, second, even);

            multiply!(upper, first, odd);
            right!(second, 1);
            multiply!(lower, first, odd);
            multiply!(upper, second, odd);
            left!(upper, 1);
            multiply!(lower, second, odd);
            left!(lower, 1);

            multiply!(upper, first, even);
            multiply!(upper, second, even);
            multiply!(lower, first, even);
            right!(first, 0);
            multiply!(lower, second, even);
            right!(second, 0);

            multiply!(upper, first, odd);
            multiply!(upper, second, odd);
            left!(upper, 2);
            multiply!(lower, first, odd);
            multiply!(lower, second, odd);
            left!(lower, 2);

            multiply!(upper, first, even);
            multiply!(upper, second, even);
            left!(upper, 0);
            multiply!(lower, first, even);
            multiply!(lower, second, even);
            left!(lower, 0);

            multiply!(upper, first, odd);
            multiply!(upper, second, odd);
            multiply!(lower, first, odd);
            multiply!(lower, second, odd);
            (a, b) = (a.add(CHUNK_BYTES), b.add(CHUNK_BYTES));
        }
        store!(0, sums, STRIDE);
        store!(1, sums.add(ROWS), STRIDE);
        store!(2, sums.add(ROWS * WIDTH), STRIDE);
        store!(3, sums.add(ROWS * WIDTH + ROWS), STRIDE);
    }
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
