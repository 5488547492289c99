//! Encoders with the rounding of ggml's `quantize_row_*_ref`.

use half::{bf16, f16};

use crate::format::Format;

/// Encodes `src` into `out`, which has `format.row_bytes(src.len())` bytes.
///
/// Non-finite values are kept by F32, F16 and BF16; blocks with them decode to
/// unspecified values in the quantized formats.
///
/// # Panics
/// When the lengths do not match or `src` is not a whole number of blocks.
#[track_caller]
pub fn quantize(format: Format, src: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), format.row_bytes(src.len()), "bytes do not match the source's length");
    let blocks = src.chunks_exact(format.block_len()).zip(out.chunks_exact_mut(format.block_bytes()));
    let encode = match format {
        Format::F32 => |x: &[f32], out: &mut [u8]| out.copy_from_slice(&x[0].to_le_bytes()),
        Format::F16 => |x: &[f32], out: &mut [u8]| put_half(out, x[0]),
        Format::BF16 => |x: &[f32], out: &mut [u8]| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
    };
    blocks.for_each(|(x, out)| encode(x, out));
}

fn put_half(out: &mut [u8], value: f32) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The reference divides by the unrounded scale, and by nothing for a zero block.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let d = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let scale = inverse(d);
    put_half(out, d);
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = (x * scale).round() as i8 as u8;
    }
}

/// Truncates to a nibble; the caller has added the half that makes it rounding.
fn nibble(value: f32) -> u8 {
    (value as i8).clamp(0, 15) as u8
}

fn put_nibbles(out: &mut [u8], x: &[f32], encode: impl Fn(f32) -> u8) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = encode(x[j]) | encode(x[j + 16]) << 4;
    }
}

fn q4_0(x: &[f32], out: &mut [u8]) {
    // The value of largest magnitude, with its sign, becomes exactly -8.
    let most = x.iter().fold(0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
    let d = most / -8.0;
    let scale = inverse(d);
    put_half(out, d);
    put_nibbles(&mut out[2..], x, |x| nibble(x * scale + 8.5));
}

fn q4_1(x: &[f32], out: &mut [u8]) {
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    let scale = inverse(d);
    put_half(out, d);
    put_half(&mut out[2..], min);
    put_nibbles(&mut out[4..], x, |x| nibble((x - min) * scale + 0.5));
}
