//! AVX-512 decoders, 32 values at a time.
//!
//! Codes of four or five bits index a table of finished weights (`d q + m` for every `q`), built with one or two instructions
//! per block, so that a block costs two permutes and no conversions. Formats in blocks of 256, whose tables would serve few
//! values, convert their levels. Shared with the decode path of the linear layers.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::Decoder;
use super::levels::{IQ4_NL, NF4};
use super::planes::{self, Planes, Scales};
use crate::format::Format;

pub(super) fn decoder(format: Format) -> Decoder {
    match format {
        Format::F32 => decode::<F32>,
        Format::F16 => decode::<F16>,
        Format::BF16 => decode::<BF16>,
        Format::Q8_0 => decode::<Q8_0>,
        Format::Q4_0 => decode::<Q4_0>,
        Format::Q4_1 => decode::<Q4_1>,
        Format::Q5_0 => decode::<Q5_0>,
        Format::Q5_1 => decode::<Q5_1>,
        Format::Iq4Nl => decode::<Iq4Nl>,
        Format::Q2K => decode::<Long<planes::Q2K>>,
        Format::Q3K => decode::<Long<planes::Q3K>>,
        Format::Q4K => decode::<Long<planes::Q4K>>,
        Format::Q5K => decode::<Long<planes::Q5K>>,
        Format::Q6K => decode::<Long<planes::Q6K>>,
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
    /// AVX-512 F, BW and VL, and AVX2, FMA and F16C; `src` is valid for `BYTES` bytes, at any alignment.
    unsafe fn scales(src: *const u8) -> Self::Scales;

    /// Decodes part `part` of the block at `src`.
    ///
    /// # Safety
    /// As [`Values::scales`], and the part is one of the block's.
    unsafe fn load(src: *const u8, scales: &Self::Scales, part: usize) -> [__m512; 2];

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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn decode<V: Values>(src: *const u8, len: usize, dst: *mut f32) {
    let whole = len / V::LEN;
    for index in 0..whole {
        // SAFETY: whole blocks of source and destination, by the caller's promise.
        unsafe {
            let (src, dst) = (src.add(index * V::BYTES), dst.add(index * V::LEN));
            let scales = V::scales(src);
            for part in 0..V::LEN / 32 {
                let [lo, hi] = V::load(src, &scales, part);
                _mm512_storeu_ps(dst.add(part * 32), lo);
                _mm512_storeu_ps(dst.add(part * 32 + 16), hi);
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
pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q5_0;
pub(crate) struct Q5_1;
pub(crate) struct Iq4Nl;
pub(crate) struct Nf4;
/// A format in blocks of 256.
pub(crate) struct Long<P>(PhantomData<P>);

impl Values for F32 {
    const LEN: usize = 32;
    const BYTES: usize = 128;

    type Scales = ();

    unsafe fn scales(_src: *const u8) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8, _scales: &(), _part: usize) -> [__m512; 2] {
        // SAFETY: 128 bytes; unaligned loads.
        unsafe { [_mm512_loadu_ps(src.cast()), _mm512_loadu_ps(src.add(64).cast())] }
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
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8, _scales: &(), _part: usize) -> [__m512; 2] {
        // SAFETY: 64 bytes; unaligned loads.
        let [lo, hi] = unsafe { [_mm256_loadu_si256(src.cast()), _mm256_loadu_si256(src.add(32).cast())] };
        [_mm512_cvtph_ps(lo), _mm512_cvtph_ps(hi)]
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
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8, _scales: &(), _part: usize) -> [__m512; 2] {
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

impl Values for Q8_0 {
    const LEN: usize = Format::Q8_0.block_len();
    const BYTES: usize = Format::Q8_0.block_bytes();

    type Scales = __m512;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn scales(src: *const u8) -> __m512 {
        // SAFETY: a 34-byte block.
        unsafe { half_broadcast(src) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8, &d: &__m512, _part: usize) -> [__m512; 2] {
        [2, 18].map(|at| {
            // SAFETY: a 34-byte block.
            let levels = unsafe { _mm_loadu_si128(src.add(at).cast()) };
            _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)))
        })
    }
}

/// 32 nibbles as indices, of which all but the lowest four bits are arbitrary: low nibbles first, then high ones.
///
/// # Safety
/// `src` is valid for 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
unsafe fn nibbles(src: *const u8) -> [__m512i; 2] {
    // SAFETY: by the caller's promise.
    let bytes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(src.cast()) });
    [bytes, _mm512_srli_epi32::<4>(bytes)]
}

/// `first` to `first + 15`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,f16c")]
fn levels(first: f32) -> __m512 {
    let levels = _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
    _mm512_add_ps(levels, _mm512_set1_ps(first))
}

/// A block of 32 whose four bits, from byte `$nibbles` on, index a table.
macro_rules! by_table_of_16 {
    ($name:ident, |$src:ident| $table:expr, $nibbles:literal) => {
        impl Values for $name {
            const LEN: usize = Format::$name.block_len();
            const BYTES: usize = Format::$name.block_bytes();

            /// The finished weight of every nibble.
            type Scales = __m512;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,f16c")]
            unsafe fn scales($src: *const u8) -> __m512 {
                // SAFETY: a block.
                unsafe { $table }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,f16c")]
            unsafe fn load(src: *const u8, &table: &__m512, _part: usize) -> [__m512; 2] {
                // Permutes read the lowest four bits of each index.
                // SAFETY: a block.
                unsafe { nibbles(src.add($nibbles)) }.map(|index| _mm512_permutexvar_ps(index, table))
            }
        }
    };
}

by_table_of_16!(Q4_0, |src| _mm512_mul_ps(half_broadcast(src), levels(-8.0)), 2);
by_table_of_16!(
    Q4_1,
    |src| {
        let [d, m] = halves_broadcast(src);
        // `d q` is exact in single precision, so fusing rounds as the reference does.
        _mm512_fmadd_ps(d, levels(0.0), m)
    },
    4
);
by_table_of_16!(
    Iq4Nl,
    |src| {
        let levels = _mm512_cvtepi8_epi32(_mm_loadu_si128(IQ4_NL.as_ptr().cast()));
        _mm512_mul_ps(half_broadcast(src), _mm512_cvtepi32_ps(levels))
    },
    2
);

/// A block of 32 whose four bits, from byte `$nibbles` on, and fifth bits, from byte `$high` on, index a table.
macro_rules! by_table_of_32 {
    ($name:ident, |$src:ident| $tables:expr, $high:literal, $nibbles:literal) => {
        impl Values for $name {
            const LEN: usize = Format::$name.block_len();
            const BYTES: usize = Format::$name.block_bytes();

            /// The finished weight of every code.
            type Scales = [__m512; 2];

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,f16c")]
            unsafe fn scales($src: *const u8) -> [__m512; 2] {
                // SAFETY: a block.
                unsafe { $tables }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,f16c")]
            unsafe fn load(src: *const u8, tables: &[__m512; 2], _part: usize) -> [__m512; 2] {
                // SAFETY: a block.
                let (high, [lo, hi]) = unsafe { (src.add($high).cast::<i32>().read_unaligned(), nibbles(src.add($nibbles))) };
                let high = _mm512_set1_epi32(high);
                // Brings bit `i` of the first half, and of the second, to bit 4 of lane `i`.
                let turns = _mm512_setr_epi32(-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11);
                let turned = [turns, _mm512_add_epi32(turns, _mm512_set1_epi32(16))].map(|turns| _mm512_rorv_epi32(high, turns));
                let look_up = |nibble, high| {
                    // Where the third operand is set the first, else the second; permutes read the lowest five bits.
                    let index = _mm512_ternarylogic_epi32::<0xe4>(nibble, high, _mm512_set1_epi32(15));
                    _mm512_permutex2var_ps(tables[0], index, tables[1])
                };
                [look_up(lo, turned[0]), look_up(hi, turned[1])]
            }
        }
    };
}

by_table_of_32!(
    Q5_0,
    |src| [_mm512_mul_ps(half_broadcast(src), levels(-16.0)), _mm512_mul_ps(half_broadcast(src), levels(0.0))],
    2,
    6
);
by_table_of_32!(
    Q5_1,
    |src| {
        let [d, m] = halves_broadcast(src);
        // `d q` is exact in single precision, so fusing rounds as the reference does.
        [_mm512_fmadd_ps(d, levels(0.0), m), _mm512_fmadd_ps(d, levels(16.0), m)]
    },
    4,
    8
);

impl Values for Nf4 {
    const LEN: usize = Format::Nf4.block_len();
    const BYTES: usize = Format::Nf4.block_bytes();

    /// The finished weight of every nibble.
    type Scales = __m512;

    // SAFETY: as the trait asks of the caller.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn scales(src: *const u8) -> __m512 {
        // SAFETY: a 36-byte block, and a table of 16 values.
        unsafe { _mm512_mul_ps(_mm512_set1_ps(src.cast::<f32>().read_unaligned()), _mm512_loadu_ps(NF4.as_ptr())) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    unsafe fn load(src: *const u8, &table: &__m512, part: usize) -> [__m512; 2] {
        // SAFETY: a 36-byte block.
        let bytes = _mm512_castsi128_si512(unsafe { _mm_loadu_si128(src.add(4 + 16 * part).cast()) });
        // Eight copies of each word of eight nibbles. The first value of a byte is its high nibble.
        let copies = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
        [copies, _mm512_add_epi32(copies, _mm512_set1_epi32(2))].map(|copies| {
            let index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(copies, bytes), shifts);
            _mm512_permutexvar_ps(index, table)
        })
    }
}

impl<P: Planes> Values for Long<P> {
    const LEN: usize = P::FORMAT.block_len();
    const BYTES: usize = P::FORMAT.block_bytes();

    type Scales = P::Scales;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
    unsafe fn scales(src: *const u8) -> P::Scales {
        // SAFETY: a block.
        unsafe { P::scales(src) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
    unsafe fn load(src: *const u8, scales: &P::Scales, part: usize) -> [__m512; 2] {
        // SAFETY: a block.
        let levels = unsafe { P::levels(src, part) };
        let [first, second] = scales.of_part(part);
        // `d q` is exact in single precision, so fusing rounds as the reference does.
        let widen = |levels, (d, m)| {
            _mm512_fmadd_ps(_mm512_set1_ps(d), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)), _mm512_set1_ps(m))
        };
        [widen(_mm256_castsi256_si128(levels), first), widen(_mm256_extracti128_si256::<1>(levels), second)]
    }
}
