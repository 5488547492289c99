//! Encoders of the formats in blocks of 256: per group of 16 or 32 a search for the scale (and minimum) of least
//! weighted error, then scales as small integers, then codes for the rounded scales. Sums are in the order of ggml's
//! reference, so that codes are the same.

use half::f16;

use super::{largest, put_half};
use crate::quant::scalar::six_bits;

/// Below this a group is zero to the reference.
const NOTHING: f32 = 1e-15;

/// To the nearest integer, ties to even, for magnitudes below 2^22.
fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Codes `0..=most` and `(scale, minimum)` with `x ≈ scale q - minimum`. `first` and `steps` say which scales are tried.
fn fit_with_minimum(
    x: &[f32],
    weights: &[f32],
    most: i32,
    first: f32,
    steps: i32,
    absolute: bool,
    codes: &mut [u8],
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).clamp(0, most);
    let error = |scale: f32, min: f32, codes: &[u8]| {
        let terms = x.iter().zip(weights).zip(codes).map(|((&x, &w), &q)| {
            let diff = scale * f32::from(q) + min - x;
            w * if absolute { diff.abs() } else { diff * diff }
        });
        terms.fold(0f32, |sum, term| sum + term)
    };
    let inverse = most as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    codes.iter_mut().zip(x).for_each(|(q, &x)| *q = code(inverse, min, x) as u8);
    let mut best = error(scale, min, codes);
    let mut tried = [0u8; 32];
    let tried = &mut tried[..x.len()];
    for step in 0..=steps {
        // From the minimum that is the best so far.
        let inverse = (first + 0.1 * step as f32 + most as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((q, &x), &w) in tried.iter_mut().zip(x).zip(weights) {
            let l = code(inverse, min, x);
            *q = l as u8;
            let l = l as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(this_scale, this_min, tried);
            if this_error < best {
                codes.copy_from_slice(tried);
                (best, scale, min) = (this_error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// Sums of `x³ q` and `x² q²` in the reference's order.
fn sums(x: &[f32], inverse: f32, most: i32) -> (f32, f32) {
    x.iter().fold((0f32, 0f32), |(xl, l2), &x| {
        let (w, l) = (x * x, nearest(inverse * x).clamp(-most, most - 1) as f32);
        (xl + w * x * l, l2 + w * l * l)
    })
}

/// Codes `0..32 * 2` around 32 and a scale, for Q6_K.
fn fit_scale(x: &[f32], codes: &mut [u8]) -> f32 {
    const MOST: i32 = 32;
    let max = largest(x);
    if max.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let put = |codes: &mut [u8], inverse: f32| {
        codes.iter_mut().zip(x).for_each(|(q, &x)| *q = (MOST + nearest(inverse * x).clamp(-MOST, MOST - 1)) as u8);
    };
    let inverse = -(MOST as f32) / max;
    put(codes, inverse);
    let (xl, l2) = sums(x, inverse, MOST);
    let mut scale = if l2 != 0.0 { xl / l2 } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = -(MOST as f32 + 0.1 * step as f32) / max;
        let (xl, l2) = sums(x, inverse, MOST);
        if l2 > 0.0 && xl * xl > best * l2 {
            put(codes, inverse);
            scale = xl / l2;
            best = scale * xl;
        }
    }
    scale
}

/// Codes `0..8` around 4 and a scale, for Q3_K: codes are moved one by one while that lessens the error.
fn refine_scale(x: &[f32], codes: &mut [u8]) -> f32 {
    const MOST: i32 = 4;
    let max = largest(x);
    if max.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -(MOST as f32) / max;
    let (mut xl, mut l2) = sums(x, inverse, MOST);
    let mut levels = [0i32; 16];
    levels.iter_mut().zip(x).for_each(|(l, &x)| *l = nearest(inverse * x).clamp(-MOST, MOST - 1));
    for _ in 0..5 {
        let mut changed = false;
        for (level, &x) in levels.iter_mut().zip(x) {
            let (w, l) = (x * x, *level as f32);
            let mut this_xl = xl - w * x * l;
            if this_xl > 0.0 {
                let mut this_l2 = l2 - w * l * l;
                let new = nearest(x * this_l2 / this_xl).clamp(-MOST, MOST - 1);
                if new != *level {
                    this_xl += w * x * new as f32;
                    this_l2 += w * new as f32 * new as f32;
                    if this_l2 > 0.0 && this_xl * this_xl * l2 > xl * xl * this_l2 {
                        (*level, xl, l2) = (new, this_xl, this_l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    codes.iter_mut().zip(levels).for_each(|(q, l)| *q = (l + MOST) as u8);
    if l2 > 0.0 { xl / l2 } else { 0.0 }
}

/// Codes again, for the rounded scale `d` and minimum; a zero scale keeps what the search left.
fn recode(x: &[f32], d: f32, minimum: f32, low: i32, most: i32, codes: &mut [u8]) {
    if d != 0.0 {
        codes.iter_mut().zip(x).for_each(|(q, &x)| *q = (nearest((x + minimum) / d).clamp(low, most) - low) as u8);
    }
}

/// Four values a byte, 32 apart, in halves of 128.
fn put_pairs(out: &mut [u8], codes: &[u8; 256], shift: u8) {
    for (i, out) in out.iter_mut().enumerate() {
        let q = |part: usize| (codes[i / 32 * 128 + i % 32 + part * 32] >> shift & 3) << (2 * part);
        *out = q(0) | q(1) | q(2) | q(3);
    }
}

fn put_high_bits(out: &mut [u8], codes: &[u8; 256], bit: u8) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = (0..8).fold(0, |bits, part| bits | (codes[i + part * 32] >> bit & 1) << part);
    }
}

fn put_long_nibbles(out: &mut [u8], codes: &[u8; 256]) {
    for (i, out) in out.iter_mut().enumerate() {
        let at = i / 32 * 64 + i % 32;
        *out = codes[at] & 15 | codes[at + 32] << 4;
    }
}

fn most_of(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |most, &v| if v > most { v } else { most })
}

pub(super) fn q2_k(x: &[f32], out: &mut [u8]) {
    let mut codes = [0u8; 256];
    let (mut scales, mut minima) = ([0f32; 16], [0f32; 16]);
    for (j, x) in x.chunks_exact(16).enumerate() {
        let weights: [f32; 16] = std::array::from_fn(|l| x[l].abs());
        (scales[j], minima[j]) = fit_with_minimum(x, &weights, 3, -0.5, 15, true, &mut codes[16 * j..][..16]);
    }
    let (d, m) = (most_of(&scales), most_of(&minima));
    let integer = |value: f32, most: f32| if most > 0.0 { nearest(15.0 / most * value) as u8 } else { 0 };
    for j in 0..16 {
        out[j] = integer(scales[j], d) | integer(minima[j], m) << 4;
    }
    put_half(&mut out[80..], if d > 0.0 { d / 15.0 } else { 0.0 });
    put_half(&mut out[82..], if m > 0.0 { m / 15.0 } else { 0.0 });
    let (d, m) = (half(&out[80..]), half(&out[82..]));
    for (j, x) in x.chunks_exact(16).enumerate() {
        let (scale, minimum) = (d * f32::from(out[j] & 15), m * f32::from(out[j] >> 4));
        recode(x, scale, minimum, 0, 3, &mut codes[16 * j..][..16]);
    }
    put_pairs(&mut out[16..80], &codes, 0);
}

/// The scale of largest magnitude, the first of several.
fn leading(scales: &[f32]) -> f32 {
    largest(scales)
}

pub(super) fn q3_k(x: &[f32], out: &mut [u8]) {
    let mut codes = [0u8; 256];
    let mut scales = [0f32; 16];
    for (j, x) in x.chunks_exact(16).enumerate() {
        scales[j] = refine_scale(x, &mut codes[16 * j..][..16]);
    }
    let max = leading(&scales);
    out[96..108].fill(0);
    let mut integers = [0i32; 16];
    let inverse = -32.0 / max;
    put_half(&mut out[108..], if max != 0.0 { 1.0 / inverse } else { 0.0 });
    if max != 0.0 {
        for (j, integer) in integers.iter_mut().enumerate() {
            let l = (i32::from(nearest(inverse * scales[j]) as i8).clamp(-32, 31) + 32) as u8;
            out[96 + j % 8] |= (l & 15) << (j / 8 * 4);
            out[104 + j % 4] |= (l >> 4) << (j / 4 * 2);
            *integer = i32::from(l) - 32;
        }
    }
    let d = half(&out[108..]);
    for (j, x) in x.chunks_exact(16).enumerate() {
        recode(x, d * integers[j] as f32, 0.0, -4, 3, &mut codes[16 * j..][..16]);
    }
    put_high_bits(&mut out[..32], &codes, 2);
    put_pairs(&mut out[32..96], &codes, 0);
}

/// The first 16 bytes of Q4_K and Q5_K, and the codes.
fn with_six_bits(x: &[f32], most: i32, first: f32, steps: i32, out: &mut [u8]) -> [u8; 256] {
    let mut codes = [0u8; 256];
    let (mut scales, mut minima) = ([0f32; 8], [0f32; 8]);
    for (j, x) in x.chunks_exact(32).enumerate() {
        let square = x.iter().fold(0f32, |sum, x| sum + x * x);
        let mean = (square / 32.0).sqrt();
        let weights: [f32; 32] = std::array::from_fn(|l| mean + x[l].abs());
        (scales[j], minima[j]) = fit_with_minimum(x, &weights, most, first, steps, false, &mut codes[32 * j..][..32]);
    }
    let (d, m) = (most_of(&scales), most_of(&minima));
    let inverse = |most: f32| if most > 0.0 { 63.0 / most } else { 0.0 };
    for j in 0..8 {
        let scale = (nearest(inverse(d) * scales[j]) as u8).min(63);
        let minimum = (nearest(inverse(m) * minima[j]) as u8).min(63);
        if j < 4 {
            (out[4 + j], out[8 + j]) = (scale, minimum);
        } else {
            out[8 + j] = scale & 15 | (minimum & 15) << 4;
            out[j] |= scale >> 4 << 6;
            out[4 + j] |= minimum >> 4 << 6;
        }
    }
    put_half(out, d / 63.0);
    put_half(&mut out[2..], m / 63.0);
    let (d, m) = (half(out), half(&out[2..]));
    for (j, x) in x.chunks_exact(32).enumerate() {
        let (scale, minimum) = six_bits(&out[4..16], j);
        recode(x, d * f32::from(scale), m * f32::from(minimum), 0, most, &mut codes[32 * j..][..32]);
    }
    codes
}

pub(super) fn q4_k(x: &[f32], out: &mut [u8]) {
    let codes = with_six_bits(x, 15, -1.0, 20, out);
    put_long_nibbles(&mut out[16..], &codes);
}

pub(super) fn q5_k(x: &[f32], out: &mut [u8]) {
    let codes = with_six_bits(x, 31, -0.5, 15, out);
    put_high_bits(&mut out[16..48], &codes, 4);
    put_long_nibbles(&mut out[48..], &codes);
}

pub(super) fn q6_k(x: &[f32], out: &mut [u8]) {
    let mut codes = [0u8; 256];
    let mut scales = [0f32; 16];
    for (j, x) in x.chunks_exact(16).enumerate() {
        scales[j] = fit_scale(x, &mut codes[16 * j..][..16]);
    }
    let max = leading(&scales);
    if max.abs() < NOTHING {
        return out.fill(0);
    }
    let inverse = -128.0 / max;
    put_half(&mut out[208..], 1.0 / inverse);
    let d = half(&out[208..]);
    for (j, x) in x.chunks_exact(16).enumerate() {
        let integer = nearest(inverse * scales[j]).min(127) as i8;
        out[192 + j] = integer as u8;
        recode(x, d * f32::from(integer), 0.0, -32, 31, &mut codes[16 * j..][..16]);
    }
    for (i, out) in out[..128].iter_mut().enumerate() {
        let at = i / 64 * 128 + i % 64;
        *out = codes[at] & 15 | codes[at + 64] << 4;
    }
    put_pairs(&mut out[128..192], &codes, 4);
}
