//! Reduction of rows by segment number. Scalar code: the rows of a segment may lie anywhere,
//! and the inner loop over `d` is left to the compiler.

use super::Reduce;
use crate::pool::Pool;

/// Reduces the rows of `x: [n, d]` that carry the same number into `out: [count, d]`.
///
/// Segments may come in any order; a negative number skips its row. Rows of a segment are taken
/// in order, whatever the number of threads. A segment without rows gives the reduction of
/// nothing, except that `Mean` gives 0.
///
/// # Panics
/// When a segment number is not below `count`, or a length is wrong.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]
pub fn segment_reduce(pool: &Pool, op: Reduce, n: usize, d: usize, x: &[f32], segments: &[i32], count: usize, out: &mut [f32]) {
    assert!(x.len() == n * d && segments.len() == n && out.len() == count * d, "length of an operand of segment_reduce");
    if d == 0 || count == 0 {
        return;
    }
    // A counting sort: `order[start[s]..start[s + 1]]` are the rows of segment `s`.
    let mut start = vec![0usize; count + 1];
    for &segment in segments {
        if let Ok(segment) = usize::try_from(segment) {
            assert!(segment < count, "segment number out of range");
            start[segment + 1] += 1;
        }
    }
    for segment in 0..count {
        start[segment + 1] += start[segment];
    }
    let mut next = start.clone();
    let mut order = vec![0usize; start[count]];
    for (row, &segment) in segments.iter().enumerate() {
        if let Ok(segment) = usize::try_from(segment) {
            order[next[segment]] = row;
            next[segment] += 1;
        }
    }
    pool.run_pieces(out, d, |segment, out| {
        let rows = &order[start[segment]..start[segment + 1]];
        let rows = || rows.iter().map(|&row| &x[row * d..][..d]);
        let total = start[segment + 1] - start[segment];
        reduce_rows(op, total, rows, out);
    });
}

fn reduce_rows<'a, I: Iterator<Item = &'a [f32]>>(op: Reduce, total: usize, rows: impl Fn() -> I, out: &mut [f32]) {
    let fold = |init: f64, step: &dyn Fn(f64, f64, usize) -> f64| {
        let mut acc = vec![init; out.len()];
        for row in rows() {
            for (i, (acc, &x)) in acc.iter_mut().zip(row).enumerate() {
                *acc = step(*acc, f64::from(x), i);
            }
        }
        acc
    };
    let max = |a: f64, x: f64, _: usize| if x > a || x.is_nan() { x } else { a };
    let min = |a: f64, x: f64, _: usize| if x < a || x.is_nan() { x } else { a };
    let acc = match op {
        Reduce::Sum => fold(0.0, &|a, x, _| a + x),
        Reduce::Mean => {
            let scale = 1.0 / total.max(1) as f64;
            let mut acc = fold(0.0, &|a, x, _| a + x);
            acc.iter_mut().for_each(|acc| *acc *= scale);
            acc
        }
        Reduce::Prod => fold(1.0, &|a, x, _| a * x),
        Reduce::Max => fold(f64::NEG_INFINITY, &max),
        Reduce::Min => fold(f64::INFINITY, &min),
        Reduce::LogSumExp => {
            let top = fold(f64::NEG_INFINITY, &max);
            let sum = fold(0.0, &|a, x, i| a + (x - top[i]).exp());
            top.iter().zip(sum).map(|(&top, sum)| if top.is_finite() { top + sum.ln() } else { top }).collect()
        }
    };
    for (out, acc) in out.iter_mut().zip(acc) {
        *out = acc as f32;
    }
}
