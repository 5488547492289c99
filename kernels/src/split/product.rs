//! The product of two split operands: 32 by 32 sums.
//!
//! Four registers hold sums, and two hold each operand. A chunk of 32 values of `k` takes 24 products of 16 cycles and 14 loads: products of
//! parts follow each other so that only one operand changes.

use super::{CHUNK, PARTS, WIDTH};
use crate::amx::{self, ROW_BYTES, ROWS, TILE_BYTES, load, store, zero};
use crate::simd::prefetch;

/// Columns of the sums that are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// The first 16.
    First,
    /// All 32.
    Both,
}

/// `c = a b` for `count` chunks of a left and a right operand, and 32 by 32 sums, rows `ldc` floats apart.
///
/// # Safety
/// This thread has taken [`amx::Tiles`], the operands have so many chunks, and `c` is writable for the sums.
pub(crate) unsafe fn product(a: *const f32, b: *const f32, count: usize, c: *mut f32, ldc: usize, columns: Columns) {
    // SAFETY: the caller's promise.
    unsafe { sum::<true, false, false>(&chunks(a), &chunks(b), count, c, ldc, columns) }
}

/// `c = a b`, or `c += a b` if `adds`, as [`product`], of `count` chunks that lie anywhere. Rows of `c` one after the other.
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub(crate) unsafe fn product_of(
    a: &Tiled<impl Fn(usize) -> usize>,
    b: &Tiled<impl Fn(usize) -> usize>,
    count: usize,
    c: *mut f32,
    adds: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if adds {
            sum::<true, true, true>(a, b, count, c, WIDTH, Columns::Both);
        } else {
            sum::<true, false, true>(a, b, count, c, WIDTH, Columns::Both);
        }
    }
}

/// Where the tiles of a split operand lie; distances are in bytes.
pub(crate) struct Tiled<F> {
    pub(crate) first: *const f32,
    /// From one part of a chunk to the next.
    pub(crate) part: usize,
    /// From its first 16 rows or columns to the others.
    pub(crate) half: usize,
    /// From the first chunk to another.
    pub(crate) chunk: F,
}

/// Chunks one after the other.
#[inline(always)]
pub(crate) fn chunks(first: *const f32) -> Tiled<impl Fn(usize) -> usize> {
    Tiled { first, part: 2 * TILE_BYTES, half: TILE_BYTES, chunk: |i| i * CHUNK * size_of::<f32>() }
}

/// `c = a b`, or `c += a b` if `adds`, as [`product`], rows of `c` one after the other.
///
/// # Safety
/// As [`product`].
pub(crate) unsafe fn accumulate(a: *const f32, b: *const f32, count: usize, c: *mut f32, adds: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if adds {
            sum::<true, true, false>(&chunks(a), &chunks(b), count, c, WIDTH, Columns::Both);
        } else {
            sum::<true, false, false>(&chunks(a), &chunks(b), count, c, WIDTH, Columns::Both);
        }
    }
}

/// As [`product`] for a left operand of at most 16 rows: two summands of 16 rows each, one below the other, since two registers of sums
/// would wait for each other.
///
/// # Safety
/// As [`product`].
pub(crate) unsafe fn low_product(a: *const f32, b: *const f32, count: usize, c: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { sum::<false, false, false>(&chunks(a), &chunks(b), count, c, WIDTH, Columns::Both) }
}

/// All of these.
///
/// # Safety
/// As [`product`]; `ADDS` wants `TALL`, and both halves of the columns. If `AHEAD`, the next chunk is fetched meanwhile: where chunks of an operand
/// do not follow each other, the processor does not by itself.
#[inline(always)]
unsafe fn sum<const TALL: bool, const ADDS: bool, const AHEAD: bool>(
    left: &Tiled<impl Fn(usize) -> usize>,
    right: &Tiled<impl Fn(usize) -> usize>,
    count: usize,
    sums: *mut f32,
    ldc: usize,
    columns: Columns,
) {
    const { assert!(PARTS * 2 * TILE_BYTES == CHUNK * size_of::<f32>() && 2 * ROWS == WIDTH) };
    let stride = ldc * size_of::<f32>();
    // Of the chunk at hand.
    let (mut a, mut b): (*const u8, *const u8);
    // Of the next one.
    let (mut next_a, mut next_b): (*const u8, *const u8);
    // Registers 4 and 5 hold the two halves of a part of the left operand, 6 and 7 of the right one.
    macro_rules! left {
        (upper, $part:literal) => {
            load!(4, a.wrapping_add($part * left.part))
        };
        (lower, $part:literal) => {
            if TALL {
                load!(5, a.wrapping_add($part * left.part + left.half))
            }
        };
    }
    macro_rules! right {
        (first, $part:literal) => {
            load!(6, b.wrapping_add($part * right.part))
        };
        (second, $part:literal) => {
            load!(7, b.wrapping_add($part * right.part + right.half))
        };
    }
    // The lines of two tiles of the next chunk, those first that it begins with.
    macro_rules! ahead {
        ($a:literal, $b:literal, $half:literal) => {
            if AHEAD {
                for line in (0..TILE_BYTES).step_by(ROW_BYTES) {
                    prefetch(next_a.wrapping_add($a * left.part + $half * left.half + line).cast());
                    prefetch(next_b.wrapping_add($b * right.part + $half * right.half + line).cast());
                }
            }
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
    // SAFETY: the caller has taken the tiles, every chunk has its parts, and the sums are there.
    unsafe {
        if ADDS {
            load!(0, sums, stride);
            load!(1, sums.add(ROWS), stride);
            load!(2, sums.add(ROWS * ldc), stride);
            load!(3, sums.add(ROWS * ldc + ROWS), stride);
        } else {
            zero!(0);
            zero!(1);
            zero!(2);
            zero!(3);
        }
        for chunk in 0..count {
            a = left.first.cast::<u8>().wrapping_add((left.chunk)(chunk));
            b = right.first.cast::<u8>().wrapping_add((right.chunk)(chunk));
            let next = (chunk + 1).min(count - 1);
            next_a = left.first.cast::<u8>().wrapping_add((left.chunk)(next));
            next_b = right.first.cast::<u8>().wrapping_add((right.chunk)(next));
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
            ahead!(0, 2, 0);

            multiply!(upper, first, odd);
            right!(second, 1);
            multiply!(lower, first, odd);
            multiply!(upper, second, odd);
            left!(upper, 1);
            multiply!(lower, second, odd);
            left!(lower, 1);
            ahead!(0, 2, 1);

            multiply!(upper, first, even);
            multiply!(upper, second, even);
            multiply!(lower, first, even);
            right!(first, 0);
            multiply!(lower, second, even);
            right!(second, 0);
            ahead!(1, 1, 0);

            multiply!(upper, first, odd);
            multiply!(upper, second, odd);
            left!(upper, 2);
            multiply!(lower, first, odd);
            multiply!(lower, second, odd);
            left!(lower, 2);
            ahead!(1, 1, 1);

            multiply!(upper, first, even);
            multiply!(upper, second, even);
            left!(upper, 0);
            multiply!(lower, first, even);
            multiply!(lower, second, even);
            left!(lower, 0);
            ahead!(2, 0, 0);

            multiply!(upper, first, odd);
            multiply!(upper, second, odd);
            multiply!(lower, first, odd);
            multiply!(lower, second, odd);
            ahead!(2, 0, 1);
        }
        store!(0, sums, stride);
        store!(2, sums.add(ROWS * ldc), stride);
        if columns == Columns::Both {
            store!(1, sums.add(ROWS), stride);
            store!(3, sums.add(ROWS * ldc + ROWS), stride);
        }
    }
}
