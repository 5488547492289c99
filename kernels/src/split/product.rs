//! The product of two split operands: 32 by 32 sums.
//!
//! Four registers hold sums, and two hold each operand. A chunk of 32 values of `k` takes 24 products of 16 cycles and 14 loads: products of
//! parts follow each other so that only one operand changes.

use super::{CHUNK, PARTS, WIDTH};
use crate::amx::{self, ROWS, TILE_BYTES, load, store, zero};

/// Columns of the sums that are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// The first 16.
    First,
    /// All 32.
    Both,
}

/// `c = a b` for `chunks` chunks of a left and a right operand, and 32 by 32 sums, rows `ldc` floats apart.
///
/// # Safety
/// This thread has taken [`amx::Tiles`], the operands have so many chunks, and `c` is writable for the sums.
pub(crate) unsafe fn product(a: *const f32, b: *const f32, chunks: usize, c: *mut f32, ldc: usize, columns: Columns) {
    // SAFETY: the caller's promise.
    unsafe { sum::<true, false>(a, b, chunks, c, ldc, columns) }
}

/// `c = a b`, or `c += a b` if `adds`, as [`product`], rows of `c` one after the other.
///
/// # Safety
/// As [`product`].
pub(crate) unsafe fn accumulate(a: *const f32, b: *const f32, chunks: usize, c: *mut f32, adds: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if adds {
            sum::<true, true>(a, b, chunks, c, WIDTH, Columns::Both);
        } else {
            sum::<true, false>(a, b, chunks, c, WIDTH, Columns::Both);
        }
    }
}

/// As [`product`] for a left operand of at most 16 rows: two summands of 16 rows each, one below the other, since two registers of sums
/// would wait for each other.
///
/// # Safety
/// As [`product`].
pub(crate) unsafe fn low_product(a: *const f32, b: *const f32, chunks: usize, c: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { sum::<false, false>(a, b, chunks, c, WIDTH, Columns::Both) }
}

/// All of these.
///
/// # Safety
/// As [`product`]; `ADDS` wants `TALL`, and both halves of the columns.
#[inline(always)]
unsafe fn sum<const TALL: bool, const ADDS: bool>(
    a: *const f32,
    b: *const f32,
    chunks: usize,
    sums: *mut f32,
    ldc: usize,
    columns: Columns,
) {
    const PART: usize = 2 * TILE_BYTES;
    const CHUNK_BYTES: usize = CHUNK * size_of::<f32>();
    const { assert!(PARTS * PART == CHUNK_BYTES && 2 * ROWS == WIDTH) };
    let stride = ldc * size_of::<f32>();
    let (mut a, mut b) = (a.cast::<u8>(), b.cast::<u8>());
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
        for _ in 0..chunks {
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
            (a, b) = (a.wrapping_add(CHUNK_BYTES), b.wrapping_add(CHUNK_BYTES));
        }
        store!(0, sums, stride);
        store!(2, sums.add(ROWS * ldc), stride);
        if columns == Columns::Both {
            store!(1, sums.add(ROWS), stride);
            store!(3, sums.add(ROWS * ldc + ROWS), stride);
        }
    }
}
