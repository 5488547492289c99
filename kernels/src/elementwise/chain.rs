//! Simple operations one after the other in vector registers: memory is read and written once for all of them.

use super::program::{Link, Register};
use super::scalar::{binary_value, unary_value};
use super::{Binary, Unary};
use crate::isa::Isa;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
use crate::simd::{AHEAD, Simd, prefetch, put_up_to, simd_fn};

/// An operation of a pass, with its operand in memory if it has one.
pub(super) type Step = (Link, Register);

/// Vectors that pass through the operations together, so that choosing each operation costs little.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
const WAYS: usize = 8;

/// `out[i]` is `head[i]` after all `steps`.
///
/// # Safety
/// `head` and the operands are readable and `out` writable for `len` floats; those are equal to `out` or do not overlap it. If `past`,
/// which stores past the caches, `out` is aligned to a vector.
pub(super) unsafe fn run(isa: Isa, past: bool, head: Register, steps: &[Step], out: *mut f32, len: usize) {
    match isa {
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        _ if isa.is_wide() => vector(isa, past, head, steps, out, len),
        // SAFETY: promised by the caller.
        _ => unsafe { scalar(head, steps, out, len) },
    }
}

/// # Safety
/// As [`run`].
unsafe fn scalar(head: Register, steps: &[Step], out: *mut f32, len: usize) {
    for i in 0..len {
        // SAFETY: promised by the caller.
        unsafe {
            *out.add(i) = steps.iter().fold(*head.at(i), |x, &(link, operand)| match link {
                Link::Unary(op) => unary_value(op, x),
                Link::Binary(op, _) => binary_value(op, x, *operand.at(i)),
            });
        }
    }
}

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
simd_fn! {
    /// Callers uphold the contract of [`run`].
    fn vector<S>(s, past: bool, head: Register, steps: &[Step], out: *mut f32, len: usize) {
        let step = WAYS * S::LANES;
        let whole = len - len % step;
        // SAFETY: below `whole`, and then below `len`.
        unsafe {
            for i in (0..whole).step_by(step) {
                round::<S, WAYS>(s, past, head, steps, out, i, step);
            }
            for i in (whole..len).step_by(S::LANES) {
                round::<S, 1>(s, past, head, steps, out, i, len - i);
            }
        }
    }
}

/// `N` vectors from element `i` on, or as much of one as the `n` elements that are left.
///
/// # Safety
/// As [`run`], for so many elements.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[inline(always)]
unsafe fn round<S: Simd, const N: usize>(s: S, past: bool, head: Register, steps: &[Step], out: *mut f32, i: usize, n: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut v: [S::F; N] = load(s, past, head, i, n);
        for &(link, operand) in steps {
            match link {
                Link::Unary(Unary::Neg) => each(&mut v, |x| s.neg(x)),
                Link::Unary(Unary::Abs) => each(&mut v, |x| s.abs(x)),
                Link::Unary(Unary::Relu) => each(&mut v, |x| s.max(s.zero(), x)),
                Link::Unary(Unary::Square) => each(&mut v, |x| s.mul(x, x)),
                Link::Unary(_) => unreachable!("not a simple operation"),
                Link::Binary(op, _) => {
                    let b = load(s, past, operand, i, n);
                    match op {
                        Binary::Add => both(&mut v, b, |a, b| s.add(a, b)),
                        Binary::Sub => both(&mut v, b, |a, b| s.sub(a, b)),
                        Binary::Mul => both(&mut v, b, |a, b| s.mul(a, b)),
                        Binary::Div => both(&mut v, b, |a, b| s.div(a, b)),
                        Binary::Min => both(&mut v, b, |a, b| s.select(s.is_nan(a), b, s.min(b, a))),
                        Binary::Max => both(&mut v, b, |a, b| s.select(s.is_nan(a), b, s.max(b, a))),
                        _ => unreachable!("not a simple operation"),
                    }
                }
            }
        }
        for (way, &v) in v.iter().enumerate() {
            let at = way * S::LANES;
            put_up_to(s, past, out.add(i + at), n - at, v);
        }
    }
}

/// # Safety
/// As [`round`].
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[inline(always)]
unsafe fn load<S: Simd, const N: usize>(s: S, past: bool, from: Register, i: usize, n: usize) -> [S::F; N] {
    // SAFETY: promised by the caller; one number is there for all lanes.
    unsafe {
        if from.mask == 0 {
            return [s.load(from.data); N];
        }
        let (p, mut v) = (from.data.add(i), [s.zero(); N]);
        for (way, v) in v.iter_mut().enumerate() {
            let at = way * S::LANES;
            if past {
                prefetch(p.wrapping_add(at + AHEAD));
            }
            *v = s.load_up_to(p.add(at), n - at);
        }
        v
    }
}

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[inline(always)]
fn each<F: Copy, const N: usize>(v: &mut [F; N], f: impl Fn(F) -> F) {
    v.iter_mut().for_each(|v| *v = f(*v));
}

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[inline(always)]
fn both<F: Copy, const N: usize>(v: &mut [F; N], b: [F; N], f: impl Fn(F, F) -> F) {
    v.iter_mut().zip(b).for_each(|(v, b)| *v = f(*v, b));
}
