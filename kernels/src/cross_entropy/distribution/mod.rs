//! Reductions of a head's whole distribution, and of two heads': entropy, mean logit, divergence.
//!
//! With `z` as in [`super`], `p = softmax(z)` and `q` that of another head over the same vocabulary:
//!
//! ```text
//! entropy      H = -sum p log p               d H / dz = -p (log p + H)
//! mean         sum z / vocab                  1 / vocab
//! divergence   alpha 0: KL(p|q)               p (log p - log q - D)
//!              alpha 1: KL(q|p)               p - q
//!              else, with m = alpha p + (1 - alpha) q:
//!              alpha KL(p|m) + (1 - alpha) KL(q|m)    p (alpha (log p - log m) - S)
//! ```
//!
//! where `S`, the share of `p`, is the first term of that sum (of `KL(p|q)` it is all). Every row counts.
//!
//! Tiles of the vocabulary pass as in cross-entropy (`stream.rs` beside this folder): one pass forward, two for a mixture,
//! whose logarithm needs both log-sum-exps first; one pass backward, which computes logits again.
//! Outputs are overwritten. Results do not depend on the number of threads.

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use super::stream::{self, Stream};
use super::{Spec, gradients, row_prepare};
use crate::format::Weight;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};

/// Hidden states and the projection that turns them into logits.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[n, w.cols]`.
    pub x: &'a [f32],
    /// `[vocab, d]`.
    pub w: Weight<'a>,
    /// Smooth bound of raw logits.
    pub softcap: Option<f32>,
    /// Divides the logits, after the cap.
    pub temperature: f32,
}

impl Head<'_> {
    fn spec(&self) -> Spec {
        Spec { softcap: self.softcap, temperature: self.temperature, ..Spec::default() }
    }

    #[track_caller]
    fn check(&self, n: usize) {
        assert!(self.w.rows > 0 && self.w.cols > 0, "the weight of a head is empty");
        assert_eq!(self.x.len(), n * self.w.cols, "length of the hidden states of a head");
    }
}

/// Floats of scratch for heads of `n` rows and widths `d`; `trained` when the gradient of the first weight is asked for.
pub fn scratch_len(n: usize, vocab: usize, d: &[usize], trained: bool) -> usize {
    stream::scratch_len(n, vocab, d) + if trained { n * d[0] } else { 0 }
}

/// What [`statistic`] takes of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Entropy.
    Entropy,
    /// Mean logit.
    Mean,
}

/// The statistic of each row, and its log-sum-exp for the gradient (zero where that needs none).
///
/// # Panics
/// When a length is wrong.
#[track_caller]
pub fn statistic(
    pool: &Pool,
    statistic: Statistic,
    n: usize,
    head: &Head<'_>,
    value: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    head.check(n);
    assert!(value.len() == n && lse.len() == n, "length of an output of a statistic");
    assert!(scratch.len() >= scratch_len(n, head.w.rows, &[head.w.cols], false), "scratch of a statistic is too short");
    let (isa, spec) = (pool.isa(), head.spec());
    let rows: Vec<usize> = (0..n).collect();
    let stream = Stream::new(pool, &rows, [stream::Head { x: head.x, w: &head.w }], scratch);
    let mut states = vec![Moment::default(); n];
    let shared = Disjoint::new(&mut states);
    let body = |row: usize, _: usize, [z]: [&mut [f32]; 1]| {
        // SAFETY: a row is in one task at a time.
        let state = unsafe { &mut shared.slice(row, 1)[0] };
        row_prepare(isa, &spec, z);
        match statistic {
            Statistic::Entropy => state.add(isa, z, None),
            Statistic::Mean => state.cross += z.iter().map(|&z| f64::from(z)).sum::<f64>(),
        }
        1.0
    };
    stream.pass(&body, None, |_, _, _| ());
    for (row, state) in states.iter().enumerate() {
        (value[row], lse[row]) = match statistic {
            Statistic::Entropy => ((state.lse() - state.cross / state.sum) as f32, state.lse() as f32),
            Statistic::Mean => ((state.cross / head.w.rows as f64) as f32, 0.0),
        };
    }
}

/// Gradients of [`statistic`] for the gradients `d_value` of its values: `dx` and, for a trained head, `dw: [vocab, d]`.
///
/// # Panics
/// When a length is wrong.
#[track_caller]
pub fn statistic_backward(
    pool: &Pool,
    statistic: Statistic,
    n: usize,
    head: &Head<'_>,
    value: &[f32],
    lse: &[f32],
    d_value: &[f32],
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    head.check(n);
    assert!(value.len() == n && lse.len() == n && d_value.len() == n, "length of an operand of a statistic");
    let (isa, spec, vocab) = (pool.isa(), head.spec(), head.w.rows);
    let body = |row: usize, _: usize, [z]: [&mut [f32]; 1]| {
        row_prepare(isa, &spec, z);
        let chain = Chain { factor: d_value[row] / spec.temperature, bend: spec.bend() };
        match statistic {
            Statistic::Entropy => row_entropy(isa, chain, lse[row], value[row], z),
            Statistic::Mean => scalar::mean(chain, vocab, z),
        }
        1.0
    };
    let rows: Vec<usize> = (0..n).collect();
    gradients(pool, &rows, [stream::Head { x: head.x, w: &head.w }], &body, dx, dw, scratch);
}

/// Divergence of `p` from `q` by row, and what the gradient needs: both log-sum-exps and the share of `p`.
///
/// # Panics
/// When a length is wrong or the vocabularies differ.
#[track_caller]
pub fn divergence(
    pool: &Pool,
    alpha: f32,
    n: usize,
    [p, q]: [&Head<'_>; 2],
    value: &mut [f32],
    lse: [&mut [f32]; 2],
    share: &mut [f32],
    scratch: &mut [f32],
) {
    p.check(n);
    q.check(n);
    assert_eq!(p.w.rows, q.w.rows, "a divergence is of heads over one vocabulary");
    assert!(value.len() == n && share.len() == n && lse.iter().all(|lse| lse.len() == n), "length of an output of a divergence");
    let scratch_len = scratch_len(n, p.w.rows, &[p.w.cols, q.w.cols], false);
    assert!(scratch.len() >= scratch_len, "scratch of a divergence is too short");
    let (isa, specs) = (pool.isa(), [p.spec(), q.spec()]);
    let rows: Vec<usize> = (0..n).collect();
    let stream = Stream::new(pool, &rows, [p, q].map(|head| stream::Head { x: head.x, w: &head.w }), scratch);
    let mut states = vec![[Moment::default(); 2]; n];
    let shared = Disjoint::new(&mut states);
    let body = |row: usize, _: usize, [p, q]: [&mut [f32]; 2]| {
        // SAFETY: a row is in one task at a time.
        let [of_p, of_q] = unsafe { &mut shared.slice(row, 1)[0] };
        row_prepare(isa, &specs[0], p);
        row_prepare(isa, &specs[1], q);
        // Averages of the difference of logits, where they are of use.
        of_p.add(isa, p, (alpha == 0.0).then_some(&*q));
        of_q.add(isa, q, (alpha == 1.0).then_some(&*p));
        1.0
    };
    stream.pass(&body, None, |_, _, _| ());
    for (row, [p, q]) in states.iter().enumerate() {
        (lse[0][row], lse[1][row]) = (p.lse() as f32, q.lse() as f32);
        let kl = |of: &Moment, other: &Moment| (of.cross / of.sum - of.lse() + other.lse()) as f32;
        (value[row], share[row]) = match alpha {
            0.0 => (kl(p, q), kl(p, q)),
            _ => (kl(q, p), 0.0),
        };
    }
    if alpha == 0.0 || alpha == 1.0 {
        return;
    }
    let mut sums = vec![[0f64; 2]; n];
    let shared = Disjoint::new(&mut sums);
    let body = |row: usize, _: usize, [p, q]: [&mut [f32]; 2]| {
        // SAFETY: a row is in one task at a time.
        let sums = unsafe { &mut shared.slice(row, 1)[0] };
        row_prepare(isa, &specs[0], p);
        row_prepare(isa, &specs[1], q);
        let [from_p, from_q] = row_mixture(isa, alpha, [lse[0][row], lse[1][row]], p, q);
        sums[0] += from_p;
        sums[1] += from_q;
        1.0
    };
    stream.pass(&body, None, |_, _, _| ());
    for (row, [from_p, from_q]) in sums.into_iter().enumerate() {
        (value[row], share[row]) = ((from_p + from_q) as f32, from_p as f32);
    }
}

/// Gradients of [`divergence`] in the head `p`: `dx` and, for a trained head, `dw: [vocab, d]`. Those in `q` are these with the heads
/// exchanged, `1 - alpha`, and what of the divergence is not the share of `p`.
///
/// # Panics
/// When a length is wrong or the vocabularies differ.
#[track_caller]
pub fn divergence_backward(
    pool: &Pool,
    alpha: f32,
    n: usize,
    [p, q]: [&Head<'_>; 2],
    lse: [&[f32]; 2],
    share: &[f32],
    d_value: &[f32],
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    p.check(n);
    q.check(n);
    assert_eq!(p.w.rows, q.w.rows, "a divergence is of heads over one vocabulary");
    let fits = share.len() == n && d_value.len() == n && lse.iter().all(|lse| lse.len() == n);
    assert!(fits, "length of an operand of a divergence");
    let (isa, specs) = (pool.isa(), [p.spec(), q.spec()]);
    let body = |row: usize, _: usize, [p, q]: [&mut [f32]; 2]| {
        row_prepare(isa, &specs[0], p);
        row_prepare(isa, &specs[1], q);
        let chain = Chain { factor: d_value[row] / specs[0].temperature, bend: specs[0].bend() };
        row_divergence(isa, alpha, chain, [lse[0][row], lse[1][row]], share[row], p, q);
        1.0
    };
    let rows: Vec<usize> = (0..n).collect();
    gradients(pool, &rows, [p, q].map(|head| stream::Head { x: head.x, w: &head.w }), &body, dx, dw, scratch);
}

/// Sums over the vocabulary so far.
#[derive(Clone, Copy)]
struct Moment {
    /// Largest `z`.
    top: f32,
    /// Sum of `e^(z - top)`.
    sum: f64,
    /// Sum of `e^(z - top) (z - other)`.
    cross: f64,
}

impl Default for Moment {
    fn default() -> Moment {
        Moment { top: f32::NEG_INFINITY, sum: 0.0, cross: 0.0 }
    }
}

impl Moment {
    fn lse(&self) -> f64 {
        f64::from(self.top) + self.sum.ln()
    }

    /// Adds a tile, against zeros where there is no other.
    fn add(&mut self, isa: Isa, z: &[f32], other: Option<&[f32]>) {
        let before = self.top;
        let [sum, cross] = match isa {
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            _ if isa.is_wide() => vector::moment(isa, z, other, &mut self.top),
            _ => scalar::moment(z, other, &mut self.top),
        };
        let factor = if before == self.top { 1.0 } else { f64::from(before - self.top).exp() };
        self.sum = self.sum * factor + sum;
        self.cross = self.cross * factor + cross;
    }
}

/// From a gradient in `z` to one in the raw logits: times `factor (1 - (z bend)^2)`.
#[derive(Clone, Copy)]
struct Chain {
    factor: f32,
    bend: f32,
}

fn row_entropy(isa: Isa, chain: Chain, lse: f32, entropy: f32, z: &mut [f32]) {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::entropy(isa, chain, lse, entropy, z),
        _ => scalar::entropy(chain, lse, entropy, z),
    }
}

/// Both terms of the divergence from a mixture.
fn row_mixture(isa: Isa, alpha: f32, lse: [f32; 2], p: &[f32], q: &[f32]) -> [f64; 2] {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::mixture(isa, alpha, lse, p, q),
        _ => scalar::mixture(alpha, lse, p, q),
    }
}

fn row_divergence(isa: Isa, alpha: f32, chain: Chain, lse: [f32; 2], share: f32, p: &mut [f32], q: &[f32]) {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::divergence(isa, alpha, chain, lse, share, p, q),
        _ => scalar::divergence(alpha, chain, lse, share, p, q),
    }
}
