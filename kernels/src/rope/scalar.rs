//! Specification of the rotation, and its shape for the compiler's vectorizer: the wide levels
//! compile [`rotate`] again with their instructions enabled.

use super::{Layout, Rope};

/// Rotates all heads of one token; `angles` is scratch for `rotary_dim / 2` pairs.
///
/// # Safety
/// `x` is readable and `out` writable for one token; they are equal or do not overlap.
pub(super) unsafe fn token(rope: &Rope<'_>, position: i32, angles: &mut [(f32, f32)], x: *const f32, out: *mut f32) {
    for (angle, &inv_freq) in angles.iter_mut().zip(rope.inv_freq) {
        let (sin, cos) = (position as f32 * inv_freq).sin_cos();
        *angle = scaled(rope, cos, sin);
    }
    // SAFETY: promised by the caller.
    unsafe { rotate(rope, angles, x, out) }
}

/// Cosine and sine as they are applied.
#[inline(always)]
pub(super) fn scaled(rope: &Rope<'_>, cos: f32, sin: f32) -> (f32, f32) {
    let sign = if rope.inverse { -1.0 } else { 1.0 };
    (cos * rope.attn_scale, sin * rope.attn_scale * sign)
}

/// # Safety
/// As [`token`].
#[inline(always)]
pub(super) unsafe fn rotate(rope: &Rope<'_>, angles: &[(f32, f32)], x: *const f32, out: *mut f32) {
    let half = rope.rotary_dim / 2;
    for head in 0..rope.heads {
        // SAFETY: every index is below `head_dim` of a head of the token.
        unsafe {
            let (x, out) = (x.add(head * rope.head_dim), out.add(head * rope.head_dim));
            match rope.layout {
                Layout::Halves => {
                    for (i, &(cos, sin)) in angles.iter().enumerate() {
                        let (a, b) = (*x.add(i), *x.add(half + i));
                        *out.add(i) = a * cos - b * sin;
                        *out.add(half + i) = b * cos + a * sin;
                    }
                }
                Layout::Interleaved => {
                    for (i, &(cos, sin)) in angles.iter().enumerate() {
                        let (a, b) = (*x.add(2 * i), *x.add(2 * i + 1));
                        *out.add(2 * i) = a * cos - b * sin;
                        *out.add(2 * i + 1) = b * cos + a * sin;
                    }
                }
            }
            let tail = rope.head_dim - rope.rotary_dim;
            std::ptr::copy(x.add(rope.rotary_dim), out.add(rope.rotary_dim), tail);
        }
    }
}
