//! Portable decoders: the specification of each format.

use half::{bf16, f16};

use super::Decoder;
use super::levels::{IQ4_NL, NF4};
use crate::format::Format;

pub(super) fn decoder(format: Format) -> Decoder {
    match format {
        Format::F32 => blocks::<4, 1, F32>,
        Format::F16 => blocks::<2, 1, F16>,
        Format::BF16 => blocks::<2, 1, BF16>,
        Format::Q8_0 => blocks::<34, 32, Q8_0>,
        Format::Q4_0 => blocks::<18, 32, Q4_0>,
        Format::Q4_1 => blocks::<20, 32, Q4_1>,
        Format::Q5_0 => blocks::<22, 32, Q5_0>,
        Format::Q5_1 => blocks::<24, 32, Q5_1>,
        Format::Iq4Nl => blocks::<18, 32, Iq4Nl>,
        Format::Q2K => blocks::<84, 256, Q2K>,
        Format::Q3K => blocks::<110, 256, Q3K>,
        Format::Q4K => blocks::<144, 256, Q4K>,
        Format::Q5K => blocks::<176, 256, Q5K>,
        Format::Q6K => blocks::<210, 256, Q6K>,
        Format::Nf4 => blocks::<36, 64, Nf4>,
    }
}

/// One block of `BYTES` bytes and `LEN` values.
trait Block<const BYTES: usize, const LEN: usize> {
    fn decode(block: &[u8; BYTES]) -> [f32; LEN];
}

/// # Safety
/// See [`Decoder`].
unsafe fn blocks<const BYTES: usize, const LEN: usize, B: Block<BYTES, LEN>>(src: *const u8, len: usize, dst: *mut f32) {
    for index in 0..len / LEN {
        // SAFETY: the caller promises whole blocks; byte arrays have no alignment.
        unsafe {
            let block = &*src.add(index * BYTES).cast::<[u8; BYTES]>();
            *dst.add(index * LEN).cast::<[f32; LEN]>() = B::decode(block);
        }
    }
}

/// Little-endian half at `at`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Element `j` is the low nibble of byte `j`, element `j + 16` the high one.
fn nibble(bytes: &[u8], j: usize) -> u8 {
    bytes[j % 16] >> (j / 16 * 4) & 15
}

/// A nibble, and above it bit `j` of the little-endian word `high`.
fn five_bits(high: &[u8], bytes: &[u8], j: usize) -> f32 {
    f32::from(nibble(bytes, j) | (high[j / 8] >> (j % 8) & 1) << 4)
}

/// Scale and minimum `i` of the eight in the 12 bytes of Q4_K and Q5_K.
///
/// Six bits each: the low ones of the first four bytes, of the next four, and, for the second half, nibbles of
/// the last four below the two bits left over in the others.
pub(crate) fn six_bits(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let both = packed[i + 4];
        (both & 15 | packed[i - 4] >> 6 << 4, both >> 4 | packed[i] >> 6 << 4)
    }
}

struct F32;
struct F16;
struct BF16;
struct Q8_0;
struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Iq4Nl;
struct Q2K;
struct Q3K;
struct Q4K;
struct Q5K;
struct Q6K;
struct Nf4;

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
        std::array::from_fn(|j| d * (f32::from(nibble(&block[2..], j)) - 8.0))
    }
}

impl Block<20, 32> for Q4_1 {
    fn decode(block: &[u8; 20]) -> [f32; 32] {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        std::array::from_fn(|j| d * f32::from(nibble(&block[4..], j)) + m)
    }
}

impl Block<22, 32> for Q5_0 {
    fn decode(block: &[u8; 22]) -> [f32; 32] {
        let d = half_at(block, 0);
        std::array::from_fn(|j| d * (five_bits(&block[2..6], &block[6..], j) - 16.0))
    }
}

impl Block<24, 32> for Q5_1 {
    fn decode(block: &[u8; 24]) -> [f32; 32] {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        std::array::from_fn(|j| d * five_bits(&block[4..8], &block[8..], j) + m)
    }
}

impl Block<18, 32> for Iq4Nl {
    fn decode(block: &[u8; 18]) -> [f32; 32] {
        let d = half_at(block, 0);
        std::array::from_fn(|j| d * f32::from(IQ4_NL[usize::from(nibble(&block[2..], j))]))
    }
}

/// Halves of 128 values: 32 bytes that hold four values each, 32 apart.
fn pair(bytes: &[u8], j: usize) -> u8 {
    bytes[j / 128 * 32 + j % 32] >> (j % 128 / 32 * 2) & 3
}

/// The bits of 32 bytes are those of the 32 values of one eighth, from the lowest on.
fn high_bit(bytes: &[u8], j: usize) -> u8 {
    bytes[j % 32] >> (j / 32) & 1
}

/// Quarters of 64 values: low nibbles of 32 bytes, then the high ones.
fn long_nibble(bytes: &[u8], j: usize) -> u8 {
    bytes[j / 64 * 32 + j % 32] >> (j % 64 / 32 * 4) & 15
}

impl Block<84, 256> for Q2K {
    fn decode(block: &[u8; 84]) -> [f32; 256] {
        let (d, m) = (half_at(block, 80), half_at(block, 82));
        std::array::from_fn(|j| {
            let scale = block[j / 16];
            let (scale, minimum) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
            scale * f32::from(pair(&block[16..80], j)) - minimum
        })
    }
}

impl Block<110, 256> for Q3K {
    fn decode(block: &[u8; 110]) -> [f32; 256] {
        let d = half_at(block, 108);
        let packed = &block[96..108];
        std::array::from_fn(|j| {
            let i = j / 16;
            // Four bits in the first eight bytes, two in the last four.
            let scale = packed[i % 8] >> (i / 8 * 4) & 15 | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
            let q = pair(&block[32..96], j) | high_bit(&block[..32], j) << 2;
            d * (f32::from(scale) - 32.0) * (f32::from(q) - 4.0)
        })
    }
}

impl Block<144, 256> for Q4K {
    fn decode(block: &[u8; 144]) -> [f32; 256] {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        std::array::from_fn(|j| {
            let (scale, minimum) = six_bits(&block[4..16], j / 32);
            d * f32::from(scale) * f32::from(long_nibble(&block[16..], j)) - m * f32::from(minimum)
        })
    }
}

impl Block<176, 256> for Q5K {
    fn decode(block: &[u8; 176]) -> [f32; 256] {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        std::array::from_fn(|j| {
            let (scale, minimum) = six_bits(&block[4..16], j / 32);
            let q = long_nibble(&block[48..], j) | high_bit(&block[16..48], j) << 4;
            d * f32::from(scale) * f32::from(q) - m * f32::from(minimum)
        })
    }
}

impl Block<210, 256> for Q6K {
    fn decode(block: &[u8; 210]) -> [f32; 256] {
        let d = half_at(block, 208);
        std::array::from_fn(|j| {
            // Halves of 128 values: low nibbles of 64 bytes, then the high ones.
            let low = block[j / 128 * 64 + j % 64] >> (j % 128 / 64 * 4) & 15;
            let q = low | pair(&block[128..192], j) << 4;
            d * f32::from(block[192 + j / 16] as i8) * (f32::from(q) - 32.0)
        })
    }
}

/// The first value of a byte is its high nibble.
fn nf4_block(absmax: f32, nibbles: &[u8]) -> [f32; 64] {
    std::array::from_fn(|j| absmax * NF4[usize::from(nibbles[j / 2] >> (4 - j % 2 * 4) & 15)])
}

impl Block<36, 64> for Nf4 {
    fn decode(block: &[u8; 36]) -> [f32; 64] {
        nf4_block(f32::from_le_bytes([block[0], block[1], block[2], block[3]]), &block[4..])
    }
}
