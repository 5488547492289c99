//! The general product: columns of B in strips, each packed by the task that multiplies it.
//!
//! ```text
//! task = some rows of C, a strip of columns
//!     for each pass over k:      pack B[pass, strip] into a share of L2
//!         for tiles of rows:     A[tile, pass], in place or packed, goes through L1
//!             for panels:        one register tile of C
//! ```
//!
//! A left operand whose rows are contiguous is read where it is: a tile broadcasts its values from 14 rows at once as fast as
//! from a packed panel. Any other is packed by all threads first. The right operand is packed once for each block of rows that
//! tasks divide C into, which is one block unless there are fewer panels than threads. Nothing waits in between, and what a task
//! packs never leaves its core's cache.
//!
//! Rejected: packing both operands for all threads and sharing out rectangles of C. Every packed value then goes through memory
//! to another core: 5% (2048 by 2048 by 2048) to 12% (512 by 576 by 1536) of the time went into packing, against 2% to 4%.
//!
//! `k` is cut into equal passes that depend on nothing but `k` and the instruction set, so the order of additions is a function of
//! the shape alone.

use super::finish::Finish;
use super::kernel::{Epilogue, Kernels, Split, Tile, kernels, kernels_for};
use super::operand::{MatRef, Source};
use super::pack::{GROUP, Panels, Part, pack_left, pack_left_rows};
use super::scratch::with_scratch;
use crate::lora::Second;
use crate::pool::{Disjoint, Pool};

/// Values of the left operand that are packed at a time, 8 MiB: a share of any server's L3.
const PACKED: usize = 1 << 21;

/// Most values of `k` for which the left operand is packed at a time.
const PACKED_K: usize = 4096;

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

/// Part `index` of `parts` nearly equal parts of `len`; larger ones come first.
fn part_of(len: usize, parts: usize, index: usize) -> (usize, usize) {
    let (size, larger) = (len / parts, len % parts);
    (index * size + index.min(larger), size + usize::from(index < larger))
}

/// Length of the blocks when `len` is cut evenly into blocks of at most `most`.
fn even_block(len: usize, most: usize, unit: usize) -> usize {
    let blocks = len.div_ceil(most);
    len.div_ceil(blocks).next_multiple_of(unit)
}

/// Where sums go.
#[derive(Clone, Copy)]
pub(crate) enum Out<'a> {
    /// To the output, `ldc` apart.
    Plain(Disjoint<'a, f32>, usize),
    /// Through what finishes them.
    Finished(&'a Finish<'a>),
}

/// `out = alpha a b + bias + beta out`, or the addend in place of what `out` holds, and `second` added to it, for non-empty sizes;
/// operands and the output have been checked.
pub(crate) fn blocked(
    pool: &Pool,
    sizes: Sizes,
    a: Source<'_>,
    b: Panels<'_>,
    out: Out<'_>,
    epilogue: Epilogue<'_>,
    second: Option<&Second<'_>>,
) {
    let kernels = kernels_for(pool.isa(), sizes);
    let second = second.map(|second| (second, self::kernels(pool.isa())));
    let Sizes { m, n, k } = sizes;
    let small = sizes.is_small();
    let kc = even_block(k, kernels.kc, b.units().0);
    let grid = Grid::new(pool.threads(), kernels, &b, sizes, kc);
    let walk = Walk { kernels, n, k, kc, grid, b, out, epilogue, second };
    if let Source::Floats(rows) = a
        && rows.col_stride == 1
        && rows.row_stride > 0
    {
        let block = Block { walk: &walk, left: Left::Rows(rows), rows: (0, m), ks: (0, k) };
        return run(pool, small, grid.rows * grid.strips, &|task| block.task(task));
    }
    // Sums that wait for their last pass do so within one task, which then has all of `k`.
    let passes = if matches!(out, Out::Finished(_)) { k.div_ceil(kc) } else { (PACKED_K / kc).max(1) };
    let deep = (passes * kc).min(k);
    let high = even_block(m, (PACKED / deep).max(kernels.mr), kernels.mr);
    with_scratch(high.min(m) * deep, |scratch| {
        for i0 in (0..m).step_by(high) {
            for k0 in (0..k).step_by(deep) {
                let packed = Disjoint::new(&mut *scratch);
                let rows = (i0, high.min(m - i0));
                let block = Block { walk: &walk, left: Left::Packed(packed), rows, ks: (k0, deep.min(k - k0)) };
                block.pack(pool, small, &a);
                run(pool, small, grid.rows * grid.strips, &|task| block.task(task));
            }
        }
    });
}

/// How C is divided among tasks.
#[derive(Clone, Copy)]
struct Grid {
    /// Blocks of rows.
    rows: usize,
    /// Strips of columns.
    strips: usize,
    /// Units that strips consist of, in columns and in number.
    unit: usize,
    units: usize,
}

impl Grid {
    fn new(threads: usize, kernels: &Kernels, b: &Panels<'_>, sizes: Sizes, kc: usize) -> Grid {
        let unit = b.units().1.max(GROUP);
        let units = sizes.n.div_ceil(unit);
        let tiles = sizes.m.div_ceil(kernels.mr);
        // As wide as fits, since A passes each strip, and equally many for each thread.
        let widest = (kernels.strip / kc / unit).max(1);
        let least = units.div_ceil(widest);
        if units < 2 * threads {
            let rows = (2 * threads).div_ceil(least).min(tiles);
            return Grid { rows, strips: least, unit, units };
        }
        // What is split is so again for each strip: then few.
        let most = if kernels.split.is_some() { 1 } else { 4 };
        let each = (units / threads / 4).clamp(1, most).max(least.div_ceil(threads));
        Grid { rows: 1, strips: (each * threads).min(units), unit, units }
    }
}

/// What all tasks of a product share.
struct Walk<'a> {
    kernels: &'a Kernels,
    n: usize,
    k: usize,
    /// Most values of `k` per pass.
    kc: usize,
    grid: Grid,
    b: Panels<'a>,
    out: Out<'a>,
    epilogue: Epilogue<'a>,
    /// What adds to each tile after the first pass over `k`, and its kernels.
    second: Option<(&'a Second<'a>, &'a Kernels)>,
}

/// The left operand of a block.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// In place; rows are contiguous.
    Rows(MatRef<'a>),
    /// Packed, pass by pass and tile by tile; by rows, if they are to be split.
    Packed(Disjoint<'a, f32>),
}

/// Rows of C, given by first and count like all ranges here, and the part of `k` that is added to them.
struct Block<'a> {
    walk: &'a Walk<'a>,
    left: Left<'a>,
    rows: (usize, usize),
    ks: (usize, usize),
}

/// Where sums of one task are kept between passes: element `(i, j)` of C is at `i * stride + j` from `origin`.
#[derive(Clone, Copy)]
struct Sums {
    origin: *mut f32,
    stride: usize,
}

/// Floats of a tile of any instruction set, on their way through a [`Finish`].
#[repr(align(64))]
struct Stage([f32; 1024]);

impl Block<'_> {
    /// Row tiles; their heights differ by at most one, so none is nearly empty.
    fn tiles(&self) -> usize {
        self.rows.1.div_ceil(self.walk.kernels.mr)
    }

    /// Passes over this part of `k`: first and count of each.
    fn passes(&self) -> impl Iterator<Item = (usize, usize)> {
        let ((first, len), kc) = (self.ks, self.walk.kc);
        (first..first + len).step_by(kc).map(move |k0| (k0, kc.min(first + len - k0)))
    }

    /// Packs the left operand.
    fn pack(&self, pool: &Pool, small: bool, a: &Source<'_>) {
        let Left::Packed(packed) = self.left else { return };
        let tiles = self.tiles();
        run(pool, small, tiles.div_ceil(PACK_TILES), &|task| {
            for tile in task * PACK_TILES..tiles.min((task + 1) * PACK_TILES) {
                let (start, rows) = part_of(self.rows.1, tiles, tile);
                for (k0, k) in self.passes() {
                    // SAFETY: each tile's rows are packed by one task.
                    let out = unsafe { packed.slice((k0 - self.ks.0) * self.rows.1 + start * k, rows * k) };
                    let pack = if self.walk.kernels.split.is_some() { pack_left_rows } else { pack_left };
                    pack(self.walk.kernels, a, (self.rows.0 + start, rows), (k0, k), out);
                }
            }
        });
    }

    /// Computes a block of rows by a strip of columns.
    fn task(&self, task: usize) {
        let Walk { kernels, kc, grid, out, .. } = *self.walk;
        let tiles = part_of(self.tiles(), grid.rows, task / grid.strips);
        let (first, units) = part_of(grid.units, grid.strips, task % grid.strips);
        let j0 = first * grid.unit;
        let cols = (units * grid.unit).min(self.walk.n - j0);
        let padded = cols.next_multiple_of(GROUP);
        // Sums of all but the last pass, if they cannot wait in the output.
        let waiting = match out {
            Out::Finished(finish) if self.ks.1 > kc && finish.sums().is_none() => self.rows.1 * padded,
            _ => 0,
        };
        let deepest = kc.min(self.ks.1);
        let packed = kernels.room(deepest, padded);
        let left = kernels.split.map_or(0, |split| (split.room)(deepest));
        with_scratch(packed + left + waiting, |scratch| {
            let (packed, scratch) = scratch.split_at_mut(packed);
            let (left, waiting) = scratch.split_at_mut(left);
            let sums = match out {
                Out::Plain(c, ldc) => Sums { origin: c.as_mut_ptr(), stride: ldc },
                Out::Finished(finish) => match finish.sums() {
                    Some((c, ldc)) => Sums { origin: c.as_mut_ptr(), stride: ldc },
                    None => {
                        let origin = waiting.as_mut_ptr().wrapping_sub(self.rows.0 * padded + j0);
                        Sums { origin, stride: padded }
                    }
                },
            };
            for (k0, k) in self.passes() {
                let part = Part { k0, k, j0, cols };
                if let Some(split) = kernels.split {
                    self.walk.b.pack(kernels, part, packed);
                    self.tiles_of(tiles, part, (None, 0), packed, Some((split, left)), sums);
                    continue;
                }
                // Rows that are contiguous are packed by the first tile, which reads them anyway; but for a ragged end.
                let source = self.walk.b.rows();
                let whole = if source.is_some() { cols / GROUP * GROUP } else { 0 };
                let rest = Part { j0: j0 + whole, cols: cols - whole, ..part };
                self.walk.b.pack(kernels, rest, &mut packed[whole * k..]);
                self.tiles_of(tiles, part, (source, whole), packed, None, sums);
            }
        });
    }

    /// Adds one pass to the given tiles of a strip, whose first `whole` columns are packed by the first of them. What is split comes with room
    /// for a tile of the left operand.
    fn tiles_of(
        &self,
        (tile0, tile_count): (usize, usize),
        part: Part,
        (source, whole): (Option<MatRef<'_>>, usize),
        panels: &mut [f32],
        mut split: Option<(Split, &mut [f32])>,
        sums: Sums,
    ) {
        let Walk { kernels, k, out, epilogue, .. } = *self.walk;
        let (nr, tiles) = (kernels.nr, self.tiles());
        let epilogue = epilogue.pass(part.k0 == 0);
        let finish = match out {
            Out::Finished(finish) if part.k0 + part.k == k => Some(finish),
            _ => None,
        };
        if let Some(source) = source {
            source.check(part.k0 + part.k, part.j0 + whole);
        }
        let mut stage = Stage([0.0; 1024]);
        // SAFETY: the level is the pool's.
        let _tiles = split.as_ref().map(|(split, ..)| unsafe { (split.tiles)() });
        for tile in tile0..tile0 + tile_count {
            let (start, rows) = part_of(self.rows.1, tiles, tile);
            let i = self.rows.0 + start;
            let (mut a, mut a_stride) = match self.left {
                Left::Rows(a) => (a.data[a.at(i, part.k0)..].as_ptr(), a.row_stride),
                Left::Packed(a) => {
                    let at = (part.k0 - self.ks.0) * self.rows.1 + start * part.k;
                    (a.after(at).as_mut_ptr().cast_const(), if split.is_some() { part.k } else { 0 })
                }
            };
            if let Some((split, left)) = &mut split {
                // SAFETY: `rows` rows of the pass, and room for them.
                unsafe { (split.left)(a, a_stride, rows, part.k, left.as_mut_ptr()) };
                (a, a_stride) = (left.as_ptr(), 0);
            }
            for first in (0..part.cols).step_by(nr) {
                let (j, cols) = (part.j0 + first, nr.min(part.cols - first));
                let c = sums.origin.wrapping_add(i * sums.stride + j);
                let (d, ldd) = match epilogue.addend {
                    Some((values, stride)) => (values[i * stride + j..].as_ptr(), stride),
                    None => (c.cast_const(), sums.stride),
                };
                let panel = &mut panels[kernels.room(part.k, first)..];
                let (b, b_stride, copy) = match source {
                    // One tile alone needs no copy.
                    Some(source) if tile == tile0 && first < whole => {
                        let copy = if tile_count > 1 { panel.as_mut_ptr() } else { std::ptr::null_mut() };
                        assert!(panel.len() >= nr * part.k);
                        (source.data[source.at(part.k0, j)..].as_ptr(), source.row_stride, copy)
                    }
                    _ => (panel.as_ptr(), nr, std::ptr::null_mut()),
                };
                let mut tile = Tile {
                    rows,
                    cols,
                    k: part.k,
                    a,
                    a_stride,
                    b,
                    b_stride,
                    copy,
                    c,
                    ldc: sums.stride,
                    alpha: epilogue.alpha,
                    beta: epilogue.beta,
                    d,
                    ldd,
                    bias: epilogue.bias.map_or(std::ptr::null(), |bias| bias[j..][..cols].as_ptr()),
                };
                if finish.is_some() {
                    // Sums of earlier passes are read where they wait.
                    (tile.c, tile.ldc) = (stage.0.as_mut_ptr(), nr);
                }
                // SAFETY: both operands hold the tile, the output was checked to, and no other task has it.
                unsafe { (kernels.tile)(&tile) };
                if let (Some((second, kernels)), 0) = (self.walk.second, part.k0) {
                    // SAFETY: as above; the tile lies in the output, or in the stage.
                    unsafe { second.add(kernels, (i, rows), (j, cols), tile.c, tile.ldc) };
                }
                if let Some(finish) = finish {
                    // SAFETY: as above.
                    unsafe { finish.tile(&mut stage.0[..rows * nr], nr, (i, j), cols) };
                }
            }
        }
    }
}
