//! AVX2 decoders, 32 values at a time; shared with the decode path of the linear layers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Decoder;
use super::levels::NF4;
use super::planes::{self, Planes, Scales};
use crate::format::Format;

pub(super) fn decoder(format: Format) -> Decoder {
    match format {
        Format::F32 => decode::<F32>,
        Format::F16 => decode::<F16>,
        Format::BF16 => decode::<BF16>,
        Format::Q8_0 => decode::<planes::Q8_0>,
        Format::Q4_0 => decode::<planes::Q4_0>,
        Format::Q4_1 => decode::<planes::Q4_1>,
        Format::Q5_0 => decode::<planes::Q5_0>,
        Format::Q5_1 => decode::<planes::Q5_1>,
        Format::Iq4Nl => decode::<planes::Iq4Nl>,
        Format::Q2K => decode::<planes::Q2K>,
        Format::Q3K => decode::<planes::Q3K>,
        Format::Q4K => decode::<planes::Q4K>,
        Format::Q5K => decode::<planes::Q5K>,
        Format::Q6K => decode::<planes::Q6K>,
        Format::Nf4 => decode::<Nf4>,
    }
}

/// Rows of blocks, decoded in parts of 32 values.
pub(crate) trait Values {
    /// Values of a block, whole parts; 32 for formats without blocks.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// What the parts of a block share.
    type Scales: Copy;

    /// Reads what the parts of a block share.
    ///
    /// # Safety
    /// AVX2, FMA and F16C; `src` is valid for `BYTES` bytes, at any alignment.
    unsafe fn scales(src: *const u8) -> Self::Scales;

    /// Decodes part `part` of the block at `src`.
    ///
    /// # Safety
    /// As [`Values::scales`], and the part is one of the block's.
    unsafe fn load(src: *const u8, scales: &Self::Scales, part: usize) -> [__m256; 4];

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
unsafe fn decode<V: Values>(src: *const u8, len: usize, dst: *mut f32) {
    let whole = len / V::LEN;
    for index in 0..whole {
        // SAFETY: whole blocks of source and destination, by the caller's promise.
        unsafe {
            let (src, dst) = (src.add(index * V::BYTES), dst.add(index * V::LEN));
            let scales = V::scales(src);
            for part in 0..V::LEN / 32 {
                for (i, values) in V::load(src, &scales, part).into_iter().enumerate() {
                    _mm256_storeu_ps(dst.add(part * 32 + i * 8), values);
                }
            }
        }
    }
    for index in whole * V::LEN..len {
        // SAFETY: `index < len`.
        unsafe { *dst.add(index) = V::load_one(src.add(index * (V::BYTES / 32))) };
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct BF16;
pub(crate) struct Nf4;

impl Values for F32 {
    const LEN: usize = 32;
    const BYTES: usize = 128;

    type Scales = ();

    unsafe fn scales(_src: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8, _scales: &(), _part: usize) -> [__m256; 4] {
        // SAFETY: 128 bytes; unaligned loads.
        [0, 1, 2, 3].map(|part| unsafe { _mm256_loadu_ps(src.add(32 * part).cast()) })
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: four bytes.
        unsafe { src.cast::<f32>().read_unaligned() }
    }
}

impl Values for F16 {
    const LEN: usize = 32;
    const BYTES: usize = 64;

    type Scales = ();

    unsafe fn scales(_src: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8, _scales: &(), _part: usize) -> [__m256; 4] {
        // SAFETY: 64 bytes; unaligned loads.
        [0, 1, 2, 3].map(|part| _mm256_cvtph_ps(unsafe { _mm_loadu_si128(src.add(16 * part).cast()) }))
    }

    unsafe fn load_one(src: *const u8) -> f32 {
        // SAFETY: two bytes.
        f16::from_bits(unsafe { src.cast::<u16>().read_unaligned() }).to_f32()
    }
}

impl Values for BF16 {
    const LEN: usize = 32;
    const BYTES: usize = 64;

    type Scales = ();

    unsafe fn scales(_src: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8, _scales: &(), _part: usize) -> [__m256; 4] {
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

impl Values for Nf4 {
    const LEN: usize = Format::Nf4.block_len();
    const BYTES: usize = Format::Nf4.block_bytes();

    /// The finished weight of every nibble.
    type Scales = [__m256; 2];

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> [__m256; 2] {
        // SAFETY: a 36-byte block, and a table of 16 values.
        unsafe {
            let absmax = _mm256_set1_ps(src.cast::<f32>().read_unaligned());
            [0, 8].map(|first| _mm256_mul_ps(absmax, _mm256_loadu_ps(NF4.as_ptr().add(first))))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8, [low, high]: &[__m256; 2], part: usize) -> [__m256; 4] {
        // The first value of a byte is its high nibble.
        let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
        [0, 1, 2, 3].map(|i| {
            // SAFETY: a 36-byte block.
            let nibbles = unsafe { src.add(4 + 16 * part + 4 * i).cast::<i32>().read_unaligned() };
            let index = _mm256_srlv_epi32(_mm256_set1_epi32(nibbles), shifts);
            // Permutes read three bits of each index; the fourth, as a sign, chooses between them.
            let (low, high) = (_mm256_permutevar8x32_ps(*low, index), _mm256_permutevar8x32_ps(*high, index));
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        })
    }
}

impl<P: Planes> Values for P {
    const LEN: usize = P::FORMAT.block_len();
    const BYTES: usize = P::FORMAT.block_bytes();

    type Scales = P::Scales;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> P::Scales {
        // SAFETY: a block.
        unsafe { P::scales(src) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(src: *const u8, scales: &P::Scales, part: usize) -> [__m256; 4] {
        // SAFETY: a block.
        let levels = unsafe { P::levels(src, part) };
        let halves = [_mm256_castsi256_si128(levels), _mm256_extracti128_si256::<1>(levels)];
        let scales = scales.of_part(part);
        [0, 1, 2, 3].map(|i| {
            let (levels, (d, m)) = (halves[i / 2], scales[i / 2]);
            let levels = if i % 2 == 0 { levels } else { _mm_unpackhi_epi64(levels, levels) };
            // `d q` is exact in single precision, so fusing rounds as the reference does.
            _mm256_fmadd_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels)), _mm256_set1_ps(m))
        })
    }
}
