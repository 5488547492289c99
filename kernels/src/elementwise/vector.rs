//! Elementwise operations on vectors.

use super::scalar::{binary_value, unary_value};
use super::{Binary, Unary};
use crate::isa::Isa;
use crate::simd::{map, map2, math, simd_fn};

/// Beyond this [`math::sin_cos`] is not precise, and `std` computes the element.
const LARGEST_ANGLE: f32 = 1e6;

/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap.
pub(super) unsafe fn unary(isa: Isa, op: Unary, x: *const f32, out: *mut f32, len: usize) {
    match op {
        Unary::Sin => angles(isa, false, x, out, len),
        Unary::Cos => angles(isa, true, x, out, len),
        Unary::Log | Unary::Log1p | Unary::Softplus | Unary::LogSigmoid => logarithms(isa, op, x, out, len),
        _ => unary_vector(isa, op, x, out, len),
    }
}

simd_fn! {
    /// All but the functions below. Callers uphold the contract of [`unary`].
    fn unary_vector<S>(s, op: Unary, x: *const f32, out: *mut f32, len: usize) {
        let (zero, one) = (s.zero(), s.splat(1.0));
        // SAFETY: promised by the caller of `unary`.
        unsafe {
            match op {
                Unary::Neg => map(s, x, out, len, |x| s.neg(x)),
                Unary::Abs => map(s, x, out, len, |x| s.abs(x)),
                Unary::Exp => map(s, x, out, len, |x| math::exp(s, x)),
                Unary::Expm1 => map(s, x, out, len, |x| math::exp_m1(s, x)),
                Unary::Sqrt => map(s, x, out, len, |x| s.sqrt(x)),
                Unary::Rsqrt => map(s, x, out, len, |x| s.div(one, s.sqrt(x))),
                Unary::Recip => map(s, x, out, len, |x| s.div(one, x)),
                Unary::Tanh => map(s, x, out, len, |x| math::tanh(s, x)),
                Unary::Sigmoid => map(s, x, out, len, |x| math::sigmoid(s, x)),
                Unary::Silu => map(s, x, out, len, |x| math::silu(s, x)),
                Unary::GeluErf => map(s, x, out, len, |x| math::gelu_erf(s, x)),
                Unary::GeluTanh => map(s, x, out, len, |x| math::gelu_tanh(s, x)),
                Unary::Relu => map(s, x, out, len, |x| s.max(zero, x)),
                Unary::Erf => map(s, x, out, len, |x| math::erf(s, x)),
                Unary::Floor => map(s, x, out, len, |x| s.floor(x)),
                Unary::Round => map(s, x, out, len, |x| s.round(x)),
                Unary::Sign => map(s, x, out, len, |x| {
                    let unit = s.with_sign(one, x);
                    s.select(s.either(s.eq(x, zero), s.is_nan(x)), x, unit)
                }),
                Unary::Not => map(s, x, out, len, |x| s.select(s.eq(x, zero), one, zero)),
                Unary::Square => map(s, x, out, len, |x| s.mul(x, x)),
                Unary::Copy => std::ptr::copy(x, out, len),
                Unary::Sin | Unary::Cos | Unary::Log | Unary::Log1p | Unary::Softplus | Unary::LogSigmoid => {
                    unreachable!("has a function of its own")
                }
            }
        }
    }
}

simd_fn! {
    /// Logarithms, apart so that neither function grows too large for the optimizer.
    fn logarithms<S>(s, op: Unary, x: *const f32, out: *mut f32, len: usize) {
        // SAFETY: promised by the caller of `unary`.
        unsafe {
            match op {
                Unary::Log => map(s, x, out, len, |x| math::log(s, x)),
                Unary::Log1p => map(s, x, out, len, |x| math::log_1p(s, x)),
                Unary::Softplus => map(s, x, out, len, |x| math::softplus(s, x)),
                _ => map(s, x, out, len, |x| s.neg(math::softplus(s, s.neg(x)))),
            }
        }
    }
}

simd_fn! {
    /// Sine or cosine.
    fn angles<S>(_s, cosine: bool, x: *const f32, out: *mut f32, len: usize) {
        // SAFETY: promised by the caller of `unary`; chunks are read before they are written.
        unsafe {
            for start in (0..len).step_by(16) {
                let count = (len - start).min(16);
                let mut chunk = [0.0; 16];
                std::ptr::copy_nonoverlapping(x.add(start), chunk.as_mut_ptr(), count);
                let mut result = chunk.map(|x| {
                    let (sin, cos) = math::sin_cos(x);
                    if cosine { cos } else { sin }
                });
                let op = if cosine { Unary::Cos } else { Unary::Sin };
                if chunk.iter().any(|x| x.abs() > LARGEST_ANGLE) {
                    result = chunk.map(|x| unary_value(op, x));
                }
                std::ptr::copy_nonoverlapping(result.as_ptr(), out.add(start), count);
            }
        }
    }
}

/// # Safety
/// As [`unary`], for both operands.
pub(super) unsafe fn binary(isa: Isa, op: Binary, a: *const f32, b: *const f32, out: *mut f32, len: usize) {
    binary_vector(isa, op, a, b, out, len);
}

simd_fn! {
    /// Callers uphold the contract of [`binary`].
    fn binary_vector<S>(s, op: Binary, a: *const f32, b: *const f32, out: *mut f32, len: usize) {
        let (zero, one) = (s.zero(), s.splat(1.0));
        let truth = |mask| s.select(mask, one, zero);
        // SAFETY: promised by the caller of `binary`.
        unsafe {
            match op {
                Binary::Add => map2(s, a, b, out, len, |a, b| s.add(a, b)),
                Binary::Sub => map2(s, a, b, out, len, |a, b| s.sub(a, b)),
                Binary::Mul => map2(s, a, b, out, len, |a, b| s.mul(a, b)),
                Binary::Div => map2(s, a, b, out, len, |a, b| s.div(a, b)),
                // The second operand of `min` wins if either is NaN: `a`, unless it is the NaN.
                Binary::Min => map2(s, a, b, out, len, |a, b| s.select(s.is_nan(a), b, s.min(b, a))),
                Binary::Max => map2(s, a, b, out, len, |a, b| s.select(s.is_nan(a), b, s.max(b, a))),
                Binary::Eq => map2(s, a, b, out, len, |a, b| truth(s.eq(a, b))),
                Binary::Ne => map2(s, a, b, out, len, |a, b| s.select(s.eq(a, b), zero, one)),
                Binary::Lt => map2(s, a, b, out, len, |a, b| truth(s.lt(a, b))),
                Binary::Le => map2(s, a, b, out, len, |a, b| truth(s.le(a, b))),
                Binary::Gt => map2(s, a, b, out, len, |a, b| truth(s.lt(b, a))),
                Binary::Ge => map2(s, a, b, out, len, |a, b| truth(s.le(b, a))),
                Binary::And => map2(s, a, b, out, len, |a, b| {
                    s.select(s.either(s.eq(a, zero), s.eq(b, zero)), zero, one)
                }),
                Binary::Or => map2(s, a, b, out, len, |a, b| s.select(s.both(s.eq(a, zero), s.eq(b, zero)), zero, one)),
                Binary::Pow | Binary::Rem => {
                    for i in 0..len {
                        *out.add(i) = binary_value(op, *a.add(i), *b.add(i));
                    }
                }
            }
        }
    }
}
