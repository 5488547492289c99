//! The general product: packed panels in three levels of cache blocks.
//!
//! ```text
//! for jc, pc, ic:    one run packs B[pc, jc] (first ic only) and A[ic, pc],
//!                    one run computes rectangles of tiles of C[ic, jc]
//! ```
//!
//! With few rows (at most [`FEW`]) a packed panel of B is used by one task only, so
//! each task packs its own, multiplies it with all of A while it is in L2, and
//! nothing waits in between (`strips`).
//!
//! Otherwise all threads share both packed operands. A rectangle keeps its part of packed A
//! in L2 while panels of B pass; one panel of B stays in L1 while tiles go down.
//! Rejected: rectangles of all columns that pack their own rows of A, in memory that no other core
//! touches. Packing no longer waits, but all of B passes each of them: 162 to 168 GFLOP/s against 164
//! to 171 on two AVX2 cores.
//!
//! `k` is cut at multiples of [`KC`] that depend on nothing but `k`, so the order
//! of additions is a function of the shape alone.

use super::MatRef;
use super::kernel::{Epilogue, Kernels, Tile, kernels};
use super::pack::{COLUMNS, GROUP, Panels, Part, pack_a};
use super::scratch::with_scratch;
use crate::lora::Second;
use crate::pool::{Disjoint, Pool};

/// Most values of `k` per pass: a panel of B (48 KiB) lives between L1 and L2, and
/// each pass touches C once per this many multiply-adds.
const KC: usize = 384;

/// Values of packed A and of packed B, each 4 MiB: a share of any server's L3.
const PACKED: usize = 1 << 20;

/// Values of packed A in one rectangle: half of a 512 KiB L2, the smallest in use.
const RECTANGLE: usize = 1 << 16;

/// Most rows for which columns are packed and used by the same task.
const FEW: usize = 96;

/// Products of fewer multiply-adds run on the caller's thread alone.
const SMALL: usize = 1 << 16;

/// Tiles of A packed by one task.
const PACK_TILES: usize = 4;

/// Sizes of a product.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl Sizes {
    pub(crate) fn is_small(self) -> bool {
        self.m * self.n * self.k < SMALL
    }
}

/// Runs `body` on the pool, or inline when the whole product is small.
pub(crate) fn run(pool: &Pool, small: bool, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
    if small { (0..tasks).for_each(body) } else { pool.run(tasks, body) }
}

/// Part `index` of `parts` nearly equal parts of `len`.
fn part_of(len: usize, parts: usize, index: usize) -> (usize, usize) {
    let start = len * index / parts;
    (start, len * (index + 1) / parts - start)
}

/// Length of the blocks when `len` is cut evenly into blocks of at most `most`.
fn even_block(len: usize, most: usize, unit: usize) -> usize {
    let blocks = len.div_ceil(most);
    len.div_ceil(blocks).next_multiple_of(unit)
}

/// `c = alpha a b + bias + beta c` for non-empty sizes; operands and `c` have been checked.
pub(crate) fn blocked(
    pool: &Pool,
    sizes: Sizes,
    a: &MatRef<'_>,
    b: &Panels<'_>,
    c: Disjoint<'_, f32>,
    ldc: usize,
    epilogue: Epilogue<'_>,
) {
    blocked_with(pool, sizes, a, b, c, ldc, epilogue, None);
}

/// [`blocked`], with another product that adds to each tile of the output.
#[expect(clippy::too_many_arguments, reason = "what a product is made of, and another one")]
pub(crate) fn blocked_with(
    pool: &Pool,
    sizes: Sizes,
    a: &MatRef<'_>,
    b: &Panels<'_>,
    c: Disjoint<'_, f32>,
    ldc: usize,
    epilogue: Epilogue<'_>,
    second: Option<&Second<'_>>,
) {
    let kernels = kernels(pool.isa());
    let Sizes { m, n, k } = sizes;
    let small = sizes.is_small();
    let (unit_k, unit_n) = b.units();
    let kc = even_block(k, KC, unit_k);
    if m <= FEW {
        return strips(pool, kernels, sizes, kc, (a, b), (c, ldc), (epilogue, second));
    }
    let nc = even_block(n, PACKED / kc, unit_n);
    let mc = even_block(m, PACKED / kc, kernels.mr);
    with_scratch(kc * (nc + mc), |scratch| {
        let (packed_b, packed_a) = scratch.split_at_mut(kc * nc);
        for j0 in (0..n).step_by(nc) {
            for k0 in (0..k).step_by(kc) {
                let part = Part { k0, k: kc.min(k - k0), j0, cols: nc.min(n - j0) };
                for i0 in (0..m).step_by(mc) {
                    let rows = (i0, mc.min(m - i0));
                    let packed_b = Disjoint::new(&mut *packed_b);
                    let packed_a = Disjoint::new(&mut *packed_a);
                    let block = Block { kernels, part, rows, packed_a, packed_b, second };
                    block.pack(pool, small, a, (i0 == 0).then_some(b));
                    block.compute(pool, small, c, ldc, epilogue.pass(k0 == 0));
                }
            }
        }
    });
}

/// The product with few rows: tasks pack and use columns of their own.
fn strips(
    pool: &Pool,
    kernels: &Kernels,
    sizes: Sizes,
    kc: usize,
    (a, b): (&MatRef<'_>, &Panels<'_>),
    (c, ldc): (Disjoint<'_, f32>, usize),
    (epilogue, second): (Epilogue<'_>, Option<&Second<'_>>),
) {
    let Sizes { m, n, k } = sizes;
    let small = sizes.is_small();
    let tiles = m.div_ceil(kernels.mr);
    let passes = k.div_ceil(kc);
    // Wide strips read better; narrow ones balance.
    let wide = n >= 4 * COLUMNS * pool.threads();
    let width = if wide { COLUMNS } else { GROUP }.max(b.units().1);
    with_scratch(m * k, |packed_a| {
        let packed_a = Disjoint::new(packed_a);
        run(pool, small, passes * tiles, &|task| {
            let (k0, tile) = (task / tiles * kc, task % tiles);
            let len = kc.min(k - k0);
            let (start, rows) = part_of(m, tiles, tile);
            // SAFETY: each task has a tile of its own.
            let out = unsafe { packed_a.slice(k0 * m + start * len, rows * len) };
            pack_a(kernels, a, (start, rows), (k0, len), out);
        });
        run(pool, small, n.div_ceil(width), &|strip| {
            let j0 = strip * width;
            let part = Part { k0: 0, k: kc, j0, cols: width.min(n - j0) };
            with_scratch(kc * part.cols.next_multiple_of(GROUP), |packed_b| {
                for k0 in (0..k).step_by(kc) {
                    let len = kc.min(k - k0);
                    let part = Part { k0, k: len, ..part };
                    b.pack(kernels, part, packed_b);
                    let packed_a = packed_a.after(k0 * m);
                    let packed_b = Disjoint::new(&mut *packed_b);
                    let block = Block { kernels, part, rows: (0, m), packed_a, packed_b, second };
                    let panels = part.cols.div_ceil(kernels.nr);
                    block.tiles_of((0, panels), (0, tiles), c, ldc, epilogue.pass(k0 == 0));
                }
            });
        });
    });
}

/// One block of C and the packed operands that update it.
struct Block<'a> {
    kernels: &'a Kernels,
    part: Part,
    rows: (usize, usize),
    packed_a: Disjoint<'a, f32>,
    packed_b: Disjoint<'a, f32>,
    second: Option<&'a Second<'a>>,
}

impl Block<'_> {
    /// Row tiles; their heights differ by at most one, so none is nearly empty.
    fn tiles(&self) -> usize {
        self.rows.1.div_ceil(self.kernels.mr)
    }

    fn pack(&self, pool: &Pool, small: bool, a: &MatRef<'_>, b: Option<&Panels<'_>>) {
        let part = self.part;
        let columns = b.map_or(COLUMNS, |b| b.units().1.max(COLUMNS));
        let groups = if b.is_some() { part.cols.div_ceil(columns) } else { 0 };
        let tiles = self.tiles();
        run(pool, small, groups + tiles.div_ceil(PACK_TILES), &|task| {
            if let Some(b) = b
                && task < groups
            {
                let first = task * columns;
                let cols = columns.min(part.cols - first);
                let padded = cols.next_multiple_of(GROUP);
                // SAFETY: each task has its own columns.
                let out = unsafe { self.packed_b.slice(first * part.k, padded * part.k) };
                b.pack(self.kernels, Part { j0: part.j0 + first, cols, ..part }, out);
                return;
            }
            let first = (task - groups) * PACK_TILES;
            for tile in first..tiles.min(first + PACK_TILES) {
                let (start, len) = part_of(self.rows.1, tiles, tile);
                // SAFETY: each tile's rows are packed by one task.
                let out = unsafe { self.packed_a.slice(start * part.k, len * part.k) };
                pack_a(self.kernels, a, (self.rows.0 + start, len), (part.k0, part.k), out);
            }
        });
    }

    fn compute(&self, pool: &Pool, small: bool, c: Disjoint<'_, f32>, ldc: usize, epilogue: Epilogue<'_>) {
        let part = self.part;
        let tiles = self.tiles();
        let panels = part.cols.div_ceil(self.kernels.nr);
        let high = tiles.div_ceil((RECTANGLE / part.k / self.kernels.mr).max(1));
        // Enough rectangles to balance the threads, as long as there are panels to share.
        // Equally many for each: 21 rectangles cost two threads 5% of a product.
        let wide = (8 * pool.threads()).div_ceil(high).clamp(1, panels);
        let wide = (wide..=panels).take(pool.threads()).find(|w| (high * w).is_multiple_of(pool.threads())).unwrap_or(wide);
        run(pool, small, high * wide, &|task| {
            let (tile0, tile_count) = part_of(tiles, high, task / wide);
            let (panel0, panel_count) = part_of(panels, wide, task % wide);
            self.tiles_of((panel0, panel_count), (tile0, tile_count), c, ldc, epilogue);
        });
    }

    /// Computes a rectangle of tiles, given by first and count, panel by panel.
    fn tiles_of(
        &self,
        (panel0, panel_count): (usize, usize),
        (tile0, tile_count): (usize, usize),
        c: Disjoint<'_, f32>,
        ldc: usize,
        epilogue: Epilogue<'_>,
    ) {
        let (part, nr) = (self.part, self.kernels.nr);
        let tiles = self.tiles();
        for panel in panel0..panel0 + panel_count {
            let j = panel * nr;
            let cols = nr.min(part.cols - j);
            let bias = epilogue.bias.map(|bias| &bias[part.j0 + j..][..cols]);
            for tile in tile0..tile0 + tile_count {
                let (start, rows) = part_of(self.rows.1, tiles, tile);
                let at = (self.rows.0 + start) * ldc + part.j0 + j;
                // SAFETY: both operands are packed, `c` was checked to hold the block,
                // and no other task has this tile.
                unsafe {
                    (self.kernels.tile)(&Tile {
                        rows,
                        cols,
                        k: part.k,
                        a: self.packed_a.as_mut_ptr().add(start * part.k),
                        b: self.packed_b.as_mut_ptr().add(j * part.k),
                        b_stride: nr,
                        c: c.as_mut_ptr().add(at),
                        ldc,
                        alpha: epilogue.alpha,
                        beta: epilogue.beta,
                        bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                    });
                    if let (Some(second), 0) = (self.second, part.k0) {
                        let (i, j) = (self.rows.0 + start, part.j0 + j);
                        second.add(self.kernels, (i, rows), (j, cols), c.as_mut_ptr().add(at), ldc);
                    }
                }
            }
        }
    }
}
