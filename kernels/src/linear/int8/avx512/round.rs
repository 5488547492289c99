//! Activations rounded to 8 bits, the same numbers as the portable code's.
//!
//! Sixteen blocks of a row at a time: what is computed once for a block, its scale and sums, is then a lane of a vector.

use std::arch::x86_64::*;

use crate::linear::int8::rows::{BLOCK, Line, START, TINY, scale_of};

/// Blocks at a time.
const LANES: usize = 16;

/// Quantizes blocks of a row to every `stride`-th line.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn quantize(x: &[[f32; BLOCK]], lines: &mut [Line], stride: usize) {
    let (whole, rest) = x.as_chunks::<LANES>();
    for (x, lines) in whole.iter().zip(lines.chunks_mut(LANES * stride)) {
        // SAFETY: the instruction set by the caller's promise; the last line is the first of its stride.
        unsafe { together(x, lines, stride) };
    }
    if !rest.is_empty() {
        // SAFETY: as above.
        unsafe { each(rest, &mut lines[whole.len() * LANES * stride..], stride) };
    }
}

/// Reduces sixteen vectors to one whose lane `i` is the reduction of vector `i`.
macro_rules! reduce {
    ($vectors:expr, $op:ident) => {{
        let v: [__m512i; LANES] = $vectors;
        let twos: [__m512i; 8] = std::array::from_fn(|i| {
            let (a, b) = (v[2 * i], v[2 * i + 1]);
            $op(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
        });
        let fours: [__m512i; 4] = std::array::from_fn(|i| {
            let (a, b) = (twos[2 * i], twos[2 * i + 1]);
            $op(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
        });
        let halves = |a: __m512i, b: __m512i| $op(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]))
    }};
}

/// The four vectors whose 128-bit lane `i` holds lane `4 i + j` of each of `a` to `d`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// # Safety
/// As [`quantize`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn together(x: &[[f32; BLOCK]; LANES], lines: &mut [Line], stride: usize) {
    assert!(lines.len() > (LANES - 1) * stride, "a line for every block");
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    // SAFETY: 32 floats of a block.
    let pair = |i: usize| unsafe { [_mm512_loadu_ps(x[i].as_ptr()), _mm512_loadu_ps(x[i].as_ptr().add(16))] };
    let tops: [__m512i; LANES] = std::array::from_fn(|i| {
        let [a, b] = pair(i).map(|x| _mm512_and_si512(_mm512_castps_si512(x), magnitude));
        _mm512_max_epu32(a, b)
    });
    let tops = reduce!(tops, _mm512_max_epu32);
    // As `scale_of`, which is asked where something is not finite.
    if _mm512_cmpge_epu32_mask(tops, _mm512_set1_epi32(0x7f80_0000)) != 0 {
        // SAFETY: by the caller's promise.
        return unsafe { each(x, lines, stride) };
    }
    let (largest, most) = (_mm512_castsi512_ps(tops), _mm512_set1_ps(127.0));
    let kept = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(largest, _mm512_set1_ps(TINY));
    let d = _mm512_maskz_div_ps(kept, largest, most);
    let mut inverses = [0f32; LANES];
    // SAFETY: as many floats.
    unsafe { _mm512_storeu_ps(inverses.as_mut_ptr(), _mm512_maskz_div_ps(kept, most, largest)) };
    let (ones, places) = (_mm512_set1_epi8(1), _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    let line = lines.as_mut_ptr();
    let mut fours = [_mm512_setzero_si512(); LANES / 2];
    for (two, sums) in fours.iter_mut().enumerate() {
        let [a, b] = [2 * two, 2 * two + 1].map(|i| {
            let by = _mm512_set1_ps(inverses[i]);
            let [low, high] = pair(i).map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, by)));
            _mm512_packs_epi32(low, high)
        });
        let p = _mm512_permutexvar_epi32(places, _mm512_packs_epi16(a, b));
        // SAFETY: 32 bytes at the start of each of two lines, by the check.
        unsafe {
            line.add(2 * two * stride).cast::<__m256i>().write_unaligned(_mm512_castsi512_si256(p));
            line.add((2 * two + 1) * stride).cast::<__m256i>().write_unaligned(_mm512_extracti64x4_epi64::<1>(p));
        }
        *sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, p);
    }
    // Of two blocks each: four lanes for each half of each.
    let twos: [__m512i; 4] = std::array::from_fn(|i| {
        let (a, b) = (fours[2 * i], fours[2 * i + 1]);
        _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    });
    let sums: [__m512i; 2] = std::array::from_fn(|i| {
        let (a, b) = (twos[2 * i], twos[2 * i + 1]);
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    });
    // Even blocks' first halves, their second ones, then those of odd blocks.
    let places = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
    let first = _mm512_permutex2var_epi32(sums[0], places, sums[1]);
    let second = _mm512_permutex2var_epi32(sums[0], _mm512_add_epi32(places, _mm512_set1_epi32(4)), sums[1]);
    let whole = [_mm512_add_epi32(first, second), first, second];
    let [all, halves @ ..] = whole.map(|sum| _mm512_castps_si512(_mm512_cvtepi32_ps(sum)));
    let [start, starts @ ..] = whole.map(|sum| _mm512_sub_epi32(_mm512_set1_epi32(START), _mm512_slli_epi32::<7>(sum)));
    let scales = transposed(_mm512_castps_si512(d), all, halves[0], halves[1]);
    let starts = transposed(start, starts[0], starts[1], _mm512_setzero_si512());
    for (j, (scales, starts)) in scales.into_iter().zip(starts).enumerate() {
        macro_rules! put {
            ($($lane:literal)*) => {$(
                // SAFETY: the second half of a line, in the order of its fields, by the check.
                unsafe {
                    let to = line.add((4 * $lane + j) * stride).cast::<__m128i>();
                    to.add(2).write_unaligned(_mm512_extracti32x4_epi32::<$lane>(scales));
                    to.add(3).write_unaligned(_mm512_extracti32x4_epi32::<$lane>(starts));
                }
            )*};
        }
        put!(0 1 2 3);
    }
}

/// Blocks one by one.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn each(x: &[[f32; BLOCK]], lines: &mut [Line], stride: usize) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    for (x, line) in x.iter().zip(lines.iter_mut().step_by(stride)) {
        // SAFETY: 32 floats are read, and a line is written: 32 bytes, and twice four words, in the order of its fields.
        unsafe {
            let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
            let [a, b] = x.map(|x| _mm512_and_si512(_mm512_castps_si512(x), magnitude));
            let (d, inverse) = scale_of(_mm512_reduce_max_epu32(_mm512_max_epu32(a, b)));
            // Zero in blocks that are not finite, whatever `x`.
            let kept = if inverse == 0.0 { 0 } else { !0 };
            let by = _mm512_set1_ps(inverse);
            let p = x.map(|x| _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(x, by))));
            let to = (&raw mut *line).cast::<__m128i>();
            to.write_unaligned(p[0]);
            to.add(1).write_unaligned(p[1]);
            let [a, b] = p.map(|p| _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), p));
            // The sums of both halves, twice, and of all.
            let halves = _mm_hadd_epi32(_mm_hadd_epi32(a, b), _mm_hadd_epi32(a, b));
            let all = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b10_11_00_01>(halves));
            let sums = _mm_unpacklo_epi64(all, halves);
            to.add(2).write_unaligned(_mm_castps_si128(_mm_move_ss(_mm_cvtepi32_ps(sums), _mm_set_ss(d))));
            let shift = _mm_setr_epi32(START, START, START, 0);
            let starts = _mm_sub_epi32(shift, _mm_slli_epi32::<7>(_mm_srli_si128::<4>(sums)));
            to.add(3).write_unaligned(starts);
        }
    }
}
