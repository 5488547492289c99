//! Linear head and cross-entropy in one: logits exist for a tile of rows at a time, never as
//! `[n, vocab]`.
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
//! overwritten. Rows are tiled by shape and the gradient of the weight adds tiles in order, so
//! results do not depend on the number of threads. Products are [`crate::linear`]'s and have its
//! error; sums over the vocabulary are kept in `f64` blocks.

#![allow(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vector;

use crate::format::Weight;
use crate::gemm::{MatRef, gemm};
use crate::isa::Isa;
use crate::linear::{linear, linear_dx};
use crate::pool::{Disjoint, Pool};

/// Most rows of a tile: enough for each panel of the weight to pay for its unpacking.
const TILE_ROWS: usize = 128;

/// Floats of a tile of logits, 32 MB, unless a tile of 16 rows needs more.
const TILE_LOGITS: usize = 8 << 20;

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

/// Rows of a tile.
fn tile_rows(n: usize, vocab: usize) -> usize {
    let rows = (TILE_LOGITS / vocab.max(1)).clamp(16, TILE_ROWS);
    // A multiple of the row blocks of the matrix products.
    (rows / 16 * 16).min(n)
}

/// Floats of scratch that [`forward`] and [`backward`] need.
pub fn scratch_len(n: usize, vocab: usize, d: usize) -> usize {
    tile_rows(n, vocab) * (vocab + 2 * d)
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
    check(n, x, w, targets, scratch);
    assert!(loss.len() == n && lse.len() == n, "length of an output of cross entropy");
    assert!(dx_unit.as_ref().is_none_or(|dx| dx.len() == n * d), "length of dx_unit of cross entropy");
    loss.fill(0.0);
    lse.fill(0.0);
    if let Some(dx) = &mut dx_unit {
        dx.fill(0.0);
    }
    let isa = pool.isa();
    for_tiles(n, x, w, targets, scratch, |tile| {
        let count = tile.rows.len();
        linear(pool, count, 1.0, tile.x, w, None, tile.logits, 0.0);
        let (loss, lse) = (Disjoint::new(loss), Disjoint::new(lse));
        let want_dx = dx_unit.is_some();
        pool.run_pieces(tile.logits, vocab, |index, logits| {
            let row = tile.rows[index];
            let target = targets[row] as usize;
            // SAFETY: each row is in one tile, once.
            let (loss, lse) = unsafe { (loss.slice(row, 1), lse.slice(row, 1)) };
            (loss[0], lse[0]) = row_loss(isa, spec, logits, target);
            if want_dx {
                row_gradient(isa, spec, logits, target, lse[0], 1.0);
            }
        });
        if let Some(dx_unit) = &mut dx_unit {
            linear_dx(pool, count, 1.0, tile.logits, w, tile.dx, 0.0);
            for (dx, &row) in tile.dx.chunks_exact(d).zip(tile.rows) {
                dx_unit[row * d..][..d].copy_from_slice(dx);
            }
        }
    });
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
    mut dw: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let (vocab, d) = (w.rows, w.cols);
    check(n, x, w, targets, scratch);
    assert!(lse.len() == n && d_loss.len() == n && dx.len() == n * d, "length of an operand of cross entropy");
    assert!(dw.as_ref().is_none_or(|dw| dw.len() == vocab * d), "length of dw of cross entropy");
    dx.fill(0.0);
    let isa = pool.isa();
    let mut written = false;
    for_tiles(n, x, w, targets, scratch, |tile| {
        let count = tile.rows.len();
        linear(pool, count, 1.0, tile.x, w, None, tile.logits, 0.0);
        pool.run_pieces(tile.logits, vocab, |index, logits| {
            let row = tile.rows[index];
            row_prepare(isa, spec, logits);
            row_gradient(isa, spec, logits, targets[row] as usize, lse[row], d_loss[row]);
        });
        linear_dx(pool, count, 1.0, tile.logits, w, tile.dx, 0.0);
        for (from, &row) in tile.dx.chunks_exact(d).zip(tile.rows) {
            dx[row * d..][..d].copy_from_slice(from);
        }
        if let Some(dw) = &mut dw {
            let d_logits = MatRef::new(tile.logits, vocab).transposed();
            let beta = f32::from(u8::from(written));
            gemm(pool, vocab, d, count, 1.0, d_logits, MatRef::new(tile.x, d), dw, d, beta);
            written = true;
        }
    });
    if let (Some(dw), false) = (dw, written) {
        dw.fill(0.0);
    }
}

#[track_caller]
fn check(n: usize, x: &[f32], w: &Weight<'_>, targets: &[i32], scratch: &[f32]) {
    assert!(x.len() == n * w.cols && targets.len() == n, "length of an input of cross entropy");
    assert!(targets.iter().all(|&target| target < w.rows as i32), "a target of cross entropy is not below the vocabulary");
    assert!(scratch.len() >= scratch_len(n, w.rows, w.cols), "scratch of cross entropy is too short");
}

/// A tile of rows that count, packed together.
struct Tile<'a> {
    rows: &'a [usize],
    x: &'a [f32],
    logits: &'a mut [f32],
    dx: &'a mut [f32],
}

/// Calls `body` for each tile of rows whose target is not negative.
fn for_tiles(n: usize, x: &[f32], w: &Weight<'_>, targets: &[i32], scratch: &mut [f32], mut body: impl FnMut(Tile<'_>)) {
    let (vocab, d) = (w.rows, w.cols);
    let height = tile_rows(n, vocab);
    if height == 0 || vocab == 0 {
        return;
    }
    let rows: Vec<usize> = (0..n).filter(|&row| targets[row] >= 0).collect();
    let (logits, rest) = scratch.split_at_mut(height * vocab);
    let (packed, rest) = rest.split_at_mut(height * d);
    for rows in rows.chunks(height) {
        let packed = &mut packed[..rows.len() * d];
        for (packed, &row) in packed.chunks_exact_mut(d.max(1)).zip(rows) {
            packed.copy_from_slice(&x[row * d..][..d]);
        }
        body(Tile { rows, x: packed, logits: &mut logits[..rows.len() * vocab], dx: &mut rest[..rows.len() * d] });
    }
}

/// Turns raw logits into `z`.
fn row_prepare(isa: Isa, spec: &Spec, logits: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => vector::prepare(isa, spec, logits),
        _ => scalar::prepare(spec, logits),
    }
}

/// Turns raw logits into `z` and returns loss and `lse`.
fn row_loss(isa: Isa, spec: &Spec, logits: &mut [f32], target: usize) -> (f32, f32) {
    row_prepare(isa, spec, logits);
    let (lse, mean) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => vector::lse_mean(isa, logits),
        _ => scalar::lse_mean(logits),
    };
    let smooth = f64::from(spec.label_smoothing);
    let loss = lse - (1.0 - smooth) * f64::from(logits[target]) - smooth * mean + f64::from(spec.z_loss) * lse * lse;
    (loss as f32, lse as f32)
}

/// Turns `z` into `d_loss` times the gradient in the raw logits.
fn row_gradient(isa: Isa, spec: &Spec, z: &mut [f32], target: usize, lse: f32, d_loss: f32) {
    let gradient = scalar::Gradient::new(spec, z.len(), lse, d_loss);
    let at_target = gradient.value(z[target], lse) + gradient.target(z[target]);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => vector::gradient(isa, gradient, lse, z),
        _ => scalar::gradient(gradient, lse, z),
    }
    z[target] = at_target;
}
