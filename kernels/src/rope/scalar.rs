//! Specification of the rotation.

use super::{Layout, Rope, Tokens, places};

/// Rotates tokens; `scratch` has room for three numbers of each pair.
///
/// # Safety
/// The buffers hold the tokens, and are equal or do not overlap.
pub(super) unsafe fn tokens(rope: &Rope<'_>, to: Tokens<'_>, scratch: &mut [f32]) {
    let (pairs, width) = (rope.rotary_dim / 2, rope.heads * rope.head_dim);
    let (at, rest) = scratch.split_at_mut(pairs);
    let (cos, rest) = rest.split_at_mut(pairs);
    for token in to.tokens {
        places(rope, to.positions, token, at);
        angles(rope, at, cos, &mut rest[..pairs]);
        // SAFETY: promised by the caller.
        unsafe { rotate(rope, cos, &rest[..pairs], to.x.add(token * width), to.out.add(token * width)) };
    }
}

/// Cosines and sines of one token, whose pair `i` is at position `at[i]`: one of each for a pair, in the order of the pairs.
pub(super) fn angles(rope: &Rope<'_>, at: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    for (i, &inv_freq) in rope.inv_freq.iter().enumerate() {
        let (s, c) = (at[i] * inv_freq).sin_cos();
        (cos[i], sin[i]) = scaled(rope, c, s);
    }
}

/// Cosine and sine as they are applied.
#[inline(always)]
pub(super) fn scaled(rope: &Rope<'_>, cos: f32, sin: f32) -> (f32, f32) {
    let sign = if rope.inverse { -1.0 } else { 1.0 };
    (cos * rope.attn_scale, sin * rope.attn_scale * sign)
}

/// Rotates all heads of one token.
///
/// # Safety
/// `x` is readable and `out` writable for one token; they are equal or do not overlap.
pub(super) unsafe fn rotate(rope: &Rope<'_>, cos: &[f32], sin: &[f32], x: *const f32, out: *mut f32) {
    let half = rope.rotary_dim / 2;
    for head in 0..rope.heads {
        // SAFETY: every index is below `head_dim` of a head of the token.
        unsafe {
            let (x, out) = (x.add(head * rope.head_dim), out.add(head * rope.head_dim));
            for i in 0..half {
                let (a, b) = match rope.layout {
                    Layout::Halves => (i, half + i),
                    Layout::Interleaved => (2 * i, 2 * i + 1),
                };
                let (p, q) = (*x.add(a), *x.add(b));
                *out.add(a) = p * cos[i] - q * sin[i];
                *out.add(b) = q * cos[i] + p * sin[i];
            }
            let tail = rope.head_dim - rope.rotary_dim;
            std::ptr::copy(x.add(rope.rotary_dim), out.add(rope.rotary_dim), tail);
        }
    }
}
