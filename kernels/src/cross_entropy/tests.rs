//! Against an `f64` reference with its own gradients, and finite differences of that reference.

use super::*;
use crate::format::Format;

struct Case {
    n: usize,
    vocab: usize,
    d: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bytes: Vec<u8>,
    targets: Vec<i32>,
}

impl Case {
    fn new(n: usize, vocab: usize, d: usize) -> Case {
        let draw = |len: usize, seed: u64, scale: f32| {
            let mut x = vec![0.0; len];
            crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
            x.iter_mut().for_each(|x| *x *= scale);
            x
        };
        let w = draw(vocab * d, 2, 0.5);
        let bytes = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        let targets = (0..n).map(|i| if i % 3 == 1 { -100 } else { (i * 31 % vocab) as i32 }).collect();
        Case { n, vocab, d, x: draw(n * d, 1, 1.0), w, bytes, targets }
    }

    fn weight(&self) -> Weight<'_> {
        Weight::new(Format::F32, self.vocab, self.d, &self.bytes)
    }

    /// Loss of a row.
    fn loss(&self, spec: &Spec, row: usize, x: &[f64], w: &[f64]) -> f64 {
        let z: Vec<f64> = (0..self.vocab)
            .map(|j| {
                let raw: f64 = (0..self.d).map(|c| x[c] * w[j * self.d + c]).sum();
                let capped = spec.softcap.map_or(raw, |cap| f64::from(cap) * (raw / f64::from(cap)).tanh());
                capped / f64::from(spec.temperature)
            })
            .collect();
        let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        let smooth = f64::from(spec.label_smoothing);
        lse - (1.0 - smooth) * z[self.targets[row] as usize] - smooth * z.iter().sum::<f64>() / self.vocab as f64
            + f64::from(spec.z_loss) * lse * lse
    }

    /// `loss`, `lse`, `dx_unit`, `dx`, `dw`.
    fn run(&self, pool: &Pool, spec: &Spec, d_loss: &[f32]) -> [Vec<f32>; 5] {
        let (n, d) = (self.n, self.d);
        let mut scratch = vec![f32::NAN; scratch_len(n, self.vocab, d, true)];
        let (mut loss, mut lse) = (vec![9.0; n], vec![9.0; n]);
        let (mut unit, mut dx, mut dw) = (vec![9.0; n * d], vec![9.0; n * d], vec![9.0; self.vocab * d]);
        let w = self.weight();
        forward(pool, spec, n, &self.x, &w, &self.targets, &mut loss, &mut lse, Some(&mut unit), &mut scratch);
        let dw_out = Some(&mut dw[..]);
        backward(pool, spec, n, &self.x, &w, &self.targets, &lse, d_loss, &mut dx, dw_out, &mut scratch);
        [loss, lse, unit, dx, dw]
    }
}

const SPECS: [Spec; 2] = [
    Spec { label_smoothing: 0.0, z_loss: 0.0, softcap: None, temperature: 1.0 },
    Spec { label_smoothing: 0.1, z_loss: 0.01, softcap: Some(3.0), temperature: 0.7 },
];

#[test]
fn loss_and_gradients_match_finite_differences() {
    let case = Case::new(7, 37, 8);
    let d_loss: Vec<f32> = (0..7).map(|i| 0.5 + i as f32).collect();
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let w = wide(&case.w);
    let h = 1e-5;
    for spec in SPECS {
        for isa in Isa::available() {
            let [loss, _, unit, dx, dw] = case.run(&Pool::with_isa(2, isa), &spec, &d_loss);
            let mut dw_want = vec![0.0; dw.len()];
            for row in 0..case.n {
                let x = wide(&case.x[row * 8..][..8]);
                if case.targets[row] < 0 {
                    assert!(loss[row] == 0.0 && unit[row * 8..][..8] == [0.0; 8] && dx[row * 8..][..8] == [0.0; 8]);
                    continue;
                }
                assert!((f64::from(loss[row]) - case.loss(&spec, row, &x, &w)).abs() < 1e-5);
                for c in 0..8 {
                    let at = |step: f64| {
                        let mut x = x.clone();
                        x[c] += step;
                        case.loss(&spec, row, &x, &w)
                    };
                    let want = (at(h) - at(-h)) / (2.0 * h);
                    assert!((f64::from(unit[row * 8 + c]) - want).abs() < 1e-5);
                    assert!((f64::from(dx[row * 8 + c]) - want * f64::from(d_loss[row])).abs() < 5e-5);
                }
                for (i, dw) in dw_want.iter_mut().enumerate() {
                    let at = |step: f64| {
                        let mut w = w.clone();
                        w[i] += step;
                        case.loss(&spec, row, &x, &w)
                    };
                    *dw += (at(h) - at(-h)) / (2.0 * h) * f64::from(d_loss[row]);
                }
            }
            assert!(dw.iter().zip(&dw_want).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-4));
        }
    }
}

#[test]
fn tiles_levels_and_threads() {
    let case = Case::new(300, 1001, 24);
    let d_loss: Vec<f32> = (0..300).map(|i| 1.0 / (1 + i % 5) as f32).collect();
    for spec in SPECS {
        let want = case.run(&Pool::with_isa(1, Isa::Scalar), &spec, &d_loss);
        for isa in Isa::available() {
            let got = case.run(&Pool::with_isa(1, isa), &spec, &d_loss);
            assert_eq!(got, case.run(&Pool::with_isa(2, isa), &spec, &d_loss));
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} {want} at {isa}");
            }
        }
    }
}

#[test]
fn nothing_but_ignored_rows() {
    let mut case = Case::new(20, 50, 4);
    case.targets.fill(-1);
    let got = case.run(&Pool::new(1), &SPECS[0], &[1.0; 20]);
    assert!(got.iter().flatten().all(|&x| x == 0.0));
}

#[test]
fn ragged_sizes() {
    // Around vectors, register tiles, groups of columns and tiles of the vocabulary.
    for (n, vocab, d) in [(1, 1, 1), (2, 3, 5), (15, 31, 17), (29, 129, 33), (65, 500, 1), (43, 385, 600), (20, 260, 1100)] {
        let case = Case::new(n, vocab, d);
        let mut case = Case { x: case.x.iter().map(|x| x * (8.0 / d as f32).min(1.0)).collect(), ..case };
        // One row at least counts.
        case.targets[0] = (vocab / 2) as i32;
        let d_loss: Vec<f32> = (0..n).map(|i| 1.0 - 0.1 * (i % 7) as f32).collect();
        for spec in SPECS {
            let want = case.run(&Pool::with_isa(1, Isa::Scalar), &spec, &d_loss);
            for isa in Isa::available() {
                let got = case.run(&Pool::with_isa(2, isa), &spec, &d_loss);
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    assert!((got - want).abs() <= 3e-5 * want.abs().max(1.0), "{got} {want} {n} {vocab} {d} at {isa}");
                }
            }
        }
    }
}

#[test]
fn any_alignment_gives_the_same_bits() {
    let case = Case::new(50, 300, 40);
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let run = |shift: usize| {
            let x = [vec![0.0; shift], case.x.clone()].concat();
            let bytes = [vec![0; 4 * shift], case.bytes.clone()].concat();
            let w = Weight::new(Format::F32, 300, 40, &bytes[4 * shift..]);
            let [mut loss, mut lse] = [(); 2].map(|()| vec![0.0; shift + 50]);
            let (mut dx, mut scratch) = (vec![0.0; shift + 2000], vec![0.0; shift + scratch_len(50, 300, 40, false)]);
            let (loss_out, lse_out, unit) = (&mut loss[shift..], &mut lse[shift..], Some(&mut dx[shift..]));
            forward(&pool, &SPECS[0], 50, &x[shift..], &w, &case.targets, loss_out, lse_out, unit, &mut scratch[shift..]);
            [loss[shift..].to_vec(), lse[shift..].to_vec(), dx[shift..].to_vec()]
        };
        assert_eq!(run(0), run(1), "{isa}");
    }
}

#[test]
fn zero_logits_weigh_all_entries_alike() {
    let mut case = Case::new(30, 77, 16);
    case.x.fill(0.0);
    for isa in Isa::available() {
        let [loss, lse, ..] = case.run(&Pool::with_isa(2, isa), &SPECS[0], &[1.0; 30]);
        for row in (0..30).filter(|row| row % 3 != 1) {
            assert!((loss[row] - 77f32.ln()).abs() < 1e-6 && (lse[row] - 77f32.ln()).abs() < 1e-6, "{isa}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for spec in SPECS.into_iter().filter(|spec| spec.softcap.is_none() || value.is_nan()) {
            // Row 1 is ignored, row 6 counts.
            let mut case = Case::new(40, 300, 24);
            (case.x[24], case.x[6 * 24 + 5]) = (value, value);
            for isa in Isa::available() {
                let [loss, lse, unit, dx, dw] = case.run(&Pool::with_isa(2, isa), &spec, &[1.0; 40]);
                for row in 0..40 {
                    let rows = [&unit, &dx].map(|x| x[row * 24..][..24].iter().all(|x| x.is_finite()));
                    let finite = [loss[row].is_finite(), lse[row].is_finite(), rows[0], rows[1]];
                    assert_eq!(finite, [row != 6; 4], "{value} {row} {isa}");
                }
                assert!(dw.iter().all(|x| !x.is_finite()), "{value} {isa}");
            }
        }
    }
}

#[test]
fn a_frozen_head_has_the_gradients_of_a_trained_one() {
    let case = Case::new(60, 513, 32);
    let d_loss: Vec<f32> = (0..60).map(|i| 0.1 + i as f32 * 0.02).collect();
    for spec in SPECS {
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let [_, lse, _, want, _] = case.run(&pool, &spec, &d_loss);
            let (mut dx, w) = (vec![9.0; want.len()], case.weight());
            // Its scratch has no room for anything as large as the weight or the logits.
            let mut scratch = vec![f32::NAN; scratch_len(60, 513, 32, false)];
            backward(&pool, &spec, 60, &case.x, &w, &case.targets, &lse, &d_loss, &mut dx, None, &mut scratch);
            assert_eq!(dx, want, "{isa}");
        }
    }
    assert!(scratch_len(1024, 49152, 576, false) * 20 < 1024 * 49152);
}
