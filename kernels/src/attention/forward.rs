//! The forward tile: one tile of queries against all keys that it sees.
//!
//! ```text
//! S^T = K Q^T        [keys, queries]   queries are lanes
//! P^T = e^(S^T - m)  m, l: running maximum and sum of each lane
//! O   = P V          [queries, dim]    rescaled when m rises
//! ```

use super::Spec;
use super::product::{Layout, Product};
use super::tile::{self, Bias, NO_SCORE, Queries, TILE, mask, padded};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::simd::{math, simd_fn};

/// Keys and values of one head of one run: row `j` of the keys is at `j * k_stride`.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) k_stride: usize,
    pub(super) v_stride: usize,
    pub(super) bias: Option<Bias<'a>>,
}

/// Attends a tile of one head; `out` receives each lane's result (`value_dim` floats) and its log of
/// the sum of exponentials, in which a `sink` takes part.
pub(super) fn attend(
    isa: Isa,
    spec: &Spec,
    queries: &Queries,
    q: &[f32],
    keys: Keys<'_>,
    sink: Option<f32>,
    mut out: impl FnMut(usize, &[f32], f32),
) {
    let (dim, value_dim) = (spec.head_dim, spec.value_dim);
    let width = padded(value_dim);
    let biased = keys.bias.map_or(0, |_| TILE * TILE);
    with_scratch(TILE * (dim + TILE + padded(dim.max(value_dim)) + width) + biased, |scratch| {
        let (qt, rest) = scratch.split_at_mut(TILE * dim);
        let (scores, rest) = rest.split_at_mut(TILE * TILE);
        let (o, rest) = rest.split_at_mut(TILE * width);
        let (bias, packed) = rest.split_at_mut(biased);
        queries.transpose(isa, q, dim, spec.scale, qt);
        let mut state = State { top: [NO_SCORE; TILE], sum: [0.0; TILE], shrink: [1.0; TILE] };
        let lanes = queries.lanes();
        for (number, tile) in queries.tiles().enumerate() {
            let fresh = number == 0;
            let k = &keys.k[tile.start * keys.k_stride..];
            let (k, k_stride) = tile::rows(k, tile.len(), keys.k_stride, dim, packed);
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
            if let Some(from) = &keys.bias {
                from.transpose(queries, &tile, bias);
            }
            soften(isa, spec, queries, tile.clone(), bias, &mut state, scores);
            if !fresh {
                for (o, &shrink) in o.chunks_exact_mut(width).zip(&state.shrink).take(queries.count) {
                    if shrink != 1.0 {
                        tile::scale(isa, o, shrink);
                    }
                }
            }
            let v = &keys.v[tile.start * keys.v_stride..];
            let (v, v_stride) = tile::rows(v, tile.len(), keys.v_stride, value_dim, packed);
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
            let (mut top, mut sum, mut shrink) = (state.top[lane], state.sum[lane], 1.0);
            if let Some(sink) = sink {
                // The highest of both keeps every exponential finite.
                let higher = top.max(sink);
                shrink = (top - higher).exp();
                sum = sum * shrink + (sink - higher).exp();
                top = higher;
            }
            tile::scale(isa, o, shrink / sum);
            out(lane, &o[..value_dim], top + sum.ln());
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
    /// Turns scores into weights relative to the running maximum. A `bias` that is not empty has a
    /// tile's layout.
    fn soften<S>(
        s,
        spec: &Spec,
        queries: &Queries,
        keys: std::ops::Range<usize>,
        bias: &[f32],
        state: &mut State,
        scores: &mut [f32],
    ) {
        assert!(keys.len() <= TILE && scores.len() >= TILE * TILE && (bias.is_empty() || bias.len() >= TILE * TILE));
        let masked = !queries.see_all(&keys);
        let hidden = s.splat(f32::NEG_INFINITY);
        for lane in (0..queries.lanes()).step_by(S::LANES) {
            // SAFETY: whole vectors below `TILE` lanes, rows below `TILE`.
            unsafe {
                let scores = scores.as_mut_ptr().add(lane);
                let bounds = if masked { Some(queries.bounds(s, lane)) } else { None };
                let before = s.load(state.top.as_ptr().add(lane));
                let mut top = before;
                if masked || spec.softcap.is_some() || !bias.is_empty() {
                    for (row, key) in keys.clone().enumerate() {
                        let mut score = s.load(scores.add(row * TILE));
                        if let Some(cap) = spec.softcap {
                            score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, s.splat(1.0 / cap))));
                        }
                        if !bias.is_empty() {
                            score = s.add(score, s.load(bias.as_ptr().add(row * TILE + lane)));
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
