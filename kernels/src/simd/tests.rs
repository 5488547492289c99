//! Accuracy of the elementary functions at every wide level, against `f64`.

use super::{map, math, simd_fn};
use crate::isa::Isa;

simd_fn! {
    fn apply<S>(s, which: &str, x: &[f32], out: &mut [f32]) {
        let (len, x, out) = (x.len(), x.as_ptr(), out.as_mut_ptr());
        // SAFETY: both slices have `len` elements.
        unsafe {
            match which {
                "exp" => map(s, x, out, len, |x| math::exp(s, x)),
                "exp2" => map(s, x, out, len, |x| math::exp2(s, x)),
                "expm1" => map(s, x, out, len, |x| math::exp_m1(s, x)),
                "log" => map(s, x, out, len, |x| math::log(s, x)),
                "log1p" => map(s, x, out, len, |x| math::log_1p(s, x)),
                "tanh" => map(s, x, out, len, |x| math::tanh(s, x)),
                _ => unreachable!(),
            }
        }
    }
}

#[test]
fn relative_error_is_as_stated() {
    let mut x: Vec<f32> = (0..400_000).map(|i| (i as f32 - 200_000.0) * 4.7e-4).collect();
    x.extend((0..40_000).map(|i| f32::from_bits(i * 53_000)));
    x.extend((0..40_000).map(|i| -f32::from_bits(i * 53_000)));
    x.retain(|x| x.is_finite());
    type Exact = fn(f64) -> f64;
    let functions: [(&str, Exact); 6] = [
        ("exp", f64::exp),
        ("exp2", f64::exp2),
        ("expm1", f64::exp_m1),
        ("log", f64::ln),
        ("log1p", f64::ln_1p),
        ("tanh", f64::tanh),
    ];
    for isa in Isa::available().filter(|&isa| isa > Isa::Scalar) {
        for (name, exact) in functions {
            let mut out = vec![0.0; x.len()];
            apply(isa, name, &x, &mut out);
            let mut worst: f64 = 0.0;
            for (&x, &out) in x.iter().zip(&out) {
                let want = exact(f64::from(x));
                if want.is_nan() {
                    assert!(out.is_nan(), "{name}({x}) = {out} at {isa}");
                } else if !(want as f32).is_finite() {
                    assert_eq!(out, want as f32, "{name}({x}) at {isa}");
                } else {
                    let error = (f64::from(out) - want).abs() / want.abs().max(f64::from(f32::MIN_POSITIVE));
                    assert!(error < 2e-6, "{name}({x}) = {out}, not {want}, at {isa}");
                    worst = worst.max(error);
                }
            }
            assert!(worst < 4e-7, "worst error of {name} is {worst} at {isa}");
        }
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -1.0, 88.8, -104.0];
        let mut out = [0.0; 8];
        apply(isa, "exp", &odd, &mut out);
        assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[2..5] == [0.0, 1.0, 1.0] && out[7] == 0.0);
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -1.0, 130.0, -1e30];
        apply(isa, "exp2", &odd, &mut out);
        assert!(out[0].is_nan() && out[1..] == [f32::INFINITY, 0.0, 1.0, 1.0, 0.5, f32::INFINITY, 0.0]);
        apply(isa, "log", &odd, &mut out);
        assert!(out[0].is_nan() && out[1] == f32::INFINITY && out[2].is_nan() && out[5].is_nan());
        assert!(out[3] == f32::NEG_INFINITY && out[4] == f32::NEG_INFINITY);
        apply(isa, "tanh", &odd, &mut out);
        assert!(out[0].is_nan() && out[1..3] == [1.0, -1.0] && out[4].is_sign_negative());
    }
}

#[test]
fn sine_and_cosine() {
    for i in 0..200_000 {
        let x = (i as f32 - 100_000.0) * 9.3;
        let (sin, cos) = math::sin_cos(x);
        assert!((f64::from(sin) - f64::from(x).sin()).abs() < 2e-7, "sin {x}");
        assert!((f64::from(cos) - f64::from(x).cos()).abs() < 2e-7, "cos {x}");
    }
    assert!(math::sin_cos(f32::INFINITY).0.is_nan());
}
