//! Levels and scales of panels, in registers.
//!
//! A block is taken in eight steps of 64 bytes: four levels of each of 16 rows. What a format stores where is said by its [`Kind`]
//! alone; the kind is a constant of [`Packed`], so of its code each format keeps what concerns it.

use std::arch::x86_64::*;
use std::cmp::Ordering;

use crate::format::Format;
use crate::panels::{Block, Kind, PANEL, SUMMED, Scales, TABLE};

/// Where the levels and scales of a panel come from.
pub(crate) trait Source: Copy {
    /// Groups with scales of their own in a block.
    const GROUPS: usize;
    /// Levels have 128 added, and no minimum.
    const SIGNED: bool;
    /// Blocks of a unit, and its bytes.
    const BLOCKS: usize;
    const BYTES: usize;
    /// Units are read from memory: what is fetched ahead is soon read itself, and not what becomes of it.
    const STORED: bool;

    /// # Safety
    /// AVX-512 F and BW; a unit can be read at `at`.
    unsafe fn unit(at: *const u8) -> Self;

    /// # Safety
    /// As [`Source::unit`]; the unit has this block.
    unsafe fn step<const STEP: usize>(self, block: usize) -> __m512i;

    /// # Safety
    /// As [`Source::step`]; the block has this group.
    unsafe fn scale(self, block: usize, group: usize) -> __m512;

    /// # Safety
    /// As [`Source::scale`]; levels are not signed.
    unsafe fn minimum(self, block: usize, group: usize) -> __m512;
}

/// Widened blocks: one or, with two groups, those of a unit.
#[derive(Clone, Copy)]
pub(crate) struct Wide<const GROUPS: usize, const SIGNED: bool>(*const Block);

impl<const GROUPS: usize, const SIGNED: bool> Source for Wide<GROUPS, SIGNED> {
    const GROUPS: usize = GROUPS;
    const SIGNED: bool = SIGNED;
    const BLOCKS: usize = if GROUPS == 1 { 1 } else { SUMMED };
    const BYTES: usize = Self::BLOCKS * size_of::<Block>();
    const STORED: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        Wide(at.cast())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step<const STEP: usize>(self, block: usize) -> __m512i {
        // SAFETY: a block, by the caller's promise, which starts with its levels and is aligned.
        unsafe { self.0.add(block).cast::<__m512i>().add(STEP).read() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, block: usize, group: usize) -> __m512 {
        // SAFETY: a block, by the caller's promise.
        unsafe { _mm512_load_ps((&(*self.0.add(block)).scales)[group].as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, block: usize, group: usize) -> __m512 {
        // SAFETY: a block, by the caller's promise.
        unsafe { _mm512_load_ps((&(*self.0.add(block)).minima)[group].as_ptr()) }
    }
}

/// A unit as it is stored, of the format at place `FORMAT` of [`Format::ALL`].
#[derive(Clone, Copy)]
pub(crate) struct Packed<const FORMAT: usize> {
    at: *const u8,
    d: __m512,
    /// Negative where it is multiplied by bytes; zero where levels are signed.
    m: __m512,
}

impl<const FORMAT: usize> Packed<FORMAT> {
    const KIND: Kind = {
        let kind = Kind::of(Format::ALL[FORMAT]).expect("formats without panels are not unpacked");
        assert!(kind.format as usize == FORMAT, "formats are listed in their order");
        assert!(kind.groups == 1 || kind.blocks() == SUMMED, "sums of two groups are those of a unit");
        kind
    };
}

impl<const FORMAT: usize> Source for Packed<FORMAT> {
    const GROUPS: usize = Self::KIND.groups;
    const SIGNED: bool = Self::KIND.signed;
    const BLOCKS: usize = Self::KIND.blocks();
    const BYTES: usize = Self::KIND.unit_bytes();
    const STORED: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        let shrink = const { Self::KIND.shrink() };
        // SAFETY: a unit starts with its scales, and minima follow where there are any.
        unsafe {
            let d = halves(at);
            let d = if shrink == 1.0 { d } else { _mm512_mul_ps(d, _mm512_set1_ps(shrink)) };
            let m = match Self::KIND.scales {
                Scales::Plain | Scales::Signed => _mm512_setzero_ps(),
                Scales::Affine => halves(at.add(2 * PANEL)),
                Scales::Pairs | Scales::Nibbles => negative(halves(at.add(2 * PANEL))),
            };
            Packed { at, d, m }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step<const STEP: usize>(self, block: usize) -> __m512i {
        let kind = Self::KIND;
        // SAFETY: levels follow the scales, block after block, the high bits after the low ones.
        let levels = unsafe {
            let low = self.at.add(kind.scale_bytes() + block * kind.level_bytes());
            let levels = plane(low, kind.low, STEP, kind.below());
            match kind.high {
                0 => levels,
                high => _mm512_or_si512(levels, plane(low.add(64 * kind.low), high, STEP, kind.below() + kind.low)),
            }
        };
        if !kind.is_table() {
            return levels;
        }
        // SAFETY: 16 bytes.
        let table = unsafe { _mm_loadu_si128(TABLE.as_ptr().cast()) };
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), levels)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, block: usize, group: usize) -> __m512 {
        let place = block * Self::GROUPS + group;
        // SAFETY: a line of the unit.
        let factors = unsafe {
            match Self::KIND.scales {
                Scales::Plain | Scales::Affine => return self.d,
                Scales::Signed => _mm512_cvtepi8_epi32(line(self.at, 2 + place)),
                Scales::Pairs => _mm512_cvtepu8_epi32(line(self.at, 4 + 2 * place)),
                Scales::Nibbles => _mm512_cvtepu8_epi32(nibbles(line(self.at, 4 + place))),
            }
        };
        _mm512_mul_ps(self.d, _mm512_cvtepi32_ps(factors))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, block: usize, group: usize) -> __m512 {
        let place = block * Self::GROUPS + group;
        // SAFETY: a line of the unit.
        let factors = unsafe {
            match Self::KIND.scales {
                Scales::Plain | Scales::Signed => unreachable!("signed levels have no minimum"),
                Scales::Affine => return self.m,
                Scales::Pairs => line(self.at, 5 + 2 * place),
                Scales::Nibbles => nibbles(_mm_srli_epi16::<4>(line(self.at, 4 + place))),
            }
        };
        _mm512_mul_ps(self.m, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(factors)))
    }
}

/// `bits` bits of each level of a step, from bit `to` of its byte on, and zeros elsewhere. Of eight steps they take as many vectors, which
/// hold those of the first steps in their lowest bits.
///
/// # Safety
/// `bits` vectors can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn plane(at: *const u8, bits: usize, step: usize, to: usize) -> __m512i {
    // SAFETY: by the caller's promise, at any alignment.
    let vector = unsafe { _mm512_loadu_si512(at.add(64 * (step % bits)).cast()) };
    let from = step / bits * bits;
    // Bits come in from neighbours, and the mask takes them away.
    let moved = match from.cmp(&to) {
        Ordering::Less => _mm512_sll_epi16(vector, _mm_cvtsi32_si128((to - from) as i32)),
        Ordering::Equal => vector,
        Ordering::Greater => _mm512_srl_epi16(vector, _mm_cvtsi32_si128((from - to) as i32)),
    };
    _mm512_and_si512(moved, _mm512_set1_epi8((((1 << bits) - 1) << to) as u8 as i8))
}

/// 16 halves.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: by the caller's promise, at any alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// Line `index` of 16 bytes.
///
/// # Safety
/// It can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn line(at: *const u8, index: usize) -> __m128i {
    // SAFETY: by the caller's promise, at any alignment.
    unsafe { _mm_loadu_si128(at.add(PANEL * index).cast()) }
}

/// The low halves of bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(bytes: __m128i) -> __m128i {
    _mm_and_si128(bytes, _mm_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn negative(x: __m512) -> __m512 {
    let sign = _mm512_set1_epi32(i32::MIN);
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign))
}
