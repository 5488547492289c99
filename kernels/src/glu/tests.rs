//! Parity with scalar code, aliasing, odd numbers, and gradients against finite differences.

use super::*;
use crate::isa::Isa;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x.iter_mut().for_each(|x| *x *= 3.0);
    x
}

/// `out`, `d_gate`, `d_up`.
fn all(pool: &Pool, f: Gate, gate: &[f32], up: &[f32], d_out: &[f32]) -> [Vec<f32>; 3] {
    let mut results = [(); 3].map(|()| vec![0.0; gate.len()]);
    let [out, d_gate, d_up] = &mut results;
    glu(pool, f, gate, up, out);
    glu_bwd(pool, f, gate, up, d_out, d_gate, d_up);
    results
}

#[test]
fn levels_and_threads_agree() {
    for f in Gate::ALL {
        for len in [0, 1, 7, 16, 33, 40_003] {
            // Not aligned.
            let [gate, up, d_out] = [1, 2, 3].map(|seed| values(len + 1, seed)[1..].to_vec());
            let want = all(&Pool::with_isa(1, Isa::Scalar), f, &gate, &up, &d_out);
            for isa in Isa::available() {
                let got = all(&Pool::with_isa(1, isa), f, &gate, &up, &d_out);
                assert_eq!(got, all(&Pool::with_isa(2, isa), f, &gate, &up, &d_out));
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    assert!((got - want).abs() <= 6e-6 * want.abs().max(1.0), "{f:?}: {got} {want} at {isa}");
                }
            }
        }
    }
}

#[test]
fn odd_gates() {
    let gate =
        [0.0, -0.0, 1e-40, -30.0, 100.0, -100.0, 1e30, -1e30, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let ones = [1.0; 13];
    for f in Gate::ALL {
        let want = all(&Pool::with_isa(1, Isa::Scalar), f, &gate, &ones, &ones);
        for isa in Isa::available() {
            let got = all(&Pool::with_isa(1, isa), f, &gate, &ones, &ones);
            for (i, (got, want)) in got.iter().flatten().zip(want.iter().flatten()).enumerate() {
                let gate = gate[i % gate.len()];
                let close = got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= 1e-6 * want.abs().max(1.0);
                assert!(close, "{f:?} at {gate}, result {}: {got} {want} at {isa}", i / 13);
            }
        }
    }
}

#[test]
fn outputs_may_be_inputs() {
    let len = 20_011;
    let inputs = [1, 2, 3].map(|seed| values(len, seed));
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        for f in Gate::ALL {
            let [out, d_gate, d_up] = all(&pool, f, &inputs[0], &inputs[1], &inputs[2]);
            for over in 0..2 {
                let mut x = inputs.clone();
                let p = x.each_mut().map(|x| x.as_mut_ptr());
                // SAFETY: buffers of `len`, of which the output is one.
                unsafe { glu_raw(&pool, f, len, p[0], p[1], p[over]) };
                assert_eq!(x[over], out);
            }
            for (a, b) in [(0, 1), (1, 0), (2, 0), (0, 2), (1, 2), (2, 1)] {
                let mut x = inputs.clone();
                let p = x.each_mut().map(|x| x.as_mut_ptr());
                // SAFETY: as above; the outputs differ.
                unsafe { glu_bwd_raw(&pool, f, len, p.map(<*mut f32>::cast_const), [p[a], p[b]]) };
                assert!(x[a] == d_gate && x[b] == d_up, "{f:?} over {a} and {b} at {isa}");
            }
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let pool = Pool::new(1);
    // By the scalar level's value, whose error the step does not magnify beyond the tolerance.
    let value = |f: Gate, gate: f64| match f {
        Gate::Silu => gate / (1.0 + (-gate).exp()),
        Gate::GeluTanh => 0.5 * gate * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3))).tanh()),
        Gate::GeluErf => 0.5 * gate * (1.0 + crate::elementwise::erf(gate / std::f64::consts::SQRT_2)),
    };
    for f in Gate::ALL {
        for (gate, up) in [(0.3f32, 1.2f32), (-4.0, 0.7), (-0.7, 1.5), (6.0, -2.0), (0.0, 1.0)] {
            let (mut d_gate, mut d_up) = ([0.0], [0.0]);
            glu_bwd(&pool, f, &[gate], &[up], &[1.0], &mut d_gate, &mut d_up);
            let (x, h) = (f64::from(gate), 1e-5);
            let slope = f64::from(up) * (value(f, x + h) - value(f, x - h)) / (2.0 * h);
            assert!((f64::from(d_gate[0]) - slope).abs() < 1e-6, "{f:?} {gate}: {} {slope}", d_gate[0]);
            assert!((f64::from(d_up[0]) - value(f, x)).abs() < 1e-6);
        }
    }
}
