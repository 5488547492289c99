//! What the forward and backward tiles share: a tile of queries, its mask, and packing.

use super::Spec;
use super::product::panel;
use crate::isa::Isa;
use crate::simd::{Simd, simd_fn};
use std::ops::Range;

/// Queries, and keys, of a tile.
pub(super) const TILE: usize = 64;

/// Lanes of the widest level: rows are padded to it in scratch.
const PAD: usize = 16;

/// Stands for the maximum of no scores. Finite, so that differences to it are numbers.
pub(super) const NO_SCORE: f32 = -1e30;

/// `dim` rounded up to whole vectors of every level.
pub(super) fn padded(dim: usize) -> usize {
    dim.next_multiple_of(PAD)
}

/// A tile of at most [`TILE`] queries: one lane each.
pub(super) struct Queries {
    /// Queries that exist.
    pub(super) count: usize,
    /// Number of each query among the heads of all tokens: `token * heads + head`.
    pub(super) row: [usize; TILE],
    /// First and last key that each query sees.
    pub(super) first: [f32; TILE],
    pub(super) last: [f32; TILE],
    /// Keys before this are seen even if they come before the first, but not after the last.
    pinned: usize,
}

impl Queries {
    /// Queries at `(row, position)`, of which the first is repeated in the unused lanes.
    /// Positions count in keys, of which there are `keys`.
    pub(super) fn new(spec: &Spec, keys: usize, queries: impl ExactSizeIterator<Item = (usize, usize)>) -> Queries {
        let (count, pinned) = (queries.len(), spec.pinned);
        let mut tile = Queries { count, row: [0; TILE], first: [0.0; TILE], last: [0.0; TILE], pinned };
        for (lane, (row, position)) in queries.enumerate() {
            let seen = spec.visible(position, keys);
            tile.row[lane] = row;
            // Exact: positions are far below 2^24 wherever floats of a cache fit in memory, and
            // the bounds are only compared.
            tile.first[lane] = seen.start as f32;
            tile.last[lane] = (seen.end - 1) as f32;
        }
        for lane in count..TILE {
            tile.row[lane] = tile.row[0];
            tile.first[lane] = tile.first[0];
            tile.last[lane] = tile.last[0];
        }
        tile
    }

    /// Lanes of whole vectors that hold the queries.
    pub(super) fn lanes(&self) -> usize {
        self.count.next_multiple_of(PAD)
    }

    /// Tiles of keys that any query sees, in order. They start at multiples of the tile.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let first = self.first.iter().fold(f32::INFINITY, |a, &b| a.min(b)) as usize / TILE * TILE;
        let end = self.last.iter().fold(0.0, |a: f32, &b| a.max(b)) as usize + 1;
        let starts = (0..self.pinned.min(first)).step_by(TILE).chain((first..end).step_by(TILE));
        starts.map(move |start| start..end.min(start + TILE))
    }

    /// Whether every query sees every key of `keys`.
    pub(super) fn see_all(&self, keys: &Range<usize>) -> bool {
        let early = keys.end <= self.pinned || self.first.iter().all(|&first| first <= keys.start as f32);
        early && self.last.iter().all(|&last| (keys.end - 1) as f32 <= last)
    }

    /// Whether the query of a lane sees every key of `keys`.
    pub(super) fn sees_all(&self, lane: usize, keys: &Range<usize>) -> bool {
        let early = keys.end <= self.pinned || self.first[lane] <= keys.start as f32;
        early && (keys.end - 1) as f32 <= self.last[lane]
    }

    /// `seen` where the query of a lane sees the keys, else `hidden`.
    #[inline(always)]
    pub(super) fn mask_keys<S: Simd>(&self, s: S, lane: usize, keys: S::F, seen: S::F, hidden: S::F) -> S::F {
        let near = s.le(s.splat(self.first[lane]), keys);
        let early = s.either(near, s.lt(keys, s.splat(self.pinned as f32)));
        s.select(s.both(early, s.le(keys, s.splat(self.last[lane]))), seen, hidden)
    }

    /// Bounds of the keys that the vector of queries at `lane` sees, for [`mask`].
    ///
    /// # Safety
    /// A whole vector from `lane` lies below [`TILE`].
    #[inline(always)]
    pub(super) unsafe fn bounds<S: Simd>(&self, s: S, lane: usize) -> Bounds<S> {
        // SAFETY: promised by the caller.
        let (first, last) = unsafe { (s.load(self.first.as_ptr().add(lane)), s.load(self.last.as_ptr().add(lane))) };
        Bounds { first, last, pinned: self.pinned }
    }

    /// Writes the queries of `from`, times `scale`, as columns of the panels of a [`Product`]'s right
    /// operand. Unused lanes are zero.
    ///
    /// [`Product`]: super::product::Product
    pub(super) fn transpose(&self, isa: Isa, from: &[f32], dim: usize, scale: f32, out: &mut [f32]) {
        let panel = panel(isa);
        for group in (0..self.lanes()).step_by(PAD) {
            // A block of a cache line's lanes, dimension by dimension, writes whole lines.
            let rows: [&[f32]; PAD] = std::array::from_fn(|i| &from[self.row[group + i] * dim..][..dim]);
            let used: [f32; PAD] = std::array::from_fn(|i| if group + i < self.count { scale } else { 0.0 });
            let out = &mut out[group / panel * panel * dim + group % panel..];
            for c in 0..dim {
                let out = &mut out[c * panel..][..PAD];
                for i in 0..PAD {
                    out[i] = rows[i][c] * used[i];
                }
            }
        }
    }

    /// Copies the queries of `from`, times `scale`, to rows of `padded(dim)` with zeros behind.
    pub(super) fn pack(&self, from: &[f32], dim: usize, scale: f32, out: &mut [f32]) {
        let width = padded(dim);
        for (out, &row) in out.chunks_exact_mut(width).zip(&self.row[..self.count]) {
            for (out, &from) in out.iter_mut().zip(&from[row * dim..][..dim]) {
                *out = from * scale;
            }
            out[dim..].fill(0.0);
        }
    }
}

/// `count` rows of `dim` that are `stride` apart, and their distance: where they are, if they are
/// whole vectors and do not all fall into the same few sets of the caches, or packed in `scratch`
/// with zeros behind.
pub(super) fn rows(from: &[f32], count: usize, stride: usize, dim: usize, scratch: &mut [f32]) -> (*const f32, usize) {
    assert!(from.len() >= (count - 1) * stride + dim);
    let width = padded(dim);
    // 512 floats, 2 KB: every other row would share its sets.
    if dim == width && !stride.is_multiple_of(512) {
        return (from.as_ptr(), stride);
    }
    for (row, out) in scratch.chunks_exact_mut(width).take(count).enumerate() {
        out[..dim].copy_from_slice(&from[row * stride..][..dim]);
        out[dim..].fill(0.0);
    }
    (scratch.as_ptr(), width)
}

/// Keys that a vector of queries sees.
#[derive(Clone, Copy)]
pub(super) struct Bounds<S: Simd> {
    first: S::F,
    last: S::F,
    pinned: usize,
}

/// `seen` in the lanes that see the key, all of them without bounds, else `hidden`.
#[inline(always)]
pub(super) fn mask<S: Simd>(s: S, bounds: Option<Bounds<S>>, key: usize, seen: S::F, hidden: S::F) -> S::F {
    match bounds {
        Some(bounds) => {
            let at = s.splat(key as f32);
            let before = s.le(at, bounds.last);
            let both = if key < bounds.pinned { before } else { s.both(s.le(bounds.first, at), before) };
            s.select(both, seen, hidden)
        }
        None => seen,
    }
}

/// What is added to the scores of one run.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a> {
    /// `[heads, n, n]`.
    pub(super) all: &'a [f32],
    pub(super) n: usize,
    pub(super) heads: usize,
    /// First token of the run.
    pub(super) start: usize,
}

impl Bias<'_> {
    /// Element of a query, by its row, and the first key of a tile.
    pub(super) fn at(&self, row: usize, key: usize) -> usize {
        (row % self.heads * self.n + row / self.heads) * self.n + self.start + key
    }

    /// Copies what belongs to a tile of scores, queries as lanes.
    pub(super) fn transpose(&self, queries: &Queries, keys: &Range<usize>, out: &mut [f32]) {
        for (lane, &row) in queries.row.iter().enumerate() {
            let from = &self.all[self.at(row, keys.start)..][..keys.len()];
            for (out, from) in out[lane..].iter_mut().step_by(TILE).zip(from) {
                *out = *from;
            }
        }
    }
}

simd_fn! {
    /// `x *= scale`.
    pub(super) fn scale<S>(s, x: &mut [f32], scale: f32) {
        let (pointer, scale) = (x.as_mut_ptr(), s.splat(scale));
        // SAFETY: in place on one slice.
        unsafe { crate::simd::map(s, pointer, pointer, x.len(), |x| s.mul(x, scale)) };
    }
}
