//! AVX-512 decoders, 32 values at a time.
//!
//! Nibbles index a 16-entry table of finished weights (`d q + m` for every `q`),
//! built with one instruction per block, so that a block costs two permutes and
//! no conversions. Shared with the decode path of the linear layers.

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
    /// AVX-512 F and BW; `src` is valid for `BYTES` bytes, at any alignment.
    unsafe fn load(src: *const u8) -> [__m512; 2];

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
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn decode<V: Values32>(src: *const u8, len: usize, dst: *mut f32) {
    let whole = len / 32;
    for index in 0..whole {
        // SAFETY: whole blocks of source and destination, by the caller's promise.
        unsafe {
            let [lo, hi] = V::load(src.add(index * V::BYTES));
            _mm512_storeu_ps(dst.add(index * 32), lo);
            _mm512_storeu_ps(dst.add(index * 32 + 16), hi);
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
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8) -> [__m512; 2] {
        // SAFETY: 128 bytes; unaligned loads.
        unsafe { [_mm512_loadu_ps(src.cast()), _mm512_loadu_ps(src.add(64).cast())] }
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: four bytes.
        unsafe { src.cast::<f32>().read_unaligned() }
    }
}

impl Values32 for F16 {
    const BYTES: usize = 64;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8) -> [__m512; 2] {
        // SAFETY: 64 bytes; unaligned loads.
        let [lo, hi] = unsafe { [_mm256_loadu_si256(src.cast()), _mm256_loadu_si256(src.add(32).cast())] };
        [_mm512_cvtph_ps(lo), _mm512_cvtph_ps(hi)]
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: two bytes.
        f16::from_bits(unsafe { src.cast::<u16>().read_unaligned() }).to_f32()
    }
}

impl Values32 for BF16 {
    const BYTES: usize = 64;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8) -> [__m512; 2] {
        // SAFETY: 64 bytes; unaligned loads.
        let [lo, hi] = unsafe { [_mm256_loadu_si256(src.cast()), _mm256_loadu_si256(src.add(32).cast())] };
        let widen = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)));
        [widen(lo), widen(hi)]
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: two bytes.
        bf16::from_bits(unsafe { src.cast::<u16>().read_unaligned() }).to_f32()
    }
}

/// Broadcasts the half at `src`; widening after the broadcast saves moves between registers.
///
/// # Safety
/// `src` is valid for two bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn half_broadcast(src: *const u8) -> __m512 {
    // SAFETY: by the caller's promise.
    let bits = unsafe { src.cast::<i16>().read_unaligned() };
    _mm512_cvtph_ps(_mm256_set1_epi16(bits))
}

/// Broadcasts the two halves at `src`.
///
/// # Safety
/// `src` is valid for four bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn halves_broadcast(src: *const u8) -> [__m512; 2] {
    // SAFETY: by the caller's promise.
    let bits = unsafe { src.cast::<i32>().read_unaligned() };
    let pairs = _mm512_cvtph_ps(_mm256_set1_epi32(bits));
    [_mm512_moveldup_ps(pairs), _mm512_movehdup_ps(pairs)]
}

impl Values32 for Q8_0 {
    const BYTES: usize = 34;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8) -> [__m512; 2] {
        // SAFETY: a 34-byte block.
        let (d, lo, hi) = unsafe {
            let q = src.add(2);
            (half_broadcast(src), _mm_loadu_si128(q.cast()), _mm_loadu_si128(q.add(16).cast()))
        };
        let widen = |q| _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
        [widen(lo), widen(hi)]
    }
}

/// Looks 32 nibbles up in `table`: low nibbles first, then high ones.
///
/// # Safety
/// `src` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn look_up(src: *const u8, table: __m512) -> [__m512; 2] {
    // SAFETY: by the caller's promise.
    let bytes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(src.cast()) });
    // The permute reads the low four bits of each index, so low nibbles need no mask.
    let high = _mm512_srli_epi32::<4>(bytes);
    [_mm512_permutexvar_ps(bytes, table), _mm512_permutexvar_ps(high, table)]
}

/// 0 to 15.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
fn levels() -> __m512 {
    _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
}

/// The finished weight of every nibble.
///
/// # Safety
/// `src` is valid for 18 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn table_q4_0(src: *const u8) -> __m512 {
    let levels = _mm512_sub_ps(levels(), _mm512_set1_ps(8.0));
    // SAFETY: by the caller's promise.
    _mm512_mul_ps(unsafe { half_broadcast(src) }, levels)
}

/// The finished weight of every nibble.
///
/// # Safety
/// `src` is valid for 20 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn table_q4_1(src: *const u8) -> __m512 {
    // SAFETY: by the caller's promise.
    let [d, m] = unsafe { halves_broadcast(src) };
    // `d q` is exact in single precision, so fusing rounds as the reference does.
    _mm512_fmadd_ps(d, levels(), m)
}

impl Values32 for Q4_0 {
    const BYTES: usize = 18;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8) -> [__m512; 2] {
        // SAFETY: an 18-byte block.
        unsafe { look_up(src.add(2), table_q4_0(src)) }
    }
}

impl Values32 for Q4_1 {
    const BYTES: usize = 20;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8) -> [__m512; 2] {
        // SAFETY: a 20-byte block.
        unsafe { look_up(src.add(4), table_q4_1(src)) }
    }
}
