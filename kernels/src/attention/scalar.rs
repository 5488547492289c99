//! Specification of attention: one query at a time, every sum in `f64`.

use super::{CacheFormat, Inputs, PAGE, Place, Saved, Spec, Step};
use crate::pool::{Disjoint, Pool};
use std::ops::Range;

/// Rows of one head: `row(i)` is `head_dim` floats.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    width: usize,
    at: usize,
    dim: usize,
}

impl<'a> Rows<'a> {
    fn new(data: &'a [f32], width: usize, at: usize, dim: usize) -> Rows<'a> {
        Rows { data, width, at, dim }
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.width + self.at..][..self.dim]
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn score(spec: &Spec, q: &[f32], k: &[f32]) -> f64 {
    let score = dot(q, k) * f64::from(spec.scale);
    match spec.softcap {
        Some(cap) => f64::from(cap) * (score / f64::from(cap)).tanh(),
        None => score,
    }
}

/// Attends one query to the keys that `keys` yields with what is added to their scores. Writes `o`
/// and returns the log of the sum of exponentials.
fn attend(
    spec: &Spec,
    q: &[f32],
    k: Rows<'_>,
    v: Rows<'_>,
    keys: impl Iterator<Item = (usize, f64)> + Clone,
    sink: Option<f32>,
    o: &mut [f32],
) -> f32 {
    let scores: Vec<f64> = keys.clone().map(|(j, bias)| score(spec, q, k.row(j)) + bias).collect();
    let top = scores.iter().copied().chain(sink.map(f64::from)).fold(f64::NEG_INFINITY, f64::max);
    let mut sum = sink.map_or(0.0, |sink| (f64::from(sink) - top).exp());
    let mut acc = vec![0.0; o.len()];
    for (score, (j, _)) in scores.iter().zip(keys) {
        let weight = (score - top).exp();
        sum += weight;
        for (acc, &v) in acc.iter_mut().zip(v.row(j)) {
            *acc += weight * f64::from(v);
        }
    }
    for (o, acc) in o.iter_mut().zip(acc) {
        *o = (acc / sum) as f32;
    }
    (top + sum.ln()) as f32
}

/// The token's keys, and the bias of each.
fn keys<'a>(
    spec: &Spec,
    x: &Inputs<'a>,
    head: usize,
    run: &Range<usize>,
    i: usize,
) -> impl Iterator<Item = (usize, f64)> + Clone {
    let (n, start, bias) = (x.segments.len(), run.start, x.bias);
    let seen = spec.seen(i - start, run.len());
    seen.map(move |j| {
        let j = j + start;
        (j, bias.map_or(0.0, |bias| f64::from(bias[(head * n + i) * n + j])))
    })
}

pub(super) fn forward(pool: &Pool, spec: &Spec, x: &Inputs<'_>, runs: &[Range<usize>], o: &mut [f32], lse: &mut [f32]) {
    let (dim, value_dim) = (spec.head_dim, spec.value_dim);
    let n = x.segments.len();
    let o = Disjoint::new(o);
    if n == 0 {
        return;
    }
    pool.run_pieces(lse, n, |head, lse| {
        let q = Rows::new(x.q, spec.q_width(), head * dim, dim);
        let k = Rows::new(x.k, spec.k_width(), head / spec.group() * dim, dim);
        let v = Rows::new(x.v, spec.v_width(), head / spec.group() * value_dim, value_dim);
        for run in runs {
            for i in run.clone() {
                // SAFETY: each head of each token belongs to one task.
                let o = unsafe { o.slice(i * spec.o_width() + head * value_dim, value_dim) };
                lse[i] = attend(spec, q.row(i), k, v, keys(spec, x, head, run, i), x.sinks.map(|s| s[head]), o);
            }
        }
    });
}

/// With `p = e^(s - lse)`: `dv = p^T do`, `ds = p (do v^T - do.o)`, `dq = scale ds k`,
/// `dk = scale ds^T q`; a cap multiplies `ds` by `1 - (s / cap)^2`, after the bias took it.
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
    let (dim, value_dim, n) = (spec.head_dim, spec.value_dim, x.segments.len());
    if let Some(d_bias) = &mut d_bias {
        d_bias.fill(0.0);
    }
    let (d_q, d_k, d_v, d_bias) = (Disjoint::new(d_q), Disjoint::new(d_k), Disjoint::new(d_v), d_bias.map(Disjoint::new));
    pool.run(spec.kv_heads, &|kv_head| {
        let k = Rows::new(x.k, spec.k_width(), kv_head * dim, dim);
        let v = Rows::new(x.v, spec.v_width(), kv_head * value_dim, value_dim);
        let mut dk = vec![0.0; n * dim];
        let mut dv = vec![0.0; n * value_dim];
        for head in kv_head * spec.group()..(kv_head + 1) * spec.group() {
            let q = Rows::new(x.q, spec.q_width(), head * dim, dim);
            let o = Rows::new(saved.o, spec.o_width(), head * value_dim, value_dim);
            let d_o = Rows::new(saved.d_o, spec.o_width(), head * value_dim, value_dim);
            for run in runs {
                for i in run.clone() {
                    let delta = dot(o.row(i), d_o.row(i));
                    let mut dq = vec![0.0; dim];
                    for (j, bias) in keys(spec, x, head, run, i) {
                        let score = score(spec, q.row(i), k.row(j));
                        let p = (score + bias - f64::from(saved.lse[head * n + i])).exp();
                        let mut ds = p * (dot(d_o.row(i), v.row(j)) - delta);
                        if let Some(d_bias) = &d_bias {
                            // SAFETY: each head belongs to one task.
                            unsafe { d_bias.slice((head * n + i) * n + j, 1)[0] = ds as f32 };
                        }
                        if let Some(cap) = spec.softcap {
                            ds *= 1.0 - (score / f64::from(cap)).powi(2);
                        }
                        ds *= f64::from(spec.scale);
                        for c in 0..value_dim {
                            dv[j * value_dim + c] += p * f64::from(d_o.row(i)[c]);
                        }
                        for c in 0..dim {
                            dk[j * dim + c] += ds * f64::from(q.row(i)[c]);
                            dq[c] += ds * f64::from(k.row(j)[c]);
                        }
                    }
                    // SAFETY: each head of each token belongs to one task.
                    let d_q = unsafe { d_q.slice(i * spec.q_width() + head * dim, dim) };
                    narrow(&dq, d_q);
                }
            }
        }
        for j in 0..n {
            // SAFETY: as above, for key heads.
            let (d_k, d_v) = unsafe {
                (
                    d_k.slice(j * spec.k_width() + kv_head * dim, dim),
                    d_v.slice(j * spec.v_width() + kv_head * value_dim, value_dim),
                )
            };
            narrow(&dk[j * dim..][..dim], d_k);
            narrow(&dv[j * value_dim..][..value_dim], d_v);
        }
    });
}

fn narrow(from: &[f64], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from as f32;
    }
}

/// Rows attend to the caches, which already hold them.
pub(super) fn cached(
    pool: &Pool,
    spec: &Spec,
    step: &Step<'_>,
    places: &[Place],
    format: CacheFormat,
    caches: [&[u32]; 2],
    o: &mut [f32],
) {
    let (dim, value_dim) = (spec.head_dim, spec.value_dim);
    pool.run_pieces(o, value_dim, |task, o| {
        let (row, head) = (task / spec.heads, task % spec.heads);
        let Place { slot, position } = places[row];
        let kv_head = head / spec.group();
        let seen: Vec<usize> = spec.seen(position, position + 1).collect();
        // The rows that are seen, one after the other.
        let gather = |cache: &[u32], dim: usize, transposed: bool| -> Vec<f32> {
            let words = format.head_words(dim);
            let element = |j: usize, i: usize| {
                let (page, at) = (step.table[slot * step.columns + j / PAGE] as usize, j % PAGE);
                let from = &cache[(page * spec.kv_heads + kv_head) * words..][..words];
                let (start, stride) = if transposed { (at, PAGE) } else { (at * dim, 1) };
                super::cache::read(format, from, start, stride, i, at)
            };
            seen.iter().flat_map(|&j| (0..dim).map(move |i| (j, i))).map(|(j, i)| element(j, i)).collect()
        };
        let (k, v) = (gather(caches[0], dim, true), gather(caches[1], value_dim, false));
        let keys = (0..seen.len()).map(|j| (j, 0.0));
        let (k, v) = (Rows::new(&k, dim, 0, dim), Rows::new(&v, value_dim, 0, value_dim));
        attend(spec, &step.q[task * dim..][..dim], k, v, keys, step.sinks.map(|sinks| sinks[head]), o);
    });
}
