//! The largest elements of each row.
//!
//! Few of a row (a router's experts, a sampler's candidates) are what reaches a bound that is found first, or, in short rows and
//! where too much reaches it, are kept in a sorted list while the row passes once; blocks whose largest element is below the
//! smallest of the list cost one comparison an element. Many are found by selection. Both give the order of the specification exactly:
//! larger first, a NaN before any number, and of equal elements the one with the smaller index.

use std::cmp::Ordering;

use crate::pool::{Disjoint, Pool};
use crate::stream;

#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Longest list that is kept sorted by insertion.
const LIST: usize = 64;

/// Most elements that reach the bound of a row.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
const KEPT: usize = 128;

/// Elements that are compared with the list's end at once.
const BLOCK: usize = 32;

/// Indices of the `k` largest of each row of `x` `[rows, cols]`, largest first: `idx` is `[rows, k]`.
///
/// # Panics
/// When `k` is zero or more than `cols`, `cols` does not fit an index, or a length is wrong.
#[track_caller]
pub fn top_k(pool: &Pool, rows: usize, cols: usize, k: usize, x: &[f32], idx: &mut [i32]) {
    assert!(k > 0 && k <= cols && i32::try_from(cols).is_ok(), "top_k of {cols} columns cannot give {k}");
    assert!(x.len() == rows * cols && idx.len() == rows * k, "length of an operand of top_k");
    let per_task = (stream::grain(GRAIN, rows * cols) / cols).max(1);
    let idx = Disjoint::new(idx);
    pool.run(rows.div_ceil(per_task), &|task| {
        let (first, end) = (task * per_task, rows.min((task + 1) * per_task));
        // SAFETY: rows do not overlap, and a task is alone with its rows.
        let out = unsafe { idx.slice(first * k, (end - first) * k) };
        let x = &x[first * cols..end * cols];
        let each = x.chunks_exact(cols).zip(out.chunks_exact_mut(k));
        match pool.isa() {
            _ if k > LIST => each.for_each(|(x, out)| select(x, out)),
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            isa if isa.is_wide() => vector::rows(isa, cols, k, x, out),
            _ => each.for_each(|(x, out)| list(x, out)),
        }
    });
}

/// The order of the result: what comes first is `Less`.
fn order(x: &[f32], a: i32, b: i32) -> Ordering {
    let (p, q) = (x[a as usize], x[b as usize]);
    q.partial_cmp(&p).unwrap_or_else(|| q.is_nan().cmp(&p.is_nan())).then(a.cmp(&b))
}

/// A number that is larger for what comes earlier in the [`order`]; its low half is the index, inverted.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[inline(always)]
fn key(x: f32, i: usize) -> u64 {
    // Adding makes one zero of two.
    let bits = (x + 0.0).to_bits();
    let value = if x.is_nan() { u32::MAX } else { bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000) };
    u64::from(value) << 32 | u64::from(!(i as u32))
}

/// Keeps the best seen so far in `out`, sorted. The wide levels compile the same source again.
#[inline(always)]
fn list(x: &[f32], out: &mut [i32]) {
    let k = out.len();
    let insert = |out: &mut [i32], len: usize, i: i32| {
        let at = out[..len].partition_point(|&o| order(x, o, i) == Ordering::Less);
        out[at..=len].rotate_right(1);
        out[at] = i;
    };
    for i in 0..k {
        insert(out, i, i as i32);
    }
    let mut start = k;
    while start < x.len() {
        let end = x.len().min(start + BLOCK);
        let last = x[out[k - 1] as usize];
        // What equals the last stays behind it; where a NaN is involved the order decides.
        let passes = |v: f32| v > last || v.is_nan();
        if x[start..end].iter().fold(false, |any, &v| any | passes(v)) {
            for i in start..end {
                if order(x, i as i32, out[k - 1]) == Ordering::Less {
                    insert(out, k - 1, i as i32);
                }
            }
        }
        start = end;
    }
}

/// Selects among all indices, then sorts what was selected.
fn select(x: &[f32], out: &mut [i32]) {
    let mut all: Vec<i32> = (0..x.len() as i32).collect();
    let k = out.len();
    if k < all.len() {
        all.select_nth_unstable_by(k - 1, |&a, &b| order(x, a, b));
    }
    out.copy_from_slice(&all[..k]);
    out.sort_unstable_by(|&a, &b| order(x, a, b));
}

/// `out[r, j] = x[r, idx[r, j]]`: `x` is `[rows, cols]`, `idx` and `out` are `[rows, k]`. A negative index gives zero.
///
/// # Panics
/// When an index is not below `cols`, or a length is wrong.
#[track_caller]
pub fn gather_last<T: Copy + Default + Send + Sync>(
    pool: &Pool,
    rows: usize,
    cols: usize,
    k: usize,
    x: &[T],
    idx: &[i32],
    out: &mut [T],
) {
    assert!(x.len() == rows * cols && idx.len() == rows * k && out.len() == idx.len(), "length of an operand of gather_last");
    if k == 0 {
        return;
    }
    let per_task = (GRAIN / k).max(1);
    pool.run_pieces(out, per_task * k, |task, out| {
        for (i, (out, idx)) in out.chunks_exact_mut(k).zip(idx[task * per_task * k..].chunks_exact(k)).enumerate() {
            let x = &x[(task * per_task + i) * cols..][..cols];
            for (out, &at) in out.iter_mut().zip(idx) {
                *out = usize::try_from(at).map_or(T::default(), |at| x[at]);
            }
        }
    });
}

/// `out[r, idx[r, j]] += x[r, j]` over zeros, in the order of `j`: `x` and `idx` are `[rows, k]`, `out` is `[rows, cols]`. Elements
/// with a negative index are skipped.
///
/// # Panics
/// When an index is not below `cols`, or a length is wrong.
#[track_caller]
pub fn scatter_last(pool: &Pool, rows: usize, cols: usize, k: usize, x: &[f32], idx: &[i32], out: &mut [f32]) {
    assert!(x.len() == rows * k && idx.len() == x.len() && out.len() == rows * cols, "length of an operand of scatter_last");
    if cols == 0 {
        return;
    }
    let per_task = (GRAIN / cols).max(1);
    pool.run_pieces(out, per_task * cols, |task, out| {
        out.fill(0.0);
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            let row = (task * per_task + i) * k;
            for (x, &at) in x[row..row + k].iter().zip(&idx[row..row + k]) {
                if let Ok(at) = usize::try_from(at) {
                    out[at] += x;
                }
            }
        }
    });
}
