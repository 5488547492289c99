//! Linear layers whose weight each row of activations chooses: the experts of a mixture.
//!
//! The weight is a stack of `count` matrices `[n, k]` in any format, one after the other. The *pairs* (row, choice) are sorted by
//! expert, what they read is gathered, so that an expert's rows follow each other, and every expert multiplies its rows as
//! [`super::linear`] would. Gathering and scattering move `k + n` values a pair for `2 k n` operations.
//!
//! Arithmetic, error and determinism are those of [`super::linear`] for the rows that an expert gets, or of [`super::int8`] where
//! the weight is in panels; nothing depends on how the work is shared out.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::int8::{self, linear_int8, quantized_words};
use super::{linear, linear_dx};
use crate::format::Weight;
use crate::gemm::scratch::with_scratch;
use crate::gemm::{MatRef, Member, gemm_grouped};
use crate::pool::{Disjoint, Pool};

/// Weight rows of one task: wide enough that packing an expert's activations again for each task costs little.
const STRIP: usize = 256;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Memory for [`Groups`], in whole numbers.
pub const fn groups_len(pairs: usize, count: usize) -> usize {
    pairs + count + 1
}

/// Pairs sorted by expert.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// Expert of each pair, row by row; a negative one takes no part.
    experts: &'a [i32],
    /// Choices of each row.
    choices: usize,
    /// Number of experts.
    count: usize,
    /// Pairs by expert, and within an expert in their own order.
    order: &'a [u32],
    /// First place of each expert in `order`, and the end of the last.
    starts: &'a [u32],
}

impl<'a> Groups<'a> {
    /// Sorts the pairs `experts` `[rows, choices]` into `memory`, of [`groups_len`].
    ///
    /// # Panics
    /// When an expert is not below `count`, or a length is wrong.
    #[track_caller]
    pub fn new(experts: &'a [i32], choices: usize, count: usize, memory: &'a mut [u32]) -> Groups<'a> {
        assert!(choices > 0 && experts.len().is_multiple_of(choices), "experts are no whole number of rows");
        assert_eq!(memory.len(), groups_len(experts.len(), count), "memory for the groups");
        let (order, starts) = memory.split_at_mut(experts.len());
        let taking_part = || experts.iter().enumerate().filter_map(|(pair, &e)| Some((pair, usize::try_from(e).ok()?)));
        starts.fill(0);
        for (_, expert) in taking_part() {
            assert!(expert < count, "expert {expert} of {count}");
            starts[expert + 1] += 1;
        }
        for e in 0..count {
            starts[e + 1] += starts[e];
        }
        // Each start moves to its group's end, which is the next one's start.
        for (pair, expert) in taking_part() {
            order[starts[expert] as usize] = pair as u32;
            starts[expert] += 1;
        }
        starts.copy_within(..count, 1);
        starts[0] = 0;
        let len = starts[count] as usize;
        Groups { experts, choices, count, order: &order[..len], starts }
    }

    /// Pairs, those that take no part included.
    fn pairs(&self) -> usize {
        self.experts.len()
    }

    fn rows(&self) -> usize {
        self.experts.len() / self.choices
    }

    /// First place and number of an expert's pairs.
    fn of(&self, expert: usize) -> (usize, usize) {
        let (start, end) = (self.starts[expert] as usize, self.starts[expert + 1] as usize);
        (start, end - start)
    }

    /// `dst[i] = src[row(order[i])]` for rows of `d`.
    fn gather(&self, pool: &Pool, d: usize, src: &[f32], dst: &mut [f32], row: impl Fn(usize) -> usize + Sync) {
        let dst = &mut dst[..self.order.len() * d];
        let per_task = (GRAIN / d).max(1);
        pool.run_pieces(dst, per_task * d, |task, dst| {
            for (dst, &pair) in dst.chunks_exact_mut(d).zip(&self.order[task * per_task..]) {
                dst.copy_from_slice(&src[row(pair as usize) * d..][..d]);
            }
        });
    }

    /// Zeros the rows of `d` whose pair takes no part.
    fn clear(&self, d: usize, dst: &mut [f32]) {
        if self.order.len() < self.pairs() {
            let idle = self.experts.iter().enumerate().filter(|(_, e)| **e < 0);
            idle.for_each(|(pair, _)| dst[pair * d..][..d].fill(0.0));
        }
    }

    /// Writes the rows of `n` of each pair to `y`: for an expert, some of its `n` columns and its places in the order of pairs, `product`
    /// gives the rows of these pairs.
    fn scatter(&self, pool: &Pool, n: usize, y: &mut [f32], product: &Product<'_>) {
        self.clear(n, y);
        let y = Disjoint::new(y);
        let strips = n.div_ceil(STRIP);
        pool.run(self.count * strips, &|task| {
            let (e, first) = (task / strips, task % strips * STRIP);
            let (start, m) = self.of(e);
            if m == 0 {
                return;
            }
            let cols = first..n.min(first + STRIP);
            with_scratch(m * cols.len(), |rows| {
                product(e, cols.clone(), start..start + m, rows);
                for (row, &pair) in rows.chunks_exact(cols.len()).zip(&self.order[start..]) {
                    // SAFETY: a pair has one expert, and this task alone has these columns of it.
                    unsafe { y.slice(pair as usize * n + first, cols.len()) }.copy_from_slice(row);
                }
            });
        });
    }

    /// Calls `body` for each expert that has pairs: experts side by side where there are enough of them, else one after the
    /// other with all threads. Products do not depend on it.
    fn each(&self, pool: &Pool, body: &(dyn Fn(usize) + Sync)) {
        let used = (0..self.count).filter(|&e| self.of(e).1 > 0);
        if used.clone().count() < 4 * pool.threads() {
            used.for_each(body);
        } else {
            pool.run(self.count, &|e| {
                if self.of(e).1 > 0 {
                    body(e);
                }
            });
        }
    }
}

/// Of an expert, some of its columns and its places in the order of pairs: the rows of these pairs.
type Product<'a> = dyn Fn(usize, Range<usize>, Range<usize>, &mut [f32]) + Sync + 'a;

/// Checks a stack of `count` matrices and returns their rows; each has panels of its own if it was repacked.
#[track_caller]
fn rows_of_each(w: &Weight<'_>, count: usize) -> usize {
    let n = w.rows / count.max(1);
    assert_eq!(w.rows, n * count, "the weight is no whole number of matrices");
    assert_eq!(w.data.len(), w.bytes_of(n) * count, "weight bytes do not match its shape and format");
    n
}

/// Rows `rows` of expert `expert` of a stack of matrices of `n` rows.
fn expert<'a>(w: &Weight<'a>, n: usize, expert: usize, rows: Range<usize>) -> Weight<'a> {
    let bytes = w.bytes_of(n);
    Weight { rows: n, data: &w.data[expert * bytes..][..bytes], ..*w }.rows(rows)
}

/// `y[pair] = W[expert of pair] x[row of pair]`: `x` is `[rows, k]`, `w` is `[count n, k]`, `y` is `[rows choices, n]` and is
/// overwritten. `gathered` is memory for a row of `k` of each pair.
///
/// # Panics
/// When a length does not match, or the weight has no columns.
#[track_caller]
pub fn grouped_linear(pool: &Pool, groups: &Groups<'_>, x: &[f32], w: &Weight<'_>, y: &mut [f32], gathered: &mut [f32]) {
    let (k, n) = (w.cols, rows_of_each(w, groups.count));
    assert!(k > 0, "a linear layer sums over at least one feature");
    assert!(x.len() == groups.rows() * k && y.len() == groups.pairs() * n, "length of an operand of grouped_linear");
    assert_eq!(gathered.len(), groups.pairs() * k, "memory for gathered rows");
    groups.gather(pool, k, x, gathered, |pair| pair / groups.choices);
    let gathered = &*gathered;
    groups.scatter(pool, n, y, &|e, cols, places, out| {
        let x = &gathered[places.start * k..places.end * k];
        linear(pool, places.len(), 1.0, x, &expert(w, n, e, cols), None, out, 0.0);
    });
}

/// [`grouped_linear`] in whole numbers: `w` holds the panels of each expert's matrix, one after the other, as
/// [`crate::panels::repack`] writes them. `rounded` is memory for [`quantized_words`] of a row of each pair.
///
/// # Panics
/// When a length does not match, or the format cannot be repacked.
#[track_caller]
pub fn grouped_linear_int8(pool: &Pool, groups: &Groups<'_>, x: &[f32], w: &Weight<'_>, y: &mut [f32], rounded: &mut [u32]) {
    let (k, n) = (w.cols, rows_of_each(w, groups.count));
    assert!(x.len() == groups.rows() * k && y.len() == groups.pairs() * n, "length of an operand of grouped_linear_int8");
    assert!(rounded.len() >= quantized_words(groups.pairs(), k), "no room for the quantized activations");
    let memory = Disjoint::new(rounded);
    groups.each(pool, &|e| {
        let (start, m) = groups.of(e);
        // SAFETY: an expert has its own pairs.
        let rounded = unsafe { memory.slice(quantized_words(start, k), quantized_words(m, k)) };
        int8::quantize_chosen(pool, m, k, x, rounded, &|i| groups.order[start + i] as usize / groups.choices);
    });
    let rounded = &*rounded;
    groups.scatter(pool, n, y, &|e, cols, places, out| {
        // Strips are whole panels.
        let w = expert(w, n, e, cols);
        linear_int8(pool, places.len(), 1.0, &rounded[quantized_words(places.start, k)..], &w, None, out, 0.0);
    });
}

/// `dx[row] = sum over choices of dy[pair] W[expert of pair]`, in the order of choices: `dy` is `[rows choices, n]`, `w` is
/// `[count n, k]`, `dx` is `[rows, k]` and is overwritten. `gathered` is memory for a row of `n` of each pair, `parts` for a row of
/// `k` of each.
///
/// # Panics
/// When a length does not match, or the weight has no rows.
#[track_caller]
pub fn grouped_linear_dx(
    pool: &Pool,
    groups: &Groups<'_>,
    dy: &[f32],
    w: &Weight<'_>,
    dx: &mut [f32],
    gathered: &mut [f32],
    parts: &mut [f32],
) {
    let (k, n) = (w.cols, rows_of_each(w, groups.count));
    assert!(n > 0, "a gradient sums over at least one feature");
    assert!(dy.len() == groups.pairs() * n && dx.len() == groups.rows() * k, "length of an operand of grouped_linear_dx");
    assert!(gathered.len() == dy.len() && parts.len() == groups.pairs() * k, "memory for gathered rows");
    groups.gather(pool, n, dy, gathered, |pair| pair);
    groups.clear(k, parts);
    let gathered = &*gathered;
    let out = Disjoint::new(&mut *parts);
    groups.each(pool, &|e| {
        let (start, m) = groups.of(e);
        with_scratch(m * k, |part| {
            linear_dx(pool, m, 1.0, &gathered[start * n..][..m * n], &expert(w, n, e, 0..n), part, 0.0);
            for (part, &pair) in part.chunks_exact(k.max(1)).zip(&groups.order[start..]) {
                // SAFETY: a pair has one expert.
                unsafe { out.slice(pair as usize * k, k) }.copy_from_slice(part);
            }
        });
    });
    let parts = &*parts;
    let per_task = (GRAIN / k.max(1)).max(1);
    pool.run_pieces(dx, per_task * k.max(1), |task, dx| {
        for (i, dx) in dx.chunks_exact_mut(k).enumerate() {
            let first = (task * per_task + i) * groups.choices;
            let mut terms = parts[first * k..][..groups.choices * k].chunks_exact(k);
            dx.copy_from_slice(terms.next().expect("a row has a choice"));
            terms.for_each(|term| dx.iter_mut().zip(term).for_each(|(dx, v)| *dx += v));
        }
    });
}

/// `dw[e] = sum over the pairs of e of dy[pair]ᵀ x[row of pair]`: `dy` is `[rows choices, n]`, `x` is `[rows, k]`, `dw` is
/// `[count, n, k]` and is overwritten. `gathered` is memory for `n + k` values of each pair.
///
/// # Panics
/// When a length does not match.
#[track_caller]
pub fn grouped_linear_dw(
    pool: &Pool,
    groups: &Groups<'_>,
    (n, k): (usize, usize),
    dy: &[f32],
    x: &[f32],
    dw: &mut [f32],
    gathered: &mut [f32],
) {
    assert!(
        dy.len() == groups.pairs() * n && x.len() == groups.rows() * k && dw.len() == groups.count * n * k,
        "length of an operand of grouped_linear_dw"
    );
    assert_eq!(gathered.len(), groups.pairs() * (n + k), "memory for gathered rows");
    if dw.is_empty() {
        return;
    }
    let (dys, xs) = gathered.split_at_mut(groups.pairs() * n);
    groups.gather(pool, n, dy, dys, |pair| pair);
    groups.gather(pool, k, x, xs, |pair| pair / groups.choices);
    let (dys, xs) = (&*dys, &*xs);
    let members: Vec<Member<'_>> = (0..groups.count)
        .map(|e| {
            let (start, pairs) = groups.of(e);
            let a = MatRef::new(&dys[start * n..][..pairs * n], n).transposed();
            let b = MatRef::new(&xs[start * k..][..pairs * k], k);
            // Without pairs the sums over nothing clear the expert's gradient.
            Member { m: n, n: k, k: pairs, a, b, c: e * n * k, ldc: k }
        })
        .collect();
    gemm_grouped(pool, 1.0, &members, dw, 0.0);
}
