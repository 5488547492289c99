//! Splits attention into tasks for the wide levels.

use super::forward::{Keys, attend};
use super::tile::{Queries, TILE, padded};
use super::{Place, Spec, backward as head_backward};
use crate::gemm::scratch::with_scratch;
use crate::pool::{Disjoint, Pool};
use std::ops::Range;

/// Floats of the partial gradients that may exist at a time, 32 MB, unless one key head needs more.
/// The calling thread keeps them: fresh pages would cost more than the sums.
const PARTIAL: usize = 8 << 20;

pub(super) fn forward(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    runs: &[Range<usize>],
    o: &mut [f32],
    lse: &mut [f32],
) {
    let dim = spec.head_dim;
    // Long tiles first: with a causal mask those at the end of long runs cost the most.
    let mut tiles: Vec<(&Range<usize>, usize)> =
        runs.iter().flat_map(|run| (0..run.len()).step_by(TILE).map(move |begin| (run, begin))).collect();
    tiles.sort_by_key(|&(_, begin)| std::cmp::Reverse(begin));
    let (o, lse) = (Disjoint::new(o), Disjoint::new(lse));
    pool.run(tiles.len() * spec.heads, &|task| {
        let ((run, begin), head) = (tiles[task / spec.heads], task % spec.heads);
        let count = TILE.min(run.len() - begin);
        let first = run.start + begin;
        let places = (0..count).map(|i| ((first + i) * spec.q_width() + head * dim, begin + i));
        let queries = Queries::new(spec, run.len(), places);
        let stride = spec.kv_width();
        let at = run.start * stride + head / spec.group() * dim;
        let keys = Keys { k: &k[at..], v: &v[at..], stride };
        attend(pool.isa(), spec, &queries, q, keys, |lane, result, log_sum| {
            // SAFETY: each head of each token belongs to one task.
            unsafe {
                o.slice(queries.offset[lane], dim).copy_from_slice(result);
                lse.slice(head * n + first + lane, 1)[0] = log_sum;
            }
        });
    });
}

pub(super) fn cached(
    pool: &Pool,
    spec: &Spec,
    capacity: usize,
    places: &[Place],
    q: &[f32],
    k_cache: &[f32],
    v_cache: &[f32],
    o: &mut [f32],
) {
    let (dim, group) = (spec.head_dim, spec.group());
    // The cache holds nothing later than a query that it may see.
    let spec = &Spec { causal: true, ..*spec };
    let mut start = 0;
    let mut tiles = Vec::new();
    for chunk in places.chunk_by(|a, b| a.slot == b.slot && a.position + 1 == b.position) {
        // All query heads of a key head are lanes: a single new token fills several.
        let lanes = chunk.len() * group;
        tiles.extend((0..lanes).step_by(TILE).map(|lane| (start, lane..lanes.min(lane + TILE))));
        start += chunk.len();
    }
    let o = Disjoint::new(o);
    pool.run(tiles.len() * spec.kv_heads, &|task| {
        let ((start, lanes), kv_head) = (&tiles[task / spec.kv_heads], task % spec.kv_heads);
        let queries = Queries::new(
            spec,
            capacity,
            lanes.clone().map(|lane| {
                let row = start + lane / group;
                let head = kv_head * group + lane % group;
                (row * spec.q_width() + head * dim, places[row].position)
            }),
        );
        let stride = spec.kv_width();
        let at = places[*start].slot * capacity * stride + kv_head * dim;
        let keys = Keys { k: &k_cache[at..], v: &v_cache[at..], stride };
        attend(pool.isa(), spec, &queries, q, keys, |lane, result, _| {
            // SAFETY: each head of each row belongs to one task.
            unsafe { o.slice(queries.offset[lane], dim) }.copy_from_slice(result);
        });
    });
}

pub(super) fn backward(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    runs: &[Range<usize>],
    o: &[f32],
    lse: &[f32],
    d_o: &[f32],
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    let (dim, group, stride) = (spec.head_dim, spec.group(), spec.kv_width());
    let width = padded(dim);
    if n == 0 {
        return;
    }
    let mut order: Vec<&Range<usize>> = runs.iter().collect();
    order.sort_by_key(|run| std::cmp::Reverse(run.len()));
    let (d_q, d_k, d_v) = (Disjoint::new(d_q), Disjoint::new(d_k), Disjoint::new(d_v));
    // Few long tasks balance badly, so their queries are halved; by shape, so that sums do not change.
    let halves = if spec.heads * runs.len() < 16 && order[0].len() >= 8 * TILE { 2 } else { 1 };
    // Partial gradients of keys and values: [heads, halves, n, width] twice.
    let one = n * width;
    let parts = group * halves;
    let batch = (PARTIAL / (2 * parts * one)).clamp(1, spec.kv_heads);
    with_scratch(2 * batch * parts * one, |partial| {
        for begin in (0..spec.kv_heads).step_by(batch) {
            let kv_heads = batch.min(spec.kv_heads - begin);
            let heads = kv_heads * group;
            pool.run_pieces(partial, 1 << 16, |_, part| part.fill(0.0));
            let (keys_part, values_part) = partial.split_at_mut(batch * parts * one);
            let (keys_part, values_part) = (Disjoint::new(keys_part), Disjoint::new(values_part));
            pool.run(order.len() * heads * halves, &|task| {
                let (run, index) = (order[task / (heads * halves)], task % (heads * halves));
                let (head, half) = (begin * group + index / halves, index % halves);
                let rows = if halves == 2 { halve(spec, run.len())[half].clone() } else { 0..run.len() };
                let at = run.start * stride + head / group * dim;
                let keys = Keys { k: &k[at..], v: &v[at..], stride };
                let args = head_backward::Head { q, o, d_o, lse: &lse[head * n..][..n], at: head * dim };
                let place = index * one + run.start * width;
                // SAFETY: each run of each head's half belongs to one task.
                let (d_k, d_v) =
                    unsafe { (keys_part.slice(place, run.len() * width), values_part.slice(place, run.len() * width)) };
                head_backward::run(pool.isa(), spec, args, keys, run.clone(), rows, d_k, d_v, |token, result| {
                    // SAFETY: each head of each token belongs to one task.
                    unsafe { d_q.slice(token * spec.q_width() + head * dim, dim) }.copy_from_slice(result);
                });
            });
            // Sum the query heads of each key head and their halves, in order.
            let tokens = 64;
            pool.run(n.div_ceil(tokens), &|task| {
                for token in task * tokens..n.min((task + 1) * tokens) {
                    for kv_head in 0..kv_heads {
                        let place = token * stride + (begin + kv_head) * dim;
                        for (part, out) in [(&keys_part, &d_k), (&values_part, &d_v)] {
                            // SAFETY: this task alone has the token now.
                            let out = unsafe { out.slice(place, dim) };
                            for member in 0..parts {
                                let from = (kv_head * parts + member) * one + token * width;
                                // SAFETY: as above, and nobody writes the parts any more.
                                let from = unsafe { part.slice(from, dim) };
                                if member == 0 {
                                    out.copy_from_slice(from);
                                } else {
                                    for (out, from) in out.iter_mut().zip(from) {
                                        *out += *from;
                                    }
                                }
                            }
                        }
                    }
                }
            });
        }
    });
}

/// Cuts the queries of a run into two ranges, from a multiple of the tile, of about equal work.
fn halve(spec: &Spec, len: usize) -> [Range<usize>; 2] {
    // Half of the area of a triangle, or of a band or square.
    let share = if spec.causal && spec.window.is_none() { std::f64::consts::FRAC_1_SQRT_2 } else { 0.5 };
    let middle = ((len as f64 * share / TILE as f64).round() as usize * TILE).min(len);
    [0..middle, middle..len]
}
