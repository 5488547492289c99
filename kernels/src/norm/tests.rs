//! Parity with scalar code, threads, and gradients against finite differences.

use super::*;
use crate::isa::Isa;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x
}

/// `y`, `inv_rms`, `dx`, `dw`.
fn all(pool: &Pool, rows: usize, d: usize, weighted: bool, unit_offset: bool) -> [Vec<f32>; 4] {
    let (x, dy, w) = (values(rows * d, 1), values(rows * d, 2), values(d, 3));
    let w = weighted.then_some(&w[..]);
    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; rows * d]);
    let (mut inv_rms, mut dw) = (vec![0.0; rows], vec![7.0; d]);
    rms_norm(pool, rows, d, &x, w, 1e-5, unit_offset, &mut y, &mut inv_rms);
    rms_norm_dx(pool, rows, d, &x, w, &inv_rms, &dy, unit_offset, &mut dx);
    rms_norm_dw(pool, rows, d, &x, &inv_rms, &dy, &mut dw);
    [y, inv_rms, dx, dw]
}

#[test]
fn levels_agree_and_threads_do_not_matter() {
    for (rows, d) in [(0, 8), (1, 1), (3, 7), (600, 64), (70, 577), (5, 2048)] {
        for (weighted, offset) in [(false, false), (true, false), (true, true)] {
            let want = all(&Pool::with_isa(1, Isa::Scalar), rows, d, weighted, offset);
            for isa in Isa::available() {
                let got = all(&Pool::with_isa(1, isa), rows, d, weighted, offset);
                assert_eq!(got, all(&Pool::with_isa(2, isa), rows, d, weighted, offset));
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    assert!((got - want).abs() <= 5e-5 * want.abs().max(1.0), "{got} {want} at {isa}");
                }
            }
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let (d, eps, h) = (6, 1e-3, 1e-5);
    let (x, w, dy) = (values(d, 1), values(d, 2), values(d, 3));
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let loss = |x: &[f64], w: &[f64]| {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / d as f64;
        (0..d).map(|i| x[i] / (mean + eps).sqrt() * (1.0 + w[i]) * f64::from(dy[i])).sum::<f64>()
    };
    let pool = Pool::new(1);
    let (mut y, mut inv_rms, mut dx, mut dw) = (vec![0.0; d], [0.0], vec![0.0; d], vec![0.0; d]);
    rms_norm(&pool, 1, d, &x, Some(&w), eps as f32, true, &mut y, &mut inv_rms);
    rms_norm_dx(&pool, 1, d, &x, Some(&w), &inv_rms, &dy, true, &mut dx);
    rms_norm_dw(&pool, 1, d, &x, &inv_rms, &dy, &mut dw);
    for i in 0..d {
        let slope = |which: usize| {
            let at = |step: f64| {
                let mut both = [wide(&x), wide(&w)];
                both[which][i] += step;
                loss(&both[0], &both[1])
            };
            (at(h) - at(-h)) / (2.0 * h)
        };
        assert!((f64::from(dx[i]) - slope(0)).abs() < 1e-5);
        assert!((f64::from(dw[i]) - slope(1)).abs() < 1e-5);
    }
}
