//! One pass over the vocabulary, a tile of it at a time, with all rows of activations against each.
//!
//! ```text
//! for each tile of the vocabulary:
//!     logits[rows, tile] = x W[tile]ᵀ      for each block of rows
//!     body(row, logits)                    statistics, or coefficients in place of the logits
//!     dx[rows, :] += coefficients W[tile]  from the same tile, packed the other way
//! ```
//!
//! A tile of the weight is decoded and packed once for all rows, beside the products of the tile
//! before it, so there is one barrier for each tile. Both packings of a tile and a block of rows
//! share L2. An element of `dx` adds its tiles in order, whichever thread computes its block.

use crate::format::Weight;
use crate::gemm::MatRef;
use crate::gemm::blocked::{Sizes, run};
use crate::gemm::kernel::{Kernels, Tile, kernels_for};
use crate::gemm::pack::{COLUMNS, GROUP, Panels, Part, pack_a};
use crate::gemm::scratch::with_scratch;
use crate::pool::{Disjoint, Pool};

/// Values of one packing of a tile of the weight: with the other one 1.2 MB, half of a large L2.
const TILE_VALUES: usize = 36 * 4096;

/// Least and most vocabulary entries of a tile; the most is what one pass over `k` may have.
const TILE_WIDTH: (usize, usize) = (128, 384);

/// Most values of `k` in one pass of a product: a panel of the weight and a register tile's rows are
/// both read from L2, which is fast enough, and each pass reads and writes the logits.
const KC: usize = 768;

/// Products of fewer multiply-adds run on the caller's thread alone.
const SMALL: usize = 1 << 16;

/// Most register tiles of a block of rows.
const BLOCK_TILES: usize = 4;

/// Vocabulary entries of a tile.
pub(super) fn tile_width(vocab: usize, d: usize) -> usize {
    let width = (TILE_VALUES / d.max(1)).clamp(TILE_WIDTH.0, TILE_WIDTH.1) / GROUP * GROUP;
    width.min(vocab.next_multiple_of(GROUP))
}

/// Floats of scratch of a pass of `rows` rows over heads of the same vocabulary and widths `d`.
pub(super) fn scratch_len(rows: usize, vocab: usize, d: &[usize]) -> usize {
    let widest = d.iter().copied().max().unwrap_or(0);
    let width = tile_width(vocab, widest);
    d.iter().map(|&d| packed_len(rows, d) + rows * width + 2 * (packed_len(width, d) + packed_len(d, width))).sum()
}

/// Floats that `k` values of each of `rows` rows or columns take at most when they are packed, by any kernels: split, as a rule
/// (see [`crate::gemm::kernel::Split`]), with every pass over `k`.
fn packed_len(rows: usize, k: usize) -> usize {
    rows.div_ceil(GROUP) * (3 * GROUP * k.next_multiple_of(GROUP) / 2 + 16 * (k.div_ceil(KC) + 1))
}

/// Hidden states `[n, w.cols]`, and the projection that turns them into logits.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) x: &'a [f32],
    pub(super) w: &'a Weight<'a>,
}

/// A head, ready for passes: its rows are packed.
struct Packed<'a> {
    d: usize,
    /// Values of `k` of one pass of the forward product.
    kc: usize,
    forward: Panels<'a>,
    back: Panels<'a>,
    x: Disjoint<'a, f32>,
    logits: Disjoint<'a, f32>,
    /// Two tiles of the weight, each packed as columns and as rows.
    weight: [[Disjoint<'a, f32>; 2]; 2],
}

/// Products of some rows with the whole vocabulary of `H` heads.
pub(super) struct Stream<'a, const H: usize> {
    pool: &'a Pool,
    kernels: &'static Kernels,
    small: bool,
    rows: usize,
    vocab: usize,
    /// Vocabulary entries of a tile, and the distance between rows of logits.
    width: usize,
    /// Rows of a block.
    height: usize,
    heads: [Packed<'a>; H],
}

/// What is done with a row of a tile: its place among the rows of the stream, the first vocabulary
/// entry, and the logits by head. The answer is what `dx` of the row is multiplied by before
/// the first head's coefficients times `W` are added.
pub(super) type Body<'b, const H: usize> = dyn Fn(usize, usize, [&mut [f32]; H]) -> f32 + Sync + 'b;

/// A tile of the vocabulary.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    first: usize,
    width: usize,
}

impl<'a, const H: usize> Stream<'a, H> {
    /// Packs `rows` of each head. Sizes have been checked by the caller; heads share the vocabulary.
    pub(super) fn new(pool: &'a Pool, rows: &[usize], heads: [Head<'a>; H], scratch: &'a mut [f32]) -> Stream<'a, H> {
        let vocab = heads[0].w.rows;
        let widest = heads.iter().map(|head| head.w.cols).max().unwrap_or(0);
        let kernels = kernels_for(pool.isa(), Sizes { m: rows.len(), n: vocab, k: widest });
        let width = tile_width(vocab, widest);
        let height = kernels.mr * (rows.len() / (16 * kernels.mr)).clamp(1, BLOCK_TILES);
        let small = rows.len() * vocab * heads.iter().map(|head| head.w.cols).sum::<usize>() < SMALL;
        let mut scratch = Disjoint::new(scratch);
        let mut take = |len: usize| {
            let part = scratch;
            scratch = scratch.after(len);
            part
        };
        let packed = heads.map(|Head { w, .. }| {
            let d = w.cols;
            let (forward, back) = (Panels::transposed(pool.isa(), w), Panels::straight(pool.isa(), w));
            let kc = d.div_ceil(d.div_ceil(KC).max(1)).next_multiple_of(forward.units().0);
            let weight = [(); 2].map(|()| [take(packed_len(width, d)), take(packed_len(d, width))]);
            Packed { d, kc, forward, back, x: take(packed_len(rows.len(), d)), logits: take(rows.len() * width), weight }
        });
        let stream = Stream { pool, kernels, small, rows: rows.len(), vocab, width, height, heads: packed };
        stream.pack_rows(rows, heads);
        stream
    }

    /// Number, first row and number of rows of the register tiles of a block.
    fn tiles(&self, block: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<H> {
        let start = block * self.height;
        let len = self.height.min(self.rows - start);
        let tiles = len.div_ceil(self.kernels.mr);
        let before = start / self.kernels.mr;
        (0..tiles).map(move |tile| {
            let first = len * tile / tiles;
            (before + tile, start + first, len * (tile + 1) / tiles - first)
        })
    }

    /// Floats that the passes up to `k` of `columns` rows or columns take when they are packed.
    fn before(&self, head: &Packed<'a>, k: usize, columns: usize) -> usize {
        let (passes, rest) = (k / head.kc, k % head.kc);
        let room = |k: usize| if k > 0 { self.kernels.room(k, columns) } else { 0 };
        passes * room(head.kc) + room(rest)
    }

    /// Where the part from `k0` on of a tile of packed rows starts.
    fn rows_at(&self, head: &Packed<'a>, tile: usize, k0: usize) -> usize {
        let mr = self.kernels.mr;
        tile * self.before(head, head.d, mr) + self.before(head, k0, mr)
    }

    fn pack_rows(&self, rows: &[usize], heads: [Head<'_>; H]) {
        run(self.pool, self.small, self.rows.div_ceil(self.height), &|block| {
            for (head, packed) in heads.iter().zip(&self.heads) {
                let Packed { d, kc, .. } = *packed;
                with_scratch(self.kernels.mr * d, |gathered| {
                    for (tile, first, count) in self.tiles(block) {
                        for (to, &row) in gathered.chunks_exact_mut(d).zip(&rows[first..][..count]) {
                            to.copy_from_slice(&head.x[row * d..][..d]);
                        }
                        let gathered = MatRef::new(gathered, d);
                        for k0 in (0..d).step_by(kc) {
                            let k = kc.min(d - k0);
                            let room = self.kernels.room(k, self.kernels.mr);
                            // SAFETY: each tile is packed by one task.
                            let out = unsafe { packed.x.slice(self.rows_at(packed, tile, k0), room) };
                            match self.kernels.split {
                                // SAFETY: `count` rows were gathered, and the room is a tile's.
                                Some(split) => unsafe {
                                    (split.left)(gathered.data[k0..].as_ptr(), d, count, k, out.as_mut_ptr())
                                },
                                None => pack_a(self.kernels, &gathered, (0, count), (k0, k), out),
                            }
                        }
                    }
                });
            }
        });
    }

    /// Computes the logits of every row tile by tile and calls `body` for each row of each.
    ///
    /// With `dx`, `[rows, d]` of the first head, it receives the coefficients that `body` leaves, times `W`.
    /// After each tile `done` is given the first vocabulary entry, the number of them, and the first head's coefficients, whose
    /// rows are [`Stream::stride`] apart.
    pub(super) fn pass(&self, body: &Body<'_, H>, dx: Option<&mut [f32]>, mut done: impl FnMut(usize, usize, &[f32])) {
        let dx = dx.map(Disjoint::new);
        let tiles = self.vocab.div_ceil(self.width);
        let place = |index: usize| {
            let first = index * self.width;
            Place { index, first, width: self.width.min(self.vocab.saturating_sub(first)) }
        };
        let packs = self.pack_tasks(dx.is_some());
        run(self.pool, self.small, packs, &|task| self.pack_weight(place(0), task));
        let blocks = self.rows.div_ceil(self.height);
        for tile in 0..tiles {
            let (here, next) = (place(tile), place(tile + 1));
            let packs = if next.width > 0 { packs } else { 0 };
            run(self.pool, self.small, packs + blocks, &|task| match task.checked_sub(packs) {
                None => self.pack_weight(next, task),
                Some(block) => self.compute(block, here, body, dx),
            });
            // SAFETY: the run is over.
            done(here.first, here.width, unsafe { self.heads[0].logits.slice(0, self.rows * self.width) });
        }
    }

    /// Distance between rows of coefficients.
    pub(super) fn stride(&self) -> usize {
        self.width
    }

    /// Tasks that pack a tile, those of the first head's rows last.
    fn pack_tasks(&self, back: bool) -> usize {
        let columns = H * self.width.div_ceil(COLUMNS);
        columns + if back { self.heads[0].d.div_ceil(COLUMNS.max(self.heads[0].back.units().1)) } else { 0 }
    }

    fn pack_weight(&self, place: Place, task: usize) {
        let forward = self.width.div_ceil(COLUMNS);
        if task < H * forward {
            let (head, first) = (&self.heads[task / forward], task % forward * COLUMNS);
            if first >= place.width {
                return;
            }
            let cols = COLUMNS.min(place.width - first);
            let padded = place.width.next_multiple_of(GROUP);
            for k0 in (0..head.d).step_by(head.kc) {
                let k = head.kc.min(head.d - k0);
                let start = self.before(head, k0, padded) + self.kernels.room(k, first);
                let room = self.kernels.room(k, cols.next_multiple_of(GROUP));
                // SAFETY: each task packs columns of its own.
                let out = unsafe { head.weight[place.index % 2][0].slice(start, room) };
                head.forward.pack(self.kernels, Part { k0, k, j0: place.first + first, cols }, out);
            }
            return;
        }
        let head = &self.heads[0];
        let step = COLUMNS.max(head.back.units().1);
        let j0 = (task - H * forward) * step;
        let cols = step.min(head.d - j0);
        let room = |cols: usize| self.kernels.room(place.width, cols);
        // SAFETY: each task packs columns of its own.
        let out = unsafe { head.weight[place.index % 2][1].slice(room(j0), room(cols.next_multiple_of(GROUP))) };
        head.back.pack(self.kernels, Part { k0: place.first, k: place.width, j0, cols }, out);
    }

    /// The rows of a block against a tile.
    fn compute(&self, block: usize, place: Place, body: &Body<'_, H>, dx: Option<Disjoint<'_, f32>>) {
        let nr = self.kernels.nr;
        let padded = place.width.next_multiple_of(GROUP);
        // SAFETY: the level is the pool's.
        let _tiles = self.kernels.split.map(|split| unsafe { (split.tiles)() });
        for head in &self.heads {
            for k0 in (0..head.d).step_by(head.kc) {
                let k = head.kc.min(head.d - k0);
                let b = head.weight[place.index % 2][0].after(self.before(head, k0, padded));
                for j in (0..place.width).step_by(nr) {
                    for (tile, first, rows) in self.tiles(block) {
                        let a = head.x.after(self.rows_at(head, tile, k0));
                        let c = head.logits.after(first * self.width + j);
                        let beta = f32::from(u8::from(k0 > 0));
                        let sizes = [rows, nr.min(place.width - j), k];
                        // SAFETY: the operands are packed, and these logits are this task's.
                        unsafe { self.tile(sizes, (a, 0), b.after(self.kernels.room(k, j)), c, self.width, beta) };
                    }
                }
            }
        }
        let start = block * self.height;
        let rows = self.height.min(self.rows - start);
        let d = self.heads[0].d;
        for row in start..start + rows {
            // SAFETY: rows of a block are its task's.
            let logits = std::array::from_fn(|head| unsafe { self.heads[head].logits.slice(row * self.width, place.width) });
            let factor = body(row, place.first, logits);
            if let (Some(dx), true) = (dx, factor != 1.0 && place.index > 0) {
                // SAFETY: as above.
                unsafe { dx.slice(row * d, d) }.iter_mut().for_each(|dx| *dx *= factor);
            }
        }
        if let Some(dx) = dx {
            self.accumulate(block, place, dx);
        }
    }

    /// Adds the coefficients of a block times a tile to `dx`.
    fn accumulate(&self, block: usize, place: Place, dx: Disjoint<'_, f32>) {
        let (head, nr, k) = (&self.heads[0], self.kernels.nr, place.width);
        let stride = self.width;
        let beta = f32::from(u8::from(place.index > 0));
        // Coefficients are read where they are, unless kernels want them split.
        let room = self.kernels.split.map_or(0, |split| (split.room)(k));
        with_scratch(self.tiles(block).count() * room, |left| {
            let tiles =
                || self.tiles(block).map(|(tile, first, count)| (tile - block * self.height / self.kernels.mr, first, count));
            for (tile, first, count) in tiles() {
                if let Some(split) = self.kernels.split {
                    let (from, to) = (head.logits.after(first * stride).as_mut_ptr(), left[tile * room..].as_mut_ptr());
                    // SAFETY: the rows of coefficients are this task's, and the room is a tile's.
                    unsafe { (split.left)(from, stride, count, k, to) };
                }
            }
            let left = Disjoint::new(left);
            for j in (0..head.d).step_by(nr) {
                let b = head.weight[place.index % 2][1].after(self.kernels.room(k, j));
                for (tile, first, count) in tiles() {
                    let a = if room > 0 { (left.after(tile * room), 0) } else { (head.logits.after(first * stride), stride) };
                    let sizes = [count, nr.min(head.d - j), k];
                    // SAFETY: both sides are packed or this task's, and so are the rows of `dx`.
                    unsafe { self.tile(sizes, a, b, dx.after(first * head.d + j), head.d, beta) };
                }
            }
        });
    }

    /// One register tile: `c = a b + beta c`.
    ///
    /// # Safety
    /// `a` and `b` are packed for these `[rows, cols, k]`, or `a` has rows that are `a_stride` apart; `c` holds the tile, and
    /// nobody else uses it.
    unsafe fn tile(
        &self,
        [rows, cols, k]: [usize; 3],
        (a, a_stride): (Disjoint<'_, f32>, usize),
        b: Disjoint<'_, f32>,
        c: Disjoint<'_, f32>,
        ldc: usize,
        beta: f32,
    ) {
        debug_assert!(a.len() >= rows * k && b.len() >= self.kernels.nr * (k - 1) + cols && c.len() >= (rows - 1) * ldc + cols);
        // SAFETY: promised by the caller; the level is the pool's.
        unsafe {
            (self.kernels.tile)(&Tile {
                rows,
                cols,
                k,
                a: a.as_mut_ptr(),
                a_stride,
                b: b.as_mut_ptr(),
                b_stride: self.kernels.nr,
                copy: std::ptr::null_mut(),
                c: c.as_mut_ptr(),
                ldc,
                alpha: 1.0,
                beta,
                d: c.as_mut_ptr(),
                ldd: ldc,
                bias: std::ptr::null(),
            });
        }
    }
}
