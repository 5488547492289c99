//! Parity with the scalar specification, which is itself held to finite differences.

use super::*;

const PLAIN: Spec = Spec { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.25, causal: true, window: None, softcap: None };

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x
}

/// `o`, `lse`, `d_q`, `d_k`, `d_v`.
fn all(pool: &Pool, spec: &Spec, segments: &[i32]) -> [Vec<f32>; 5] {
    let n = segments.len();
    let (wide, narrow) = (n * spec.q_width(), n * spec.kv_width());
    let (q, k, v, d_o) = (values(wide, 1), values(narrow, 2), values(narrow, 3), values(wide, 4));
    let (mut o, mut lse) = (vec![9.0; wide], vec![9.0; spec.heads * n]);
    forward(pool, spec, n, &q, &k, &v, segments, &mut o, &mut lse);
    let (mut d_q, mut d_k, mut d_v) = (vec![9.0; wide], vec![9.0; narrow], vec![9.0; narrow]);
    backward(pool, spec, n, &q, &k, &v, segments, &o, &lse, &d_o, &mut d_q, &mut d_k, &mut d_v);
    [o, lse, d_q, d_k, d_v]
}

fn packed(lengths: &[usize]) -> Vec<i32> {
    lengths.iter().enumerate().flat_map(|(i, &len)| std::iter::repeat_n(i as i32, len)).collect()
}

#[test]
fn levels_agree_and_threads_do_not_matter() {
    let specs = [
        PLAIN,
        Spec { causal: false, ..PLAIN },
        Spec { window: Some(20), ..PLAIN },
        Spec { window: Some(70), causal: false, head_dim: 8, ..PLAIN },
        Spec { softcap: Some(1.5), head_dim: 36, ..PLAIN },
        Spec { heads: 3, kv_heads: 3, head_dim: 64, ..PLAIN },
        Spec { heads: 3, kv_heads: 1, head_dim: 100, scale: 0.1, ..PLAIN },
        Spec { heads: 1, kv_heads: 1, head_dim: 4, ..PLAIN },
    ];
    for spec in specs {
        for lengths in [&[1][..], &[5, 1, 64], &[65, 3], &[200], &[130, 64, 17]] {
            let segments = packed(lengths);
            let want = all(&Pool::with_isa(1, Isa::Scalar), &spec, &segments);
            for isa in Isa::available() {
                let got = all(&Pool::with_isa(1, isa), &spec, &segments);
                assert_eq!(got, all(&Pool::with_isa(2, isa), &spec, &segments));
                for (name, (got, want)) in ["o", "lse", "d_q", "d_k", "d_v"].iter().zip(got.iter().zip(&want)) {
                    for (got, want) in got.iter().zip(want) {
                        let same = (got - want).abs() <= 1e-5 * want.abs().max(1.0);
                        assert!(same, "{name} {got} {want} at {isa}, {spec:?} {lengths:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn long_runs_are_halved() {
    for spec in [PLAIN, Spec { window: Some(100), ..PLAIN }] {
        let segments = packed(&[600, 30]);
        let want = all(&Pool::with_isa(2, Isa::Scalar), &spec, &segments);
        let got = all(&Pool::new(1), &spec, &segments);
        assert_eq!(got, all(&Pool::new(2), &spec, &segments));
        assert!(got.iter().flatten().zip(want.iter().flatten()).all(|(a, b)| (a - b).abs() < 3e-5 * b.abs().max(1.0)));
    }
}

#[test]
fn large_heads() {
    let spec = Spec { heads: 2, kv_heads: 1, head_dim: 256, scale: 0.0625, ..PLAIN };
    let segments = packed(&[70]);
    let want = all(&Pool::with_isa(1, Isa::Scalar), &spec, &segments);
    let got = all(&Pool::new(2), &spec, &segments);
    assert!(got.iter().flatten().zip(want.iter().flatten()).all(|(a, b)| (a - b).abs() < 2e-5 * b.abs().max(1.0)));
}

#[test]
fn gradients_match_finite_differences() {
    let spec = Spec { heads: 2, kv_heads: 1, head_dim: 4, softcap: Some(2.0), window: Some(4), ..PLAIN };
    let segments = packed(&[6, 3]);
    let n = segments.len();
    let pool = Pool::with_isa(1, Isa::Scalar);
    let inputs = [values(n * 8, 1), values(n * 4, 2), values(n * 4, 3)];
    let d_o = values(n * 8, 4);
    let loss = |inputs: &[Vec<f32>; 3]| {
        let (mut o, mut lse) = (vec![0.0; n * 8], vec![0.0; 2 * n]);
        forward(&pool, &spec, n, &inputs[0], &inputs[1], &inputs[2], &segments, &mut o, &mut lse);
        o.iter().zip(&d_o).map(|(&o, &d)| f64::from(o) * f64::from(d)).sum::<f64>()
    };
    let [_, _, gradients @ ..] = all(&pool, &spec, &segments);
    for which in 0..3 {
        for i in 0..inputs[which].len() {
            let at = |step: f32| {
                let mut inputs = inputs.clone();
                inputs[which][i] += step;
                (loss(&inputs), f64::from(inputs[which][i]))
            };
            let ((up, a), (down, b)) = (at(1e-2), at(-1e-2));
            let slope = (up - down) / (a - b);
            assert!((slope - f64::from(gradients[which][i])).abs() < 2e-3, "{which} {i}");
        }
    }
}

#[test]
fn a_nan_stays_in_its_run() {
    let segments = packed(&[70, 70]);
    let n = segments.len();
    let (mut q, k, v) = (values(n * 64, 1), values(n * 32, 2), values(n * 32, 3));
    q[100 * 64] = f32::NAN;
    for isa in Isa::available() {
        let (mut o, mut lse) = (vec![0.0; n * 64], vec![0.0; 4 * n]);
        forward(&Pool::with_isa(1, isa), &PLAIN, n, &q, &k, &v, &segments, &mut o, &mut lse);
        assert!(o[100 * 64].is_nan() && lse[100].is_nan());
        assert_eq!(o.iter().filter(|o| o.is_nan()).count(), 16);
    }
}

#[test]
fn a_cache_filled_in_steps_equals_the_whole() {
    for (window, heads) in [(None, 4), (Some(30), 4), (Some(3), 6)] {
        let spec = Spec { heads, window, ..PLAIN };
        let (n, capacity, slots) = (150, 160, 3);
        let (qw, kw) = (spec.q_width(), spec.kv_width());
        let (q, k, v) = (values(n * qw, 1), values(n * kw, 2), values(n * kw, 3));
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let (mut want, mut lse) = (vec![0.0; n * qw], vec![0.0; heads * n]);
            forward(&pool, &spec, n, &q, &k, &v, &vec![0; n], &mut want, &mut lse);
            let mut caches = [(); 2].map(|()| vec![f32::NAN; slots * capacity * kw]);
            let [k_cache, v_cache] = &mut caches;
            let mut start = 0;
            for len in [1, 1, 90, 7, 1, 50] {
                // The same tokens in slots 2 and 0, in one step.
                let twice = |x: &[f32], width: usize| x[start * width..(start + len) * width].repeat(2);
                let places = (start as i32..(start + len) as i32).collect::<Vec<_>>().repeat(2);
                let slot: Vec<i32> = (0..2 * len).map(|i| if i < len { 2 } else { 0 }).collect();
                let (q, k, v) = (twice(&q, qw), twice(&k, kw), twice(&v, kw));
                let mut o = vec![0.0; 2 * len * qw];
                cached(&pool, &spec, 2 * len, capacity, &slot, &places, &q, &k, &v, k_cache, v_cache, &mut o);
                for part in o.chunks_exact(len * qw) {
                    let want = &want[start * qw..(start + len) * qw];
                    assert!(part == want, "{window:?} at {start}, {isa}");
                }
                start += len;
            }
        }
    }
}
