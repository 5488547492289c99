//! Specification of the per-row work.

use super::Chain;
use crate::cross_entropy::scalar::power;

impl Chain {
    pub(super) fn at(self, z: f32) -> f32 {
        self.factor * (1.0 - (z * self.bend) * (z * self.bend))
    }
}

/// Raises `top` to the largest `z`; sums of `e^(z - top)` and of `e^(z - top) (z - other)`.
pub(super) fn moment(z: &[f32], other: Option<&[f32]>, top: &mut f32) -> [f64; 2] {
    *top = z.iter().fold(*top, |a, &b| a.max(b));
    let (mut sum, mut cross) = (0.0, 0.0);
    for (i, &z) in z.iter().enumerate() {
        let e = f64::from(power(z - *top));
        sum += e;
        cross += e * f64::from(z - other.map_or(0.0, |other| other[i]));
    }
    [sum, cross]
}

/// Turns `z` into the gradient of the entropy.
pub(super) fn entropy(chain: Chain, lse: f32, entropy: f32, z: &mut [f32]) {
    for z in z {
        *z = -power(*z - lse) * (*z - lse + entropy) * chain.at(*z);
    }
}

/// Turns `z` into the gradient of the mean.
pub(super) fn mean(chain: Chain, vocab: usize, z: &mut [f32]) {
    let share = 1.0 / vocab as f32;
    z.iter_mut().for_each(|z| *z = share * chain.at(*z));
}

/// `log(alpha e^p + (1 - alpha) e^q)`.
fn mixed(alpha: f32, p: f32, q: f32) -> f32 {
    let (a, b) = (p + alpha.ln(), q + (1.0 - alpha).ln());
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}

/// `alpha sum p (log p - log m)` and `(1 - alpha) sum q (log q - log m)`.
pub(super) fn mixture(alpha: f32, lse: [f32; 2], p: &[f32], q: &[f32]) -> [f64; 2] {
    let mut sums = [0.0; 2];
    for (p, q) in p.iter().zip(q) {
        let (p, q) = (p - lse[0], q - lse[1]);
        let m = mixed(alpha, p, q);
        sums[0] += f64::from(power(p) * (p - m));
        sums[1] += f64::from(power(q) * (q - m));
    }
    [f64::from(alpha) * sums[0], f64::from(1.0 - alpha) * sums[1]]
}

/// Turns `p`, which is `z`, into the gradient of the divergence.
pub(super) fn divergence(alpha: f32, chain: Chain, lse: [f32; 2], share: f32, p: &mut [f32], q: &[f32]) {
    for (z, q) in p.iter_mut().zip(q) {
        let (p, q) = (*z - lse[0], q - lse[1]);
        let d_z = match alpha {
            0.0 => power(p) * (p - q - share),
            1.0 => power(p) - power(q),
            _ => power(p) * (alpha * (p - mixed(alpha, p, q)) - share),
        };
        *z = d_z * chain.at(*z);
    }
}
