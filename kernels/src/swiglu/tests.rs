//! Parity with scalar code, and the gradient against finite differences.

use super::*;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x.iter_mut().for_each(|x| *x *= 3.0);
    x
}

#[test]
fn levels_agree() {
    for len in [0, 1, 7, 16, 33, 40_003] {
        let (gate, up, d_out) = (values(len, 1), values(len, 2), values(len, 3));
        let all = |isa| {
            let pool = Pool::with_isa(2, isa);
            let mut out = vec![vec![0.0; len]; 3];
            let [y, d_gate, d_up] = &mut out[..] else { unreachable!() };
            swiglu(&pool, len, &gate, &up, y);
            swiglu_bwd(&pool, len, &gate, &up, &d_out, d_gate, d_up);
            out
        };
        let want = all(Isa::Scalar);
        for isa in Isa::available() {
            for (got, want) in all(isa).iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() <= 3e-6 * want.abs().max(0.1), "{got} {want} at {isa}");
            }
        }
    }
}

#[test]
fn gradient_matches_finite_differences() {
    let pool = Pool::new(1);
    let f = |g: f64, u: f64| g / (1.0 + (-g).exp()) * u;
    for (g, u) in [(0.3f32, 1.2f32), (-4.0, 0.7), (6.0, -2.0)] {
        let (mut dg, mut du) = ([0.0], [0.0]);
        swiglu_bwd(&pool, 1, &[g], &[u], &[1.0], &mut dg, &mut du);
        let (g, u, h) = (f64::from(g), f64::from(u), 1e-5);
        assert!((f64::from(dg[0]) - (f(g + h, u) - f(g - h, u)) / (2.0 * h)).abs() < 1e-6);
        assert!((f64::from(du[0]) - f(g, 1.0)).abs() < 1e-6);
    }
}
