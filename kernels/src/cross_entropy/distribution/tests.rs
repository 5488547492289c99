//! Against `f64` definitions, and gradients against finite differences of these.

use super::*;
use crate::format::Format;

/// Width, hidden states, weight, and its bytes.
type Operands = (usize, Vec<f32>, Vec<f32>, Vec<u8>);

struct Case {
    n: usize,
    vocab: usize,
    heads: [Operands; 2],
    bends: [(Option<f32>, f32); 2],
}

impl Case {
    fn new(n: usize, vocab: usize, d: [usize; 2], bent: bool) -> Case {
        let draw = |len: usize, seed: u64| {
            let mut x = vec![0.0; len];
            crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
            x.iter_mut().for_each(|x| *x *= 0.7);
            x
        };
        let head = |index: u64| {
            let d = d[index as usize];
            let w = draw(vocab * d, 2 + index);
            let bytes = w.iter().flat_map(|w| w.to_le_bytes()).collect();
            (d, draw(n * d, 5 + index), w, bytes)
        };
        let bends = if bent { [(Some(3.0), 0.7), (None, 1.3)] } else { [(None, 1.0); 2] };
        Case { n, vocab, heads: [head(0), head(1)], bends }
    }

    fn head(&self, index: usize) -> Head<'_> {
        let ((d, x, _, bytes), (softcap, temperature)) = (&self.heads[index], self.bends[index]);
        Head { x, w: Weight::new(Format::F32, self.vocab, *d, bytes), softcap, temperature }
    }

    /// `log softmax(z)` of a row, and `z`.
    fn logs(&self, head: usize, x: &[f64], w: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (softcap, temperature) = self.bends[head];
        let d = self.heads[head].0;
        let z: Vec<f64> = (0..self.vocab)
            .map(|j| {
                let raw: f64 = (0..d).map(|c| x[c] * w[j * d + c]).sum();
                softcap.map_or(raw, |cap| f64::from(cap) * (raw / f64::from(cap)).tanh()) / f64::from(temperature)
            })
            .collect();
        let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        (z.iter().map(|z| z - lse).collect(), z)
    }

    /// A row's value, with the first head's operands replaced.
    fn value(&self, what: What, row: usize, x: &[f64], w: &[f64]) -> f64 {
        let (p, z) = self.logs(0, x, w);
        match what {
            What::Statistic(Statistic::Entropy) => p.iter().map(|p| -p.exp() * p).sum(),
            What::Statistic(Statistic::Mean) => z.iter().sum::<f64>() / self.vocab as f64,
            What::Divergence(alpha) => {
                let (d, y, v, _) = &self.heads[1];
                let (q, _) = self.logs(1, &wide(&y[row * d..][..*d]), &wide(v));
                let kl = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
                let alpha = f64::from(alpha);
                let m: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (alpha * p.exp() + (1.0 - alpha) * q.exp()).ln()).collect();
                match alpha {
                    0.0 => kl(&p, &q),
                    1.0 => kl(&q, &p),
                    _ => alpha * kl(&p, &m) + (1.0 - alpha) * kl(&q, &m),
                }
            }
        }
    }

    /// Values, `dx`, `dw`.
    fn run(&self, pool: &Pool, what: What, d_value: &[f32]) -> [Vec<f32>; 3] {
        let (n, vocab) = (self.n, self.vocab);
        let widths = [self.heads[0].0, self.heads[1].0];
        let mut scratch = vec![f32::NAN; scratch_len(n, vocab, &widths, true)];
        let (mut value, mut lse_p, mut lse_q, mut share) = (vec![9.0; n], vec![9.0; n], vec![9.0; n], vec![9.0; n]);
        let (mut dx, mut dw) = (vec![9.0; n * widths[0]], vec![9.0; vocab * widths[0]]);
        let (p, q) = (self.head(0), self.head(1));
        match what {
            What::Statistic(kind) => {
                statistic(pool, kind, n, &p, &mut value, &mut lse_p, &mut scratch);
                statistic_backward(pool, kind, n, &p, &value, &lse_p, d_value, &mut dx, Some(&mut dw), &mut scratch);
            }
            What::Divergence(alpha) => {
                let lse = [&mut lse_p[..], &mut lse_q[..]];
                divergence(pool, alpha, n, [&p, &q], &mut value, lse, &mut share, &mut scratch);
                let dw = Some(&mut dw[..]);
                divergence_backward(pool, alpha, n, [&p, &q], [&lse_p, &lse_q], &share, d_value, &mut dx, dw, &mut scratch);
            }
        }
        [value, dx, dw]
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[derive(Clone, Copy, Debug)]
enum What {
    Statistic(Statistic),
    Divergence(f32),
}

const ALL: [What; 5] = [
    What::Statistic(Statistic::Entropy),
    What::Statistic(Statistic::Mean),
    What::Divergence(0.0),
    What::Divergence(1.0),
    What::Divergence(0.3),
];

#[test]
fn values_and_gradients_match_definitions() {
    let d_value: Vec<f32> = (0..5).map(|i| 0.5 + i as f32).collect();
    let h = 1e-5;
    for (bent, what) in [false, true].into_iter().flat_map(|bent| ALL.map(|what| (bent, what))) {
        let case = Case::new(5, 37, [6, 4], bent);
        let w = wide(&case.heads[0].2);
        for isa in Isa::available() {
            let [value, dx, dw] = case.run(&Pool::with_isa(2, isa), what, &d_value);
            let mut dw_want = vec![0.0; dw.len()];
            for row in 0..case.n {
                let x = wide(&case.heads[0].1[row * 6..][..6]);
                assert!((f64::from(value[row]) - case.value(what, row, &x, &w)).abs() < 1e-5, "{what:?}");
                let slope = |base: &[f64], i: usize, f: &dyn Fn(&[f64]) -> f64| {
                    let (mut above, mut below) = (base.to_vec(), base.to_vec());
                    above[i] += h;
                    below[i] -= h;
                    (f(&above) - f(&below)) / (2.0 * h) * f64::from(d_value[row])
                };
                for c in 0..6 {
                    let want = slope(&x, c, &|x| case.value(what, row, x, &w));
                    assert!((f64::from(dx[row * 6 + c]) - want).abs() < 5e-5, "{what:?}");
                }
                for (i, dw) in dw_want.iter_mut().enumerate() {
                    *dw += slope(&w, i, &|w| case.value(what, row, &x, w));
                }
            }
            assert!(dw.iter().zip(&dw_want).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-4), "{what:?}");
        }
    }
}

#[test]
fn tiles_levels_and_threads() {
    let case = Case::new(70, 1001, [24, 40], true);
    let d_value: Vec<f32> = (0..70).map(|i| 1.0 / (1 + i % 5) as f32).collect();
    for what in ALL {
        let want = case.run(&Pool::with_isa(1, Isa::Scalar), what, &d_value);
        for isa in Isa::available() {
            let got = case.run(&Pool::with_isa(1, isa), what, &d_value);
            assert_eq!(got, case.run(&Pool::with_isa(2, isa), what, &d_value));
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} {want} at {isa} of {what:?}");
            }
        }
    }
}

#[test]
fn ragged_sizes() {
    for (n, vocab, d) in [(1, 1, [1, 1]), (17, 33, [5, 19]), (30, 400, [65, 1]), (3, 129, [600, 40])] {
        let mut case = Case::new(n, vocab, d, true);
        for (width, x, ..) in &mut case.heads {
            let scale = (8.0 / *width as f32).min(1.0);
            x.iter_mut().for_each(|x| *x *= scale);
        }
        let d_value: Vec<f32> = (0..n).map(|i| 1.0 - 0.1 * (i % 7) as f32).collect();
        for what in ALL {
            let want = case.run(&Pool::with_isa(1, Isa::Scalar), what, &d_value);
            for isa in Isa::available() {
                let got = case.run(&Pool::with_isa(2, isa), what, &d_value);
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    assert!((got - want).abs() <= 3e-5 * want.abs().max(1.0), "{got} {want} {vocab} at {isa} of {what:?}");
                }
            }
        }
    }
}

#[test]
fn zero_logits_are_one_distribution() {
    let mut case = Case::new(20, 90, [16, 12], false);
    case.heads.iter_mut().for_each(|(_, x, ..)| x.fill(0.0));
    for isa in Isa::available() {
        for (what, want) in ALL.into_iter().zip([90f32.ln(), 0.0, 0.0, 0.0, 0.0]) {
            let [value, dx, _] = case.run(&Pool::with_isa(2, isa), what, &[1.0; 20]);
            assert!(value.iter().all(|value| (value - want).abs() < 1e-5), "{isa} {what:?}");
            let mean = matches!(what, What::Statistic(Statistic::Mean));
            assert!(mean || dx.iter().all(|dx| dx.abs() < 1e-5), "{isa} {what:?}");
        }
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    let mut case = Case::new(40, 300, [24, 16], false);
    case.heads[0].1[6 * 24 + 5] = f32::NAN;
    for isa in Isa::available() {
        for what in ALL {
            let [value, dx, _] = case.run(&Pool::with_isa(2, isa), what, &[1.0; 40]);
            // The gradient of a mean need not depend on the logits.
            let mean = matches!(what, What::Statistic(Statistic::Mean));
            for row in 0..40 {
                assert_eq!(value[row].is_nan(), row == 6, "{isa} {what:?} {row}");
                let finite = dx[row * 24..][..24].iter().all(|dx| dx.is_finite());
                assert!(if row == 6 { mean || !finite } else { finite }, "{isa} {what:?} {row}");
            }
        }
    }
}
