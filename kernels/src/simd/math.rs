//! Elementary functions on vectors.
//!
//! Errors are at most `2e-6` relative (mostly below three units in the last place). Infinities, NaN,
//! zeros and subnormal numbers behave as in `std`. Polynomials of `exp` and `log` are those of the
//! Cephes library (Moshier 1992).

use super::Simd;

/// Arguments are clamped here: `e^90` overflows, `e^-105` rounds to zero.
const EXP_HIGH: f32 = 90.0;
const EXP_LOW: f32 = -105.0;
/// `ln 2` in two parts; the first has trailing zeros, so that its multiples are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `n` and `p` with `e^x = 2^n (1 + p)` and `p` exact near zero. NaN goes through `p`.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fnma(n, s.splat(LN2_HIGH), x);
    let r = s.fnma(n, s.splat(LN2_LOW), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    (n, s.fma(s.mul(r, r), p, r))
}

#[inline(always)]
fn clamp_exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The clamped value is the second operand, so NaN stays.
    s.min(s.splat(EXP_HIGH), s.max(s.splat(EXP_LOW), x))
}

/// `e^x`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let (n, p) = exp_parts(s, clamp_exp(s, x));
    s.scale(s.add(p, s.splat(1.0)), n)
}

/// `2^x`: with AVX-512 the cheapest exponential, which needs no clamping. The polynomial is fitted to the
/// relative error on `[0, 1]`, `8.3e-8`, under the condition that it is exact at zero.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    let r = s.fraction(x);
    let mut p = s.splat(1.867_130_2e-3);
    for c in [9.017_03e-3, 5.579_991_3e-2, 2.401_644_4e-1, 6.931_513e-1, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.scale_floor(p, x)
}

/// `e^x - 1`.
#[inline(always)]
pub(crate) fn exp_m1<S: Simd>(s: S, x: S::F) -> S::F {
    let x = clamp_exp(s, x);
    let one = s.splat(1.0);
    let (n, p) = exp_parts(s, x);
    let whole = s.scale(s.add(p, one), n);
    // Beyond 2^25 the one is below half a unit; `power` would overflow there.
    let power = s.scale(one, s.min(s.splat(60.0), n));
    let fine = s.fma(p, power, s.sub(power, one));
    s.select(s.lt(s.splat(20.0), x), whole, fine)
}

/// Natural logarithm.
#[inline(always)]
pub(crate) fn log<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let (m, e) = s.split(x);
    // Centre the mantissa on one.
    let large = s.lt(s.splat(std::f32::consts::SQRT_2), m);
    let m = s.select(large, s.mul(m, s.splat(0.5)), m);
    let e = s.select(large, s.add(e, one), e);
    let f = s.sub(m, one);
    let mut p = s.splat(7.037_683_6e-2);
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = s.fma(p, f, s.splat(c));
    }
    let square = s.mul(f, f);
    let y = s.mul(s.mul(p, f), square);
    let y = s.fma(e, s.splat(LN2_LOW), y);
    let y = s.fnma(s.splat(0.5), square, y);
    let y = s.fma(e, s.splat(LN2_HIGH), s.add(f, y));
    let infinity = s.splat(f32::INFINITY);
    let y = s.select(s.eq(x, s.zero()), s.splat(f32::NEG_INFINITY), y);
    let y = s.select(s.lt(x, s.zero()), s.splat(f32::NAN), y);
    let odd = s.either(s.eq(x, infinity), s.is_nan(x));
    s.select(odd, x, y)
}

/// `log(1 + x)`.
#[inline(always)]
pub(crate) fn log_1p<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let u = s.add(one, x);
    // What rounding `1 + x` lost, to first order.
    let lost = s.div(s.sub(x, s.sub(u, one)), u);
    let y = log(s, u);
    let plain = s.either(s.eq(u, s.splat(f32::INFINITY)), s.eq(u, s.zero()));
    s.select(plain, y, s.add(y, lost))
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // tanh is one to the last bit beyond 9.1.
    let twice = s.min(s.splat(20.0), s.mul(s.splat(2.0), s.abs(x)));
    let t = exp_m1(s, twice);
    s.with_sign(s.mul(t, s.recip(s.add(t, s.splat(2.0)))), x)
}

/// `1 / (1 + e^-x)`. The power is taken of two, of a product that was rounded: the relative error grows with `-x` where that is large.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    sigmoid_of(s, s.mul(x, s.splat(-std::f32::consts::LOG2_E)))
}

/// `1 / (1 + 2^t)`.
#[inline(always)]
fn sigmoid_of<S: Simd>(s: S, t: S::F) -> S::F {
    s.recip(s.add(s.splat(1.0), exp2(s, t)))
}

/// `x / (1 + e^-x)`, as [`sigmoid`].
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.mul(x, sigmoid(s, x))
}

/// `log(1 + e^x)`.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let tail = log_1p(s, exp(s, s.neg(s.abs(x))));
    s.add(s.max(s.zero(), x), tail)
}

/// Error function: a quotient of polynomials fitted to the relative error below 4, `2.5e-8`, and one to the last bit beyond.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let square = s.mul(x, x);
    let (mut p, mut q) = (s.splat(1.986_782e-6), s.splat(3.742_022e-5));
    for (a, b) in [
        (2.845_668e-4, 1.185_578_1e-3),
        (3.883_369_5e-3, 1.520_730_1e-2),
        (5.310_182_3e-2, 1.153_502_3e-1),
        (1.935_456_1e-1, 5.048_579e-1),
        (std::f32::consts::FRAC_2_SQRT_PI, 1.0),
    ] {
        (p, q) = (s.fma(p, square, s.splat(a)), s.fma(q, square, s.splat(b)));
    }
    let near = s.mul(s.mul(x, p), s.recip(q));
    s.select(s.lt(s.splat(4.0), s.abs(x)), s.with_sign(s.splat(1.0), x), near)
}

/// `x Phi(x)`.
#[inline(always)]
pub(crate) fn gelu_erf<S: Simd>(s: S, x: S::F) -> S::F {
    let half = s.mul(s.splat(0.5), x);
    let e = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
    s.fma(half, e, half)
}

/// `x / (1 + e^-2u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, as [`sigmoid`].
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let square = s.mul(x, x);
    // -2 sqrt(2 / pi) / ln 2, and that times 0.044715.
    let slope = s.fma(square, s.splat(-0.102_943_24), s.splat(-2.302_208_2));
    s.mul(x, sigmoid_of(s, s.mul(x, slope)))
}

/// Sine and cosine within `2e-7` for `|x|` up to `1e6`; NaN for NaN and infinities.
///
/// Plain arithmetic for the vectorizer: the reduction runs in `f64`, where `n pi/2` is exact enough
/// with one constant, the polynomials (Cephes `sinf`, `cosf`) in `f32`.
#[inline(always)]
pub(crate) fn sin_cos(x: f32) -> (f32, f32) {
    let wide = f64::from(x);
    // Adding and subtracting 1.5 2^52 rounds to an integer and leaves it in the low bits.
    let shifted = wide * std::f64::consts::FRAC_2_PI + 6_755_399_441_055_744.0;
    let n = shifted - 6_755_399_441_055_744.0;
    let quadrant = shifted.to_bits() as u32;
    let r = (wide - n * std::f64::consts::FRAC_PI_2) as f32;
    let z = r * r;
    let sin = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1) * z * r + r;
    let cos = ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * z * z - 0.5 * z + 1.0;
    let (a, b) = if quadrant & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let sign = |v: f32, q: u32| f32::from_bits(v.to_bits() ^ ((q & 2) << 30));
    (sign(a, quadrant), sign(b, quadrant.wrapping_add(1)))
}
