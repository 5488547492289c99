//! Splits attention into tasks for the wide levels.

use super::forward::{Keys, attend};
use super::tile::{Bias, Queries, TILE, padded};
use super::{Inputs, Saved, Spec, backward as head_backward};
use crate::gemm::scratch::with_scratch;
use crate::pool::{Disjoint, Pool};
use std::ops::Range;

/// Floats of the partial gradients that may exist at a time, 32 MB, unless one key head needs more.
/// The calling thread keeps them: fresh pages would cost more than the sums.
const PARTIAL: usize = 8 << 20;

/// Keys and values of a head in a run.
fn keys<'a>(spec: &Spec, x: &Inputs<'a>, run: &Range<usize>, head: usize) -> Keys<'a> {
    let (k_stride, v_stride, kv_head) = (spec.k_width(), spec.v_width(), head / spec.group());
    Keys {
        k: &x.k[run.start * k_stride + kv_head * spec.head_dim..],
        v: &x.v[run.start * v_stride + kv_head * spec.value_dim..],
        k_stride,
        v_stride,
        bias: x.bias.map(|all| Bias { all, n: x.segments.len(), heads: spec.heads, start: run.start }),
    }
}

pub(super) fn forward(pool: &Pool, spec: &Spec, x: &Inputs<'_>, runs: &[Range<usize>], o: &mut [f32], lse: &mut [f32]) {
    let n = x.segments.len();
    // Long tiles first: with a causal mask those at the end of long runs cost the most.
    let mut tiles: Vec<(&Range<usize>, usize)> =
        runs.iter().flat_map(|run| (0..run.len()).step_by(TILE).map(move |begin| (run, begin))).collect();
    tiles.sort_by_key(|&(_, begin)| std::cmp::Reverse(begin));
    let (o, lse) = (Disjoint::new(o), Disjoint::new(lse));
    pool.run(tiles.len() * spec.heads, &|task| {
        let ((run, begin), head) = (tiles[task / spec.heads], task % spec.heads);
        let count = TILE.min(run.len() - begin);
        let first = run.start + begin;
        let places = (0..count).map(|i| ((first + i) * spec.heads + head, begin + i));
        let queries = Queries::new(spec, run.len(), places);
        let sink = x.sinks.map(|sinks| sinks[head]);
        attend(pool.isa(), spec, &queries, x.q, keys(spec, x, run, head), sink, |lane, result, log_sum| {
            // SAFETY: each head of each token belongs to one task.
            unsafe {
                o.slice(queries.row[lane] * spec.value_dim, spec.value_dim).copy_from_slice(result);
                lse.slice(head * n + first + lane, 1)[0] = log_sum;
            }
        });
    });
}

pub(super) fn backward(
    pool: &Pool,
    spec: &Spec,
    x: &Inputs<'_>,
    runs: &[Range<usize>],
    saved: &Saved<'_>,
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
    mut d_bias: Option<&mut [f32]>,
) {
    let (n, group) = (x.segments.len(), spec.group());
    let (width, value_width) = (padded(spec.head_dim), padded(spec.value_dim));
    if n == 0 {
        return;
    }
    if let Some(d_bias) = &mut d_bias {
        pool.run_pieces(d_bias, 1 << 16, |_, part| part.fill(0.0));
    }
    let d_bias = d_bias.map(Disjoint::new);
    let mut order: Vec<&Range<usize>> = runs.iter().collect();
    order.sort_by_key(|run| std::cmp::Reverse(run.len()));
    let (d_q, d_k, d_v) = (Disjoint::new(d_q), Disjoint::new(d_k), Disjoint::new(d_v));
    // Few long tasks balance badly, so their queries are halved; by shape, so that sums do not change.
    let halves = if spec.heads * runs.len() < 16 && order[0].len() >= 8 * TILE { 2 } else { 1 };
    // Partial gradients of keys and values: [heads, halves, n, width] of each.
    let parts = group * halves;
    let batch = (PARTIAL / (parts * n * (width + value_width))).clamp(1, spec.kv_heads);
    with_scratch(batch * parts * n * (width + value_width), |partial| {
        for begin in (0..spec.kv_heads).step_by(batch) {
            let kv_heads = batch.min(spec.kv_heads - begin);
            let heads = kv_heads * group;
            pool.run_pieces(partial, 1 << 16, |_, part| part.fill(0.0));
            let (keys_part, values_part) = partial.split_at_mut(batch * parts * n * width);
            let (keys_part, values_part) = (Disjoint::new(keys_part), Disjoint::new(values_part));
            pool.run(order.len() * heads * halves, &|task| {
                let (run, index) = (order[task / (heads * halves)], task % (heads * halves));
                let (head, half) = (begin * group + index / halves, index % halves);
                let rows = if halves == 2 { halve(spec, run.len())[half].clone() } else { 0..run.len() };
                let args =
                    head_backward::Head { q: x.q, o: saved.o, d_o: saved.d_o, lse: &saved.lse[head * n..][..n], number: head };
                let place = index * n + run.start;
                // SAFETY: each run of each head's half belongs to one task.
                let (d_k, d_v) = unsafe {
                    (
                        keys_part.slice(place * width, run.len() * width),
                        values_part.slice(place * value_width, run.len() * value_width),
                    )
                };
                let keys = keys(spec, x, run, head);
                let isa = pool.isa();
                head_backward::run(isa, spec, args, keys, run.clone(), rows, d_k, d_v, d_bias.as_ref(), |token, result| {
                    // SAFETY: each head of each token belongs to one task.
                    unsafe { d_q.slice((token * spec.heads + head) * spec.head_dim, spec.head_dim) }.copy_from_slice(result);
                });
            });
            // Sum the query heads of each key head and their halves, in order.
            let sums = [(&keys_part, &d_k, spec.head_dim, width), (&values_part, &d_v, spec.value_dim, value_width)];
            let tokens = 64;
            pool.run(n.div_ceil(tokens), &|task| {
                for token in task * tokens..n.min((task + 1) * tokens) {
                    for kv_head in 0..kv_heads {
                        for (part, out, dim, width) in sums {
                            // SAFETY: this task alone has the token now.
                            let out = unsafe { out.slice((token * spec.kv_heads + begin + kv_head) * dim, dim) };
                            for member in 0..parts {
                                let from = ((kv_head * parts + member) * n + token) * width;
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
