//! Specification of attention: one query at a time, every sum in `f64`.

use super::{Place, Spec};
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

/// Attends one query to `keys`, writes `o` and returns the log of the sum of exponentials.
fn attend(spec: &Spec, q: &[f32], k: Rows<'_>, v: Rows<'_>, keys: Range<usize>, o: &mut [f32]) -> f32 {
    let scores: Vec<f64> = keys.clone().map(|j| score(spec, q, k.row(j))).collect();
    let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let mut sum = 0.0;
    let mut acc = vec![0.0; o.len()];
    for (score, j) in scores.iter().zip(keys) {
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
    let o = Disjoint::new(o);
    if n == 0 {
        return;
    }
    pool.run_pieces(lse, n, |head, lse| {
        let q = Rows::new(q, spec.q_width(), head * dim, dim);
        let at = head / spec.group() * dim;
        let k = Rows::new(k, spec.kv_width(), at, dim);
        let v = Rows::new(v, spec.kv_width(), at, dim);
        for run in runs {
            for i in run.clone() {
                let keys = spec.visible(i - run.start, run.len());
                let keys = keys.start + run.start..keys.end + run.start;
                // SAFETY: each head of each token belongs to one task.
                let o = unsafe { o.slice(i * spec.q_width() + head * dim, dim) };
                lse[i] = attend(spec, q.row(i), k, v, keys, o);
            }
        }
    });
}

/// With `p = e^(s - lse)`: `dv = p^T do`, `ds = p (do v^T - do.o)`, `dq = scale ds k`,
/// `dk = scale ds^T q`; a cap multiplies `ds` by `1 - (s / cap)^2`.
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
    let dim = spec.head_dim;
    let (q_width, kv_width) = (spec.q_width(), spec.kv_width());
    let (d_q, d_k, d_v) = (Disjoint::new(d_q), Disjoint::new(d_k), Disjoint::new(d_v));
    pool.run(spec.kv_heads, &|kv_head| {
        let k = Rows::new(k, kv_width, kv_head * dim, dim);
        let v = Rows::new(v, kv_width, kv_head * dim, dim);
        let mut dk = vec![0.0; n * dim];
        let mut dv = vec![0.0; n * dim];
        for head in kv_head * spec.group()..(kv_head + 1) * spec.group() {
            let q = Rows::new(q, q_width, head * dim, dim);
            let o = Rows::new(o, q_width, head * dim, dim);
            let d_o = Rows::new(d_o, q_width, head * dim, dim);
            for run in runs {
                for i in run.clone() {
                    let keys = spec.visible(i - run.start, run.len());
                    let delta = dot(o.row(i), d_o.row(i));
                    let mut dq = vec![0.0; dim];
                    for j in keys.start + run.start..keys.end + run.start {
                        let score = score(spec, q.row(i), k.row(j));
                        let p = (score - f64::from(lse[head * n + i])).exp();
                        let mut ds = p * (dot(d_o.row(i), v.row(j)) - delta);
                        if let Some(cap) = spec.softcap {
                            ds *= 1.0 - (score / f64::from(cap)).powi(2);
                        }
                        ds *= f64::from(spec.scale);
                        for c in 0..dim {
                            dv[j * dim + c] += p * f64::from(d_o.row(i)[c]);
                            dk[j * dim + c] += ds * f64::from(q.row(i)[c]);
                            dq[c] += ds * f64::from(k.row(j)[c]);
                        }
                    }
                    // SAFETY: each head of each token belongs to one task.
                    let d_q = unsafe { d_q.slice(i * q_width + head * dim, dim) };
                    narrow(&dq, d_q);
                }
            }
        }
        for j in 0..n {
            let at = j * kv_width + kv_head * dim;
            // SAFETY: as above, for key heads.
            let (d_k, d_v) = unsafe { (d_k.slice(at, dim), d_v.slice(at, dim)) };
            narrow(&dk[j * dim..][..dim], d_k);
            narrow(&dv[j * dim..][..dim], d_v);
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
    capacity: usize,
    places: &[Place],
    q: &[f32],
    k_cache: &[f32],
    v_cache: &[f32],
    o: &mut [f32],
) {
    let dim = spec.head_dim;
    pool.run_pieces(o, dim, |task, o| {
        let (row, head) = (task / spec.heads, task % spec.heads);
        let place = places[row];
        let slot = place.slot * capacity * spec.kv_width()..;
        let at = head / spec.group() * dim;
        let k = Rows::new(&k_cache[slot.clone()], spec.kv_width(), at, dim);
        let v = Rows::new(&v_cache[slot], spec.kv_width(), at, dim);
        let reach = spec.window.unwrap_or(usize::MAX);
        let keys = (place.position + 1).saturating_sub(reach)..place.position + 1;
        attend(spec, &q[task * dim..][..dim], k, v, keys, o);
    });
}
