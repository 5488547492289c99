//! Levels and scales of panels, in registers.
//!
//! A block is taken in eight steps of 64 bytes: four levels of each of 16 rows. [`Packed`] combines one way of storing levels with
//! one of storing scales.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use crate::linear::int8::panel::{Block, LEVELS, PANEL, TABLE};

/// Where the levels and scales of a panel come from.
pub(super) trait Source: Copy {
    /// Groups with scales of their own in a block.
    const GROUPS: usize;
    /// Levels have 128 added, and no minimum.
    const SIGNED: bool;
    /// Blocks of a unit, and its bytes.
    const BLOCKS: usize;
    const BYTES: usize;

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

/// A widened block.
#[derive(Clone, Copy)]
pub(super) struct Wide<const GROUPS: usize, const SIGNED: bool>(*const Block);

impl<const GROUPS: usize, const SIGNED: bool> Source for Wide<GROUPS, SIGNED> {
    const GROUPS: usize = GROUPS;
    const SIGNED: bool = SIGNED;
    const BLOCKS: usize = 1;
    const BYTES: usize = size_of::<Block>();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        Wide(at.cast())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step<const STEP: usize>(self, _block: usize) -> __m512i {
        // SAFETY: a block starts with its levels and is aligned.
        unsafe { self.0.cast::<__m512i>().add(STEP).read() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, _block: usize, group: usize) -> __m512 {
        // SAFETY: a block, by the caller's promise.
        unsafe { _mm512_load_ps((&(*self.0).scales)[group].as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, _block: usize, group: usize) -> __m512 {
        // SAFETY: a block, by the caller's promise.
        unsafe { _mm512_load_ps((&(*self.0).minima)[group].as_ptr()) }
    }
}

/// Levels of a block as they are stored.
pub(super) trait Levels: Copy {
    /// Of a block.
    const BYTES: usize;

    /// # Safety
    /// AVX-512 F and BW; the levels of a block can be read at `at`.
    unsafe fn step<const STEP: usize>(at: *const u8) -> __m512i;
}

/// Scales of a unit as they are stored.
pub(super) trait Scales: Copy {
    const GROUPS: usize;
    const SIGNED: bool;
    const BLOCKS: usize;
    /// Of a unit.
    const BYTES: usize;

    /// What all groups share.
    ///
    /// # Safety
    /// AVX-512 F and BW; the scales of a unit can be read at `at`.
    unsafe fn unit(at: *const u8) -> Self;

    /// # Safety
    /// As [`Scales::unit`]; the unit has this group.
    unsafe fn scale(self, at: *const u8, group: usize) -> __m512;

    /// # Safety
    /// As [`Scales::scale`].
    unsafe fn minimum(self, _at: *const u8, _group: usize) -> __m512 {
        unreachable!("signed levels have no minimum")
    }
}

/// A unit as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Packed<L, S> {
    at: *const u8,
    scales: S,
    levels: PhantomData<L>,
}

impl<L: Levels, S: Scales> Source for Packed<L, S> {
    const GROUPS: usize = S::GROUPS;
    const SIGNED: bool = S::SIGNED;
    const BLOCKS: usize = S::BLOCKS;
    const BYTES: usize = S::BYTES + S::BLOCKS * L::BYTES;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        // SAFETY: a unit starts with its scales.
        Packed { at, scales: unsafe { S::unit(at) }, levels: PhantomData }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step<const STEP: usize>(self, block: usize) -> __m512i {
        // SAFETY: levels follow the scales, block after block.
        unsafe { L::step::<STEP>(self.at.add(S::BYTES + block * L::BYTES)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, block: usize, group: usize) -> __m512 {
        // SAFETY: a unit starts with its scales.
        unsafe { self.scales.scale(self.at, block * S::GROUPS + group) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, block: usize, group: usize) -> __m512 {
        // SAFETY: a unit starts with its scales.
        unsafe { self.scales.minimum(self.at, block * S::GROUPS + group) }
    }
}

/// Vector `index` of 64 bytes.
///
/// # Safety
/// It can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn bytes(at: *const u8, index: usize) -> __m512i {
    // SAFETY: by the caller's promise, at any alignment.
    unsafe { _mm512_loadu_si512(at.add(64 * index).cast()) }
}

/// Bytes moved left by `by` bits, or right if it is negative. Bits come in from their neighbours.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shifted(x: __m512i, by: i32) -> __m512i {
    match by {
        0 => x,
        1.. => _mm512_sll_epi16(x, _mm_cvtsi32_si128(by)),
        _ => _mm512_srl_epi16(x, _mm_cvtsi32_si128(-by)),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn masked(x: __m512i, mask: i32) -> __m512i {
    _mm512_and_si512(x, _mm512_set1_epi8(mask as i8))
}

/// Bits of `low` and of `high` under their masks, zeros elsewhere. The masks do not overlap.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn joined(low: __m512i, low_mask: i32, high: __m512i, high_mask: i32) -> __m512i {
    // `low | (high & mask)`.
    _mm512_ternarylogic_epi32::<0xf8>(masked(low, low_mask), high, _mm512_set1_epi8(high_mask as i8))
}

macro_rules! levels {
    ($(#[$meta:meta] $name:ident: $bits:literal bits, |$at:ident, $step:ident| $body:expr;)*) => {$(
        #[$meta]
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Levels for $name {
            const BYTES: usize = LEVELS * $bits / 8;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw")]
            unsafe fn step<const STEP: usize>($at: *const u8) -> __m512i {
                let $step = STEP as i32;
                // SAFETY: the vectors lie in the block.
                unsafe { $body }
            }
        }
    )*};
}

levels! {
    /// Signed bytes with 128 added.
    Bytes: 8 bits, |at, step| bytes(at, step as usize);

    /// Nibbles, unsigned: low ones in the first four steps.
    Nibbles: 4 bits, |at, step| masked(shifted(bytes(at, STEP % 4), -(step / 4 * 4)), 15);

    /// Nibbles at the left end.
    SignedNibbles: 4 bits, |at, step| masked(shifted(bytes(at, STEP % 4), 4 - step / 4 * 4), 0xf0);

    /// Nibbles that stand for the levels of IQ4_NL.
    Table: 4 bits, |at, step| {
        let codes = masked(shifted(bytes(at, STEP % 4), -(step / 4 * 4)), 15);
        let table = _mm_loadu_si128(TABLE.as_ptr().cast());
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
    };

    /// Nibbles and a fifth bit, unsigned.
    Five: 5 bits, |at, step| {
        joined(shifted(bytes(at, STEP % 4), -(step / 4 * 4)), 0x0f, shifted(bytes(at, 4), 4 - step), 0x10)
    };

    /// Nibbles and a fifth bit, at the left end.
    SignedFive: 5 bits, |at, step| {
        joined(shifted(bytes(at, STEP % 4), 3 - step / 4 * 4), 0x78, shifted(bytes(at, 4), 7 - step), 0x80)
    };

    /// Pairs of bits, unsigned.
    Two: 2 bits, |at, step| masked(shifted(bytes(at, STEP % 2), -(step / 2 * 2)), 3);

    /// Pairs of bits and a third one, at the left end.
    SignedThree: 3 bits, |at, step| {
        joined(shifted(bytes(at, STEP % 2), 5 - step / 2 * 2), 0x60, shifted(bytes(at, 2), 7 - step), 0x80)
    };

    /// Nibbles and two more bits, at the left end.
    SignedSix: 6 bits, |at, step| {
        joined(shifted(bytes(at, STEP % 4), 2 - step / 4 * 4), 0x3c, shifted(bytes(at, 4 + STEP % 2), 6 - step / 2 * 2), 0xc0)
    };
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

/// 16 unsigned bytes, times a scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unsigned(scale: __m512, bytes: __m128i) -> __m512 {
    _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)))
}

/// A scale.
#[derive(Clone, Copy)]
pub(super) struct Plain<const SHRINK: u32> {
    d: __m512,
}

impl<const SHRINK: u32> Scales for Plain<SHRINK> {
    const GROUPS: usize = 1;
    const SIGNED: bool = true;
    const BLOCKS: usize = 1;
    const BYTES: usize = 2 * PANEL;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        // SAFETY: halves of the unit.
        unsafe { Plain { d: shrunk::<SHRINK>(halves(at)) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, _at: *const u8, _group: usize) -> __m512 {
        self.d
    }
}

/// A scale and a minimum.
#[derive(Clone, Copy)]
pub(super) struct Affine {
    d: __m512,
    m: __m512,
}

impl Scales for Affine {
    const GROUPS: usize = 1;
    const SIGNED: bool = false;
    const BLOCKS: usize = 1;
    const BYTES: usize = 4 * PANEL;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        // SAFETY: halves of the unit.
        unsafe { Affine { d: halves(at), m: halves(at.add(2 * PANEL)) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, _at: *const u8, _group: usize) -> __m512 {
        self.d
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, _at: *const u8, _group: usize) -> __m512 {
        self.m
    }
}

/// A scale, times a signed byte for every 16.
#[derive(Clone, Copy)]
pub(super) struct SignedBytes<const SHRINK: u32> {
    d: __m512,
}

impl<const SHRINK: u32> Scales for SignedBytes<SHRINK> {
    const GROUPS: usize = 2;
    const SIGNED: bool = true;
    const BLOCKS: usize = 8;
    const BYTES: usize = 18 * PANEL;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        // SAFETY: halves of the unit.
        unsafe { SignedBytes { d: shrunk::<SHRINK>(halves(at)) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, at: *const u8, group: usize) -> __m512 {
        // SAFETY: a line of the unit.
        let s = _mm512_cvtepi8_epi32(unsafe { line(at, 2 + group) });
        _mm512_mul_ps(self.d, _mm512_cvtepi32_ps(s))
    }
}

/// A scale and a minimum, times bytes for every 32.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    d: __m512,
    m: __m512,
}

impl Scales for Pairs {
    const GROUPS: usize = 1;
    const SIGNED: bool = false;
    const BLOCKS: usize = 8;
    const BYTES: usize = 20 * PANEL;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        // SAFETY: halves of the unit.
        unsafe { Pairs { d: halves(at), m: negative(halves(at.add(2 * PANEL))) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, at: *const u8, group: usize) -> __m512 {
        // SAFETY: a line of the unit.
        unsigned(self.d, unsafe { line(at, 4 + 2 * group) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, at: *const u8, group: usize) -> __m512 {
        // SAFETY: a line of the unit.
        unsigned(self.m, unsafe { line(at, 5 + 2 * group) })
    }
}

/// A scale and a minimum, times the halves of a byte for every 16.
#[derive(Clone, Copy)]
pub(super) struct HalfBytes {
    d: __m512,
    m: __m512,
}

impl Scales for HalfBytes {
    const GROUPS: usize = 2;
    const SIGNED: bool = false;
    const BLOCKS: usize = 8;
    const BYTES: usize = 20 * PANEL;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unit(at: *const u8) -> Self {
        // SAFETY: halves of the unit.
        unsafe { HalfBytes { d: halves(at), m: negative(halves(at.add(2 * PANEL))) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale(self, at: *const u8, group: usize) -> __m512 {
        // SAFETY: a line of the unit.
        let both = unsafe { line(at, 4 + group) };
        unsigned(self.d, _mm_and_si128(both, _mm_set1_epi8(15)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn minimum(self, at: *const u8, group: usize) -> __m512 {
        // SAFETY: a line of the unit.
        let both = unsafe { line(at, 4 + group) };
        unsigned(self.m, _mm_and_si128(_mm_srli_epi16::<4>(both), _mm_set1_epi8(15)))
    }
}

/// What left-aligning signed levels takes off their scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shrunk<const SHRINK: u32>(d: __m512) -> __m512 {
    if SHRINK == 1 { d } else { _mm512_mul_ps(d, _mm512_set1_ps(1.0 / SHRINK as f32)) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn negative(x: __m512) -> __m512 {
    let sign = _mm512_set1_epi32(i32::MIN);
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign))
}
