//! What the passes share: a tile of queries, what it sees, and packing.

use super::Spec;
use crate::gemm::kernel::{Transpose, kernels};
use crate::isa::Isa;
use crate::simd::{Simd, simd_fn};
use std::ops::Range;

/// Lanes of a panel: what is transposed lies in panels of so many columns, three vectors of AVX-512.
pub(super) const PANEL: usize = 48;

/// Lanes of the widest level: rows are padded to it in scratch.
pub(super) const PAD: usize = 16;

/// Stands for the maximum of no scores. Finite, so that differences to it are numbers.
pub(super) const NO_SCORE: f32 = -1e30;

/// A maximum is kept until it is exceeded by this, in powers of two: weights of up to 2^8 do no harm,
/// and sums need to be scaled anew a few times only.
pub(super) const SLACK: f32 = 8.0;

/// Numbers of lanes.
static COUNT: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// `dim` rounded up to whole vectors of every level.
pub(super) fn padded(dim: usize) -> usize {
    dim.next_multiple_of(PAD)
}

/// How products of queries and keys become scores in powers of two, of which the exponential is
/// cheaper.
#[derive(Clone, Copy)]
pub(super) struct Units {
    /// What a product is multiplied by.
    pub(super) factor: f32,
    /// Whether products are turned into such scores first, because more than a factor is needed; the
    /// factor is one then.
    pub(super) bent: bool,
}

impl Units {
    pub(super) fn new(spec: &Spec, biased: bool) -> Units {
        // Maxima are taken of products, so their factor must be positive.
        let bent = biased || spec.softcap.is_some() || spec.scale.is_nan() || spec.scale <= 0.0;
        Units { factor: if bent { 1.0 } else { spec.scale * std::f32::consts::LOG2_E }, bent }
    }
}

/// A tile of at most `N` queries: a row, or a lane, each.
pub(super) struct Queries<const N: usize> {
    /// Queries that exist.
    pub(super) count: usize,
    /// Number of each query among the heads of all tokens: `token * heads + head`.
    pub(super) row: [usize; N],
    /// First and last key that each query sees.
    first: [f32; N],
    last: [f32; N],
    /// Keys before this are seen even if they come before the first, but not after the last.
    pinned: usize,
}

impl<const N: usize> Queries<N> {
    /// Queries at `(row, position)`, of which the first is repeated in the unused lanes.
    /// Positions count in keys, of which there are `keys`.
    pub(super) fn new(spec: &Spec, keys: usize, queries: impl ExactSizeIterator<Item = (usize, usize)>) -> Queries<N> {
        let (count, pinned) = (queries.len(), spec.pinned);
        let mut tile = Queries { count, row: [0; N], first: [0.0; N], last: [0.0; N], pinned };
        for (lane, (row, position)) in queries.enumerate() {
            let seen = spec.visible(position, keys);
            tile.row[lane] = row;
            // Exact: positions are far below 2^24 wherever floats of a cache fit in memory, and
            // the bounds are only compared.
            tile.first[lane] = seen.start as f32;
            tile.last[lane] = (seen.end - 1) as f32;
        }
        for lane in count..N {
            tile.row[lane] = tile.row[0];
            tile.first[lane] = tile.first[0];
            tile.last[lane] = tile.last[0];
        }
        tile
    }

    /// Tiles of at most `size` keys that any query sees, in order. They start at multiples of it.
    pub(super) fn tiles(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<N> {
        let first = self.first.iter().fold(f32::INFINITY, |a, &b| a.min(b)) as usize / size * size;
        let end = self.last.iter().fold(0.0, |a: f32, &b| a.max(b)) as usize + 1;
        let starts = (0..self.pinned.min(first)).step_by(size).chain((first..end).step_by(size));
        starts.map(move |start| start..end.min(start + size))
    }

    /// Whether the queries of all `lanes` see every key of `keys`.
    pub(super) fn see_all(&self, lanes: Range<usize>, keys: &Range<usize>) -> bool {
        let (start, end) = (keys.start as f32, (keys.end - 1) as f32);
        let early = keys.end <= self.pinned || self.first[lanes.clone()].iter().fold(true, |all, &first| all & (first <= start));
        early && self.last[lanes].iter().fold(true, |all, &last| all & (end <= last))
    }

    /// [`Queries::see_all`] where starts and ends ascend from lane to lane, as in the queries of a head.
    pub(super) fn ascend_and_see_all(&self, lanes: Range<usize>, keys: &Range<usize>) -> bool {
        let early = keys.end <= self.pinned || self.first[lanes.end - 1] <= keys.start as f32;
        early && (keys.end - 1) as f32 <= self.last[lanes.start]
    }

    /// The smallest range of `keys`, counted from their start, outside of which the query of a lane sees
    /// none. Starts and ends both ascend from lane to lane in the queries of a head.
    pub(super) fn span(&self, lane: usize, keys: &Range<usize>) -> Range<u32> {
        let at = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        let first = if keys.start < self.pinned { 0 } else { at(self.first[lane] as usize) };
        first as u32..at(self.last[lane] as usize + 1) as u32
    }

    /// `seen` where the query of a lane sees the vector of keys from `key` on, else `hidden`.
    #[inline(always)]
    pub(super) fn mask_keys<S: Simd>(&self, s: S, lane: usize, key: usize, seen: S::F, hidden: S::F) -> S::F {
        // SAFETY: there are as many numbers as lanes of the widest level.
        let keys = s.add(s.splat(key as f32), unsafe { s.load(COUNT.as_ptr()) });
        let near = s.le(s.splat(self.first[lane]), keys);
        let early = s.either(near, s.lt(keys, s.splat(self.pinned as f32)));
        s.select(s.both(early, s.le(keys, s.splat(self.last[lane]))), seen, hidden)
    }

    /// Bounds of the keys that the vector of queries at `lane` sees, for [`mask`].
    ///
    /// # Safety
    /// A whole vector from `lane` lies below `N`.
    #[inline(always)]
    pub(super) unsafe fn bounds<S: Simd>(&self, s: S, lane: usize) -> Bounds<S> {
        // SAFETY: promised by the caller.
        let (first, last) = unsafe { (s.load(self.first.as_ptr().add(lane)), s.load(self.last.as_ptr().add(lane))) };
        Bounds { first, last, pinned: self.pinned }
    }
}

/// The smallest range that holds all of them.
pub(super) fn union(spans: impl Iterator<Item = Range<u32>>) -> Range<usize> {
    let held = spans.filter(|span| !span.is_empty());
    let (start, end) = held.fold((u32::MAX, 0), |(start, end), span| (start.min(span.start), end.max(span.end)));
    start.min(end) as usize..end as usize
}

/// Writes `count` rows of `dim` floats, `stride` apart, as columns of panels of [`PANEL`] lanes, or of
/// as many as are left: a panel that begins at lane `p` is `[dim, its lanes]` at `p * dim`. Lanes are
/// padded with zeros to whole vectors.
pub(super) fn transpose(isa: Isa, from: &[f32], count: usize, stride: usize, dim: usize, out: &mut [f32]) {
    assert!(count > 0 && from.len() >= (count - 1) * stride + dim && out.len() >= padded(count) * dim);
    let kernels = kernels(isa);
    for start in (0..count).step_by(PAD) {
        let (panel, rows) = (start / PANEL * PANEL, PAD.min(count - start));
        let width = PANEL.min(padded(count) - panel);
        let out = &mut out[panel * dim + start - panel..];
        let (src, dst) = (from[start * stride..].as_ptr(), out.as_mut_ptr());
        // SAFETY: `rows` rows of `dim` floats lie in `from`; the lanes of this group of rows end in the panel, and
        // lanes before them are not touched.
        unsafe { (kernels.transpose)(Transpose { rows, len: dim, src, src_stride: stride, dst, dst_stride: width }) };
        if rows < PAD {
            out.chunks_mut(width).take(dim).for_each(|column| column[rows..PAD].fill(0.0));
        }
    }
}

/// Distance of rows of `width` floats in scratch: an odd number of cache lines, unless a part of a product
/// is the whole row, so that the rows of a part are spread over all sets of the first-level cache.
pub(super) fn pitch(width: usize) -> usize {
    if width <= 64 { width } else { ((width / PAD) | 1) * PAD }
}

/// Whether rows of `dim` floats that are `stride` apart are whole vectors and do not fall into few sets of the caches: with 128
/// floats, eight lines, from row to row, a part of four lines falls into half of the sets.
pub(super) fn lies_well(stride: usize, dim: usize) -> bool {
    dim == padded(dim) && !stride.is_multiple_of(128)
}

/// `count` rows of `dim` that are `stride` apart as the right operand of a product, and their distance:
/// where they are, if they are whole vectors and do not fall into few sets of the caches, or packed in
/// `scratch`, rows of [`pitch`], with zeros behind `dim`.
pub(super) fn right(isa: Isa, from: &[f32], count: usize, stride: usize, dim: usize, scratch: &mut [f32]) -> (*const f32, usize) {
    let width = padded(dim);
    if lies_well(stride, dim) {
        assert!(from.len() >= (count - 1) * stride + dim);
        return (from.as_ptr(), stride);
    }
    pack(isa, from, count, stride, dim, scratch);
    (scratch.as_ptr(), pitch(width))
}

simd_fn! {
    /// Copies `count` rows of `dim` floats, `stride` apart, to rows of [`pitch`] with zeros behind.
    pub(super) fn pack<S>(s, from: &[f32], count: usize, stride: usize, dim: usize, to: &mut [f32]) {
        let width = padded(dim);
        let pitch = pitch(width);
        assert!(from.len() >= (count - 1) * stride + dim && to.len() >= count * pitch);
        for row in 0..count {
            let (from, to) = (from[row * stride..].as_ptr(), to[row * pitch..].as_mut_ptr());
            for i in (0..width).step_by(S::LANES) {
                // SAFETY: `dim` floats are read of a row, `width` are written.
                unsafe { s.store(to.add(i), s.load_up_to(from.wrapping_add(i), dim.saturating_sub(i))) };
            }
        }
    }
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
    /// Element of a query, by its row, and a key of the run.
    pub(super) fn at(&self, row: usize, key: usize) -> usize {
        (row % self.heads * self.n + row / self.heads) * self.n + self.start + key
    }

    /// Copies what belongs to some lanes and keys, a row of `width` lanes for each key.
    pub(super) fn transpose(&self, rows: &[usize], keys: &Range<usize>, width: usize, out: &mut [f32]) {
        for (lane, &row) in rows.iter().enumerate() {
            let from = &self.all[self.at(row, keys.start)..][..keys.len()];
            for (out, from) in out[lane..].iter_mut().step_by(width).zip(from) {
                *out = *from;
            }
        }
    }
}

simd_fn! {
    /// `to = factor from`, for as many floats as `to` has.
    pub(super) fn scaled<S>(s, from: &[f32], factor: f32, to: &mut [f32]) {
        assert!(from.len() >= to.len());
        let factor = s.splat(factor);
        for i in (0..to.len()).step_by(S::LANES) {
            let left = to.len() - i;
            // SAFETY: no more than is left of either.
            unsafe { s.store_up_to(to.as_mut_ptr().add(i), left, s.mul(s.load_up_to(from.as_ptr().add(i), left), factor)) };
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
