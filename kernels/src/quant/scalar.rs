//! Portable decoders: the specification of each format.

use half::{bf16, f16};

use super::Decoder;
use crate::format::Format;

pub(super) fn decoder(format: Format) -> Decoder {
    match format {
        Format::F32 => blocks::<F32, 4, 1>,
        Format::F16 => blocks::<F16, 2, 1>,
        Format::BF16 => blocks::<BF16, 2, 1>,
        Format::Q8_0 => blocks::<Q8_0, 34, 32>,
        Format::Q4_0 => blocks::<Q4_0, 18, 32>,
        Format::Q4_1 => blocks::<Q4_1, 20, 32>,
    }
}

/// One block of `BYTES` bytes and `LEN` values.
trait Block<const BYTES: usize, const LEN: usize> {
    fn decode(block: &[u8; BYTES]) -> [f32; LEN];
}

/// # Safety
/// See [`Decoder`].
unsafe fn blocks<B: Block<BYTES, LEN>, const BYTES: usize, const LEN: usize>(src: *const u8, len: usize, dst: *mut f32) {
    for index in 0..len / LEN {
        // SAFETY: the caller promises whole blocks; byte arrays have no alignment.
        unsafe {
            let block = &*src.add(index * BYTES).cast::<[u8; BYTES]>();
            *dst.add(index * LEN).cast::<[f32; LEN]>() = B::decode(block);
        }
    }
}

/// Little-endian half at the start of `bytes`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Element `j` is the low nibble of byte `j`, element `j + 16` the high one.
fn nibbles(bytes: &[u8], value: impl Fn(f32) -> f32) -> [f32; 32] {
    std::array::from_fn(|j| value(f32::from(bytes[j % 16] >> (j / 16 * 4) & 15)))
}

struct F32;
struct F16;
struct BF16;
struct Q8_0;
struct Q4_0;
struct Q4_1;

impl Block<4, 1> for F32 {
    fn decode(block: &[u8; 4]) -> [f32; 1] {
        [f32::from_le_bytes(*block)]
    }
}

impl Block<2, 1> for F16 {
    fn decode(block: &[u8; 2]) -> [f32; 1] {
        [half_at(block, 0)]
    }
}

impl Block<2, 1> for BF16 {
    fn decode(block: &[u8; 2]) -> [f32; 1] {
        [bf16::from_le_bytes(*block).to_f32()]
    }
}

impl Block<34, 32> for Q8_0 {
    fn decode(block: &[u8; 34]) -> [f32; 32] {
        let d = half_at(block, 0);
        std::array::from_fn(|j| d * f32::from(block[2 + j] as i8))
    }
}

impl Block<18, 32> for Q4_0 {
    fn decode(block: &[u8; 18]) -> [f32; 32] {
        let d = half_at(block, 0);
        nibbles(&block[2..], |q| d * (q - 8.0))
    }
}

impl Block<20, 32> for Q4_1 {
    fn decode(block: &[u8; 20]) -> [f32; 32] {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        nibbles(&block[4..], |q| d * q + m)
    }
}
