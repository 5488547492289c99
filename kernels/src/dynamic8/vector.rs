//! Whole blocks on vectors.

use super::scalar::inverse;
use super::{BLOCK, Map};
use crate::simd::{Simd, simd_fn};

/// Codes of the block at `x`, whose largest magnitude is known.
///
/// # Safety
/// `x` is readable and `codes` writable for [`BLOCK`] elements, and no magnitude is above `absmax`, unless that is NaN.
#[inline(always)]
unsafe fn put_block<S: Simd>(s: S, map: Map, x: *const f32, absmax: f32, codes: *mut u8) {
    let inverse = s.splat(inverse(absmax));
    let buckets = map.buckets();
    // SAFETY: blocks are whole vectors, and quotients are one at most, up to rounding.
    unsafe {
        match map {
            Map::Signed => {
                for i in (0..BLOCK).step_by(S::LANES) {
                    s.put_signed_codes(s.mul(s.load(x.add(i)), inverse), buckets, codes.add(i));
                }
            }
            Map::Unsigned => {
                for i in (0..BLOCK).step_by(S::LANES) {
                    s.put_unsigned_codes(s.mul(s.load(x.add(i)), inverse), buckets, codes.add(i));
                }
            }
        }
    }
}

simd_fn! {
    /// Codes of one whole block; gives its largest magnitude.
    pub(super) fn encode<S>(s, map: Map, x: &[f32], codes: &mut [u8]) -> f32 {
        assert!(x.len() == BLOCK && codes.len() == BLOCK, "a whole block");
        let mut top = s.zero();
        for i in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: blocks are whole vectors.
            top = s.larger(top, s.abs(unsafe { s.load(x.as_ptr().add(i)) }));
        }
        let absmax = s.largest(top);
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
