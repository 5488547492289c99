//! Formats of whole numbers, taken apart: 32 levels as signed bytes, and the scale and minimum of each 16 of them.
//!
//! Every such format is `w = d q + m` over groups of at least 16 values, with `q` in a byte. The instructions are AVX2; what
//! becomes of levels and scales is the business of each level.

use std::arch::x86_64::*;

use half::f16;

use super::levels::IQ4_NL;
use crate::format::Format;

/// A format of whole numbers.
pub(crate) trait Planes {
    const FORMAT: Format;

    /// All scales and minima of a block.
    type Scales: Scales;

    /// # Safety
    /// AVX2, FMA and F16C; `src` is valid for a block, at any alignment.
    unsafe fn scales(src: *const u8) -> Self::Scales;

    /// The 32 levels of part `part`.
    ///
    /// # Safety
    /// As [`Planes::scales`], and the part is one of the block's.
    unsafe fn levels(src: *const u8, part: usize) -> __m256i;
}

/// The scales and minima of a block.
pub(crate) trait Scales: Copy {
    /// Scale and minimum of the two halves of part `part` (of 32 values). A minimum of negative zero keeps the sign of zeros.
    fn of_part(&self, part: usize) -> [(f32, f32); 2];
}

pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q5_0;
pub(crate) struct Q5_1;
pub(crate) struct Iq4Nl;
pub(crate) struct Q2K;
pub(crate) struct Q3K;
pub(crate) struct Q4K;
pub(crate) struct Q5K;
pub(crate) struct Q6K;

/// The half at `src`.
///
/// # Safety
/// `src` is valid for two bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half(src: *const u8) -> f32 {
    // SAFETY: by the caller's promise.
    let bits = f16::from_bits(unsafe { src.cast::<u16>().read_unaligned() });
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits.to_bits()))))
}

/// 32 bytes.
///
/// # Safety
/// `src` is valid for 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes(src: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_loadu_si256(src.cast()) }
}

/// Bits `shift..` of each byte of `planes` that `mask` leaves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn plane(planes: __m256i, shift: usize, mask: i8) -> __m256i {
    // The mask removes what comes from the next byte.
    _mm256_and_si256(_mm256_srlv_epi32(planes, _mm256_set1_epi32(shift as i32)), _mm256_set1_epi8(mask))
}

/// 32 nibbles: the low ones of 16 bytes, then the high ones.
///
/// # Safety
/// `src` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(src: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    let bytes = unsafe { _mm_loadu_si128(src.cast()) };
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), _mm256_set1_epi8(15))
}

/// 16 for each of the 32 bits at `src`.
///
/// # Safety
/// `src` is valid for four bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fifth_bits(src: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    let bits = _mm256_set1_epi32(unsafe { src.cast::<i32>().read_unaligned() });
    let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let each = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, spread), each), each);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

/// A format of one scale, and a minimum or none, for 32 levels.
macro_rules! short_block {
    ($name:ident, |$at:ident| $scales:expr, $levels:expr) => {
        impl Planes for $name {
            const FORMAT: Format = Format::$name;

            type Scales = (f32, f32);

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn scales($at: *const u8) -> (f32, f32) {
                // SAFETY: a block.
                unsafe { $scales }
            }

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn levels($at: *const u8, _part: usize) -> __m256i {
                // SAFETY: a block.
                unsafe { $levels }
            }
        }
    };
}

short_block!(Q8_0, |src| (half(src), -0.0), bytes(src.add(2)));
short_block!(Q4_0, |src| (half(src), -0.0), _mm256_sub_epi8(nibbles(src.add(2)), _mm256_set1_epi8(8)));
short_block!(Q4_1, |src| (half(src), half(src.add(2))), nibbles(src.add(4)));
short_block!(Q5_0, |src| (half(src), -0.0), {
    let levels = _mm256_or_si256(nibbles(src.add(6)), fifth_bits(src.add(2)));
    _mm256_sub_epi8(levels, _mm256_set1_epi8(16))
});
short_block!(Q5_1, |src| (half(src), half(src.add(2))), _mm256_or_si256(nibbles(src.add(8)), fifth_bits(src.add(4))));
short_block!(Iq4Nl, |src| (half(src), -0.0), {
    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_NL.as_ptr().cast()));
    _mm256_shuffle_epi8(table, nibbles(src.add(2)))
});

/// Scales and minima of 16 groups of 16, or of 8 groups of 32.
#[derive(Clone, Copy)]
pub(crate) struct Groups<const COUNT: usize> {
    d: [f32; COUNT],
    m: [f32; COUNT],
}

impl Scales for Groups<16> {
    #[inline]
    fn of_part(&self, part: usize) -> [(f32, f32); 2] {
        [(self.d[2 * part], self.m[2 * part]), (self.d[2 * part + 1], self.m[2 * part + 1])]
    }
}

impl Scales for Groups<8> {
    #[inline]
    fn of_part(&self, part: usize) -> [(f32, f32); 2] {
        [(self.d[part], self.m[part]); 2]
    }
}

/// One scale and minimum for all.
impl Scales for (f32, f32) {
    #[inline]
    fn of_part(&self, _part: usize) -> [(f32, f32); 2] {
        [*self; 2]
    }
}

/// Scales of 16 groups of 16, and no minima.
impl Scales for [f32; 16] {
    #[inline]
    fn of_part(&self, part: usize) -> [(f32, f32); 2] {
        [(self[2 * part], -0.0), (self[2 * part + 1], -0.0)]
    }
}

/// `scale` times each of the first 8 bytes, which are signed.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled(scale: f32, bytes: __m128i) -> [f32; 8] {
    let values = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    let mut out = [0.0; 8];
    // SAFETY: eight values.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
    out
}

/// `scale` times each of 16 signed bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled_16(scale: f32, bytes: __m128i) -> [f32; 16] {
    let mut out = [0.0; 16];
    out[..8].copy_from_slice(&scaled(scale, bytes));
    out[8..].copy_from_slice(&scaled(scale, _mm_unpackhi_epi64(bytes, bytes)));
    out
}

/// Words of four bytes from `src` on.
///
/// # Safety
/// `src` is valid for 12 bytes.
#[inline]
unsafe fn words(src: *const u8) -> [u32; 3] {
    // SAFETY: by the caller's promise.
    unsafe { src.cast::<[u32; 3]>().read_unaligned() }
}

/// Four bytes in each word, of which `mask` leaves the low bits.
const fn low_bits(word: u32, mask: u8) -> u32 {
    word & u32::from_ne_bytes([mask; 4])
}

/// Scales and minima of Q4_K and Q5_K, four at a time; see `scalar::six_bits`.
///
/// # Safety
/// `src` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bit_groups(src: *const u8) -> Groups<8> {
    // SAFETY: by the caller's promise.
    let (d, m, [a, b, c]) = unsafe { (half(src), half(src.add(2)), words(src.add(4))) };
    let scales = [low_bits(a, 63), low_bits(c, 15) | low_bits(a >> 6, 3) << 4];
    let minima = [low_bits(b, 63), low_bits(c >> 4, 15) | low_bits(b >> 6, 3) << 4];
    let pair = |[first, second]: [u32; 2]| _mm_setr_epi32(first as i32, second as i32, 0, 0);
    Groups { d: scaled(d, pair(scales)), m: scaled(-m, pair(minima)) }
}

impl Planes for Q2K {
    const FORMAT: Format = Format::Q2K;

    type Scales = Groups<16>;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> Groups<16> {
        // SAFETY: an 84-byte block.
        let (d, m, both) = unsafe { (half(src.add(80)), half(src.add(82)), _mm_loadu_si128(src.cast())) };
        let low = _mm_set1_epi8(15);
        let (scales, minima) = (_mm_and_si128(both, low), _mm_and_si128(_mm_srli_epi16::<4>(both), low));
        Groups { d: scaled_16(d, scales), m: scaled_16(-m, minima) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels(src: *const u8, part: usize) -> __m256i {
        // SAFETY: an 84-byte block.
        plane(unsafe { bytes(src.add(16 + part / 4 * 32)) }, part % 4 * 2, 3)
    }
}

impl Planes for Q3K {
    const FORMAT: Format = Format::Q3K;

    type Scales = [f32; 16];

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> [f32; 16] {
        // SAFETY: a 110-byte block.
        let (d, [a, b, high]) = unsafe { (half(src.add(108)), words(src.add(96))) };
        let scale = |low: u32, high: u32| (low_bits(low, 15) | low_bits(high, 3) << 4) as i32;
        let scales = _mm_setr_epi32(scale(a, high), scale(b, high >> 2), scale(a >> 4, high >> 4), scale(b >> 4, high >> 6));
        scaled_16(d, _mm_sub_epi8(scales, _mm_set1_epi8(32)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels(src: *const u8, part: usize) -> __m256i {
        // SAFETY: a 110-byte block.
        let (high, low) = unsafe { (bytes(src), bytes(src.add(32 + part / 4 * 32))) };
        let (high, low) = (plane(high, part, 1), plane(low, part % 4 * 2, 3));
        _mm256_sub_epi8(_mm256_or_si256(low, _mm256_slli_epi16::<2>(high)), _mm256_set1_epi8(4))
    }
}

impl Planes for Q4K {
    const FORMAT: Format = Format::Q4K;

    type Scales = Groups<8>;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> Groups<8> {
        // SAFETY: a 144-byte block.
        unsafe { six_bit_groups(src) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels(src: *const u8, part: usize) -> __m256i {
        // SAFETY: a 144-byte block.
        plane(unsafe { bytes(src.add(16 + part / 2 * 32)) }, part % 2 * 4, 15)
    }
}

impl Planes for Q5K {
    const FORMAT: Format = Format::Q5K;

    type Scales = Groups<8>;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> Groups<8> {
        // SAFETY: a 176-byte block.
        unsafe { six_bit_groups(src) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels(src: *const u8, part: usize) -> __m256i {
        // SAFETY: a 176-byte block.
        let (high, low) = unsafe { (bytes(src.add(16)), bytes(src.add(48 + part / 2 * 32))) };
        let (high, low) = (plane(high, part, 1), plane(low, part % 2 * 4, 15));
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
    }
}

impl Planes for Q6K {
    const FORMAT: Format = Format::Q6K;

    type Scales = [f32; 16];

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> [f32; 16] {
        // SAFETY: a 210-byte block.
        let (d, scales) = unsafe { (half(src.add(208)), _mm_loadu_si128(src.add(192).cast())) };
        scaled_16(d, scales)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn levels(src: *const u8, part: usize) -> __m256i {
        let (half, quarter) = (part / 4, part % 4);
        // SAFETY: a 210-byte block.
        let (low, high) = unsafe { (bytes(src.add(half * 64 + quarter % 2 * 32)), bytes(src.add(128 + half * 32))) };
        let (low, high) = (plane(low, quarter / 2 * 4, 15), plane(high, quarter * 2, 3));
        _mm256_sub_epi8(_mm256_or_si256(low, _mm256_slli_epi16::<4>(high)), _mm256_set1_epi8(32))
    }
}
