//! Specification of RMS normalization, one row at a time, with sums in `f64`.

/// Writes `y`, returns `1 / sqrt(mean(x^2) + eps)`.
pub(super) fn forward(x: &[f32], w: Option<&[f32]>, eps: f32, offset: f32, y: &mut [f32]) -> f32 {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let inv_rms = (1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt()) as f32;
    for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
        *y = x * inv_rms * w.map_or(1.0, |w| w[i] + offset);
    }
    inv_rms
}

/// With `g = dy w` and `h = x inv_rms`: `dx = inv_rms (g - h mean(g h))`.
pub(super) fn dx(x: &[f32], w: Option<&[f32]>, offset: f32, inv_rms: f32, dy: &[f32], dx: &mut [f32]) {
    let g = |i: usize| dy[i] * w.map_or(1.0, |w: &[f32]| w[i] + offset);
    let dot: f64 = (0..x.len()).map(|i| f64::from(g(i)) * f64::from(x[i])).sum();
    let pull = (dot / x.len() as f64) as f32 * inv_rms * inv_rms;
    for i in 0..x.len() {
        dx[i] = inv_rms * (g(i) - x[i] * pull);
    }
}

/// Adds one row's products to `dw`.
pub(super) fn dw(x: &[f32], inv_rms: f32, dy: &[f32], dw: &mut [f32]) {
    for i in 0..x.len() {
        dw[i] += dy[i] * (x[i] * inv_rms);
    }
}
