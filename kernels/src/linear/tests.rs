use super::*;
use crate::format::Layout;
use crate::quant::tests::noise;
use crate::quant::{dequantize, quantize};

/// A weight whose bytes start one past every natural alignment, and its exact values.
struct Case {
    bytes: Vec<u8>,
    values: Vec<f32>,
    format: Format,
    layout: Layout,
    rows: usize,
    cols: usize,
}

impl Case {
    fn new(format: Format, rows: usize, cols: usize) -> Case {
        let source = noise(rows * cols, 11);
        let mut bytes = vec![0; 1 + format.row_bytes(source.len())];
        quantize(format, &source, &mut bytes[1..]);
        let mut values = vec![0.0; source.len()];
        dequantize(format, &bytes[1..], &mut values);
        Case { bytes, values, format, layout: Layout::Rows, rows, cols }
    }

    /// The same in panels.
    fn repacked(&self) -> Option<Case> {
        let len = panels::repacked_bytes(self.format, self.rows, self.cols)?;
        let mut bytes = vec![0; 1 + len];
        panels::repack(&Pool::new(1), &self.weight(), &mut bytes[1..]);
        Some(Case { bytes, values: self.values.clone(), layout: Layout::Panels, ..*self })
    }

    fn weight(&self) -> Weight<'_> {
        let weight =
            Weight { format: self.format, layout: self.layout, rows: self.rows, cols: self.cols, data: &self.bytes[1..] };
        weight.check();
        weight
    }
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f64], k: usize, what: &str) {
    let bound = 1e-6 * (k as f64).sqrt() * 4.0 + 1e-6;
    for (i, (&x, &y)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(x) - y).abs() <= bound, "{what}: element {i} is {x}, not {y}");
    }
}

const SHAPES: [(usize, usize); 4] = [(1, 32), (37, 96), (70, 416), (33, 64)];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in Format::ALL {
        for (rows, cols) in SHAPES {
            // The same in blocks of the format, but no longer than need be.
            let cols = if cols.is_multiple_of(format.block_len()) { cols } else { cols.next_multiple_of(format.block_len()) * 2 };
            let case = Case::new(format, rows, cols);
            cases.extend(case.repacked());
            cases.push(case);
        }
        if format.block_len() == 1 {
            cases.push(Case::new(format, 19, 45));
            cases.push(Case::new(format, 5, 3));
        }
    }
    cases
}

#[test]
fn forward_matches_the_decoded_weight() {
    for case in cases() {
        let (n, k) = (case.rows, case.cols);
        for m in [1, 2, 5, 8, 9, 30] {
            let x = noise(m * k, 5);
            let bias = noise(n, 6);
            let start = noise(m * n, 8);
            let mut expected = vec![0f64; m * n];
            for i in 0..m {
                for j in 0..n {
                    let dot = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(case.values[j * k + p])).sum::<f64>();
                    expected[i * n + j] = 0.5 * dot + f64::from(bias[j] + start[i * n + j]);
                }
            }
            for isa in Isa::available() {
                let mut outputs = [1, 2].map(|threads| {
                    let mut y = start.clone();
                    let pool = Pool::with_isa(threads, isa);
                    linear(&pool, m, 0.5, &x, &case.weight(), Some(&bias), &mut y, 1.0);
                    y
                });
                let what = format!("{:?} in {:?} {isa} {m}x{n}x{k}", case.format, case.layout);
                assert_close(&outputs[0], &expected, k, &what);
                assert_eq!(outputs[0], outputs[1], "{what}: threads change the result");
                // Overwriting must not read what was there.
                let y = &mut outputs[0];
                y.fill(f32::NAN);
                linear(&Pool::with_isa(1, isa), m, 1.0, &x, &case.weight(), None, y, 0.0);
                assert!(y.iter().all(|y| y.is_finite()), "{what}: overwriting reads the output");
            }
        }
    }
}

#[test]
fn layers_are_finished_in_one_pass() {
    let activated = |activation, x: f64| match activation {
        Some(Unary::Relu) => x.max(0.0),
        Some(Unary::Silu) => x / (1.0 + (-x).exp()),
        _ => x,
    };
    for format in [Format::F32, Format::F16, Format::BF16, Format::Q4_1] {
        let case = Case::new(format, 70, 416);
        let (n, k) = (case.rows, case.cols);
        for m in [1, 7, 21] {
            let (x, bias, start, other) = (noise(m * k, 5), noise(n, 6), noise(m * n, 8), noise(m * (n + 3), 9));
            let dots: Vec<f64> = (0..m * n)
                .map(|at| (0..k).map(|p| f64::from(x[at / n * k + p]) * f64::from(case.values[at % n * k + p])).sum())
                .collect();
            for activation in [None, Some(Unary::Relu), Some(Unary::Silu)] {
                for addend in 0..3 {
                    let with = match addend {
                        0 => Addend::None,
                        1 => Addend::Output { beta: 0.75 },
                        _ => Addend::Matrix { values: &other, row_stride: n + 3, beta: -0.5 },
                    };
                    let layer = Layer { alpha: 0.5, bias: Some(&bias), activation, addend: with };
                    let expected: Vec<f64> = (0..m * n)
                        .map(|at| {
                            let added = match addend {
                                0 => 0.0,
                                1 => 0.75 * f64::from(start[at]),
                                _ => -0.5 * f64::from(other[at / n * (n + 3) + at % n]),
                            };
                            activated(activation, 0.5 * dots[at] + f64::from(bias[at % n])) + added
                        })
                        .collect();
                    for isa in Isa::available() {
                        let outputs = [1, 2].map(|threads| {
                            let mut y = if addend == 1 { start.clone() } else { vec![f32::NAN; m * n] };
                            linear_fused(&Pool::with_isa(threads, isa), m, &x, &case.weight(), &layer, &mut y);
                            y
                        });
                        let what = format!("{format:?} {isa} {m}x{n}x{k} {activation:?} {addend}");
                        assert_close(&outputs[0], &expected, k, &what);
                        assert_eq!(outputs[0], outputs[1], "{what}: threads change the result");
                    }
                }
            }
        }
    }
}

#[test]
fn input_gradient_matches_the_decoded_weight() {
    for case in cases() {
        let (n, k) = (case.cols, case.rows);
        for m in [1, 9, 30] {
            let dy = noise(m * k, 5);
            let start = noise(m * n, 8);
            let mut expected = vec![0f64; m * n];
            for i in 0..m {
                for j in 0..n {
                    let dot = (0..k).map(|p| f64::from(dy[i * k + p]) * f64::from(case.values[p * n + j])).sum::<f64>();
                    expected[i * n + j] = 2.0 * dot + f64::from(start[i * n + j]);
                }
            }
            for isa in Isa::available() {
                let outputs = [1, 3].map(|threads| {
                    let mut dx = start.clone();
                    let pool = Pool::with_isa(threads, isa);
                    linear_dx(&pool, m, 2.0, &dy, &case.weight(), &mut dx, 1.0);
                    dx
                });
                let what = format!("{:?} {isa} {m}x{n}x{k}", case.format);
                assert_close(&outputs[0], &expected, 4 * k, &what);
                assert_eq!(outputs[0], outputs[1], "{what}: threads change the result");
            }
        }
    }
}

#[test]
fn aligned_elements_are_read_as_they_are() {
    let half = |format: Format| {
        // A whole number of them from the second byte on, and from the first.
        let case = Case::new(format, 40, 50);
        let words: Vec<u16> = case.bytes[1..].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        (case, words)
    };
    for format in [Format::F16, Format::BF16] {
        let (case, words) = half(format);
        // SAFETY: numbers are valid as bytes.
        let aligned = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), 2 * words.len()) };
        let (x, pool) = (noise(20 * 50, 1), Pool::new(2));
        let run = |data: &[u8]| {
            let mut y = vec![0.0; 20 * 40];
            linear(&pool, 20, 1.0, &x, &Weight::new(format, 40, 50, data), None, &mut y, 0.0);
            y
        };
        assert_eq!(run(aligned), run(&case.bytes[1..]), "{format:?}");
    }
    let (m, n, k) = (20, 40, 50);
    let (x, w, dy) = (noise(m * k, 1), noise(n * k, 2), noise(m * n, 3));
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut shifted = vec![0];
    shifted.extend(&bytes);
    // SAFETY: floats are valid as bytes.
    let aligned = unsafe { std::slice::from_raw_parts(w.as_ptr().cast::<u8>(), 4 * w.len()) };
    let pool = Pool::new(2);
    let run = |data: &[u8]| {
        let weight = Weight::new(Format::F32, n, k, data);
        let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
        linear(&pool, m, 1.0, &x, &weight, None, &mut y, 0.0);
        linear_dx(&pool, m, 1.0, &dy, &weight, &mut dx, 0.0);
        (y, dx)
    };
    assert!(Weight::new(Format::F32, n, k, aligned).floats().is_some());
    assert_eq!(run(aligned), run(&shifted[1..]));
}
