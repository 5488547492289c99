//! Products of all operands, sizes and instruction sets against sums in f64.

mod fused;
mod grouped;

use super::*;
use crate::isa::Isa;
use crate::quant::tests::noise;

/// Every arrangement of the operands: rows contiguous, columns contiguous, neither.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Columns,
    Strided,
}

const LAYOUTS: [Layout; 3] = [Layout::Rows, Layout::Columns, Layout::Strided];

fn stored(rows: usize, cols: usize, layout: Layout) -> (Vec<f32>, usize, usize) {
    // Three elements of padding, so that strides differ from sizes.
    let (row_stride, col_stride) = match layout {
        Layout::Rows => (cols + 3, 1),
        Layout::Columns => (1, rows + 3),
        Layout::Strided => (2 * cols + 1, 2),
    };
    let len = (rows.max(1) - 1) * row_stride + (cols.max(1) - 1) * col_stride + 1;
    (noise(len, (rows * 31 + cols) as u32), row_stride, col_stride)
}

/// Element `(i, j)` of the product without its old value.
fn dot(k: usize, a: MatRef<'_>, b: MatRef<'_>, (i, j): (usize, usize)) -> f64 {
    let a = |p| f64::from(a.data[i * a.row_stride + p * a.col_stride]);
    let b = |p| f64::from(b.data[p * b.row_stride + j * b.col_stride]);
    (0..k).map(|p| a(p) * b(p)).sum()
}

fn check_shape(pools: &[Pool], sizes: Sizes, la: Layout, lb: Layout) {
    let Sizes { m, n, k } = sizes;
    let (a, a_row, a_col) = stored(m, k, la);
    let (b, b_row, b_col) = stored(k, n, lb);
    let a = MatRef { data: &a, row_stride: a_row, col_stride: a_col };
    let b = MatRef { data: &b, row_stride: b_row, col_stride: b_col };
    let ldc = n + 2;
    let old = noise((m - 1) * ldc + n, 77);
    let bound = 4e-6 * (k as f64).sqrt() + 1e-6;
    // Large products are sampled, at a step that visits every column of a tile.
    let step = if m * n > 20_000 { 31 } else { 1 };
    let samples: Vec<(usize, usize)> = (0..m * n).step_by(step).map(|index| (index / n, index % n)).collect();
    let expected: Vec<f64> = samples.iter().map(|&at| dot(k, a, b, at)).collect();
    for (alpha, beta) in [(1.0, 0.0), (-0.5, 1.0)] {
        for pair in pools.chunks(2) {
            let [first, second] = [0, 1].map(|index| {
                let mut c = old.clone();
                gemm(&pair[index], m, n, k, alpha, a, b, &mut c, ldc, beta);
                c
            });
            let what = format!("{} {m}x{n}x{k} {la:?} {lb:?} beta {beta}", pair[0].isa());
            assert_eq!(first, second, "{what}: threads change the result");
            for (&(i, j), dot) in samples.iter().zip(&expected) {
                let expected = f64::from(alpha) * dot + f64::from(beta * old[i * ldc + j]);
                let got = f64::from(first[i * ldc + j]);
                assert!((got - expected).abs() <= bound, "{what}: ({i}, {j}) is {got}, not {expected}");
            }
            for i in 0..m - 1 {
                let gap = i * ldc + n..(i + 1) * ldc;
                assert_eq!(first[gap.clone()], old[gap], "{what}: wrote between rows");
            }
        }
    }
}

/// One and two threads for every level.
fn pools() -> Vec<Pool> {
    Isa::available().flat_map(|isa| [1, 2].map(|threads| Pool::with_isa(threads, isa))).collect()
}

#[test]
fn ragged_sizes_and_layouts() {
    let pools = pools();
    let sizes = [
        (1, 1, 1),
        (1, 40, 17),
        (40, 1, 17),
        (3, 5, 0),
        (17, 33, 1),
        (14, 32, 65),
        (29, 31, 15),
        (64, 100, 33),
        (16, 130, 70),
        (130, 9, 70),
        (57, 95, 130),
    ];
    for (m, n, k) in sizes {
        for la in LAYOUTS {
            for lb in LAYOUTS {
                check_shape(&pools, Sizes { m, n, k }, la, lb);
            }
        }
    }
}

#[test]
fn every_edge_of_a_tile() {
    let pools = pools();
    for m in 17..32 {
        check_shape(&pools, Sizes { m, n: 49 - m, k: 20 }, Layout::Rows, Layout::Rows);
        check_shape(&pools, Sizes { m: 20, n: m + 16, k: 9 }, Layout::Columns, Layout::Columns);
    }
}

#[test]
fn several_blocks_of_every_size() {
    let pools = [1, 2].map(|threads| Pool::with_isa(threads, Isa::detect()));
    // Several passes over k with many and with few rows; many strips; two blocks of packed A, along each side.
    for (m, n, k) in [(100, 90, 2100), (40, 600, 1100), (98, 2740, 384), (2740, 98, 384), (700, 20, 5000)] {
        for la in [Layout::Rows, Layout::Columns] {
            check_shape(&pools, Sizes { m, n, k }, la, Layout::Columns);
        }
    }
}

#[test]
fn non_finite_values_propagate() {
    for pool in pools() {
        for (m, n, k) in [(20, 40, 30), (4, 40, 30), (40, 4, 30)] {
            let mut a = vec![0.0; m * k];
            let b = vec![0.0; k * n];
            a[k + 2] = f32::NAN;
            a[2 * k + 2] = f32::INFINITY;
            let mut c = vec![f32::NAN; m * n];
            let (a, b) = (MatRef::new(&a, k), MatRef::new(&b, n));
            gemm(&pool, m, n, k, 1.0, a, b, &mut c, n, 0.0);
            for (i, row) in c.chunks(n).enumerate() {
                let nan = i == 1 || i == 2;
                assert!(row.iter().all(|c| c.is_nan() == nan), "{} row {i}", pool.isa());
            }
        }
    }
}

#[test]
fn batches_are_single_products() {
    for pool in pools() {
        for batch in [1, 3, 9] {
            let (m, n, k) = (20, 24, 16);
            // Heads side by side in the left operand and the output, apart in the right one.
            let (a, b) = (noise(m * k * batch, 1), noise(batch * k * n, 2));
            let strides = BatchStrides { a: k, b: k * n, c: n };
            let left = MatRef::new(&a, k * batch);
            let right = MatRef::new(&b, n);
            let mut c = vec![0.0; m * n * batch];
            let ldc = n * batch;
            gemm_batched(&pool, batch, m, n, k, 1.0, left, right, &mut c, ldc, 0.0, strides);
            for index in 0..batch {
                let mut one = vec![0.0; m * n];
                let left = MatRef { data: &a[index * k..], ..left };
                let right = MatRef { data: &b[index * k * n..], ..right };
                gemm(&pool, m, n, k, 1.0, left, right, &mut one, n, 0.0);
                for (i, row) in one.chunks(n).enumerate() {
                    assert_eq!(row, &c[i * ldc + index * n..][..n]);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "outputs of the batch overlap")]
fn overlapping_outputs_are_refused() {
    let data = [0.0; 64];
    let matrix = MatRef::new(&data, 4);
    let strides = BatchStrides { a: 0, b: 0, c: 8 };
    gemm_batched(&Pool::new(1), 2, 4, 4, 4, 1.0, matrix, matrix, &mut [0.0; 64], 4, 0.0, strides);
}

#[test]
#[should_panic(expected = "operand is shorter")]
fn short_operands_are_refused() {
    let data = [0.0; 15];
    let matrix = MatRef::new(&data, 4);
    gemm(&Pool::new(1), 4, 4, 4, 1.0, matrix, matrix, &mut [0.0; 16], 4, 0.0);
}
