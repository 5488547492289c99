//! The rotation compiled for wide vectors, with angles by [`math::sin_cos`].

use super::{Rope, scalar};
use crate::simd::{math, simd_fn};

/// Beyond this the reduction of [`math::sin_cos`] is no longer promised.
const LARGEST: f32 = 1e6;

simd_fn! {
    /// As [`scalar::token`], with the same contract; callers uphold it.
    fn compiled<S>(_s, rope: &Rope<'_>, position: i32, angles: &mut [(f32, f32)], x: *const f32, out: *mut f32) {
        let position = position as f32;
        for (angle, &inv_freq) in angles.iter_mut().zip(rope.inv_freq) {
            let (sin, cos) = math::sin_cos(position * inv_freq);
            *angle = scalar::scaled(rope, cos, sin);
        }
        if rope.inv_freq.iter().any(|inv_freq| (position * inv_freq).abs() > LARGEST) {
            for (angle, &inv_freq) in angles.iter_mut().zip(rope.inv_freq) {
                let (sin, cos) = (position * inv_freq).sin_cos();
                *angle = scalar::scaled(rope, cos, sin);
            }
        }
        // SAFETY: promised by the callers of `token`.
        unsafe { scalar::rotate(rope, angles, x, out) }
    }
}

/// As [`scalar::token`].
///
/// # Safety
/// `x` is readable and `out` writable for one token; they are equal or do not overlap.
pub(super) unsafe fn token(
    isa: crate::isa::Isa,
    rope: &Rope<'_>,
    position: i32,
    angles: &mut [(f32, f32)],
    x: *const f32,
    out: *mut f32,
) {
    compiled(isa, rope, position, angles, x, out);
}
