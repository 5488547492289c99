//! NF4 as bitsandbytes encodes it: blocks of 64 with their largest magnitude as scale, and *double quantization*, which rounds the
//! scales themselves to 8 bits, in blocks of 256 around their mean.

use crate::format::Format;
use crate::quant::levels::NF4;

/// Scales that share one of their own.
const SCALES: usize = 256;

/// Steps of the grid that bitsandbytes rounds a value to before it looks for the nearest level.
const GRID: f32 = 65535.0;

/// The nearest level by midpoints, the lower at a midpoint.
pub(super) fn encode(x: &[f32], out: &mut [u8]) {
    let absmax = x.iter().fold(0f32, |most, x| most.max(x.abs()));
    let inverse = 1.0 / absmax.max(1e-38);
    out[..4].copy_from_slice(&absmax.to_le_bytes());
    let code = |x: f32| {
        let x = (x * inverse).clamp(-1.0, 1.0);
        NF4.windows(2).filter(|pair| (pair[0] + pair[1]) / 2.0 < x).count() as u8
    };
    for (out, x) in out[4..].iter_mut().zip(x.chunks_exact(2)) {
        *out = code(x[0]) << 4 | code(x[1]);
    }
}

/// Rounds the scales of a whole tensor's NF4 blocks as double quantization does. They stay `f32` beside their nibbles.
///
/// # Panics
/// When `blocks` is not a whole number of blocks.
#[track_caller]
pub fn round_nf4_scales(blocks: &mut [u8]) {
    const BYTES: usize = Format::Nf4.block_bytes();
    assert!(blocks.len().is_multiple_of(BYTES), "bytes are not whole NF4 blocks");
    let scale = |block: &[u8]| f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let mut scales: Vec<f32> = blocks.chunks_exact(BYTES).map(scale).collect();
    // The sum is exact for all that matters; bitsandbytes adds in single precision, in an order of its own.
    let mean = scales.iter().map(|&scale| f64::from(scale)).sum::<f64>() / scales.len().max(1) as f64;
    round_around(mean as f32, &mut scales, |_, _| {});
    for (block, scale) in blocks.chunks_exact_mut(BYTES).zip(scales) {
        block[..4].copy_from_slice(&scale.to_le_bytes());
    }
}

/// Rounds `scales` around `offset`; `seen` gets the codes and the scale of each block of them.
pub(in crate::quant) fn round_around(offset: f32, scales: &mut [f32], mut seen: impl FnMut(&[u8], f32)) {
    let levels = dynamic_map();
    let mut codes = [0; SCALES];
    for scales in scales.chunks_mut(SCALES) {
        let absmax = scales.iter().fold(0f32, |most, scale| most.max((scale - offset).abs()));
        let inverse = if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
        for (code, scale) in codes.iter_mut().zip(&mut *scales) {
            *code = nearest(&levels, (*scale - offset) * inverse);
            *scale = levels[usize::from(*code)] * absmax + offset;
        }
        seen(&codes[..scales.len()], absmax);
    }
}

/// The nearest of the levels to the nearest point of the grid, the lower of two.
fn nearest(levels: &[f32; 256], value: f32) -> u8 {
    let point = ((value.clamp(-1.0, 1.0) + 1.0) * 0.5 * GRID + 0.5).floor() * (2.0 / GRID) - 1.0;
    let below = levels.partition_point(|&level| level <= point).saturating_sub(1);
    let above = (below + 1).min(255);
    let distance = |index: usize| (point - levels[index]).abs();
    if distance(above) < distance(below) { above as u8 } else { below as u8 }
}

/// Levels of bitsandbytes' signed 8-bit codes ("8-Bit Approximations for Parallelism in Deep Learning", arXiv 1511.04561): seven
/// decades, of which each larger one has twice as many levels, evenly spaced from 0.1 to 1 of it; zero; and one.
pub(in crate::quant) fn dynamic_map() -> [f32; 256] {
    let mut levels = [0f32; 256];
    let mut filled = 0;
    for (power, decade) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let steps = 1usize << power;
        let step = (1.0 - 0.1f32) / steps as f32;
        // Counted from the nearer end, as PyTorch does.
        let bound = |i: usize| match i < steps.div_ceil(2) {
            true => (i as f32).mul_add(step, 0.1),
            false => ((steps - i) as f32).mul_add(-step, 1.0),
        };
        for i in 0..steps {
            let level = decade * ((bound(i) + bound(i + 1)) / 2.0);
            (levels[filled], levels[filled + 1]) = (level, -level);
            filled += 2;
        }
    }
    // The last but one is zero.
    levels[255] = 1.0;
    levels.sort_by(f32::total_cmp);
    levels
}
