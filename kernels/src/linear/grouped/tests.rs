use super::*;
use crate::format::{Format, Layout};
use crate::isa::Isa;
use crate::panels::{self, repacked_bytes};
use crate::quant::tests::noise;
use crate::quant::{dequantize, quantize};

/// A stack of matrices in a format, and its exact values.
struct Case {
    bytes: Vec<u8>,
    values: Vec<f32>,
    format: Format,
    layout: Layout,
    count: usize,
    n: usize,
    k: usize,
}

impl Case {
    fn new(format: Format, [count, n, k]: [usize; 3]) -> Case {
        let source = noise(count * n * k, 11);
        let mut bytes = vec![0; format.row_bytes(source.len())];
        quantize(format, &source, &mut bytes);
        let mut values = vec![0.0; source.len()];
        dequantize(format, &bytes, &mut values);
        Case { bytes, values, format, layout: Layout::Rows, count, n, k }
    }

    /// The same in panels of each matrix.
    fn repacked(self) -> Case {
        let (len, stack) = (repacked_bytes(self.format, self.n, self.k).unwrap(), self.weight());
        let mut bytes = vec![0; self.count * len];
        for (e, bytes) in bytes.chunks_exact_mut(len).enumerate() {
            panels::repack(&Pool::new(1), &expert(&stack, self.n, e, 0..self.n), bytes);
        }
        Case { bytes, layout: Layout::Panels, ..self }
    }

    fn weight(&self) -> Weight<'_> {
        let &Case { format, layout, count, n, k, .. } = self;
        Weight { format, layout, rows: count * n, cols: k, data: &self.bytes }
    }

    /// Element `(j, p)` of the matrix of an expert.
    fn at(&self, e: i32, j: usize, p: usize) -> f64 {
        f64::from(self.values[(e as usize * self.n + j) * self.k + p])
    }
}

/// Experts of `rows` rows: most go to the first, the last gets none, some take no part.
fn routes(rows: usize, choices: usize, count: usize) -> Vec<i32> {
    let used = (count - 1).max(1);
    (0..rows * choices)
        .map(|i| match i % 7 {
            0..3 => 0,
            3 => -1 - (i % 2) as i32,
            _ => (i * i + i / 3) as i32 % used as i32,
        })
        .collect()
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], what: &str) {
    for (i, (&x, &y)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(x) - y).abs() <= 4e-5 * (1.0 + y.abs()), "{what}: element {i} is {x}, not {y}");
    }
}

/// Runs `body` on every level with one and three threads and compares all of it.
fn check(what: &str, want: &[f64], body: impl Fn(&Pool, &mut [f32])) {
    for isa in Isa::available() {
        let outputs = [1, 3].map(|threads| {
            let mut out = vec![f32::NAN; want.len()];
            body(&Pool::with_isa(threads, isa), &mut out);
            out
        });
        assert_close(&outputs[0], want, &format!("{what} {isa}"));
        assert_eq!(outputs[0], outputs[1], "{what} {isa}: threads change the result");
    }
}

#[test]
fn each_pair_meets_its_expert() {
    let cases = [
        Case::new(Format::F32, [5, 6, 7]),
        Case::new(Format::BF16, [3, 300, 33]),
        Case::new(Format::Q8_0, [4, 40, 64]),
        Case::new(Format::Q4_1, [9, 24, 32]),
        Case::new(Format::Q4_1, [9, 24, 32]).repacked(),
        Case::new(Format::Q6K, [2, 300, 256]).repacked(),
        Case::new(Format::F32, [1, 8, 16]),
    ];
    for case in cases {
        let Case { format, layout, count, n, k, .. } = case;
        for (rows, choices) in [(1, 1), (3, 2), (61, 2), (150, 1)] {
            let experts = routes(rows, choices, count);
            let (x, dy) = (noise(rows * k, 5), noise(rows * choices * n, 6));
            let pairs = rows * choices;
            let (mut y, mut dx, mut dw) = (vec![0f64; pairs * n], vec![0f64; rows * k], vec![0f64; count * n * k]);
            for (pair, &e) in experts.iter().enumerate().filter(|(_, e)| **e >= 0) {
                for j in 0..n {
                    let d = f64::from(dy[pair * n + j]);
                    for p in 0..k {
                        let x = f64::from(x[pair / choices * k + p]);
                        y[pair * n + j] += x * case.at(e, j, p);
                        dx[pair / choices * k + p] += d * case.at(e, j, p);
                        dw[(e as usize * n + j) * k + p] += d * x;
                    }
                }
            }
            let what = format!("{format:?} in {layout:?} {count} of {n}x{k}, {rows} rows of {choices}");
            let memory = || vec![0; groups_len(pairs, count)];
            check(&format!("{what}: y"), &y, |pool, out| {
                let mut memory = memory();
                let groups = Groups::new(&experts, choices, count, &mut memory);
                grouped_linear(pool, &groups, &x, &case.weight(), out, &mut vec![f32::NAN; pairs * k]);
            });
            check(&format!("{what}: dx"), &dx, |pool, out| {
                let mut memory = memory();
                let groups = Groups::new(&experts, choices, count, &mut memory);
                let (mut gathered, mut parts) = (vec![f32::NAN; pairs * n], vec![f32::NAN; pairs * k]);
                grouped_linear_dx(pool, &groups, &dy, &case.weight(), out, &mut gathered, &mut parts);
            });
            check(&format!("{what}: dw"), &dw, |pool, out| {
                let mut memory = memory();
                let groups = Groups::new(&experts, choices, count, &mut memory);
                grouped_linear_dw(pool, &groups, (n, k), &dy, &x, out, &mut vec![f32::NAN; pairs * (n + k)]);
            });
        }
    }
}

#[test]
fn whole_numbers_give_each_pair_what_its_expert_gives_its_row() {
    for (format, [count, n, k]) in [(Format::Q8_0, [4, 40, 64]), (Format::Q4_1, [9, 24, 32]), (Format::Q6K, [3, 300, 256])] {
        let case = Case::new(format, [count, n, k]);
        let (stack, len) = (case.weight(), repacked_bytes(format, n, k).unwrap());
        for (rows, choices) in [(1, 1), (3, 2), (61, 2)] {
            let (experts, x) = (routes(rows, choices, count), noise(rows * k, 5));
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let pool = Pool::with_isa(threads, isa);
                    let mut data = vec![0; count * len];
                    for (e, data) in data.chunks_exact_mut(len).enumerate() {
                        panels::repack(&pool, &expert(&stack, n, e, 0..n), data);
                    }
                    let mut memory = vec![0; groups_len(rows * choices, count)];
                    let groups = Groups::new(&experts, choices, count, &mut memory);
                    let mut y = vec![f32::NAN; rows * choices * n];
                    let panels = Weight { format, layout: Layout::Panels, rows: count * n, cols: k, data: &data };
                    let mut rounded = vec![0; quantized_words(rows * choices, k)];
                    grouped_linear_int8(&pool, &groups, &x, &panels, &mut y, &mut rounded);
                    for (pair, y) in y.chunks_exact(n).enumerate() {
                        let mut alone = vec![0.0; n];
                        if let Ok(e) = usize::try_from(experts[pair]) {
                            let mut row = vec![0; quantized_words(1, k)];
                            int8::quantize_rows(&pool, 1, k, &x[pair / choices * k..][..k], &mut row);
                            let panels = Weight { rows: n, data: &data[e * len..][..len], ..panels };
                            linear_int8(&pool, 1, 1.0, &row, &panels, None, &mut alone, 0.0);
                        }
                        assert_eq!(y, alone, "{format:?} {isa}, {threads} threads, pair {pair}");
                    }
                }
            }
        }
    }
}

#[test]
fn groups_keep_the_order_of_pairs() {
    let mut memory = vec![0; groups_len(6, 3)];
    let groups = Groups::new(&[2, 0, -1, 2, 0, 2], 2, 3, &mut memory);
    assert_eq!(groups.order, [1, 4, 0, 3, 5]);
    assert_eq!((groups.of(0), groups.of(1), groups.of(2)), ((0, 2), (2, 0), (2, 3)));
}

#[test]
#[should_panic(expected = "expert 3 of 3")]
fn an_expert_past_the_last_is_refused() {
    Groups::new(&[0, 3], 1, 3, &mut [0; groups_len(2, 3)]);
}
