//! Specification of both directions.

use super::Map;

/// Smaller magnitudes have no inverse.
const SMALLEST: f32 = 1e-38;

/// Codes of one block; gives its largest magnitude.
pub(crate) fn encode(map: Map, x: &[f32], codes: &mut [u8]) -> f32 {
    let larger = |top: f32, x: &f32| if x.is_nan() || top.is_nan() { f32::NAN } else { top.max(x.abs()) };
    let absmax = x.iter().fold(0.0, larger);
    let inverse = inverse(absmax);
    codes.iter_mut().zip(x).for_each(|(code, &x)| *code = map.nearest(x * inverse));
    absmax
}

/// What the numbers of a block are multiplied by.
#[inline(always)]
pub(crate) fn inverse(absmax: f32) -> f32 {
    // Blocks of zeros become zeros; NaN stays.
    if absmax < SMALLEST { 1.0 / SMALLEST } else { 1.0 / absmax }
}

/// Numbers of one block.
pub(crate) fn decode(map: Map, codes: &[u8], absmax: f32, out: &mut [f32]) {
    let values = map.values();
    out.iter_mut().zip(codes).for_each(|(out, &code)| *out = values[usize::from(code)] * absmax);
}
