//! Whole blocks on vectors.

use super::scalar::inverse;
use super::{BLOCK, Map};
use crate::simd::{Simd, simd_fn};

/// The largest magnitude of a block, lane by lane, and whether a NaN was among them.
#[derive(Clone, Copy)]
pub(crate) struct Top<S: Simd> {
    largest: S::F,
    /// Zero, or NaN.
    poison: S::F,
}

impl<S: Simd> Top<S> {
    #[inline(always)]
    pub(crate) fn new(s: S) -> Top<S> {
        Top { largest: s.zero(), poison: s.zero() }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, s: S, x: S::F) {
        // The second operand of `max` wins if either is NaN; a NaN in the first place is lost and remembered by the other.
        self.largest = s.max(s.abs(x), self.largest);
        self.poison = s.select(s.is_nan(x), x, self.poison);
    }

    /// The largest magnitude.
    #[inline(always)]
    pub(crate) fn of_all(self, s: S) -> f32 {
        s.top(self.largest) + s.sum(self.poison)
    }
}

/// Codes of the block at `x`, whose largest magnitude is known.
///
/// # Safety
/// `x` is readable and `codes` writable for [`BLOCK`] elements.
#[inline(always)]
pub(crate) unsafe fn put_block<S: Simd>(s: S, map: Map, x: *const f32, absmax: f32, codes: *mut u8) {
    let inverse = s.splat(inverse(absmax));
    let buckets = map.buckets();
    for i in (0..BLOCK).step_by(S::LANES) {
        // SAFETY: blocks are whole vectors.
        unsafe { s.put_codes(s.mul(s.load(x.add(i)), inverse), buckets, codes.add(i)) };
    }
}

simd_fn! {
    /// Codes of one whole block; gives its largest magnitude.
    pub(super) fn encode<S>(s, map: Map, x: &[f32], codes: &mut [u8]) -> f32 {
        assert!(x.len() == BLOCK && codes.len() == BLOCK, "a whole block");
        let mut top = Top::new(s);
        for i in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: blocks are whole vectors.
            top.add(s, unsafe { s.load(x.as_ptr().add(i)) });
        }
        let absmax = top.of_all(s);
        // SAFETY: both have the length of a block.
        unsafe { put_block(s, map, x.as_ptr(), absmax, codes.as_mut_ptr()) };
        absmax
    }
}

simd_fn! {
    /// Numbers of one whole block.
    pub(super) fn decode<S>(s, map: Map, codes: &[u8], absmax: f32, out: &mut [f32]) {
        assert!(codes.len() == BLOCK && out.len() == BLOCK, "a whole block");
        let (values, scale) = (map.values().as_ptr(), s.splat(absmax));
        for i in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: blocks are whole vectors, and there is a value for each code.
            unsafe { s.store(out.as_mut_ptr().add(i), s.mul(s.look_up(values, codes.as_ptr().add(i)), scale)) };
        }
    }
}
