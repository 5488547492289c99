//! The forward tile: one tile of queries against all keys that it sees.
//!
//! ```text
//! S^T = K Q^T        [keys, queries]   queries are lanes
//! P^T = e^(S^T - m)  m, l: running maximum and sum of each lane
//! O   = P V          [queries, dim]    rescaled when m rises
//! ```

use super::Spec;
use super::product::{Layout, Product};
use super::tile::{self, NO_SCORE, Queries, TILE, mask, padded};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::simd::{math, simd_fn};

/// Keys and values of one head: row `j` is at `j * stride`.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) stride: usize,
}

/// Attends a tile; `out` receives each lane's result (`dim` floats) and its log of the sum of
/// exponentials.
pub(super) fn attend(
    isa: Isa,
    spec: &Spec,
    queries: &Queries,
    q: &[f32],
    keys: Keys<'_>,
    mut out: impl FnMut(usize, &[f32], f32),
) {
    let dim = spec.head_dim;
    let width = padded(dim);
    with_scratch(TILE * (dim + TILE + 2 * width), |scratch| {
        let (qt, rest) = scratch.split_at_mut(TILE * dim);
        let (scores, rest) = rest.split_at_mut(TILE * TILE);
        let (packed, o) = rest.split_at_mut(TILE * width);
        queries.transpose(isa, q, dim, spec.scale, qt);
        let mut state = State { top: [NO_SCORE; TILE], sum: [0.0; TILE], shrink: [1.0; TILE] };
        let range = queries.keys();
        for start in range.clone().step_by(TILE) {
            let tile = start..range.end.min(start + TILE);
            let fresh = start == range.start;
            let lanes = queries.lanes();
            let (k, k_stride) = tile::rows(&keys.k[start * keys.stride..], tile.len(), keys.stride, dim, packed);
            // SAFETY: `tile.len()` rows of keys, `dim` rows of transposed queries, and a tile of scores.
            unsafe {
                Product {
                    m: tile.len(),
                    n: lanes,
                    k: dim,
                    a: k,
                    a_row: k_stride,
                    a_step: 1,
                    b: qt.as_ptr(),
                    b_layout: Layout::Panels,
                    c: scores.as_mut_ptr(),
                    ldc: TILE,
                    adds: false,
                }
                .run(isa);
            }
            soften(isa, spec, queries, tile.clone(), &mut state, scores);
            if !fresh {
                for (o, &shrink) in o.chunks_exact_mut(width).zip(&state.shrink).take(queries.count) {
                    if shrink != 1.0 {
                        tile::scale(isa, o, shrink);
                    }
                }
            }
            let (v, v_stride) = tile::rows(&keys.v[start * keys.stride..], tile.len(), keys.stride, dim, packed);
            // SAFETY: the tile's scores are in scratch, its values are `tile.len()` rows, and `o` has rows for all queries.
            unsafe {
                Product {
                    m: queries.count,
                    n: width,
                    k: tile.len(),
                    a: scores.as_ptr(),
                    a_row: 1,
                    a_step: TILE,
                    b: v,
                    b_layout: Layout::Rows(v_stride),
                    c: o.as_mut_ptr(),
                    ldc: width,
                    adds: !fresh,
                }
                .run(isa);
            }
        }
        for (lane, o) in o.chunks_exact_mut(width).enumerate().take(queries.count) {
            tile::scale(isa, o, 1.0 / state.sum[lane]);
            out(lane, &o[..dim], state.top[lane] + state.sum[lane].ln());
        }
    });
}

/// Running softmax of the lanes.
struct State {
    top: [f32; TILE],
    sum: [f32; TILE],
    /// What the last tile multiplied earlier sums by.
    shrink: [f32; TILE],
}

simd_fn! {
    /// Turns scores into weights relative to the running maximum.
    fn soften<S>(
        s,
        spec: &Spec,
        queries: &Queries,
        keys: std::ops::Range<usize>,
        state: &mut State,
        scores: &mut [f32],
    ) {
        assert!(keys.len() <= TILE && scores.len() >= TILE * TILE);
        let masked = !queries.see_all(&keys);
        let hidden = s.splat(f32::NEG_INFINITY);
        for lane in (0..queries.lanes()).step_by(S::LANES) {
            // SAFETY: whole vectors below `TILE` lanes, rows below `TILE`.
            unsafe {
                let scores = scores.as_mut_ptr().add(lane);
                let bounds = masked.then(|| {
                    (s.load(queries.first.as_ptr().add(lane)), s.load(queries.last.as_ptr().add(lane)))
                });
                let before = s.load(state.top.as_ptr().add(lane));
                let mut top = before;
                if masked || spec.softcap.is_some() {
                    for (row, key) in keys.clone().enumerate() {
                        let mut score = s.load(scores.add(row * TILE));
                        if let Some(cap) = spec.softcap {
                            score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, s.splat(1.0 / cap))));
                        }
                        score = mask(s, bounds, key, score, hidden);
                        s.store(scores.add(row * TILE), score);
                        top = s.max(score, top);
                    }
                } else {
                    for row in 0..keys.len() {
                        top = s.max(s.load(scores.add(row * TILE)), top);
                    }
                }
                let mut sum = s.zero();
                for row in 0..keys.len() {
                    let weight = math::exp(s, s.sub(s.load(scores.add(row * TILE)), top));
                    s.store(scores.add(row * TILE), weight);
                    sum = s.add(sum, weight);
                }
                let shrink = math::exp(s, s.sub(before, top));
                let total = s.fma(s.load(state.sum.as_ptr().add(lane)), shrink, sum);
                s.store(state.sum.as_mut_ptr().add(lane), total);
                s.store(state.top.as_mut_ptr().add(lane), top);
                s.store(state.shrink.as_mut_ptr().add(lane), shrink);
            }
        }
    }
}
