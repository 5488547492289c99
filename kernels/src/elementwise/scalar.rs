//! Specification of the elementwise operations, in terms of `std`.

use super::program::Register;
use super::{Binary, OperandPtr, Unary};

/// # Safety
/// `x` is readable and `out` writable for `len` elements; they are equal or do not overlap.
pub(super) unsafe fn load(x: OperandPtr, out: *mut f32, len: usize) {
    // SAFETY: promised by the caller; `copy` allows equal pointers.
    unsafe {
        match x {
            OperandPtr::F32(x) => std::ptr::copy(x, out, len),
            OperandPtr::I32(x) => (0..len).for_each(|i| *out.add(i) = *x.add(i) as f32),
        }
    }
}

/// # Safety
/// `x` is readable for one element, `out` writable for `len`.
pub(super) unsafe fn fill(x: OperandPtr, out: *mut f32, len: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let value = match x {
            OperandPtr::F32(x) => *x,
            OperandPtr::I32(x) => *x as f32,
        };
        std::slice::from_raw_parts_mut(out, len).fill(value);
    }
}

/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap.
pub(super) unsafe fn unary(op: Unary, x: *const f32, out: *mut f32, len: usize) {
    for i in 0..len {
        // SAFETY: promised by the caller.
        unsafe { *out.add(i) = unary_value(op, *x.add(i)) };
    }
}

/// # Safety
/// As [`unary`], for both operands.
pub(super) unsafe fn binary(op: Binary, a: Register, b: Register, out: *mut f32, len: usize) {
    for i in 0..len {
        // SAFETY: promised by the caller.
        unsafe { *out.add(i) = binary_value(op, *a.at(i), *b.at(i)) };
    }
}

/// # Safety
/// As [`unary`], for all operands.
pub(super) unsafe fn select([cond, a, b]: [Register; 3], out: *mut f32, len: usize) {
    for i in 0..len {
        // SAFETY: promised by the caller.
        unsafe { *out.add(i) = if *cond.at(i) != 0.0 { *a.at(i) } else { *b.at(i) } };
    }
}

pub(super) fn unary_value(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Silu => x / (1.0 + (-x).exp()),
        Unary::GeluErf => {
            let x = f64::from(x);
            (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
        }
        Unary::GeluTanh => {
            // Hendrycks and Gimpel 2016; x (1 + tanh u) / 2 = x / (1 + e^-2u) keeps the tail exact.
            let x = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            (x / (1.0 + (-2.0 * u).exp())) as f32
        }
        Unary::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Unary::Softplus => softplus(x),
        Unary::LogSigmoid => -softplus(-x),
        Unary::Erf => erf(f64::from(x)) as f32,
        Unary::Floor => x.floor(),
        Unary::Round => x.round_ties_even(),
        Unary::Sign => {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }
        Unary::Not => truth(x == 0.0),
        Unary::Square => x * x,
        Unary::Copy => x,
    }
}

pub(super) fn binary_value(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::Rem => a % b,
        Binary::Eq => truth(a == b),
        Binary::Ne => truth(a != b),
        Binary::Lt => truth(a < b),
        Binary::Le => truth(a <= b),
        Binary::Gt => truth(a > b),
        Binary::Ge => truth(a >= b),
        Binary::And => truth(a != 0.0 && b != 0.0),
        Binary::Or => truth(a != 0.0 || b != 0.0),
    }
}

fn truth(value: bool) -> f32 {
    f32::from(u8::from(value))
}

/// `max(x, 0) + log(1 + e^-|x|)`, which overflows nowhere; NaN stays NaN.
fn softplus(x: f32) -> f32 {
    let above = if x < 0.0 { 0.0 } else { x };
    above + (-x.abs()).exp().ln_1p()
}

/// Error function to about 1e-15 by the all-positive series
/// `erf x = 2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!` (Abramowitz and Stegun 7.1.6).
pub(crate) fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
