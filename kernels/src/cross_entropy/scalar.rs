//! Specification of the per-row work of cross-entropy.

use super::Spec;

/// Powers of `e` below this are zero: all of them together are no part of a sum that holds a one, and products with
/// numbers that are not normal cost a hundred times as much.
pub(super) const FLOOR: f32 = -60.0;

/// `e^x`, and zero below [`FLOOR`].
pub(super) fn power(x: f32) -> f32 {
    if x < FLOOR { 0.0 } else { x.exp() }
}

/// Turns raw logits into `z`.
pub(super) fn prepare(spec: &Spec, logits: &mut [f32]) {
    match spec.softcap {
        Some(cap) => {
            for z in logits {
                *z = cap / spec.temperature * (*z / cap).tanh();
            }
        }
        None if spec.temperature != 1.0 => {
            let scale = 1.0 / spec.temperature;
            logits.iter_mut().for_each(|z| *z *= scale);
        }
        None => {}
    }
}

/// Raises `top` to the largest `z`, turns each into `e^(z - top)` times `1 - (z bend)^2`, and returns the sum without that factor.
pub(super) fn online(bend: f32, z: &mut [f32], top: &mut f32) -> f64 {
    *top = z.iter().fold(*top, |a, &b| a.max(b));
    let mut sum = 0.0;
    for z in z {
        let e = power(*z - *top);
        sum += f64::from(e);
        *z = e * (1.0 - (*z * bend) * (*z * bend));
    }
    sum
}

/// Coefficients of the gradient in a raw logit:
/// `(probability e^(z - lse) - even) * chain * (1 - (z bend)^2)`.
#[derive(Clone, Copy)]
pub(super) struct Gradient {
    /// Factor of the probability: `(1 + 2 a lse) d_loss / T`.
    pub(super) probability: f32,
    /// Share of every entry of the vocabulary, times `d_loss / T`.
    pub(super) even: f32,
    /// Share of the target, times `d_loss / T`.
    pub(super) hit: f32,
    /// `T / c`, or zero without a cap.
    pub(super) bend: f32,
}

impl Gradient {
    pub(super) fn new(spec: &Spec, vocab: usize, lse: f32, d_loss: f32) -> Gradient {
        let chain = d_loss / spec.temperature;
        Gradient {
            probability: (1.0 + 2.0 * spec.z_loss * lse) * chain,
            even: spec.label_smoothing / vocab as f32 * chain,
            hit: (1.0 - spec.label_smoothing) * chain,
            bend: spec.bend(),
        }
    }

    fn slope(&self, z: f32) -> f32 {
        1.0 - (z * self.bend) * (z * self.bend)
    }

    /// Gradient at an entry that is not the target.
    pub(super) fn value(&self, z: f32, lse: f32) -> f32 {
        (self.probability * power(z - lse) - self.even) * self.slope(z)
    }

    /// What the target adds to it.
    pub(super) fn target(&self, z: f32) -> f32 {
        -self.hit * self.slope(z)
    }
}

/// Turns `z` into its gradient, but for the target.
pub(super) fn gradient(gradient: Gradient, lse: f32, z: &mut [f32]) {
    z.iter_mut().for_each(|z| *z = gradient.value(*z, lse));
}
