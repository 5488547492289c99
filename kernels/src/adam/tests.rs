//! Both storages against f64 and the scalar step, ragged lengths, threads, and numbers that are none.

use super::*;
use crate::dynamic8::tests::{golden, golden_floats};
use crate::dynamic8::{self, blocks};
use crate::isa::Isa;

const STEP: Step = Step {
    clip: 0.5,
    one_minus_beta1: 0.1,
    beta2: 0.95,
    one_minus_beta2: 0.05,
    epsilon: 1e-8,
    correction: 0.3,
    rate: 1e-2,
    decay: 0.999,
};

fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x
}

fn pools() -> impl Iterator<Item = Pool> {
    Isa::available().flat_map(|isa| [1, 2].map(|threads| Pool::with_isa(threads, isa)))
}

/// Weight, moments and the step's magnitude in f64.
fn exact(by: &Step, g: f32, w: f32, m: f32, v: f32) -> [f64; 4] {
    let [g, w, m, v] = [g, w, m, v].map(f64::from);
    let of = f64::from;
    let g = of(by.clip) * g;
    let m = m + of(by.one_minus_beta1) * (g - m);
    let v = of(by.beta2) * v + of(by.one_minus_beta2) * g * g;
    let step = of(by.rate) * m / (v.sqrt() / of(by.correction) + of(by.epsilon));
    [of(by.decay) * w - step, m, v, step.abs()]
}

#[test]
fn moments_in_floats_follow_the_formulas() {
    for len in [0, 1, 7, 16, 31, 33_000] {
        let (g, w) = (normal(len + 1, 1), normal(len + 1, 2));
        let (m, v) = (normal(len + 1, 3), normal(len + 1, 4).iter().map(|x| x * x).collect::<Vec<_>>());
        for pool in pools() {
            // One element in: not aligned to a vector.
            let (mut w2, mut m2, mut v2) = (w.clone(), m.clone(), v.clone());
            step(&pool, &STEP, &g[1..], &mut w2[1..], &mut m2[1..], &mut v2[1..]);
            assert_eq!((w2[0], m2[0], v2[0]), (w[0], m[0], v[0]));
            for i in 1..=len {
                let [want_w, want_m, want_v, size] = exact(&STEP, g[i], w[i], m[i], v[i]);
                let close = |got: f32, want: f64, bound: f64| (f64::from(got) - want).abs() <= bound;
                let terms = f64::from(m[i].abs().max(g[i].abs()));
                assert!(close(m2[i], want_m, 5e-7 * terms), "{} {want_m}", m2[i]);
                assert!(close(v2[i], want_v, 5e-7 * want_v), "{} {want_v}", v2[i]);
                // A step that cancels is as inexact as its terms.
                let slack = 2e-6 * size + 5e-7 * terms / want_v.sqrt() * f64::from(STEP.rate * STEP.correction);
                assert!(close(w2[i], want_w, slack + 2e-7 * f64::from(w[i].abs())), "{} {want_w}", w2[i]);
            }
        }
    }
}

#[test]
fn moments_in_8_bits_are_rounded_after_the_step() {
    for len in [0, 1, 255, 256, 300, 512, 70_001] {
        let (g, w) = (normal(len, 1), normal(len, 2));
        let (m, v) = (normal(len, 3), normal(len, 4).iter().map(|x| x * x * x * x).collect::<Vec<_>>());
        let pack = |pool: &Pool, map, x: &[f32]| {
            let (mut codes, mut absmax) = (vec![0; x.len()], vec![0.0; blocks(x.len())]);
            dynamic8::quantize(pool, x, PackedMut { map, codes: &mut codes, absmax: &mut absmax });
            (codes, absmax)
        };
        let one = Pool::with_isa(1, Isa::Scalar);
        let ((m_codes, m_max), (v_codes, v_max)) = (pack(&one, Map::Signed, &m), pack(&one, Map::Unsigned, &v));
        let (mut m_dense, mut v_dense, mut w_dense) = (vec![0.0; len], vec![0.0; len], w.clone());
        dynamic8::dequantize(&one, Map::Signed, &m_codes, &m_max, &mut m_dense);
        dynamic8::dequantize(&one, Map::Unsigned, &v_codes, &v_max, &mut v_dense);
        step(&one, &STEP, &g, &mut w_dense, &mut m_dense, &mut v_dense);
        let mut first: Option<Vec<u32>> = None;
        let mut level = Isa::Scalar;
        for pool in pools() {
            let (mut w2, mut m2, mut v2) = (w.clone(), (m_codes.clone(), m_max.clone()), (v_codes.clone(), v_max.clone()));
            let m = PackedMut { map: Map::Signed, codes: &mut m2.0, absmax: &mut m2.1 };
            let v = PackedMut { map: Map::Unsigned, codes: &mut v2.0, absmax: &mut v2.1 };
            step_packed(&pool, &STEP, &g, &mut w2, m, v);
            let (mut m_back, mut v_back) = (vec![0.0; len], vec![0.0; len]);
            dynamic8::dequantize(&one, Map::Signed, &m2.0, &m2.1, &mut m_back);
            dynamic8::dequantize(&one, Map::Unsigned, &v2.0, &v2.1, &mut v_back);
            for i in 0..len {
                let block = i / dynamic8::BLOCK;
                assert!((w2[i] - w_dense[i]).abs() <= 2e-5 * w_dense[i].abs().max(STEP.rate), "{} {}", w2[i], w_dense[i]);
                assert!((m_back[i] - m_dense[i]).abs() <= 0.0072 * m2.1[block]);
                assert!((v_back[i] - v_dense[i]).abs() <= 0.0037 * v2.1[block]);
            }
            // The same bits whatever the number of threads.
            let bits = [&w2, &m_back, &v_back].iter().flat_map(|x| x.iter().map(|x| x.to_bits())).collect();
            match &first {
                Some(first) if level == pool.isa() => assert!(*first == bits, "{len} at {level}"),
                _ => (first, level) = (Some(bits), pool.isa()),
            }
        }
    }
}

#[test]
fn what_never_moved_stays_and_a_broken_gradient_shows() {
    for pool in pools() {
        let len = 600;
        let mut g = vec![0.0; len];
        g[300] = f32::NAN;
        let (mut w, mut codes, mut absmax) = (vec![1.0; len], [vec![0; len], vec![0; len]], [vec![0.0; 3], vec![0.0; 3]]);
        let ([m, v], [m_max, v_max]) = (&mut codes, &mut absmax);
        let by = Step { decay: 1.0, ..STEP };
        let (m, v) =
            (PackedMut { map: Map::Signed, codes: m, absmax: m_max }, PackedMut { map: Map::Unsigned, codes: v, absmax: v_max });
        step_packed(&pool, &by, &g, &mut w, m, v);
        assert!(w.iter().enumerate().all(|(i, w)| if i == 300 { w.is_nan() } else { *w == 1.0 }), "at {}", pool.isa());
        for absmax in &absmax {
            assert!(absmax[0] == 0.0 && absmax[1].is_nan() && absmax[2] == 0.0, "{absmax:?} at {}", pool.isa());
        }
        // Zero is an entry of both maps.
        assert!(codes[0][..256].iter().all(|&code| code == 127) && codes[1][..256].iter().all(|&code| code == 0));
    }
}

#[test]
fn three_steps_are_those_of_bitsandbytes() {
    let mut w = golden_floats("w.0");
    let len = w.len();
    for pool in pools() {
        w.copy_from_slice(&golden_floats("w.0"));
        let (mut m, mut v) = ((vec![0; len], vec![0.0; blocks(len)]), (vec![0; len], vec![0.0; blocks(len)]));
        for t in 1..=3i32 {
            let (lr, decay) = (1e-2, 0.1);
            let by = Step {
                clip: 1.0,
                correction: (1.0 - 0.95f64.powi(t)).sqrt() as f32,
                rate: (lr / (1.0 - 0.9f64.powi(t))) as f32,
                decay: (1.0 - lr * decay) as f32,
                ..STEP
            };
            let g = golden_floats(&format!("g.{t}"));
            let packed_m = PackedMut { map: Map::Signed, codes: &mut m.0, absmax: &mut m.1 };
            let packed_v = PackedMut { map: Map::Unsigned, codes: &mut v.0, absmax: &mut v.1 };
            step_packed(&pool, &by, &g, &mut w, packed_m, packed_v);
            for (got, want) in w.iter().zip(golden_floats(&format!("w.{t}"))) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(lr as f32), "{got} {want}");
            }
            for (name, (codes, absmax)) in [("m", &m), ("v", &v)] {
                for (got, want) in absmax.iter().zip(golden_floats(&format!("{name}.absmax.{t}"))) {
                    assert!((got - want).abs() <= 1e-6 * want, "{got} {want}");
                }
                // Torch adds in another order: a number between two entries may go either way.
                let want = golden(&format!("{name}.codes.{t}"));
                let apart = codes.iter().zip(&want).map(|(a, b)| u32::from(*a).abs_diff(*b));
                assert!(apart.clone().all(|apart| apart <= 1) && apart.filter(|&a| a > 0).count() * 100 <= len);
            }
        }
    }
}
