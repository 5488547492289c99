//! Specification of the reductions. Loops keep [`LANES`] independent accumulators, so that the
//! wide levels, which compile the same source with their instructions enabled, vectorize it.

use super::{COLUMNS, Reduce};

const LANES: usize = 32;

fn identity(op: Reduce) -> f64 {
    match op {
        Reduce::Sum | Reduce::Mean => 0.0,
        Reduce::Prod => 1.0,
        Reduce::Max | Reduce::LogSumExp => f64::NEG_INFINITY,
        Reduce::Min => f64::INFINITY,
    }
}

#[inline(always)]
fn max(acc: f64, x: f64) -> f64 {
    if x > acc || x.is_nan() { x } else { acc }
}

#[inline(always)]
fn min(acc: f64, x: f64) -> f64 {
    if x < acc || x.is_nan() { x } else { acc }
}

#[inline(always)]
fn fold(x: &[f32], init: f64, step: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [init; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, f64::from(x));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = step(*lane, f64::from(x));
    }
    lanes.into_iter().fold(init, step)
}

/// Reduces a contiguous row; [`finish`] makes it the result.
#[inline(always)]
pub(super) fn row(op: Reduce, x: &[f32]) -> f64 {
    match op {
        Reduce::Sum | Reduce::Mean => fold(x, 0.0, |a, x| a + x),
        Reduce::Prod => fold(x, 1.0, |a, x| a * x),
        Reduce::Max => fold(x, f64::NEG_INFINITY, max),
        Reduce::Min => fold(x, f64::INFINITY, min),
        Reduce::LogSumExp => {
            let top = fold(x, f64::NEG_INFINITY, max);
            if !top.is_finite() {
                // All -inf, some +inf, or NaN: the limit is the maximum itself.
                return top;
            }
            let sum: f64 = x.iter().map(|&x| (f64::from(x) - top).exp()).sum();
            top + sum.ln()
        }
    }
}

/// Combines the values of blocks of a row, in order.
pub(super) fn combine(op: Reduce, partial: &[f64]) -> f64 {
    partial.iter().fold(identity(op), |acc, &x| match op {
        Reduce::Sum | Reduce::Mean => acc + x,
        Reduce::Prod => acc * x,
        Reduce::Max | Reduce::LogSumExp => max(acc, x),
        Reduce::Min => min(acc, x),
    })
}

#[inline(always)]
pub(super) fn finish(op: Reduce, value: f64, len: usize) -> f32 {
    match op {
        Reduce::Mean => (value / len as f64) as f32,
        _ => value as f32,
    }
}

/// Reduces `out.len()` columns (at most [`COLUMNS`]) of `x: [len, stride]`, from `column`.
#[inline(always)]
pub(super) fn columns(op: Reduce, x: &[f32], stride: usize, column: usize, out: &mut [f32]) {
    match op {
        Reduce::Sum | Reduce::Mean => each(op, x, stride, column, out, 0.0, |a, x| a + x),
        Reduce::Prod => each(op, x, stride, column, out, 1.0, |a, x| a * x),
        Reduce::Max => each(op, x, stride, column, out, f64::NEG_INFINITY, max),
        Reduce::Min => each(op, x, stride, column, out, f64::INFINITY, min),
        Reduce::LogSumExp => {
            // Rare: strided log-sum-exp keeps scalar exponentials.
            for (i, out) in out.iter_mut().enumerate() {
                let values = || x.iter().skip(column + i).step_by(stride);
                let top = values().fold(f64::NEG_INFINITY, |a, &x| max(a, f64::from(x)));
                *out = if top.is_finite() {
                    let sum: f64 = values().map(|&x| (f64::from(x) - top).exp()).sum();
                    (top + sum.ln()) as f32
                } else {
                    top as f32
                };
            }
        }
    }
}

#[inline(always)]
fn each(op: Reduce, x: &[f32], stride: usize, column: usize, out: &mut [f32], init: f64, step: impl Fn(f64, f64) -> f64) {
    let mut acc = [init; COLUMNS];
    for row in x.chunks_exact(stride) {
        for (acc, &x) in acc.iter_mut().zip(&row[column..][..out.len()]) {
            *acc = step(*acc, f64::from(x));
        }
    }
    let len = x.len() / stride;
    for (out, acc) in out.iter_mut().zip(acc) {
        *out = finish(op, acc, len);
    }
}

pub(super) fn softmax(x: &[f32], out: &mut [f32]) {
    let top = x.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
    let mut sum = 0.0;
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x - top).exp();
        sum += f64::from(*out);
    }
    let scale = (1.0 / sum) as f32;
    out.iter_mut().for_each(|out| *out *= scale);
}

pub(super) fn softmax_dx(y: &[f32], dy: &[f32], dx: &mut [f32]) {
    let dot: f64 = y.iter().zip(dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum();
    for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
        *dx = y * (dy - dot as f32);
    }
}
