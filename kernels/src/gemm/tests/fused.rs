//! Epilogues and halves, held to sums in `f64`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{LAYOUTS, Layout, pools, stored};
use crate::elementwise::Unary;
use crate::gemm::{Addend, Factor, Fused, MatRef, Operand, Output, gemm_fused};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::quant::tests::noise;

/// A matrix in each kind of storage, and the floats that it stands for.
struct Stored {
    floats: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    row_stride: usize,
    col_stride: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    F32,
    F16,
    BF16,
}

const KINDS: [Kind; 3] = [Kind::F32, Kind::F16, Kind::BF16];

impl Stored {
    fn new(rows: usize, cols: usize, layout: Layout) -> Stored {
        let (floats, row_stride, col_stride) = stored(rows, cols, layout);
        let mut halves = vec![f16::ZERO; floats.len()];
        halves.convert_from_f32_slice(&floats);
        let bf16 = floats.iter().map(|&x| bf16::from_f32(x)).collect();
        Stored { floats, f16: halves, bf16, row_stride, col_stride }
    }

    fn of<'a, T>(&self, data: &'a [T]) -> MatRef<'a, T> {
        MatRef { data, row_stride: self.row_stride, col_stride: self.col_stride }
    }

    fn operand(&self, kind: Kind) -> Operand<'_> {
        match kind {
            Kind::F32 => self.of(&self.floats).into(),
            Kind::F16 => self.of(&self.f16).into(),
            Kind::BF16 => self.of(&self.bf16).into(),
        }
    }

    fn get(&self, kind: Kind, i: usize, j: usize) -> f64 {
        let at = i * self.row_stride + j * self.col_stride;
        f64::from(match kind {
            Kind::F32 => self.floats[at],
            Kind::F16 => self.f16[at].to_f32(),
            Kind::BF16 => self.bf16[at].to_f32(),
        })
    }
}

fn activated(activation: Option<Unary>, x: f64) -> f64 {
    match activation {
        None => x,
        Some(Unary::Relu) => x.max(0.0),
        Some(Unary::Silu) => x / (1.0 + (-x).exp()),
        Some(Unary::GeluTanh) => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()),
        Some(other) => panic!("no reference for {other:?}"),
    }
}

/// The output before and after a product, as floats.
fn run(pool: &Pool, product: &Fused<'_>, kind: Kind, old: &[f32], ldc: usize) -> (Vec<f32>, Vec<f32>) {
    match kind {
        Kind::F32 => {
            let mut c = old.to_vec();
            gemm_fused(pool, product, Output::F32(&mut c), ldc);
            (old.to_vec(), c)
        }
        Kind::F16 => {
            let mut c: Vec<f16> = old.iter().map(|&x| f16::from_f32(x)).collect();
            let before = c.iter().map(|x| x.to_f32()).collect();
            gemm_fused(pool, product, Output::F16(&mut c), ldc);
            (before, c.iter().map(|x| x.to_f32()).collect())
        }
        Kind::BF16 => {
            let mut c: Vec<bf16> = old.iter().map(|&x| bf16::from_f32(x)).collect();
            let before = c.iter().map(|x| x.to_f32()).collect();
            gemm_fused(pool, product, Output::BF16(&mut c), ldc);
            (before, c.iter().map(|x| x.to_f32()).collect())
        }
    }
}

struct Case {
    sizes: (usize, usize, usize),
    kinds: (Kind, Kind, Kind),
    layouts: (Layout, Layout),
    bias: bool,
    activation: Option<Unary>,
    /// 0: nothing, 1: the output, 2: another matrix.
    addend: usize,
}

fn check(pools: &[Pool], case: &Case) {
    let &Case { sizes: (m, n, k), kinds: (ka, kb, kc), layouts: (la, lb), bias, activation, addend } = case;
    let (a, b) = (Stored::new(m, k, la), Stored::new(k, n, lb));
    let (ldc, stride) = (n + 2, n + 1);
    let old = noise((m - 1) * ldc + n, 77);
    let other = noise((m - 1) * stride + n, 78);
    let biases = noise(n, 79);
    for pair in pools.chunks(2) {
        let [first, second] = [0, 1].map(|index| {
            let pool = &pair[index];
            let b = Factor::Matrix { b: b.operand(kb), k, n };
            let addend = match addend {
                0 => Addend::None,
                1 => Addend::Output { beta: 0.75 },
                _ => Addend::Matrix { values: &other, row_stride: stride, beta: -0.5 },
            };
            let product = Fused { m, a: a.operand(ka), b, alpha: 0.5, bias: bias.then_some(&biases), activation, addend };
            run(pool, &product, kc, &old, ldc)
        });
        let what = format!("{} {m}x{n}x{k} {ka:?} {kb:?} {kc:?} {la:?} {lb:?} {bias} {activation:?} {addend}", pair[0].isa());
        assert_eq!(first.1, second.1, "{what}: threads change the result");
        let (before, after) = first;
        let rounding = match kc {
            Kind::F32 => 0.0,
            Kind::F16 => 1.0 / 1024.0,
            Kind::BF16 => 1.0 / 128.0,
        };
        let step = if m * n > 5_000 { 37 } else { 1 };
        for (i, j) in (0..m * n).step_by(step).map(|index| (index / n, index % n)) {
            let sum: f64 = (0..k).map(|p| a.get(ka, i, p) * b.get(kb, p, j)).sum();
            let value = activated(activation, 0.5 * sum + if bias { f64::from(biases[j]) } else { 0.0 });
            let expected = value
                + match addend {
                    0 => 0.0,
                    1 => 0.75 * f64::from(before[i * ldc + j]),
                    _ => -0.5 * f64::from(other[i * stride + j]),
                };
            let got = f64::from(after[i * ldc + j]);
            let bound = 4e-6 * (k as f64).sqrt() + 4e-6 + rounding * expected.abs();
            assert!((got - expected).abs() <= bound, "{what}: ({i}, {j}) is {got}, not {expected}");
        }
        for i in 0..m - 1 {
            let gap = i * ldc + n..(i + 1) * ldc;
            assert_eq!(after[gap.clone()], before[gap], "{what}: wrote between rows");
        }
    }
}

#[test]
fn halves_in_every_layout() {
    let pools = pools();
    for sizes in [(1, 1, 1), (3, 5, 0), (17, 33, 9), (29, 40, 131), (57, 95, 150)] {
        for la in LAYOUTS {
            for lb in LAYOUTS {
                for (ka, kb) in [(Kind::F16, Kind::F32), (Kind::F32, Kind::BF16), (Kind::BF16, Kind::F16)] {
                    let kinds = (ka, kb, Kind::F32);
                    let case = Case { sizes, kinds, layouts: (la, lb), bias: false, activation: None, addend: 0 };
                    check(&pools, &case);
                }
            }
        }
    }
}

#[test]
fn epilogues_of_every_kind() {
    let pools = pools();
    for sizes in [(1, 7, 0), (5, 3, 40), (33, 65, 20), (30, 70, 33)] {
        for activation in [None, Some(Unary::Relu), Some(Unary::Silu), Some(Unary::GeluTanh)] {
            for addend in 0..3 {
                for kc in KINDS {
                    let kinds = (Kind::F32, Kind::F32, kc);
                    let layouts = (Layout::Rows, Layout::Columns);
                    let case = Case { sizes, kinds, layouts, bias: addend != 1, activation, addend };
                    check(&pools, &case);
                }
            }
        }
    }
}

#[test]
fn sums_of_several_passes_are_finished_once() {
    let pools = [1, 2].map(|threads| Pool::with_isa(threads, Isa::detect()));
    for (la, addend, kc) in [
        (Layout::Rows, 1, Kind::F32),
        (Layout::Columns, 2, Kind::F32),
        (Layout::Columns, 1, Kind::BF16),
        (Layout::Rows, 0, Kind::F16),
    ] {
        for sizes in [(40, 600, 2300), (70, 20, 5000)] {
            let kinds = (Kind::F32, Kind::BF16, kc);
            let (layouts, activation) = ((la, Layout::Columns), Some(Unary::Silu));
            check(&pools, &Case { sizes, kinds, layouts, bias: true, activation, addend });
        }
    }
}

#[test]
fn non_finite_values_reach_the_output() {
    for pool in pools() {
        let (m, n, k) = (20, 40, 30);
        let mut a = vec![1.0; m * k];
        a[3] = f32::NAN;
        a[k] = f32::INFINITY;
        a[2 * k] = f32::NEG_INFINITY;
        let ones = vec![bf16::ONE; k * n];
        let b = Factor::Matrix { b: MatRef::new(&ones[..], n).into(), k, n };
        let a = MatRef::new(&a[..], k).into();
        let activation = Some(Unary::Relu);
        let product = Fused { m, a, b, alpha: 1.0, bias: None, activation, addend: Addend::None };
        let mut c = vec![bf16::ZERO; m * n];
        gemm_fused(&pool, &product, Output::BF16(&mut c), n);
        for (i, row) in c.chunks(n).enumerate() {
            let as_expected = |c: &bf16| match i {
                0 => c.is_nan(),
                1 => *c == bf16::INFINITY,
                2 => *c == bf16::ZERO,
                _ => c.to_f32() == 30.0,
            };
            assert!(row.iter().all(as_expected), "{} row {i}", pool.isa());
        }
    }
}

#[test]
#[should_panic(expected = "bias does not match")]
fn a_short_bias_is_refused() {
    let data = [0.0; 16];
    let matrix = MatRef::new(&data[..], 4);
    let b = Factor::Matrix { b: matrix.into(), k: 4, n: 4 };
    let product = Fused { m: 4, a: matrix.into(), b, alpha: 1.0, bias: Some(&[0.0; 3]), activation: None, addend: Addend::None };
    gemm_fused(&Pool::new(1), &product, Output::F32(&mut [0.0; 16]), 4);
}
