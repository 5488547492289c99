//! The rotation on vectors, with angles by [`math::sin_cos`].

use super::{Layout, Rope, Tokens, places, scalar};
use crate::simd::{Simd, math, prefetch_far, put_up_to, simd_fn};

/// Beyond this the reduction of [`math::sin_cos`] is no longer promised.
pub(super) const LARGEST: f32 = 1e6;

simd_fn! {
    /// As [`scalar::tokens`], whose contract callers uphold, for angles of at most `steepest` times a position. If `past`, the result goes
    /// past the caches, and parts of heads are whole lines. `scratch` has room for seven numbers of each pair.
    ///
    /// All tokens of a task: the first lines of a token are read while the last ones of the one before still arrive.
    pub(super) fn tokens<S>(s, past: bool, steepest: f32, rope: &Rope<'_>, to: Tokens<'_>, scratch: &mut [f32]) {
        let (pairs, width) = (rope.rotary_dim / 2, rope.heads * rope.head_dim);
        let (at, rest) = scratch[..7 * pairs].split_at_mut(pairs);
        let (cos, rest) = rest.split_at_mut(pairs);
        let (sin, rest) = rest.split_at_mut(pairs);
        let (cosines, sines) = rest.split_at_mut(2 * pairs);
        for token in to.tokens {
            let farthest = places(rope, to.positions, token, at);
            if steepest * farthest <= LARGEST {
                angles(rope, at, cos, sin);
            } else {
                scalar::angles(rope, at, cos, sin);
            }
            // SAFETY: tokens lie inside both buffers; each angle is there, and twice for neighbours.
            unsafe {
                let (x, out) = (to.x.add(token * width), to.out.add(token * width));
                if rope.layout == Layout::Interleaved {
                    spread(cos, sin, [cosines, sines]);
                    rotate(s, past, rope, cosines, sines, x, out);
                } else {
                    rotate(s, past, rope, cos, sin, x, out);
                }
            }
        }
    }
}

/// As [`scalar::angles`], for angles up to [`LARGEST`].
#[inline(always)]
fn angles(rope: &Rope<'_>, at: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    for (((&at, &inv_freq), cos), sin) in at.iter().zip(rope.inv_freq).zip(cos.iter_mut()).zip(sin.iter_mut()) {
        let (s, c) = math::sin_cos(at * inv_freq);
        (*cos, *sin) = scalar::scaled(rope, c, s);
    }
}

/// Repeats each cosine and sine for both of its neighbours, the first sine negative.
#[inline(always)]
fn spread(cos: &[f32], sin: &[f32], [cosines, sines]: [&mut [f32]; 2]) {
    for (to, &cos) in cosines.chunks_exact_mut(2).zip(cos) {
        (to[0], to[1]) = (cos, cos);
    }
    for (to, &sin) in sines.chunks_exact_mut(2).zip(sin) {
        (to[0], to[1]) = (-sin, sin);
    }
}

/// As [`scalar::rotate`], for neighbours with each cosine twice and each sine twice, first negative. Fetches the next token meanwhile.
///
/// # Safety
/// As there; if `past`, parts of heads are whole lines.
#[inline(always)]
unsafe fn rotate<S: Simd>(s: S, past: bool, rope: &Rope<'_>, cos: &[f32], sin: &[f32], x: *const f32, out: *mut f32) {
    let (turned, next) = (rope.rotary_dim, rope.heads * rope.head_dim);
    let angles = if rope.layout == Layout::Halves { turned / 2 } else { turned };
    assert!(cos.len() >= angles && sin.len() >= angles);
    for head in 0..rope.heads {
        // SAFETY: every access is below `head_dim` of a head of the token, or below `rotary_dim` of the angles.
        unsafe {
            let (x, out) = (x.add(head * rope.head_dim), out.add(head * rope.head_dim));
            match rope.layout {
                Layout::Halves => halves(s, past, next, turned / 2, cos.as_ptr(), sin.as_ptr(), x, out),
                Layout::Interleaved => neighbours(s, past, next, turned, cos.as_ptr(), sin.as_ptr(), x, out),
            }
            if turned < rope.head_dim {
                std::ptr::copy(x.add(turned), out.add(turned), rope.head_dim - turned);
            }
        }
    }
}

/// # Safety
/// Angles are readable for `half` floats, `x` and `out` for twice as many; these are equal or do not overlap. If `past`, halves of `out`
/// begin at whole vectors.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "kernels take sizes and operands flat")]
unsafe fn halves<S: Simd>(
    s: S,
    past: bool,
    next: usize,
    half: usize,
    cos: *const f32,
    sin: *const f32,
    x: *const f32,
    out: *mut f32,
) {
    for i in (0..half).step_by(S::LANES) {
        let n = half - i;
        prefetch_far(x.wrapping_add(next + i));
        prefetch_far(x.wrapping_add(next + half + i));
        // SAFETY: below `half` of each half.
        unsafe {
            let (cos, sin) = (s.load_up_to(cos.add(i), n), s.load_up_to(sin.add(i), n));
            let (a, b) = (s.load_up_to(x.add(i), n), s.load_up_to(x.add(half + i), n));
            put_up_to(s, past, out.add(i), n, s.fnma(b, sin, s.mul(a, cos)));
            put_up_to(s, past, out.add(half + i), n, s.fma(a, sin, s.mul(b, cos)));
        }
    }
}

/// # Safety
/// All are readable, and `out` writable, for `turned` floats; `x` and `out` are equal or do not overlap. If `past`, `out` begins at a
/// whole vector.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "kernels take sizes and operands flat")]
unsafe fn neighbours<S: Simd>(
    s: S,
    past: bool,
    next: usize,
    turned: usize,
    cos: *const f32,
    sin: *const f32,
    x: *const f32,
    out: *mut f32,
) {
    for i in (0..turned).step_by(S::LANES) {
        let n = turned - i;
        prefetch_far(x.wrapping_add(next + i));
        // SAFETY: below `turned`.
        unsafe {
            let (cos, sin) = (s.load_up_to(cos.add(i), n), s.load_up_to(sin.add(i), n));
            let x = s.load_up_to(x.add(i), n);
            put_up_to(s, past, out.add(i), n, s.fma(s.swap_pairs(x), sin, s.mul(x, cos)));
        }
    }
}
