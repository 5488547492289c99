//! Specification of the reductions. Loops keep [`LANES`] independent accumulators, so that the
//! wide levels, which compile the same source with their instructions enabled, vectorize it.

use super::{COLUMNS, Reduce, segment};
use crate::stream;

const LANES: usize = 32;

/// Columns of a cache line.
const LINE: usize = 16;

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
    each::<COLUMNS, _>(op, x.len() / stride, || x.chunks_exact(stride).map(|row| &row[column..]), out);
}

/// As [`columns`], of the rows of `x: [_, d]` that `rows` names, in that order.
#[inline(always)]
pub(super) fn picked(op: Reduce, rows: &[u32], x: &[f32], d: usize, column: usize, out: &mut [f32]) {
    each::<{ segment::COLUMNS }, _>(op, rows.len(), || rows.iter().map(|&row| &x[row as usize * d + column..]), out);
}

/// Reduces the first `out.len()` elements, at most `W`, of `len` rows.
#[inline(always)]
fn each<'a, const W: usize, I: Iterator<Item = &'a [f32]>>(op: Reduce, len: usize, rows: impl Fn() -> I, out: &mut [f32]) {
    let acc = match op {
        Reduce::Sum | Reduce::Mean => accumulate::<W>(rows(), out.len(), 0.0, |a, x| a + x),
        Reduce::Prod => accumulate::<W>(rows(), out.len(), 1.0, |a, x| a * x),
        Reduce::Max | Reduce::LogSumExp => accumulate::<W>(rows(), out.len(), f64::NEG_INFINITY, max),
        Reduce::Min => accumulate::<W>(rows(), out.len(), f64::INFINITY, min),
    };
    if op == Reduce::LogSumExp {
        // Rare along rows: exponentials stay scalar.
        for (i, (out, top)) in out.iter_mut().zip(acc).enumerate() {
            let sum = || rows().map(|row| (f64::from(row[i]) - top).exp()).sum::<f64>();
            // All -inf, some +inf, or NaN: the limit is the maximum itself.
            *out = if top.is_finite() { (top + sum().ln()) as f32 } else { top as f32 };
        }
    } else {
        out.iter_mut().zip(acc).for_each(|(out, acc)| *out = finish(op, acc, len));
    }
}

#[inline(always)]
fn accumulate<'a, const W: usize>(
    rows: impl Iterator<Item = &'a [f32]>,
    width: usize,
    init: f64,
    step: impl Fn(f64, f64) -> f64,
) -> [f64; W] {
    let mut acc = [init; W];
    let whole = width - width % LINE;
    let mut rows = rows.map(|row| &row[..width]).fuse();
    let mut four: [_; 4] = std::array::from_fn(|_| rows.next());
    // Four rows at a time, in order, so that sums are read and written once for all of them; the next four are fetched meanwhile.
    while let [Some(a), Some(b), Some(c), Some(d)] = four {
        let next: [_; 4] = std::array::from_fn(|_| rows.next());
        let ahead = next.map(|row| row.unwrap_or(a).as_ptr());
        for at in (0..whole).step_by(LINE) {
            ahead.iter().for_each(|row| stream::prefetch(row.wrapping_add(at)));
            let acc = &mut acc[at..][..LINE];
            let [a, b, c, d] = [a, b, c, d].map(|row| &row[at..][..LINE]);
            for i in 0..LINE {
                acc[i] = [a[i], b[i], c[i], d[i]].into_iter().fold(acc[i], |acc, x| step(acc, f64::from(x)));
            }
        }
        for row in [a, b, c, d] {
            acc[whole..width].iter_mut().zip(&row[whole..]).for_each(|(acc, &x)| *acc = step(*acc, f64::from(x)));
        }
        four = next;
    }
    for row in four.into_iter().flatten() {
        acc.iter_mut().zip(row).for_each(|(acc, &x)| *acc = step(*acc, f64::from(x)));
    }
    acc
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
