//! Linear head and cross-entropy in one: logits exist for a tile of the vocabulary at a
//! time, never as `[n, vocab]`.
//!
//! With raw logits `r = x W^T`, cap `c` and temperature `T`: `z = c tanh(r / c) / T` (`z = r / T`
//! without a cap), `lse = log sum e^z` and, for smoothing `s` and weight `a` of the z-loss,
//!
//! ```text
//! loss     = lse - (1 - s) z[target] - s mean(z) + a lse^2
//! d loss/dz = (1 + 2 a lse) e^(z - lse) - (1 - s) [target] - s / vocab
//! ```
//!
//! Rows with a negative target are ignored: their loss, `lse` and gradients are zero and they
//! are left out of the products altogether, by packing the others together. Outputs are
//! overwritten.
//!
//! The vocabulary passes by tile by tile (`stream.rs`). A head that is not trained needs two products
//! for loss and gradient: as in flash attention, the gradient adds `e^(z - top) W` under the
//! largest logit so far and is rescaled when a larger one comes, so that `lse` need not be
//! known. Only smoothing needs it, and there a second pass follows the first.
//!
//! Rejected: tiles of rows against the whole vocabulary, whose logits `[128, vocab]` are kept for the
//! second product. All of the weight is packed twice for every 128 rows, and 25 MB of logits
//! go through memory.
//!
//! The error of a logit is that of [`crate::gemm`]; sums over the vocabulary are kept in `f64` by tile, so `loss` and `lse` add
//! about `1e-6` of their magnitude to it, and gradients `1e-5` of the largest value of the weight. What is not finite in a row of
//! `x` makes that row's outputs not finite, and those of `dw`; ignored rows do nothing.

#![allow(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]

pub mod distribution;
mod scalar;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use crate::format::Weight;
use crate::gemm::scratch::with_scratch;
use crate::gemm::{MatRef, gemm};
use crate::isa::Isa;
use crate::panels::Decoded;
use crate::pool::{Disjoint, Pool};
use crate::quant::decoder;
use stream::{Body, Head, Stream};

/// What is added to plain cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Share of the target that is spread evenly over the vocabulary.
    pub label_smoothing: f32,
    /// Weight of `lse^2`.
    pub z_loss: f32,
    /// Smooth bound of the raw logits.
    pub softcap: Option<f32>,
    /// Divides the logits, after the cap.
    pub temperature: f32,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec { label_smoothing: 0.0, z_loss: 0.0, softcap: None, temperature: 1.0 }
    }
}

impl Spec {
    /// Factor of `z` whose square the slope of the cap lacks to one.
    fn bend(&self) -> f32 {
        self.softcap.map_or(0.0, |cap| self.temperature / cap)
    }
}

/// Floats of scratch that [`forward`] needs, and [`backward`] with a head that is `trained` or not.
pub fn scratch_len(n: usize, vocab: usize, d: usize, trained: bool) -> usize {
    stream::scratch_len(n, vocab, &[d]) + if trained { n * d } else { 0 }
}

/// Losses of `n` rows, and `lse` for [`backward`].
///
/// With `dx_unit`, also `d loss[i] / d x[i]` from the same logits, for a head that is not
/// trained: the caller scales its rows by the gradient of the losses.
///
/// # Panics
/// When a target is not below the vocabulary, or a length is wrong.
#[track_caller]
pub fn forward(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    x: &[f32],
    w: &Weight<'_>,
    targets: &[i32],
    loss: &mut [f32],
    lse: &mut [f32],
    mut dx_unit: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let (vocab, d) = (w.rows, w.cols);
    check(n, x, w, targets, scratch, false);
    assert!(loss.len() == n && lse.len() == n, "length of an output of cross entropy");
    assert!(dx_unit.as_ref().is_none_or(|dx| dx.len() == n * d), "length of dx_unit of cross entropy");
    loss.fill(0.0);
    lse.fill(0.0);
    let isa = pool.isa();
    let rows = counted(targets);
    let stream = Stream::new(pool, &rows, [Head { x, w }], scratch);
    let mut states = vec![Online::default(); rows.len()];
    let shared = Disjoint::new(&mut states);
    let smooth = spec.label_smoothing != 0.0;
    let at_once = dx_unit.is_some() && !smooth;
    let body = |index: usize, first: usize, [logits]: [&mut [f32]; 1]| {
        // SAFETY: a row is in one task at a time.
        let state = unsafe { &mut shared.slice(index, 1)[0] };
        row_prepare(isa, spec, logits);
        if let Some(hit) = logits.get((targets[rows[index]] as usize).wrapping_sub(first)) {
            state.hit = *hit;
        }
        if smooth {
            state.total += logits.iter().map(|&z| f64::from(z)).sum::<f64>();
        }
        row_online(isa, if at_once { spec.bend() } else { 0.0 }, logits, state)
    };
    match &mut dx_unit {
        Some(dx) if at_once => {
            let dx = &mut dx[..rows.len() * d];
            stream.pass(&body, Some(dx), |_, _, _| ());
        }
        _ => stream.pass(&body, None, |_, _, _| ()),
    }
    for (state, &row) in states.iter().zip(&rows) {
        (loss[row], lse[row]) = state.loss(spec, vocab);
    }
    let Some(dx) = dx_unit else { return };
    let compact = &mut dx[..rows.len() * d];
    if at_once {
        let (decode, repacked) = (decoder(isa, w.format), Decoded::new(isa, w));
        pool.run_pieces(compact, d, |index, dx| {
            let (state, row) = (&states[index], rows[index]);
            let gradient = scalar::Gradient::new(spec, vocab, lse[row], 1.0);
            let scale = (f64::from(gradient.probability) / state.sum) as f32;
            let hit = gradient.target(state.hit);
            with_scratch(d, |target| {
                match &repacked {
                    Some(w) => w.row(targets[row] as usize, target),
                    // SAFETY: a row of the weight encodes `d` values; the decoder suits the pool's level.
                    None => unsafe { decode(w.row(targets[row] as usize).as_ptr(), d, target.as_mut_ptr()) },
                }
                dx.iter_mut().zip(target).for_each(|(dx, w)| *dx = *dx * scale + hit * *w);
            });
        });
    } else {
        let body = gradient_of(isa, spec, &rows, targets, lse, None, vocab);
        stream.pass(&body, Some(compact), |_, _, _| ());
    }
    spread(&rows, d, dx);
}

/// Gradients of [`forward`] for the gradients `d_loss` of its losses: `dx` and, for a trained
/// head, `dw: [vocab, d]`. Logits are computed again.
///
/// # Panics
/// When a target is not below the vocabulary, or a length is wrong.
#[track_caller]
pub fn backward(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    x: &[f32],
    w: &Weight<'_>,
    targets: &[i32],
    lse: &[f32],
    d_loss: &[f32],
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let vocab = w.rows;
    check(n, x, w, targets, scratch, dw.is_some());
    assert!(lse.len() == n && d_loss.len() == n, "length of an operand of cross entropy");
    let rows = counted(targets);
    let body = gradient_of(pool.isa(), spec, &rows, targets, lse, Some(d_loss), vocab);
    gradients(pool, &rows, [Head { x, w }], &body, dx, dw, scratch);
}

/// Gradients in the first head's hidden states, and in its weight if asked for, of what turns logits of `rows` into
/// coefficients. Other rows have none.
#[track_caller]
fn gradients<const H: usize>(
    pool: &Pool,
    rows: &[usize],
    heads: [Head<'_>; H],
    body: &Body<'_, H>,
    dx: &mut [f32],
    mut dw: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let Head { x, w } = heads[0];
    let (vocab, d) = (w.rows, w.cols);
    assert_eq!(dx.len(), x.len(), "length of the gradient of the hidden states");
    assert!(dw.as_ref().is_none_or(|dw| dw.len() == vocab * d), "length of the gradient of the head's weight");
    if let (Some(dw), true) = (&mut dw, rows.is_empty()) {
        dw.fill(0.0);
    }
    let (packed, scratch) = scratch.split_at_mut(if dw.is_some() { rows.len() * d } else { 0 });
    for (packed, &row) in packed.chunks_exact_mut(d).zip(rows) {
        packed.copy_from_slice(&x[row * d..][..d]);
    }
    let widths = heads.map(|head| head.w.cols);
    assert!(scratch.len() >= stream::scratch_len(rows.len(), vocab, &widths), "scratch of a head's gradients is too short");
    let stream = Stream::new(pool, rows, heads, scratch);
    stream.pass(body, Some(&mut dx[..rows.len() * d]), |first, width, coefficients| {
        if let (Some(dw), false) = (&mut dw, rows.is_empty()) {
            let coefficients = MatRef::new(coefficients, stream.stride()).transposed();
            let dw = &mut dw[first * d..][..width * d];
            gemm(pool, width, d, rows.len(), 1.0, coefficients, MatRef::new(packed, d), dw, d, 0.0);
        }
    });
    spread(rows, d, dx);
}

#[track_caller]
fn check(n: usize, x: &[f32], w: &Weight<'_>, targets: &[i32], scratch: &[f32], trained: bool) {
    assert!(w.rows > 0 && w.cols > 0, "the weight of cross entropy is empty");
    assert!(x.len() == n * w.cols && targets.len() == n, "length of an input of cross entropy");
    assert!(targets.iter().all(|&target| target < w.rows as i32), "a target of cross entropy is not below the vocabulary");
    assert!(scratch.len() >= scratch_len(n, w.rows, w.cols, trained), "scratch of cross entropy is too short");
}

/// Rows that have a target.
fn counted(targets: &[i32]) -> Vec<usize> {
    (0..targets.len()).filter(|&row| targets[row] >= 0).collect()
}

/// Moves rows that lie together at the start to their places, and fills the others with zeros.
fn spread(rows: &[usize], d: usize, dx: &mut [f32]) {
    let mut end = dx.len();
    for (index, &row) in rows.iter().enumerate().rev() {
        // Places are never before where a row is, so nothing that is still to be moved is overwritten.
        dx.copy_within(index * d..(index + 1) * d, row * d);
        dx[(row + 1) * d..end].fill(0.0);
        end = row * d;
    }
    dx[..end].fill(0.0);
}

/// The part of a tile in the gradient when `lse` is known.
fn gradient_of<'a>(
    isa: Isa,
    spec: &'a Spec,
    rows: &'a [usize],
    targets: &'a [i32],
    lse: &'a [f32],
    d_loss: Option<&'a [f32]>,
    vocab: usize,
) -> impl Fn(usize, usize, [&mut [f32]; 1]) -> f32 + Sync + 'a {
    move |index, first, [logits]| {
        let row = rows[index];
        row_prepare(isa, spec, logits);
        let gradient = scalar::Gradient::new(spec, vocab, lse[row], d_loss.map_or(1.0, |d| d[row]));
        row_gradient(isa, gradient, logits, (targets[row] as usize).wrapping_sub(first), lse[row]);
        1.0
    }
}

/// What is known of a row after some tiles.
#[derive(Clone, Copy)]
struct Online {
    /// Largest `z`.
    top: f32,
    /// `z` of the target.
    hit: f32,
    /// Sum of `e^(z - top)`.
    sum: f64,
    /// Sum of `z`, where it is needed.
    total: f64,
}

impl Default for Online {
    fn default() -> Online {
        Online { top: f32::NEG_INFINITY, hit: 0.0, sum: 0.0, total: 0.0 }
    }
}

impl Online {
    fn lse(&self) -> f64 {
        f64::from(self.top) + self.sum.ln()
    }

    /// Loss and `lse`.
    fn loss(&self, spec: &Spec, vocab: usize) -> (f32, f32) {
        let (lse, smooth, mean) = (self.lse(), f64::from(spec.label_smoothing), self.total / vocab as f64);
        let loss = lse - (1.0 - smooth) * f64::from(self.hit) - smooth * mean + f64::from(spec.z_loss) * lse * lse;
        (loss as f32, lse as f32)
    }
}

/// Turns raw logits into `z`.
fn row_prepare(isa: Isa, spec: &Spec, logits: &mut [f32]) {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::prepare(isa, spec, logits),
        _ => scalar::prepare(spec, logits),
    }
}

/// Turns `z` into `e^(z - top)`, times the slope of the cap, and returns what earlier ones are to be multiplied by.
fn row_online(isa: Isa, bend: f32, z: &mut [f32], state: &mut Online) -> f32 {
    let before = state.top;
    let sum = match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::online(isa, bend, z, &mut state.top),
        _ => scalar::online(bend, z, &mut state.top),
    };
    // Nothing was added before the first tile, and infinities have no difference.
    let factor = if before == state.top { 1.0 } else { (before - state.top).exp() };
    state.sum = state.sum * f64::from(factor) + sum;
    factor
}

/// Turns `z` into the gradient in the raw logits; `target` is its place, perhaps in another tile.
fn row_gradient(isa: Isa, gradient: scalar::Gradient, z: &mut [f32], target: usize, lse: f32) {
    let at_target = z.get(target).map(|&z| gradient.value(z, lse) + gradient.target(z));
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector::gradient(isa, gradient, lse, z),
        _ => scalar::gradient(gradient, lse, z),
    }
    if let Some(value) = at_target {
        z[target] = value;
    }
}
