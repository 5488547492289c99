//! The one matrix product of attention: small operands, sums in registers.
//!
//! The left operand is read element by element and may be stored by rows or by columns, the right
//! one by rows of whole vectors, which may be halves or bytes. A block of sums is as large as the
//! registers allow: with AVX-512 six rows by four vectors, or eight by three, where 24 fused
//! multiply-adds stand against ten or eleven loads; with AVX2 six by two.
//!
//! A cache lies past those of the processor, which by itself looks ahead in one page of 4 KB at a time: while one part of it is multiplied,
//! the next is fetched, from four places by turns.

use super::tile::union;
use crate::isa::Isa;
use crate::simd::{Simd, prefetch_far, simd_fn};
use std::ops::Range;

/// How the left operand is stored.
#[derive(Clone, Copy)]
pub(super) enum Left {
    /// The terms of a row are adjacent, the rows this far apart.
    Rows(usize),
    /// The rows of a term are adjacent, the terms this far apart.
    Columns(usize),
}

/// Cuts columns, a multiple of 16, into parts of at most 64, about equally wide: start and width.
fn parts(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let (units, count) = (columns / 16, columns.div_ceil(64).max(1));
    (0..count).scan(0, move |start, part| {
        let width = 16 * (units / count + usize::from(part < units % count));
        *start += width;
        Some((*start - width, width))
    })
}

/// Terms of a panel's part that stay in the first-level cache while all rows pass over it.
const DEPTH: usize = 128;

/// Places that a product fetches from by turns: memory answers faster than if it were asked for one after the other.
pub(super) const STREAMS: usize = 4;

/// Nothing is fetched.
pub(super) const NOTHING: [*const f32; STREAMS] = [std::ptr::null(); STREAMS];

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Elements of a right operand.
pub(super) trait Element: Copy {
    /// Whether what comes next is fetched meanwhile: elements that lie past the caches.
    const FETCHES: bool = true;

    /// A vector of them as floats.
    ///
    /// # Safety
    /// `p` is readable for a vector.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F;

    /// See [`Product::run`].
    fn product(isa: Isa, p: Product<'_, Self>);
}

impl Element for f32 {
    const FETCHES: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { s.load(p) }
    }
    fn product(isa: Isa, p: Product<'_, f32>) {
        product_f32(isa, p);
    }
}

/// A float of a cache.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Kept(f32);

impl Element for Kept {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Kept) -> S::F {
        // SAFETY: promised by the caller; it is a float.
        unsafe { s.load(p.cast()) }
    }
    fn product(isa: Isa, p: Product<'_, Kept>) {
        product_kept(isa, p);
    }
}

/// Half floats, by their bits.
impl Element for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u16) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { s.load_f16(p) }
    }
    fn product(isa: Isa, p: Product<'_, u16>) {
        product_f16(isa, p);
    }
}

impl Element for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { s.load_i8(p) }
    }
    fn product(isa: Isa, p: Product<'_, i8>) {
        product_i8(isa, p);
    }
}

/// `c[i, j] (+)= sum_p a[i, p] b[p, j]`, for `m` by `n` outputs over `k` terms.
///
/// Each output is summed in the order of `p`, one rounding for each term, whatever the sizes.
#[derive(Clone, Copy)]
pub(super) struct Product<'a, T = f32> {
    pub(super) m: usize,
    /// A multiple of 16.
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: *const f32,
    pub(super) left: Left,
    pub(super) b: *const T,
    /// Distance of the rows of `b`.
    pub(super) ldb: usize,
    /// What is fetched meanwhile, if elements of this kind are: as many as `b` has, by turns from each of these.
    pub(super) ahead: [*const T; STREAMS],
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Add to `c` rather than overwrite it.
    pub(super) adds: bool,
    /// Terms of each row that are not known to be zero, in `0..k`; others may be left out, and are
    /// for whole blocks of rows. Empty: all are wanted.
    pub(super) terms: &'a [Range<u32>],
}

impl<'a, T: Element> Product<'a, T> {
    /// The product with another right operand, stored alike.
    pub(super) fn by<U>(self, b: *const U, ahead: [*const U; STREAMS]) -> Product<'a, U> {
        let Product { m, n, k, a, left, ldb, c, ldc, adds, terms, .. } = self;
        Product { m, n, k, a, left, b, ldb, ahead, c, ldc, adds, terms }
    }

    /// # Safety
    /// The operands are readable, as far as `terms` reach, and `c` is writable for these sizes, and
    /// `c` overlaps neither.
    pub(super) unsafe fn run(self, isa: Isa) {
        debug_assert!(self.n.is_multiple_of(16) && (self.terms.is_empty() || self.terms.len() == self.m));
        T::product(isa, self);
    }
}

simd_fn! {
    /// Callers uphold the contract of [`Product::run`].
    fn product_f32<S>(s, p: Product<'_, f32>) {
        match p.left {
            Left::Rows(row) => product::<S, f32, false>(s, &p, row),
            Left::Columns(column) => product::<S, f32, true>(s, &p, column),
        }
    }
}

simd_fn! {
    /// Callers uphold the contract of [`Product::run`].
    fn product_kept<S>(s, p: Product<'_, Kept>) {
        match p.left {
            Left::Rows(row) => product::<S, Kept, false>(s, &p, row),
            Left::Columns(_) => unreachable!("a cache stands against rows of queries or weights"),
        }
    }
}

simd_fn! {
    /// Callers uphold the contract of [`Product::run`].
    fn product_f16<S>(s, p: Product<'_, u16>) {
        match p.left {
            Left::Rows(row) => product::<S, u16, false>(s, &p, row),
            Left::Columns(_) => unreachable!("halves stand against rows of queries or weights"),
        }
    }
}

simd_fn! {
    /// Callers uphold the contract of [`Product::run`].
    fn product_i8<S>(s, p: Product<'_, i8>) {
        match p.left {
            Left::Rows(row) => product::<S, i8, false>(s, &p, row),
            Left::Columns(_) => unreachable!("bytes stand against rows of queries or weights"),
        }
    }
}

/// All parts of the columns. The left operand is stored by columns or by rows, `stride` apart.
#[inline(always)]
fn product<S: Simd, T: Element, const COLUMNS: bool>(s: S, p: &Product<'_, T>, stride: usize) {
    for (j, width) in parts(p.n) {
        // SAFETY: parts lie inside the `n` columns, and the callers of `run` uphold its contract.
        unsafe {
            let b = p.b.add(j);
            if S::LANES == 16 {
                match width / 16 {
                    1 => rows::<S, T, 1, COLUMNS>(s, p, stride, b, j),
                    2 => rows::<S, T, 2, COLUMNS>(s, p, stride, b, j),
                    3 => rows::<S, T, 3, COLUMNS>(s, p, stride, b, j),
                    // One block of all rows reads, and widens, the right operand once.
                    _ if matches!(p.m, 7 | 8) => {
                        rows::<S, T, 2, COLUMNS>(s, p, stride, b, j);
                        rows::<S, T, 2, COLUMNS>(s, p, stride, b.add(2 * S::LANES), j + 2 * S::LANES);
                    }
                    _ => rows::<S, T, 4, COLUMNS>(s, p, stride, b, j),
                }
            } else {
                for inner in (0..width).step_by(16) {
                    rows::<S, T, 2, COLUMNS>(s, p, stride, b.add(inner), j + inner);
                }
            }
        }
    }
}

/// All rows of the `NV` vectors of columns from `j` on, whose right operand is at `b`.
///
/// # Safety
/// As [`Product::run`], for these columns.
#[inline(always)]
unsafe fn rows<S: Simd, T: Element, const NV: usize, const COLUMNS: bool>(
    s: S,
    p: &Product<'_, T>,
    stride: usize,
    b: *const T,
    j: usize,
) {
    let depth = if p.terms.is_empty() { DEPTH } else { p.k };
    let (row, step) = if COLUMNS { (1, stride) } else { (stride, 1) };
    let mut start = 0;
    loop {
        let end = p.k.min(start + depth);
        let mut i = 0;
        while i < p.m {
            let taken = most(S::LANES, NV).min(p.m - i);
            let (first, last) = match p.terms.get(i..i + taken) {
                Some(terms) => {
                    let held = union(terms.iter().cloned());
                    (held.start, held.end)
                }
                None => (start, end),
            };
            // SAFETY: the block lies inside `m` rows and `k` terms.
            unsafe {
                let block = Block {
                    a: p.a.add(i * row + first * step),
                    stride,
                    b: b.add(first * p.ldb),
                    ldb: p.ldb,
                    // What earlier columns and terms have fetched.
                    ahead: p.ahead.map(|from| from.wrapping_add((p.k * j + first * NV * S::LANES) / STREAMS)),
                    k: last - first,
                    c: p.c.add(i * p.ldc + j),
                    ldc: p.ldc,
                    adds: p.adds || start > 0,
                };
                match taken {
                    1 => sums::<S, T, 1, NV, COLUMNS>(s, &block),
                    2 => sums::<S, T, 2, NV, COLUMNS>(s, &block),
                    3 => sums::<S, T, 3, NV, COLUMNS>(s, &block),
                    4 => sums::<S, T, 4, NV, COLUMNS>(s, &block),
                    5 => sums::<S, T, 5, NV, COLUMNS>(s, &block),
                    6 => sums::<S, T, 6, NV, COLUMNS>(s, &block),
                    7 if most(S::LANES, NV) > 6 => sums::<S, T, 7, NV, COLUMNS>(s, &block),
                    _ if most(S::LANES, NV) > 6 => sums::<S, T, 8, NV, COLUMNS>(s, &block),
                    _ => unreachable!("a block has at most six rows"),
                }
            }
            i += taken;
        }
        start = end;
        if start == p.k {
            return;
        }
    }
}

/// Rows of the largest block of `vectors` columns that fits the registers.
const fn most(lanes: usize, vectors: usize) -> usize {
    match (lanes, vectors) {
        (16, 4) | (8, _) => 6,
        _ => 8,
    }
}

/// A block of sums.
struct Block<T> {
    a: *const f32,
    /// Distance of rows, or of terms.
    stride: usize,
    b: *const T,
    ldb: usize,
    ahead: [*const T; STREAMS],
    k: usize,
    c: *mut f32,
    ldc: usize,
    adds: bool,
}

/// `MR` rows of `NV` vectors, kept in registers.
///
/// # Safety
/// The operands hold `MR` rows, `k` terms and `NV` vectors.
#[inline(always)]
unsafe fn sums<S: Simd, T: Element, const MR: usize, const NV: usize, const COLUMNS: bool>(s: S, block: &Block<T>) {
    let mut acc = [[s.zero(); NV]; MR];
    let (row, step) = if COLUMNS { (1, block.stride) } else { (block.stride, 1) };
    // SAFETY: promised by the caller; the pointers only pass the end after the last term.
    unsafe {
        if block.adds {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(block.c.add(r * block.ldc + v * S::LANES));
                }
            }
        }
        let (mut a, mut b) = (block.a, block.b);
        let mut left = block.k;
        if MR * NV == 24 || T::FETCHES {
            let mut fetched = 0;
            while left >= UNROLL {
                for turn in 0..UNROLL {
                    if T::FETCHES {
                        for line in 0..(NV * S::LANES * size_of::<T>()).div_ceil(LINE) {
                            prefetch_far(block.ahead[turn].wrapping_add(fetched).wrapping_byte_add(line * LINE).cast());
                        }
                    }
                    term::<S, T, MR, NV>(s, a, row, b, &mut acc);
                    a = a.wrapping_add(step);
                    b = b.wrapping_add(block.ldb);
                }
                left -= UNROLL;
                fetched += NV * S::LANES;
            }
        }
        for _ in 0..left {
            term::<S, T, MR, NV>(s, a, row, b, &mut acc);
            a = a.wrapping_add(step);
            b = b.wrapping_add(block.ldb);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                s.store(block.c.add(r * block.ldc + v * S::LANES), acc);
            }
        }
    }
}

/// Terms of the large blocks that are written out, so that the end of the loop is foreseen.
const UNROLL: usize = STREAMS;

/// Adds one term to all sums.
///
/// # Safety
/// `a` has `MR` values `row` apart, `b` has `NV` vectors.
#[inline(always)]
unsafe fn term<S: Simd, T: Element, const MR: usize, const NV: usize>(
    s: S,
    a: *const f32,
    row: usize,
    b: *const T,
    acc: &mut [[S::F; NV]; MR],
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut vectors = [s.zero(); NV];
        for (v, vector) in vectors.iter_mut().enumerate() {
            *vector = T::load(s, b.add(v * S::LANES));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = s.splat(*a.add(r * row));
            for (acc, &vector) in acc.iter_mut().zip(&vectors) {
                *acc = s.fma(x, vector, *acc);
            }
        }
    }
}
