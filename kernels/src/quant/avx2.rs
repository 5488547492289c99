//! AVX2 decoders, 32 values at a time; shared with the decode path of the linear layers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Decoder;
use crate::format::Format;

pub(super) fn decoder(format: Format) -> Decoder {
    match format {
        Format::F32 => decode::<F32>,
        Format::F16 => decode::<F16>,
        Format::BF16 => decode::<BF16>,
        Format::Q8_0 => decode::<Q8_0>,
        Format::Q4_0 => decode::<Q4_0>,
        Format::Q4_1 => decode::<Q4_1>,
        _ => super::scalar::decoder(format),
    }
}

/// 32 consecutive values of a row.
pub(crate) trait Values32 {
    /// Bytes of 32 values.
    const BYTES: usize;

    /// Decodes 32 values.
    ///
    /// # Safety
    /// AVX2, FMA and F16C; `src` is valid for `BYTES` bytes, at any alignment.
    unsafe fn load(src: *const u8) -> [__m256; 4];

    /// Decodes one value of a format without blocks (the end of a ragged row).
    ///
    /// # Safety
    /// `src` is valid for `BYTES / 32` bytes, at any alignment.
    unsafe fn load_one(_src: *const u8) -> f32 {
        unreachable!("rows of block formats have no ragged end")
    }
}

/// # Safety
/// See [`Decoder`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode<V: Values32>(src: *const u8, len: usize, dst: *mut f32) {
    let whole = len / 32;
    for index in 0..whole {
        // SAFETY: whole blocks of source and destination, by the caller's promise.
        unsafe {
            let values = V::load(src.add(index * V::BYTES));
            for (part, values) in values.into_iter().enumerate() {
                _mm256_storeu_ps(dst.add(index * 32 + part * 8), values);
            }
        }
    }
    for index in whole * 32..len {
        // SAFETY: `index < len`.
        unsafe { *dst.add(index) = V::load_one(src.add(index * (V::BYTES / 32))) };
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct BF16;
pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;

impl Values32 for F32 {
    const BYTES: usize = 128;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8) -> [__m256; 4] {
        // SAFETY: 128 bytes; unaligned loads.
        [0, 1, 2, 3].map(|part| unsafe { _mm256_loadu_ps(src.add(32 * part).cast()) })
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: four bytes.
        unsafe { src.cast::<f32>().read_unaligned() }
    }
}

impl Values32 for F16 {
    const BYTES: usize = 64;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8) -> [__m256; 4] {
        // SAFETY: 64 bytes; unaligned loads.
        [0, 1, 2, 3].map(|part| _mm256_cvtph_ps(unsafe { _mm_loadu_si128(src.add(16 * part).cast()) }))
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: two bytes.
        f16::from_bits(unsafe { src.cast::<u16>().read_unaligned() }).to_f32()
    }
}

impl Values32 for BF16 {
    const BYTES: usize = 64;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8) -> [__m256; 4] {
        [0, 1, 2, 3].map(|part| {
            // SAFETY: 64 bytes; unaligned loads.
            let bits = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(src.add(16 * part).cast()) });
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        })
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: two bytes.
        bf16::from_bits(unsafe { src.cast::<u16>().read_unaligned() }).to_f32()
    }
}

/// Broadcasts the half at `src`.
///
/// # Safety
/// `src` is valid for two bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_broadcast(src: *const u8) -> __m256 {
    // SAFETY: by the caller's promise.
    let bits = unsafe { src.cast::<i16>().read_unaligned() };
    _mm256_cvtph_ps(_mm_set1_epi16(bits))
}

impl Values32 for Q8_0 {
    const BYTES: usize = 34;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8) -> [__m256; 4] {
        // SAFETY: a 34-byte block.
        unsafe {
            let d = half_broadcast(src);
            [0, 1, 2, 3].map(|part| {
                let q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(src.add(2 + 8 * part).cast()));
                _mm256_mul_ps(d, _mm256_cvtepi32_ps(q))
            })
        }
    }
}

/// Decodes 32 nibbles as `d (q - zero) + m`; `d q` is exact, so fusing does not change the rounding.
///
/// # Safety
/// `src` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(src: *const u8, d: __m256, zero: i8, m: __m256) -> [__m256; 4] {
    let (low, zero) = (_mm_set1_epi8(15), _mm_set1_epi8(zero));
    // SAFETY: by the caller's promise.
    let bytes = unsafe { _mm_loadu_si128(src.cast()) };
    let first = _mm_sub_epi8(_mm_and_si128(bytes, low), zero);
    let second = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(bytes), low), zero);
    let widen = |q| _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), m);
    let upper = |q| _mm_unpackhi_epi64(q, q);
    [widen(first), widen(upper(first)), widen(second), widen(upper(second))]
}

impl Values32 for Q4_0 {
    const BYTES: usize = 18;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8) -> [__m256; 4] {
        // Adding a negative zero keeps the sign of zero products.
        let m = _mm256_set1_ps(-0.0);
        // SAFETY: an 18-byte block.
        unsafe { nibbles(src.add(2), half_broadcast(src), 8, m) }
    }
}

impl Values32 for Q4_1 {
    const BYTES: usize = 20;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8) -> [__m256; 4] {
        // SAFETY: a 20-byte block.
        unsafe { nibbles(src.add(4), half_broadcast(src), 0, half_broadcast(src.add(2))) }
    }
}
