//! Encoders: the rounding of ggml's `quantize_row_*_ref`, and of bitsandbytes for NF4.
//!
//! `golden.txt` holds all of them to what those write, bit for bit. `k.rs` has the formats in blocks of 256, whose scales are
//! searched for in ggml's order of arithmetic, `nf4.rs` that of bitsandbytes.

use half::{bf16, f16};

use super::levels::IQ4_NL;
use crate::format::Format;

mod k;
pub(super) mod nf4;

pub use nf4::round_nf4_scales;

/// Encodes one block.
type Encoder = fn(&[f32], &mut [u8]);

/// Encodes `src`, rows of whole blocks, into `out`, which has `format.row_bytes(src.len())` bytes.
///
/// Non-finite values are kept by F32, F16 and BF16; blocks with them decode to
/// unspecified values in the quantized formats.
///
/// # Panics
/// When the lengths do not match or `src` is not a whole number of blocks.
#[track_caller]
pub fn quantize(format: Format, src: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), format.row_bytes(src.len()), "bytes do not match the source's length");
    let encode: Encoder = match format {
        Format::F32 => |x, out| out.copy_from_slice(&x[0].to_le_bytes()),
        Format::F16 => |x, out| put_half(out, x[0]),
        Format::BF16 => |x, out| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::Iq4Nl => iq4_nl,
        Format::Q2K => k::q2_k,
        Format::Q3K => k::q3_k,
        Format::Q4K => k::q4_k,
        Format::Q5K => k::q5_k,
        Format::Q6K => k::q6_k,
        Format::Nf4 => nf4::encode,
    };
    let blocks = src.chunks_exact(format.block_len()).zip(out.chunks_exact_mut(format.block_bytes()));
    blocks.for_each(|(x, out)| encode(x, out));
}

fn put_half(out: &mut [u8], value: f32) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The reference divides by the unrounded scale, and by nothing for a zero block.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of largest magnitude, the first of several, with its sign.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |most, &x| if x.abs() > most.abs() { x } else { most })
}

fn extremes(x: &[f32]) -> (f32, f32) {
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (min, max)
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let d = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let scale = inverse(d);
    put_half(out, d);
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = (x * scale).round() as i8 as u8;
    }
}

/// Truncates to a code of at most `most`; the caller has added the half that makes it rounding.
fn code(value: f32, most: i8) -> u8 {
    (value as i8).clamp(0, most) as u8
}

fn put_nibbles(out: &mut [u8], q: &[u8; 32]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = q[j] & 15 | q[j + 16] << 4;
    }
}

/// The fifth bits as a little-endian word, then the nibbles.
fn put_five_bits(out: &mut [u8], q: &[u8; 32]) {
    let high = q.iter().enumerate().fold(0u32, |bits, (j, &q)| bits | u32::from(q >> 4) << j);
    out[..4].copy_from_slice(&high.to_le_bytes());
    put_nibbles(&mut out[4..], q);
}

fn q4_0(x: &[f32], out: &mut [u8]) {
    // The value of largest magnitude becomes exactly -8.
    let d = largest(x) / -8.0;
    let scale = inverse(d);
    put_half(out, d);
    put_nibbles(&mut out[2..], &std::array::from_fn(|j| code(x[j] * scale + 8.5, 15)));
}

fn q4_1(x: &[f32], out: &mut [u8]) {
    let (min, max) = extremes(x);
    let d = (max - min) / 15.0;
    let scale = inverse(d);
    put_half(out, d);
    put_half(&mut out[2..], min);
    put_nibbles(&mut out[4..], &std::array::from_fn(|j| code((x[j] - min) * scale + 0.5, 15)));
}

fn q5_0(x: &[f32], out: &mut [u8]) {
    let d = largest(x) / -16.0;
    let scale = inverse(d);
    put_half(out, d);
    put_five_bits(&mut out[2..], &std::array::from_fn(|j| code(x[j] * scale + 16.5, 31)));
}

fn q5_1(x: &[f32], out: &mut [u8]) {
    let (min, max) = extremes(x);
    let d = (max - min) / 31.0;
    let scale = inverse(d);
    put_half(out, d);
    put_half(&mut out[2..], min);
    put_five_bits(&mut out[4..], &std::array::from_fn(|j| code((x[j] - min) * scale + 0.5, 31)));
}

/// The nearest level, the higher of two.
fn nearest_level(value: f32) -> u8 {
    let level = |i: usize| f32::from(IQ4_NL[i]);
    if value <= level(0) {
        return 0;
    }
    let above = (1..16).find(|&i| value < level(i)).unwrap_or(16);
    if above == 16 || value - level(above - 1) < level(above) - value { above as u8 - 1 } else { above as u8 }
}

/// The largest value takes the lowest level; then the scale of least error, weighted by `x²`, for these codes.
fn iq4_nl(x: &[f32], out: &mut [u8]) {
    // Below this a block is zero to the reference.
    const NOTHING: f32 = 1e-15;
    let largest = largest(x);
    if largest.abs() < NOTHING {
        return out.fill(0);
    }
    let inverse = 1.0 / (largest / f32::from(IQ4_NL[0]));
    let q: [u8; 32] = std::array::from_fn(|j| nearest_level(inverse * x[j]));
    let (mut product, mut square) = (0f32, 0f32);
    for (&q, &x) in q.iter().zip(x) {
        let (weight, level) = (x * x, f32::from(IQ4_NL[usize::from(q)]));
        product += weight * level * x;
        square += weight * level * level;
    }
    put_half(out, if square > 0.0 { product / square } else { 0.0 });
    put_nibbles(&mut out[2..], &q);
}
