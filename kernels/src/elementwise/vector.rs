//! Elementwise operations on vectors.

use super::program::Register;
use super::scalar::{binary_value, unary_value};
use super::{Binary, Unary};
use crate::isa::Isa;
use crate::simd::{MOST, Round, Simd, WAYS, map_to, math, put, simd_fn};

/// Beyond this [`math::sin_cos`] is not precise, and `std` computes the element.
const LARGEST_ANGLE: f32 = 1e6;

/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap. If `past`, which stores past the caches,
/// `out` is aligned to a vector.
pub(super) unsafe fn unary(isa: Isa, op: Unary, past: bool, x: *const f32, out: *mut f32, len: usize) {
    match op {
        Unary::Sin => angles(isa, false, x, out, len),
        Unary::Cos => angles(isa, true, x, out, len),
        Unary::Log | Unary::Log1p | Unary::Softplus | Unary::LogSigmoid => logarithms(isa, op, past, x, out, len),
        _ => unary_vector(isa, op, past, x, out, len),
    }
}

simd_fn! {
    /// All but the functions below. Callers uphold the contract of [`unary`].
    fn unary_vector<S>(s, op: Unary, past: bool, x: *const f32, out: *mut f32, len: usize) {
        let (zero, one) = (s.zero(), s.splat(1.0));
        // SAFETY: promised by the caller of `unary`.
        unsafe {
            match op {
                Unary::Neg => map_to(s, past, x, out, len, |x| s.neg(x)),
                Unary::Abs => map_to(s, past, x, out, len, |x| s.abs(x)),
                Unary::Exp => map_to(s, past, x, out, len, |x| math::exp(s, x)),
                Unary::Expm1 => map_to(s, past, x, out, len, |x| math::exp_m1(s, x)),
                Unary::Sqrt => map_to(s, past, x, out, len, |x| s.sqrt(x)),
                Unary::Rsqrt => map_to(s, past, x, out, len, |x| s.div(one, s.sqrt(x))),
                Unary::Recip => map_to(s, past, x, out, len, |x| s.div(one, x)),
                Unary::Tanh => map_to(s, past, x, out, len, |x| math::tanh(s, x)),
                Unary::Sigmoid => map_to(s, past, x, out, len, |x| math::sigmoid(s, x)),
                Unary::Silu => map_to(s, past, x, out, len, |x| math::silu(s, x)),
                Unary::GeluErf => map_to(s, past, x, out, len, |x| math::gelu_erf(s, x)),
                Unary::GeluTanh => map_to(s, past, x, out, len, |x| math::gelu_tanh(s, x)),
                Unary::Relu => map_to(s, past, x, out, len, |x| s.max(zero, x)),
                Unary::Erf => map_to(s, past, x, out, len, |x| math::erf(s, x)),
                Unary::Floor => map_to(s, past, x, out, len, |x| s.floor(x)),
                Unary::Round => map_to(s, past, x, out, len, |x| s.round(x)),
                Unary::Sign => map_to(s, past, x, out, len, |x| {
                    let unit = s.with_sign(one, x);
                    s.select(s.either(s.eq(x, zero), s.is_nan(x)), x, unit)
                }),
                Unary::Not => map_to(s, past, x, out, len, |x| s.select(s.eq(x, zero), one, zero)),
                Unary::Square => map_to(s, past, x, out, len, |x| s.mul(x, x)),
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
    fn logarithms<S>(s, op: Unary, past: bool, x: *const f32, out: *mut f32, len: usize) {
        // SAFETY: promised by the caller of `unary`.
        unsafe {
            match op {
                Unary::Log => map_to(s, past, x, out, len, |x| math::log(s, x)),
                Unary::Log1p => map_to(s, past, x, out, len, |x| math::log_1p(s, x)),
                Unary::Softplus => map_to(s, past, x, out, len, |x| math::softplus(s, x)),
                _ => map_to(s, past, x, out, len, |x| s.neg(math::softplus(s, s.neg(x)))),
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
/// As [`unary`], for all operands.
pub(super) unsafe fn select(isa: Isa, operands: [Register; 3], out: *mut f32, len: usize) {
    select_vector(isa, operands, out, len);
}

simd_fn! {
    /// Callers uphold the contract of [`select`].
    fn select_vector<S>(s, operands: [Register; 3], out: *mut f32, len: usize) {
        let zero = s.zero();
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: promised by the caller of `select`; all loads come before the store.
            unsafe {
                let [cond, a, b] = [0, 1, 2].map(|x: usize| operands[x].at(i));
                let (cond, a, b) = (s.load_up_to(cond, n), s.load_up_to(a, n), s.load_up_to(b, n));
                s.store_up_to(out.add(i), n, s.select(s.eq(cond, zero), b, a));
            }
        }
    }
}

/// # Safety
/// As [`unary`], for both operands.
pub(super) unsafe fn binary(isa: Isa, op: Binary, past: bool, a: Register, b: Register, out: *mut f32, len: usize) {
    binary_vector(isa, op, past, a, b, out, len);
}

simd_fn! {
    /// Callers uphold the contract of [`binary`].
    fn binary_vector<S>(s, op: Binary, past: bool, a: Register, b: Register, out: *mut f32, len: usize) {
        let (zero, one) = (s.zero(), s.splat(1.0));
        let truth = |mask| s.select(mask, one, zero);
        // SAFETY: promised by the caller of `binary`.
        unsafe {
            match op {
                Binary::Add => map_registers(s, past, [a, b], out, len, |a, b| s.add(a, b)),
                Binary::Sub => map_registers(s, past, [a, b], out, len, |a, b| s.sub(a, b)),
                Binary::Mul => map_registers(s, past, [a, b], out, len, |a, b| s.mul(a, b)),
                Binary::Div => map_registers(s, past, [a, b], out, len, |a, b| s.div(a, b)),
                // The second operand of `min` wins if either is NaN: `a`, unless it is the NaN.
                Binary::Min => map_registers(s, past, [a, b], out, len, |a, b| s.select(s.is_nan(a), b, s.min(b, a))),
                Binary::Max => map_registers(s, past, [a, b], out, len, |a, b| s.select(s.is_nan(a), b, s.max(b, a))),
                Binary::Eq => map_registers(s, past, [a, b], out, len, |a, b| truth(s.eq(a, b))),
                Binary::Ne => map_registers(s, past, [a, b], out, len, |a, b| s.select(s.eq(a, b), zero, one)),
                Binary::Lt => map_registers(s, past, [a, b], out, len, |a, b| truth(s.lt(a, b))),
                Binary::Le => map_registers(s, past, [a, b], out, len, |a, b| truth(s.le(a, b))),
                Binary::Gt => map_registers(s, past, [a, b], out, len, |a, b| truth(s.lt(b, a))),
                Binary::Ge => map_registers(s, past, [a, b], out, len, |a, b| truth(s.le(b, a))),
                Binary::And => map_registers(s, past, [a, b], out, len, |a, b| {
                    s.select(s.either(s.eq(a, zero), s.eq(b, zero)), zero, one)
                }),
                Binary::Or => map_registers(s, past, [a, b], out, len, |a, b| s.select(s.both(s.eq(a, zero), s.eq(b, zero)), zero, one)),
                Binary::Pow | Binary::Rem => {
                    for i in 0..len {
                        *out.add(i) = binary_value(op, *a.at(i), *b.at(i));
                    }
                }
            }
        }
    }
}

/// As [`crate::simd::map2`], of operands that may be one number.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn map_registers<S: Simd>(
    s: S,
    past: bool,
    [a, b]: [Register; 2],
    out: *mut f32,
    len: usize,
    f: impl Fn(S::F, S::F) -> S::F,
) {
    let step = WAYS * S::LANES;
    let whole = len - len % step;
    let mut ends = [[0.0f32; MOST]; 2];
    let mut result = Round([0.0; MOST]);
    // SAFETY: every access is below `len`, or below a round in the buffers.
    unsafe {
        let rest = [0, 1].map(|side| {
            let operand = [a, b][side];
            let count = if operand.mask == 0 { S::LANES } else { len - whole };
            std::ptr::copy_nonoverlapping(operand.at(whole), ends[side].as_mut_ptr(), count);
            Register { data: ends[side].as_ptr(), ..operand }
        });
        let result = result.0.as_mut_ptr();
        for ([a, b], out, len) in [([a, b], out, whole), (rest, result, len - whole)] {
            for i in (0..len).step_by(step) {
                for way in 0..WAYS {
                    let i = i + way * S::LANES;
                    put(s, past, out.add(i), f(s.load(a.at(i)), s.load(b.at(i))));
                }
            }
        }
        std::ptr::copy_nonoverlapping(result.cast_const(), out.add(whole), len - whole);
    }
}
