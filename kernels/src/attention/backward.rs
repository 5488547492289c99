//! The backward pass of one head over one run.
//!
//! ```text
//! P^T  = e^(K Q^T - lse)       dP^T = V dO^T       dS^T = P^T (dP^T - D),  D = rowsum(dO O)
//! dV  += P^T dO                dK  += dS^T Q       dQ  += dS K
//! ```
//!
//! Tiles of queries are the outer loop: `dQ` stays in scratch, `dK` and `dV` accumulate over
//! them in order. Query heads that share a key head have `dK` and `dV` of their own, which are
//! added in the order of the heads afterwards.

use super::Spec;
use super::forward::Keys;
use super::product::{Layout, Product};
use super::tile::{self, Queries, TILE, mask, padded};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::Disjoint;
use crate::simd::{math, simd_fn};
use std::ops::Range;

/// Buffers of the shape of the queries, and what belongs to the head.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) q: &'a [f32],
    pub(super) o: &'a [f32],
    pub(super) d_o: &'a [f32],
    /// One for each token.
    pub(super) lse: &'a [f32],
    pub(super) number: usize,
}

/// Adds what the queries `rows` of a run contribute to `d_k` and `d_v` (`run.len()` rows of
/// `padded(head_dim)` and `padded(value_dim)`) and gives each of their `d_q` to `out`. `keys` start
/// at the run. Gradients of a bias are written where they are not zero.
pub(super) fn run(
    isa: Isa,
    spec: &Spec,
    head: Head<'_>,
    keys: Keys<'_>,
    run: Range<usize>,
    rows: Range<usize>,
    d_k: &mut [f32],
    d_v: &mut [f32],
    d_bias: Option<&Disjoint<'_, f32>>,
    mut out: impl FnMut(usize, &[f32]),
) {
    let (dim, value_dim) = (spec.head_dim, spec.value_dim);
    let (width, value_width) = (padded(dim), padded(value_dim));
    assert!(d_k.len() >= run.len() * width && d_v.len() >= run.len() * value_width);
    let biased = keys.bias.map_or(0, |_| TILE * TILE);
    let floats = TILE * (dim + value_dim + 2 * TILE + 3 * width + 2 * value_width) + 2 * biased;
    with_scratch(floats, |scratch| {
        let (qt, rest) = scratch.split_at_mut(TILE * dim);
        let (d_ot, rest) = rest.split_at_mut(TILE * value_dim);
        let (p, rest) = rest.split_at_mut(TILE * TILE);
        let (d_s, rest) = rest.split_at_mut(TILE * TILE);
        let (q, rest) = rest.split_at_mut(TILE * width);
        let (d_o, rest) = rest.split_at_mut(TILE * value_width);
        let (packed_k, rest) = rest.split_at_mut(TILE * width);
        let (packed_v, rest) = rest.split_at_mut(TILE * value_width);
        let (d_q, rest) = rest.split_at_mut(TILE * width);
        let (bias, d_bias_t) = rest.split_at_mut(biased);
        for begin in rows.clone().step_by(TILE) {
            let count = TILE.min(rows.end - begin);
            let first = run.start + begin;
            let places = (0..count).map(|i| ((first + i) * spec.heads + head.number, begin + i));
            let queries = Queries::new(spec, run.len(), places);
            queries.transpose(isa, head.q, dim, spec.scale, qt);
            queries.transpose(isa, head.d_o, value_dim, 1.0, d_ot);
            queries.pack(head.q, dim, spec.scale, q);
            queries.pack(head.d_o, value_dim, 1.0, d_o);
            let mut state = Rows { lse: [0.0; TILE], delta: [0.0; TILE] };
            state.lse[..count].copy_from_slice(&head.lse[first..][..count]);
            for (lane, delta) in state.delta[..count].iter_mut().enumerate() {
                let o = &head.o[queries.row[lane] * value_dim..][..value_dim];
                *delta = dot(isa, o, &d_o[lane * value_width..][..value_dim]);
            }
            d_q.fill(0.0);
            let lanes = queries.lanes();
            for tile in queries.tiles() {
                let (start, len) = (tile.start, tile.len());
                let (k, k_stride) = tile::rows(&keys.k[start * keys.k_stride..], len, keys.k_stride, dim, packed_k);
                let (v, v_stride) = tile::rows(&keys.v[start * keys.v_stride..], len, keys.v_stride, value_dim, packed_v);
                let d_k = &mut d_k[start * width..][..len * width];
                let d_v = &mut d_v[start * value_width..][..len * value_width];
                let scores = Product {
                    m: len,
                    n: lanes,
                    k: dim,
                    a: k,
                    a_row: k_stride,
                    a_step: 1,
                    b: qt.as_ptr(),
                    b_layout: Layout::Panels,
                    c: p.as_mut_ptr(),
                    ldc: TILE,
                    adds: false,
                };
                // SAFETY: `len` rows of keys and values, `dim` rows of transposed queries, whole tiles.
                unsafe {
                    scores.run(isa);
                    Product { k: value_dim, a: v, a_row: v_stride, b: d_ot.as_ptr(), c: d_s.as_mut_ptr(), ..scores }.run(isa);
                }
                if let Some(from) = &keys.bias {
                    from.transpose(&queries, &tile, bias);
                }
                chain(isa, spec, &queries, tile.clone(), &state, bias, p, d_s, d_bias_t);
                if let (Some(from), Some(out)) = (&keys.bias, d_bias) {
                    for (lane, &row) in queries.row[..count].iter().enumerate() {
                        // SAFETY: the scores of one query belong to one task.
                        let out = unsafe { out.slice(from.at(row, start), len) };
                        for (out, d) in out.iter_mut().zip(d_bias_t[lane..].iter().step_by(TILE)) {
                            *out = *d;
                        }
                    }
                }
                let d_values = Product {
                    m: len,
                    n: value_width,
                    k: count,
                    a: p.as_ptr(),
                    a_row: TILE,
                    a_step: 1,
                    b: d_o.as_ptr(),
                    b_layout: Layout::Rows(value_width),
                    c: d_v.as_mut_ptr(),
                    ldc: value_width,
                    adds: true,
                };
                let d_keys = Product {
                    n: width,
                    a: d_s.as_ptr(),
                    b: q.as_ptr(),
                    b_layout: Layout::Rows(width),
                    c: d_k.as_mut_ptr(),
                    ldc: width,
                    ..d_values
                };
                // SAFETY: whole tiles in scratch; `len` rows in the gradients of the keys and values,
                // `count` in those of the queries.
                unsafe {
                    d_values.run(isa);
                    d_keys.run(isa);
                    Product {
                        m: count,
                        n: width,
                        k: len,
                        a: d_s.as_ptr(),
                        a_row: 1,
                        a_step: TILE,
                        b: k,
                        b_layout: Layout::Rows(k_stride),
                        c: d_q.as_mut_ptr(),
                        ldc: width,
                        adds: true,
                    }
                    .run(isa);
                }
            }
            for (lane, d_q) in d_q.chunks_exact_mut(width).take(count).enumerate() {
                tile::scale(isa, d_q, spec.scale);
                out(first + lane, &d_q[..dim]);
            }
        }
    });
}

/// What the backward pass needs of each lane's row.
struct Rows {
    lse: [f32; TILE],
    delta: [f32; TILE],
}

simd_fn! {
    /// Turns scores into weights, and gradients of weights into gradients of scores. A `bias` that
    /// is not empty has a tile's layout, and so have its gradients.
    fn chain<S>(
        s,
        spec: &Spec,
        queries: &Queries,
        keys: Range<usize>,
        rows: &Rows,
        bias: &[f32],
        scores: &mut [f32],
        d_weights: &mut [f32],
        d_bias: &mut [f32],
    ) {
        assert!(keys.len() <= TILE && scores.len() >= TILE * TILE && d_weights.len() >= TILE * TILE);
        assert!(bias.len() == d_bias.len() && (bias.is_empty() || bias.len() >= TILE * TILE));
        let masked = !queries.see_all(&keys);
        for lane in (0..queries.lanes()).step_by(S::LANES) {
            // SAFETY: whole vectors below `TILE` lanes, rows below `TILE`.
            unsafe {
                let scores = scores.as_mut_ptr().add(lane);
                let d_weights = d_weights.as_mut_ptr().add(lane);
                let bounds = if masked { Some(queries.bounds(s, lane)) } else { None };
                let lse = s.load(rows.lse.as_ptr().add(lane));
                let delta = s.load(rows.delta.as_ptr().add(lane));
                for (row, key) in keys.clone().enumerate() {
                    let mut score = s.load(scores.add(row * TILE));
                    let mut slope = s.splat(1.0);
                    if let Some(cap) = spec.softcap {
                        let bent = math::tanh(s, s.mul(score, s.splat(1.0 / cap)));
                        slope = s.fnma(bent, bent, slope);
                        score = s.mul(s.splat(cap), bent);
                    }
                    if !bias.is_empty() {
                        score = s.add(score, s.load(bias.as_ptr().add(row * TILE + lane)));
                    }
                    let weight = mask(s, bounds, key, math::exp(s, s.sub(score, lse)), s.zero());
                    s.store(scores.add(row * TILE), weight);
                    let mut d_score = s.mul(weight, s.sub(s.load(d_weights.add(row * TILE)), delta));
                    if !bias.is_empty() {
                        s.store(d_bias.as_mut_ptr().add(row * TILE + lane), d_score);
                    }
                    if spec.softcap.is_some() {
                        d_score = s.mul(d_score, slope);
                    }
                    s.store(d_weights.add(row * TILE), d_score);
                }
            }
        }
    }
}

simd_fn! {
    fn dot<S>(s, a: &[f32], b: &[f32]) -> f32 {
        let len = a.len().min(b.len());
        let mut acc = s.zero();
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: below both lengths.
            acc = unsafe { s.fma(s.load_up_to(a.as_ptr().add(i), n), s.load_up_to(b.as_ptr().add(i), n), acc) };
        }
        s.sum(acc)
    }
}
